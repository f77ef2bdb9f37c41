#pragma once
// Runs steps on real devices: one rank, or the ranks of a tensor-parallel group. Each rank has a thread, which owns its device's context
// and forwards its decoder; the first one samples. A step of more tokens than the decoder takes at once is computed in parts, whose layers
// are told of with the last one. In steady state nothing is allocated but the closures that carry notices to the loop.
//
// On several hosts each has an executor. That of node 0 takes plans and sends each part of a step to the others, which follow: they have no
// plans of their own, and compute what comes until node 0 stops. While nothing runs it sends a sign of life each second.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/team.h"
#include "device/device.h"
#include "engine/device_step.h"
#include "engine/sampler.h"
#include "engine/step.h"
#include "model/decoder.h"
#include "net/event_loop.h"

namespace baton::engine {

// Devices with a decoder on each: one, or one a rank. Several executors may compute with one, each in its own contexts and pools, if it has
// one rank: ranks meet in the collectives of one executor.
struct LoadedModel {
  struct Rank {
    std::unique_ptr<device::Device> device;
    std::unique_ptr<model::Decoder> decoder;
  };
  std::vector<Rank> ranks;                   // of this host; at least one
  std::shared_ptr<device::NodeGroup> nodes;  // all hosts; null: this one is alone
  model::DecoderOptions options;

  bool leads() const { return !nodes || nodes->node() == 0; }

  const model::ModelConfig& config() const { return ranks[0].decoder->config(); }
  const device::DeviceInfo& device() const { return ranks[0].device->info(); }
  std::size_t weight_bytes() const;  // of this host's ranks
};
// One device a rank; `options.rank` and `ranks` are set here. `collective_deadline`: after which a rank that does not come is lost, and the
// instance with it. `nodes`: the hosts of the instance, if it has several, each with as many devices.
inline constexpr Duration kCollectiveDeadline = std::chrono::seconds(10);
Result<std::shared_ptr<LoadedModel>> load_model(std::span<const device::DeviceOptions> devices, const model::ModelFiles& files,
                                                model::DecoderOptions options, Duration collective_deadline = kCollectiveDeadline,
                                                std::shared_ptr<device::NodeGroup> nodes = nullptr);

struct DeviceExecutorOptions {
  device::DType kv_dtype = device::DType::kBF16;
  int kv_block_tokens = 0;     // 0: the device's own
  std::size_t kv_bytes = 0;    // budget of the KV pools, of all ranks together
  std::int32_t kv_blocks = 0;  // instead of a budget
  std::int32_t max_num_seqs = 64;
  Duration step_deadline = std::chrono::seconds(120);  // a step that takes longer has lost the device
  // On several hosts: called on the loop, at most once, when this executor will compute no more though nobody's step tells it. On node 0:
  // another host was lost while nothing ran. On another node: ok if node 0 stopped, else why it ended.
  std::function<void(Status)> on_end;
};

class DeviceExecutor final : public StepExecutor {
 public:
  // kInvalidArgument names the least budget that would do; kResourceExhausted: the memory is not there. On several hosts all must create
  // theirs at about the same time, and get as many blocks as the one that has least room.
  static Result<std::unique_ptr<DeviceExecutor>> create(net::Executor& loop, std::shared_ptr<LoadedModel> model,
                                                        const DeviceExecutorOptions& options);
  ~DeviceExecutor() override;

  // Neither is called where another host leads.
  void start(Callbacks callbacks) override;
  void submit(const StepPlan& plan) override;

  // For the hand-off: each rank's on this host, which hold the same blocks of different heads.
  int ranks() const { return static_cast<int>(pools_.size()); }
  device::KvPool& pool(int rank) { return *pools_[static_cast<std::size_t>(rank)]; }
  std::int32_t kv_blocks() const { return pools_[0]->view().spec.blocks; }
  int kv_block_tokens() const { return pools_[0]->view().spec.block_tokens; }
  std::size_t kv_bytes() const;  // of this host's ranks
  // How long the present part of a step has been running; any thread. A rank that hangs where nobody waits for it shows only here.
  Duration part_running() const;
  const LoadedModel& model() const { return *model_; }
  std::string numerics_id() const;

 private:
  // What the loop's thread reads of this. It outlives the executor in notices that are still posted.
  struct Mailbox {
    Callbacks callbacks;
    StepResult result;
  };
  using Pools = std::vector<std::unique_ptr<device::KvPool>>;
  DeviceExecutor(net::Executor& loop, std::shared_ptr<LoadedModel> model, Pools pools, const DeviceExecutorOptions& options);
  void run();
  Status make_contexts(Team& ranks);
  void execute(const StepPlan& plan);
  void lost(const Status& why);
  enum class Word : std::int32_t { kAlive, kStep, kStop };  // what a message to other hosts begins with
  void lead();
  Status tell_nodes(Word word);
  Status follow();
  bool stopping();
  void end(const Status& status);
  bool next_part(const StepPlan& plan);
  Status compute(bool report_layers, const float** logits);
  Status compute_rank(std::size_t rank, bool report_layers, const float** logits);
  void sample(const float* logits);
  static void on_layer(void* self, std::uint64_t layer);

  // Constant.
  net::Executor& loop_;
  const std::shared_ptr<LoadedModel> model_;
  const Pools pools_;
  const DeviceExecutorOptions options_;
  const DeviceStepLimits limits_;
  const std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();

  // Owned by the executor's thread, which is the first rank's; the others read them while a step runs.
  std::vector<std::unique_ptr<device::Context>> contexts_;  // each belongs to its rank's thread
  std::vector<Status> statuses_;                            // by rank, of the step
  Team* ranks_ = nullptr;
  Sampler sampler_;
  DeviceStep device_step_;
  std::vector<std::int32_t> words_;  // to or from other hosts
  StepPlan part_;                    // of the step: as many tokens as the decoder takes at once
  std::size_t part_first_ = 0;       // the plan's row that its first row is, or is of
  std::size_t next_row_ = 0;         // of the plan: where the next part begins,
  std::int32_t next_token_ = 0;      // and at which token; 0: the row's first
  std::uint64_t step_ = 0;
  std::atomic<std::int64_t> part_began_us_{0};  // 0: none runs
  std::atomic<bool> lost_{false};               // the loop has been told that no step will follow
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
