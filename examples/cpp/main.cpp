// vit_edge_example classify BUNDLE IMAGE      the five best classes
// vit_edge_example prove BUNDLE PROBES        exit code 4 where the answers do not hold here
// vit_edge_example pixels BUNDLE IMAGE OUT    the model's input, as raw bytes
#define STB_IMAGE_IMPLEMENTATION
#include <cstdio>
#include <iostream>

#include "stb_image.h"
#include "vit_edge.hpp"

#ifdef HAVE_JPEG
#include "jpeg.hpp"
#endif

// Decode an opaque image as it is stored: without EXIF orientation and transparency, which
// `vit_edge` applies in Python. Of libjpeg-turbo the pixels are Pillow's; stb's differ a little.
static vit_edge::Bytes decode(const char* path, int* height, int* width) {
#ifdef HAVE_JPEG
  vit_edge::Bytes rgb;
  if (decode_jpeg(path, &rgb, height, width)) return rgb;
#endif
  int channels = 0;
  stbi_uc* pixels = stbi_load(path, width, height, &channels, 3);
  if (pixels == nullptr) throw std::runtime_error(std::string(path) + ": " + stbi_failure_reason());
  vit_edge::Bytes image(pixels, pixels + size_t(*width) * size_t(*height) * 3);
  stbi_image_free(pixels);
  return image;
}

static int run(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  const bool known = (argc == 4 && (verb == "classify" || verb == "prove")) ||
                     (argc == 5 && verb == "pixels");
  if (!known) {
    std::cerr << "usage: " << argv[0] << " classify BUNDLE IMAGE | prove BUNDLE PROBES | "
              << "pixels BUNDLE IMAGE OUT\n";
    return 2;
  }
  vit_edge::Bundle bundle(argv[2]);
  if (verb == "prove") {
    const auto proof = vit_edge::prove(bundle, argv[3]);
    std::cout << proof.text();
    return proof.holds() ? 0 : 4;
  }
  int height = 0, width = 0;
  const auto rgb = decode(argv[3], &height, &width);
  if (verb == "classify") {
    for (const auto& [label, score] : bundle.classify(rgb.data(), height, width))
      std::printf("%6.2f %%  %s\n", 100 * score, label.c_str());
    return 0;
  }
  const auto pixels = bundle.pixels(rgb.data(), height, width);
  const auto count = pixels.GetTensorTypeAndShapeInfo().GetElementCount();
  const size_t size = bundle.manifest["input"]["dtype"] == "uint8" ? 1 : sizeof(float);
  std::ofstream(argv[4], std::ios::binary)
      .write(static_cast<const char*>(pixels.GetTensorRawData()), std::streamsize(count * size));
  return 0;
}

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 3;
  }
}
