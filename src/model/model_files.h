#pragma once
// A model on disk, whatever its container: a GGUF file (or split set), or a Hugging Face folder. Opens by mapping; nothing is copied.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/types.h"
#include "model/config.h"

namespace baton::model {

// What the front end needs: text, never tensors.
struct TextFiles {
  std::string tokenizer_json;        // for text::Tokenizer::from_json
  std::string chat_template;         // Jinja; "" if the model has none
  std::string bos_token, eos_token;  // texts
  bool add_bos = false;              // what the file says; the tokenizer itself acts on it
};

class ModelFiles {
 public:
  // `path`: a .gguf file, a folder with config.json and safetensors, or a folder with one GGUF set. kNotFound / kInvalidArgument name the
  // file, the field, and what is supported.
  static Result<std::unique_ptr<ModelFiles>> open(const std::string& path);
  virtual ~ModelFiles() = default;
  virtual const std::string& path() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual const GenerationDefaults& generation_defaults() const = 0;
  virtual Result<TextFiles> text() const = 0;
  // A digest over config, tensor names, shapes, types and sampled contents (fast: not all bytes); workers pair only if it is equal.
  virtual std::string digest() const = 0;
  // "Q4_1", "BF16": the most common format among the linear layers.
  virtual device::WeightFormat dominant_format() const = 0;
  // All tensors of the model, as the file stores them.
  virtual std::int64_t weight_bytes() const = 0;

  // Tensors by canonical name: "embed", "head", "norm",
  // "layer.N.attn_norm|ffn_norm|q|k|v|o|gate|up|down|q_norm|k_norm|q.bias|k.bias|v.bias". Rows of Q and K are mapped to the half-split RoPE
  // order where the file stores them interleaved. kNotFound names the file's own tensor name.
  virtual Result<device::HostWeight> weight(const std::string& canonical) const = 0;
  // Same, as float values (norms, biases).
  virtual Result<std::vector<float>> vector(const std::string& canonical) const = 0;
};

}  // namespace baton::model
