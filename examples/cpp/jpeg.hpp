// A JPEG file -> RGB, with libjpeg-turbo, as Pillow decodes it.
#pragma once

#include <csetjmp>
#include <cstdio>
#include <vector>

#include <jpeglib.h>

struct JpegFailure {
  jpeg_error_mgr manager;
  std::jmp_buf place;
};

// Returns false where the file is no JPEG, or a damaged one.
inline bool decode_jpeg(const char* path, std::vector<uint8_t>* rgb, int* height, int* width) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) return false;
  jpeg_decompress_struct jpeg;
  JpegFailure failure;
  jpeg.err = jpeg_std_error(&failure.manager);
  failure.manager.error_exit = [](j_common_ptr info) {
    std::longjmp(reinterpret_cast<JpegFailure*>(info->err)->place, 1);
  };
  failure.manager.output_message = [](j_common_ptr) {};
  const bool failed = setjmp(failure.place) != 0;
  if (!failed) {
    jpeg_create_decompress(&jpeg);
    jpeg_stdio_src(&jpeg, file);
    jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = JCS_RGB;
    jpeg_start_decompress(&jpeg);
    *height = int(jpeg.output_height);
    *width = int(jpeg.output_width);
    rgb->resize(size_t(*height) * size_t(*width) * 3);
    while (jpeg.output_scanline < jpeg.output_height) {
      JSAMPROW row = rgb->data() + size_t(jpeg.output_scanline) * size_t(*width) * 3;
      jpeg_read_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_decompress(&jpeg);
  }
  jpeg_destroy_decompress(&jpeg);
  std::fclose(file);
  return !failed;
}
