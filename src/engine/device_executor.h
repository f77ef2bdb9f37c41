#pragma once
// Runs steps on a real device: one thread, which owns the device's context, forwards a decoder and samples. In steady state it allocates
// nothing but the closures that carry its notices to the loop.

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "device/device.h"
#include "engine/sampler.h"
#include "engine/step.h"
#include "model/decoder.h"
#include "net/event_loop.h"

namespace baton::engine {

// A device with a decoder on it. Several executors may compute with one, each in its own context and pool.
struct LoadedModel {
  std::unique_ptr<device::Device> device;
  std::unique_ptr<model::Decoder> decoder;
  model::DecoderOptions options;
};
Result<std::shared_ptr<LoadedModel>> load_model(const device::DeviceOptions& device, const model::ModelFiles& files,
                                                model::DecoderOptions options);

struct DeviceExecutorOptions {
  device::DType kv_dtype = device::DType::kBF16;
  int kv_block_tokens = 0;     // 0: the device's own
  std::size_t kv_bytes = 0;    // budget of the KV pool
  std::int32_t kv_blocks = 0;  // instead of a budget
  std::int32_t max_num_seqs = 64;
  Duration step_deadline = std::chrono::seconds(120);  // a step that takes longer has lost the device
};

class DeviceExecutor final : public StepExecutor {
 public:
  // kInvalidArgument names the least budget that would do; kResourceExhausted: the memory is not there.
  static Result<std::unique_ptr<DeviceExecutor>> create(net::Executor& loop, std::shared_ptr<LoadedModel> model,
                                                        const DeviceExecutorOptions& options);
  ~DeviceExecutor() override;

  void start(Callbacks callbacks) override;
  void submit(const StepPlan& plan) override;

  // For the hand-off, and for EngineOptions' kv_blocks and block_tokens.
  device::KvPool& pool() { return *pool_; }
  const device::KvSpec& kv_spec() const { return pool_->view().spec; }
  const LoadedModel& model() const { return *model_; }
  std::string numerics_id() const;

 private:
  // What the loop's thread reads of this. It outlives the executor in notices that are still posted.
  struct Mailbox {
    Callbacks callbacks;
    StepResult result;
  };
  DeviceExecutor(net::Executor& loop, std::shared_ptr<LoadedModel> model, std::unique_ptr<device::KvPool> pool,
                 const DeviceExecutorOptions& options);
  void run();
  void execute(const StepPlan& plan);
  Status compute(const StepPlan& plan, const float** logits);
  void fill(const StepPlan& plan);
  void fill_row(const StepRow& row);
  void sample(const StepPlan& plan, const float* logits);
  static void on_layer(void* self, std::uint64_t layer);

  // Constant.
  net::Executor& loop_;
  const std::shared_ptr<LoadedModel> model_;
  const std::unique_ptr<device::KvPool> pool_;
  const DeviceExecutorOptions options_;
  const std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();

  // Owned by the executor's thread.
  std::unique_ptr<device::Context> context_;
  Sampler sampler_;
  device::StepMeta meta_;
  std::vector<std::int32_t> token_ids_, positions_, slots_, q_start_, kv_len_, block_tables_, logit_rows_;
  std::vector<std::int32_t> first_logit_;  // by row of the plan: its first row of logits
  std::vector<device::Ops::BlockCopy> copies_;
  std::uint64_t step_ = 0;
  SystemClock clock_;

  std::mutex mutex_;  // guards the rest
  std::condition_variable wake_;
  const StepPlan* plan_ = nullptr;
  bool stop_ = false;
  bool ready_ = false;
  Status created_;
  std::thread thread_;  // last: it starts when all else is there
};

}  // namespace baton::engine
