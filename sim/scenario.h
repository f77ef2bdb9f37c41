#pragma once
// What is simulated, as data. A seed draws the rest: the load, the block sizes, every delay.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "sim/device.h"
#include "sim/fabric.h"
#include "sim/network.h"
#include "wire/worker_api.h"

namespace baton::sim {

struct WorkerGroup {
  int count = 0;
  wire::Role role = wire::Role::kBoth;
  std::int32_t pool_tokens = 16384;
  std::vector<int> block_tokens = {16};  // one of these
  std::int32_t max_num_seqs = 32, max_num_batched_tokens = 256;
  DeviceModel device = {};
};

// Shares are per cent of the requests.
struct Load {
  int requests = 100;
  Duration gap = std::chrono::milliseconds(50);  // between arrivals, on average
  int burst = 1;                                 // so many arrive together
  int prompt_min = 1, prompt_max = 300;
  int output_min = 1, output_max = 48;
  int families = 6, shared_prompts = 50;  // prompts that begin with their family's prefix
  int sampled = 50;                       // the others are greedy
  int several_choices = 10;               // n of 2 to 4
  int logprobs = 15, prompt_logprobs = 5;
  int cancelled = 0, choice_finished = 0;  // by the client, at some time or token
  Duration timeout = std::chrono::minutes(10);
  int short_timeouts = 0;  // of at most 2 s
};

// Something that goes wrong. `at` is counted from the start of the load; hosts are "gateway", "p0", "d1", "w0".
struct Fault {
  enum class Kind : std::uint8_t { kCut, kMend, kStall, kRelease, kThrottle, kFreeze, kThaw, kKill, kRestart } kind;
  Duration at{};
  std::string host, to = {};      // the path from host to `to`, or the process
  std::int64_t bytes_per_ms = 0;  // kThrottle
};

struct Scenario {
  std::string name, about;
  std::vector<WorkerGroup> workers;
  Load load;
  NetworkModel network = {};
  FabricModel fabric = {};
  std::vector<Fault> faults = {};
  Duration limit = std::chrono::minutes(2);    // from the last arrival to the last outcome, in virtual time
  Duration settle = std::chrono::seconds(10);  // from there to quiescence
  bool no_retries = true;                      // nothing fails here, so nothing may be tried twice
  // What a run of it must have met for it to be worth something; summed over seeds by the tests.
  bool expects_preemption = false, expects_queue = false, expects_cancel = false, expects_deadline = false, expects_resume = false;
};

std::span<const Scenario> scenarios();
const Scenario* find_scenario(std::string_view name);

}  // namespace baton::sim
