// A bundle of vit_edge in C++17: the answers of Predictor, and the proof. The preprocessing is the
// bundle's own graph, so that nothing is resized here.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace vit_edge {

using Json = nlohmann::json;
using Bytes = std::vector<uint8_t>;
using Answers = std::map<std::string, std::vector<float>>;
using Path = std::filesystem::path;

inline Bytes read(const Path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + ": cannot be read");
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

inline Json read_json(const Path& path) {
  const Bytes bytes = read(path);
  return Json::parse(bytes.begin(), bytes.end());
}

inline std::vector<float> read_floats(const Path& path) {  // little-endian, as this machine
  const Bytes bytes = read(path);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

struct Ranked {
  std::string label;
  double score;
};

class Bundle {
 public:
  explicit Bundle(const Path& folder, int threads = 0)
      : manifest(read_json(folder / "manifest.json")), labels(read_labels(folder / "labels.txt")) {
    if (!manifest["files"].contains("preprocess.onnx"))
      throw std::runtime_error(folder.string() +
                               ": no preprocess.onnx: export it with vit_edge 0.3 or newer");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);  // 0: one for each core
    preprocessing_ = Ort::Session(environment_, (folder / "preprocess.onnx").c_str(), options);
    model_ = Ort::Session(environment_, (folder / "model.onnx").c_str(), options);
  }

  // uint8[height, width, 3], RGB -> the model's input, a batch of 1
  Ort::Value pixels(const uint8_t* rgb, int64_t height, int64_t width) {
    const std::array<int64_t, 3> shape{height, width, 3};
    auto* data = const_cast<uint8_t*>(rgb);  // which is read only
    auto image = Ort::Value::CreateTensor<uint8_t>(
        memory_, data, static_cast<size_t>(3 * height * width), shape.data(), shape.size());
    const char* input = "image";
    const char* output = "pixels";
    return std::move(preprocessing_.Run(Ort::RunOptions{}, &input, &image, 1, &output, 1)[0]);
  }

  // the model's input -> every output of the bundle
  Answers answer(const Ort::Value& pixels) {
    const auto input = manifest["input"]["name"].get<std::string>();
    std::vector<std::string> names;
    std::vector<const char*> outputs;
    for (const auto& tensor : manifest["outputs"]) names.push_back(tensor["name"]);
    for (const auto& name : names) outputs.push_back(name.c_str());
    const char* input_name = input.c_str();
    const auto values = model_.Run(Ort::RunOptions{}, &input_name, &pixels, 1, outputs.data(),
                                   outputs.size());
    Answers answers;
    for (size_t n = 0; n < names.size(); ++n) {
      const auto* first = values[n].GetTensorData<float>();
      answers[names[n]] = {first, first + values[n].GetTensorTypeAndShapeInfo().GetElementCount()};
    }
    return answers;
  }

  // the best classes, as `vit-edge predict` prints them
  std::vector<Ranked> classify(const uint8_t* rgb, int64_t height, int64_t width, size_t top_k = 5) {
    const auto answers = answer(pixels(rgb, height, width));
    if (answers.count("logits") == 0)
      throw std::runtime_error("the bundle has no classes: it embeds images");
    const auto scores = scores_of(answers.at("logits"));
    std::vector<size_t> order(scores.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    std::vector<Ranked> best;
    for (size_t n = 0; n < std::min(top_k, order.size()); ++n)
      best.push_back({labels.at(order[n]), scores[order[n]]});
    return best;
  }

  // for the proof: the model's input as `vit-edge probes` wrote it
  Ort::Value stored_pixels(Bytes& bytes, const Json& input) {
    const auto shape = input["shape"].get<std::vector<int64_t>>();
    const bool is_uint8 = input["dtype"] == "uint8";
    const auto type = is_uint8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                               : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    return Ort::Value::CreateTensor(memory_, bytes.data(), bytes.size(), shape.data(),
                                    shape.size(), type);
  }

  const Json manifest;
  const std::vector<std::string> labels;

 private:
  static std::vector<std::string> read_labels(const Path& path) {
    std::ifstream file(path);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }

  std::vector<double> scores_of(const std::vector<float>& logits) const {
    std::vector<double> scores(logits.begin(), logits.end());
    if (manifest["scores"] == "none") return scores;
    if (manifest["scores"] == "sigmoid") {
      for (double& value : scores) value = 1 / (1 + std::exp(-value));
      return scores;
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    for (double& value : scores) value = std::exp(value - largest);
    const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
    for (double& value : scores) value /= sum;
    return scores;
  }

  Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "vit_edge"};
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Session preprocessing_{nullptr};
  Ort::Session model_{nullptr};
};

// What was found of one probe, or of one output.
struct Row {
  std::string what, name;
  double found, allowed;
  bool holds;
};

struct Proof {
  std::vector<Row> rows;
  bool holds() const {
    return !rows.empty() && std::all_of(rows.begin(), rows.end(), [](auto& r) { return r.holds; });
  }
  std::string text() const {
    std::ostringstream text;
    for (const auto& row : rows)
      text << (row.holds ? "ok    " : "FAIL  ") << std::left << std::setw(13) << row.what
           << std::setw(27) << row.name << std::setprecision(3) << row.found << '\n';
    text << (holds() ? "holds\n" : "DOES NOT HOLD\n");
    return text.str();
  }
};

// The largest difference; NaN, which is within nothing, where one value is.
template <typename T>
double furthest(const Ort::Value& tensor, const Bytes& expected) {
  const size_t count = tensor.GetTensorTypeAndShapeInfo().GetElementCount();
  if (count * sizeof(T) != expected.size()) return std::numeric_limits<double>::infinity();
  std::vector<T> values(count);
  std::memcpy(values.data(), expected.data(), expected.size());
  double largest = 0;
  for (size_t i = 0; i < count; ++i) {
    const double apart = std::abs(double(tensor.GetTensorData<T>()[i]) - double(values[i]));
    if (std::isnan(apart)) return apart;
    largest = std::max(largest, apart);
  }
  return largest;
}

// Signal over noise of what varies from image to image, as vit_edge.parity.statistics has it.
inline double centred_decibels(const std::vector<std::vector<float>>& found,
                               const std::vector<std::vector<float>>& expected) {
  double signal = 0, noise = 0;
  for (size_t c = 0; c < expected.at(0).size(); ++c) {
    double mean = 0;
    for (const auto& row : expected) mean += row.at(c) / double(expected.size());
    for (size_t n = 0; n < expected.size(); ++n) {
      signal += std::pow(expected[n][c] - mean, 2);
      noise += std::pow(double(found.at(n).at(c)) - expected[n][c], 2);
    }
  }
  return noise == 0 ? 300 : 10 * std::log10(signal / noise);
}

// Hold this machine against the files that `vit-edge probes BUNDLE --out DIR` wrote.
inline Proof prove(Bundle& bundle, const Path& folder) {
  const Json index = read_json(folder / "probes.json");
  if (index["schema_version"] != 1) throw std::runtime_error("probes.json is of another version");
  const bool is_uint8 = index["input"]["dtype"] == "uint8";
  const auto file = [&](const Json& name) { return folder / name.get<std::string>(); };
  Proof proof;
  for (const auto& probe : index["preprocessing"]) {
    const Bytes rgb = read(file(probe["rgb"])), expected = read(file(probe["pixels"]));
    const auto made = bundle.pixels(rgb.data(), probe["height"], probe["width"]);
    const double found =
        is_uint8 ? furthest<uint8_t>(made, expected) : furthest<float>(made, expected);
    const double allowed = probe["tolerance"];
    proof.rows.push_back({"pixels", probe["name"], found, allowed, found <= allowed});
  }
  std::vector<Answers> answers;
  for (const auto& golden : index["answers"]) {
    Bytes pixels = read(file(golden["pixels"]));
    answers.push_back(bundle.answer(bundle.stored_pixels(pixels, index["input"])));
  }
  for (const auto& output : index["outputs"]) {
    const std::string name = output["name"];
    std::vector<std::vector<float>> found, expected;
    for (size_t n = 0; n < answers.size(); ++n) {
      found.push_back(answers[n].at(name));
      expected.push_back(read_floats(file(index["answers"][n]["outputs"][name])));
    }
    const double decibels = centred_decibels(found, expected);
    const double allowed = output["least_sqnr_centred_db"];
    proof.rows.push_back({"answers, dB", name, decibels, allowed, decibels >= allowed});
  }
  return proof;
}

}  // namespace vit_edge
