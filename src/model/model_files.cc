#include "model/model_files.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "model/contents.h"

namespace baton::model {
namespace {

using device::HostWeight;
using device::WeightFormat;

// FNV-1a, 64 bits: enough to tell two models apart; not meant against an adversary.
class Fnv {
 public:
  void add(std::string_view bytes) {
    for (const char c : bytes) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  }
  void add(const std::byte* data, std::size_t bytes) { add({reinterpret_cast<const char*>(data), bytes}); }
  std::string hex() const {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash_));
    return text;
  }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325ull;
};

std::string describe(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

class Files final : public ModelFiles {
 public:
  explicit Files(Contents contents) : contents_(std::move(contents)) {}

  // Whether every tensor that the config calls for is there, in the right shape.
  Status check() const {
    BATON_RETURN_IF_ERROR(contents_.config.validate().with_context(contents_.path));
    for (const WantedTensor& w : wanted_tensors(contents_.config)) {
      BATON_ASSIGN_OR_RETURN(const StoredTensor* t, find(w.canonical));
      const std::string what = contents_.path + ": tensor \"" + stored_name(contents_.naming, w.canonical) + "\"";
      if (!t->unsupported.empty()) {
        return {Code::kInvalidArgument, what + " is of type " + t->unsupported + "; supported are F32, F16, BF16"};
      }
      const std::vector<std::int64_t> shape = w.cols == 0 ? std::vector{w.rows} : std::vector{w.rows, w.cols};
      if (t->shape != shape) {
        return {Code::kInvalidArgument, what + " has the shape " + describe(t->shape) + "; the config makes it " + describe(shape)};
      }
    }
    return {};
  }

  const std::string& path() const override { return contents_.path; }
  const ModelConfig& config() const override { return contents_.config; }
  const GenerationDefaults& generation_defaults() const override { return contents_.defaults; }

  Result<TextFiles> text() const override { return contents_.text(); }

  std::string digest() const override {
    Fnv hash;
    const ModelConfig& c = contents_.config;
    hash.add(c.architecture);
    for (const double f : {c.rope_theta, c.rope_attention_factor(), static_cast<double>(c.norm_eps)}) hash.add(std::to_string(f) + ";");
    for (const int n : {c.heads, c.kv_heads, c.head_dim}) hash.add(std::to_string(n) + ";");
    for (const double f : c.inverse_frequencies()) hash.add(reinterpret_cast<const std::byte*>(&f), sizeof f);
    for (const WantedTensor& w : wanted_tensors(c)) {
      const StoredTensor& t = *find(w.canonical).value();
      hash.add(w.canonical + describe(t.shape) + std::string(device::to_string(t.format)));
      // A few spots of each tensor: reading all bytes of a large model would take minutes.
      for (const std::size_t spot : {std::size_t{0}, t.bytes / 3, t.bytes / 3 * 2, t.bytes - std::min<std::size_t>(t.bytes, 64)}) {
        hash.add(t.data + spot, std::min<std::size_t>(64, t.bytes - spot));
      }
    }
    return hash.hex();
  }

  WeightFormat dominant_format() const override {
    std::map<WeightFormat, std::int64_t> weights;
    for (const WantedTensor& w : wanted_tensors(contents_.config)) {
      if (w.cols != 0 && w.canonical.starts_with("layer.")) weights[find(w.canonical).value()->format] += w.rows * w.cols;
    }
    return std::max_element(weights.begin(), weights.end(), [](const auto& a, const auto& b) { return a.second < b.second; })->first;
  }

  std::int64_t weight_bytes() const override {
    std::int64_t bytes = 0;
    for (const WantedTensor& w : wanted_tensors(contents_.config)) bytes += static_cast<std::int64_t>(find(w.canonical).value()->bytes);
    return bytes;
  }

  Result<HostWeight> weight(const std::string& canonical) const override {
    BATON_ASSIGN_OR_RETURN(const StoredTensor* t, find(canonical));
    if (t->shape.size() != 2) return {Code::kInvalidArgument, contents_.path + ": \"" + canonical + "\" is not a matrix"};
    HostWeight w;
    w.format = t->format;
    w.rows = t->shape[0];
    w.cols = t->shape[1];
    w.data = t->data;
    w.keep_alive = t->keep_alive;
    w.row_map = row_order(canonical);
    return w;
  }

  Result<std::vector<float>> vector(const std::string& canonical) const override {
    BATON_ASSIGN_OR_RETURN(const StoredTensor* t, find(canonical));
    if (t->shape.size() != 1) return {Code::kInvalidArgument, contents_.path + ": \"" + canonical + "\" is not a vector"};
    std::vector<float> stored(static_cast<std::size_t>(t->shape[0]));
    device::dequantize(t->format, t->data, t->shape[0], stored.data());
    const std::vector<std::int32_t> order = row_order(canonical);
    if (order.empty()) return stored;
    std::vector<float> values(stored.size());
    for (std::size_t i = 0; i < order.size(); ++i) values[i] = stored[static_cast<std::size_t>(order[i])];
    return values;
  }

 private:
  Result<const StoredTensor*> find(const std::string& canonical) const {
    const bool tied_head = canonical == "head" && contents_.config.tied_embeddings;
    const std::string name = stored_name(contents_.naming, tied_head ? "embed" : canonical);
    if (name.empty()) return {Code::kNotFound, contents_.path + ": no model has a tensor \"" + canonical + "\""};
    const auto it = contents_.tensors.find(name);
    if (it == contents_.tensors.end()) return {Code::kNotFound, contents_.path + ": tensor \"" + name + "\" is missing"};
    return &it->second;
  }

  // Which stored row becomes which: GGUF keeps each head's rows of Llama's Q and K as pairs (0, D/2), (1, D/2 + 1), ...
  std::vector<std::int32_t> row_order(const std::string& canonical) const {
    const bool q = canonical.ends_with(".q") || canonical.ends_with(".q.bias");
    const bool k = canonical.ends_with(".k") || canonical.ends_with(".k.bias");
    if (!contents_.interleaved_rope || !(q || k)) return {};
    const ModelConfig& c = contents_.config;
    const int heads = q ? c.heads : c.kv_heads, half = c.head_dim / 2;
    std::vector<std::int32_t> order;
    order.reserve(static_cast<std::size_t>(heads) * static_cast<std::size_t>(c.head_dim));
    for (int head = 0; head < heads; ++head) {
      for (int part = 0; part < 2; ++part) {
        for (int i = 0; i < half; ++i) order.push_back(head * c.head_dim + 2 * i + part);
      }
    }
    return order;
  }

  Contents contents_;
};

// The one GGUF file, or first of a split set, in a folder.
Result<std::string> gguf_in_folder(const std::string& folder) {
  std::vector<std::string> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    const bool later_part = name.find("-of-") != std::string::npos && name.find("-00001-of-") == std::string::npos;
    if (name.ends_with(".gguf") && !later_part) found.push_back(name);
  }
  std::sort(found.begin(), found.end());
  if (found.empty()) return {Code::kNotFound, folder + ": neither config.json nor a .gguf file is there"};
  if (found.size() == 1) return folder + "/" + found[0];
  std::string names;
  for (const std::string& name : found) names += (names.empty() ? "" : ", ") + name;
  return {Code::kInvalidArgument, folder + ": several models (" + names + "); name one of them"};
}

Result<Contents> read_contents(const std::string& path) {
  if (!std::filesystem::exists(path)) return {Code::kNotFound, path + ": no such file or folder"};
  if (!std::filesystem::is_directory(path)) return read_gguf_model(path);
  if (std::filesystem::exists(path + "/config.json")) return read_huggingface_model(path);
  BATON_ASSIGN_OR_RETURN(const std::string file, gguf_in_folder(path));
  return read_gguf_model(file);
}

}  // namespace

Result<std::unique_ptr<ModelFiles>> ModelFiles::open(const std::string& path) {
  BATON_ASSIGN_OR_RETURN(Contents contents, read_contents(path));
  auto files = std::make_unique<Files>(std::move(contents));
  BATON_RETURN_IF_ERROR(files->check());
  return std::unique_ptr<ModelFiles>(std::move(files));
}

}  // namespace baton::model
