#pragma once
// What is simulated, as data: the same scenario is the same run, event by event. Its seed draws what it does not say: each request, every
// delay, what a fault hits.
//
// It is built to be reduced. Faults undo themselves, so any part of the list of faults is a sound scenario; requests are drawn one by one
// from their number, so leaving some out changes no other.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
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
  std::vector<int> ranks = {1};          // one of these
  std::int32_t max_num_seqs = 32, max_num_batched_tokens = 256;
  DeviceModel device = {};
  bool operator==(const WorkerGroup&) const = default;
};

// Shares are per cent of the requests.
struct Load {
  int requests = 100;
  Duration gap = std::chrono::milliseconds(50);  // between arrivals, on average
  int burst = 1;                                 // so many arrive together
  int prompt_min = 1, prompt_max = 300;
  int output_min = 1, output_max = 48;
  int families = 6, shared_prompts = 50;   // prompts that begin with their family's prefix
  int sampled = 50;                        // the others are greedy
  int truncated = 25;                      // of the sampled ones: with top-p, top-k and min-p
  int penalties = 15, biased = 5;          // with repetition, presence and frequency penalties; with logit_bias
  int several_choices = 10;                // n of 2 to 4
  int logprobs = 15, prompt_logprobs = 5;  //
  int cancelled = 0, choice_finished = 0;  // by the client, at some time or token
  int slow_clients = 0;                    // that read slower than they are sent to; cut when too much is unread, as in production
  Duration timeout = std::chrono::minutes(10);
  int short_timeouts = 0;   // of at most 2 s
  int probes = 0;           // more requests, when everything is well again: these must complete
  std::vector<int> skip{};  // numbers of requests that are left out
  bool operator==(const Load&) const = default;
};

// Something that goes wrong at a time counted from the start of the load, and is right again after `lasts`. Processes are "gateway" and the
// workers by their names: role letter (p, d, w) and number.
struct Fault {
  enum class Kind : std::uint8_t {
    // the path from `host` to `to`, in this direction; "*" is everybody
    kCut,       // its streams break, amid any byte; what is sent is lost
    kStall,     // what is sent waits, from any byte on
    kThrottle,  // `value` bytes a millisecond
    // the process `host`
    kKill,       // as by kill -9; it starts again as another incarnation on the same address
    kDrain,      // as by SIGTERM, with a limit of `value` us; it starts again `lasts` after its exit. Workers only
    kFreeze,     // as by SIGSTOP and SIGCONT
    kClockJump,  // its clock jumps forward by `value` us
    kClockRate,  // its clock gains `value` us a second
    // the worker `host`
    kSqueeze,       // somebody else holds `value` per cent of its KV pool, as far as that is free
    kSlowDevice,    // its steps take `value` per cent more time
    kFetchLate,     // one in four of its KV fetches takes up to `value` us more
    kFetchLost,     // one in `value` of its KV fetches fails
    kFetchDamaged,  // one in `value` of its KV fetches brings a wrong bit
  } kind = Kind::kCut;
  static constexpr int kKinds = 13;
  Duration at{}, lasts{};
  std::string host, to = {};
  std::int64_t value = 0;
  bool operator==(const Fault&) const = default;
};
std::string_view to_string(Fault::Kind kind);

struct Scenario {
  std::string name = {}, about = {};
  std::uint64_t seed = 1;
  int layers = 0, kv_heads = 0;  // of the model; 0: drawn
  std::vector<WorkerGroup> workers = {};
  Load load = {};
  NetworkModel network = {};
  FabricModel fabric = {};
  std::vector<Fault> faults = {};
  bool sockets_inherited = false;              // connections to a dead process wait for the next one, as under `baton serve`
  Duration limit = std::chrono::minutes(2);    // from the last arrival or fault to the last outcome, in virtual time
  Duration settle = std::chrono::seconds(10);  // from there to quiescence
  bool no_retries = true;                      // nothing fails here, so nothing may be tried twice
  // What a run of it must have met for it to be worth something; summed over seeds by the tests.
  bool expects_preemption = false, expects_queue = false, expects_cancel = false, expects_deadline = false, expects_resume = false,
       expects_move = false;
  bool operator==(const Scenario&) const = default;
};

// The names of a scenario's workers, in the order in which the gateway knows them.
std::vector<std::string> worker_names(const Scenario& scenario);
// When everything is right again, counted from the start of the load.
Duration calm_at(const Scenario& scenario);

// --- scenarios with a name
std::span<const Scenario> scenarios();
const Scenario* find_scenario(std::string_view name);

// --- swarm: each seed draws its own cluster, model, load, and mix of faults
Scenario draw_swarm(std::uint64_t seed);

// --- as text, which is read back exactly: a line for the scenario, each group of workers, the load, the network, the fabric, each fault;
// fields as key=value, those with their default value left out, times in microseconds
std::string to_text(const Scenario& scenario);
// kInvalidArgument names the line and what is wrong with it.
Result<Scenario> scenario_from_text(std::string_view text);

}  // namespace baton::sim
