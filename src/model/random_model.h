#pragma once
// For tests: small models with random weights, as files. The same numbers as tools/make_model.py makes, so that the numpy reference can
// compute goldens for them. No tokenizer.

#include <cstdint>
#include <string>
#include <vector>

#include "device/types.h"
#include "model/config.h"

namespace baton::model::testing {

struct RandomModel {
  std::string family = "llama";  // llama, qwen2, qwen3
  int layers = 2, hidden = 64, ffn = 96, heads = 4, kv_heads = 2, head_dim = 16;
  std::int32_t vocab = 96;
  std::int64_t context = 512;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;  // kNone, kLinear or kLlama3
  bool tied = false;
  std::uint64_t seed = 0;
  device::WeightFormat format = device::WeightFormat::kF32;  // of matrices: kF32, kBF16; in a GGUF also kQ8_0
};

// `path` ends in .gguf.
void write_gguf_model(const RandomModel& model, const std::string& path);
// `folder` is made; with `shards` > 1 there is an index file.
void write_huggingface_model(const RandomModel& model, const std::string& folder, int shards = 1);

// `count` numbers in [-1, 1) that depend on seed and name alone.
std::vector<float> random_values(std::uint64_t seed, const std::string& name, std::int64_t count);

}  // namespace baton::model::testing
