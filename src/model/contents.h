#pragma once
// What a container (GGUF, Hugging Face folder) says about its model, in one form for both. Private to model/.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/types.h"
#include "model/config.h"
#include "model/gguf.h"
#include "model/model_files.h"

namespace baton::model {

enum class Naming { kGguf, kHuggingFace };

struct StoredTensor {
  device::WeightFormat format{};
  std::string unsupported;          // the type's name, if it is none of ours; the tensor then must not be needed
  std::vector<std::int64_t> shape;  // outermost first
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::shared_ptr<const void> keep_alive;
};

struct Contents {
  std::string path;
  Naming naming{};
  ModelConfig config;
  GenerationDefaults defaults;
  std::map<std::string, StoredTensor, std::less<>> tensors;  // by the file's own names
  bool interleaved_rope = false;                             // Q and K have their rows in GGUF's order for Llama
  std::function<Result<TextFiles>()> text;
};

Result<Contents> read_gguf_model(const std::string& path);
Result<Contents> read_huggingface_model(const std::string& folder);

// "layer.3.q.bias" -> "blk.3.attn_q.bias" or "model.layers.3.self_attn.q_proj.bias"; "" for a name that is not canonical.
std::string stored_name(Naming naming, const std::string& canonical);

// Every tensor that a model of this config must have; cols == 0 for vectors.
struct WantedTensor {
  std::string canonical;
  std::int64_t rows = 0, cols = 0;
};
std::vector<WantedTensor> wanted_tensors(const ModelConfig& config);

// The files' fields as a config; the caller validates.
Result<ModelConfig> config_from_gguf(const GgufFile& file);
Result<ModelConfig> config_from_json(const std::string& path, const std::string& json);
GenerationDefaults generation_from_gguf(const GgufFile& file);
// `generation_json` may be empty; end-of-sequence ids then come from config.json.
Result<GenerationDefaults> generation_from_json(const std::string& path, const std::string& generation_json, const std::string& config_path,
                                                const std::string& config_json);
Result<TextFiles> text_from_gguf(const GgufFile& file);
Result<TextFiles> text_from_folder(const std::string& folder);

}  // namespace baton::model
