#pragma once
// The forward pass of a Qwen2/Llama-family decoder over ops.h. Reads from top to bottom in decoder.cc; knows no device.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/device.h"
#include "model/config.h"
#include "model/model_files.h"
#include "model/shard_plan.h"

namespace baton::model {

struct DecoderOptions {
  device::ComputeType compute = device::ComputeType::kInt8;
  std::int64_t max_positions = 0;  // 0: the model's
  std::int32_t max_tokens = 512;   // of one step: sizes the arena
  std::int32_t max_logit_rows = 64;
  Rank rank{};    // of a tensor-parallel group: this decoder holds its shard,
  int ranks = 1;  // and computes together with those of the others, each on its own thread
  std::function<void(std::int64_t done_bytes, std::int64_t all_bytes)> on_progress;  // while loading; may be empty
};

// How a model is cut for `ranks` ranks. kInvalidArgument names the file and the degrees that work.
Result<ShardPlan> shard_plan(const ModelFiles& files, int ranks);

class Decoder {
 public:
  // Prepares its rank's weights on the device. Holds no reference to `files` afterwards, but for what HostWeight::keep_alive keeps mapped.
  static Result<std::unique_ptr<Decoder>> load(device::Device& device, const ModelFiles& files, const DecoderOptions& options);

  const ModelConfig& config() const { return config_; }  // of the whole model
  const Shard& shard() const { return shard_; }
  // Bytes of arena that forward() needs for the given options.
  std::size_t arena_bytes() const { return arena_bytes_; }
  // Bytes of weights that a decode step reads on this rank (all linears and the head).
  std::size_t weight_bytes() const;

  // Runs one step: meta.tokens() tokens through all layers, KV into `pool`. Calls `layer_done(user, layer)` through Context::notify once a
  // layer's K and V are in the pool (null: never); on rank 0 once they are in all ranks' pools. Returns logits [logit_rows, vocab] f32 as a
  // device tensor in the context's arena; on ranks other than 0 nothing of worth.
  Result<device::Tensor> forward(device::Context& context, const device::StepMeta& meta, device::KvPool& pool,
                                 void (*layer_done)(void* user, std::uint64_t layer), void* user) const;

 private:
  struct Layer;
  Decoder() = default;
  ModelConfig config_;
  Shard shard_;
  DecoderOptions options_;
  std::size_t arena_bytes_ = 0;
  std::unique_ptr<device::Embedding> embed_;
  std::unique_ptr<device::RopeTable> rope_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::unique_ptr<device::Buffer> norms_;  // all norm weights, f32
  device::Tensor final_norm_;
  std::unique_ptr<device::Linear> head_;
  device::DType activation_ = device::DType::kF32;

 public:
  ~Decoder();
};

}  // namespace baton::model
