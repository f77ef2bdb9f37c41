#include "sim/scenario.h"

#include <algorithm>

namespace baton::sim {
namespace {

using std::chrono::milliseconds;
using wire::Role;

// Many streams run at any moment. Prompt log-probabilities are left out: they are lost with their worker, which is an error.
void busy(Load& load) {
  load.requests = 200;
  load.gap = milliseconds(22);
  load.output_min = 20;
  load.output_max = 100;
  load.several_choices = 20;
  load.prompt_logprobs = 0;
}

std::vector<Scenario> make() {
  std::vector<Scenario> all;
  const auto add = [&](const char* name, const char* about) -> Scenario& {
    Scenario s;
    s.name = name;
    s.about = about;
    s.workers = {{.count = 2, .role = Role::kPrefill, .block_tokens = {8, 16, 32}, .ranks = {1, 2, 3, 4}},
                 {.count = 2, .role = Role::kDecode, .block_tokens = {8, 16, 32}, .ranks = {1, 2, 3, 4}}};
    all.push_back(std::move(s));
    return all.back();
  };

  add("steady", "2P + 2D well below their limits: every request completes");
  {
    Scenario& s = add("aggregated", "two workers of both roles, no hand-off");
    s.workers = {{.count = 2, .role = Role::kBoth, .block_tokens = {8, 16, 32}}};
  }
  {
    Scenario& s = add("burst", "groups of 50 requests at once on 1P + 2D with little KV: they wait at the gateway for room");
    s.workers = {{.count = 1, .role = Role::kPrefill, .block_tokens = {16}},
                 {.count = 2, .role = Role::kDecode, .pool_tokens = 4096, .block_tokens = {16, 32}, .max_num_seqs = 16}};
    s.load.requests = 150;
    s.load.burst = 50;
    s.expects_queue = true;
  }
  {
    Scenario& s =
        add("slow-decode",
            "decode ten times slower than usual, long outputs: requests wait for room at the gateway, and nothing waits prefilled");
    s.workers = {{.count = 2, .role = Role::kPrefill, .block_tokens = {16, 32}},
                 {.count = 1,
                  .role = Role::kDecode,
                  .pool_tokens = 6144,
                  .block_tokens = {8, 16},
                  .device = {.step = 20'000'000, .decode_row = 3'000'000}}};
    s.load.output_min = 40;
    s.load.output_max = 150;
    s.load.gap = milliseconds(150);
    s.load.requests = 60;
    s.expects_queue = true;
  }
  {
    Scenario& s =
        add("preemption", "an aggregated worker whose pool holds a fraction of what runs: sequences are preempted and recomputed");
    s.workers = {{.count = 1, .role = Role::kBoth, .pool_tokens = 1024, .block_tokens = {8, 16}}};
    s.load.requests = 60;
    s.load.gap = milliseconds(20);
    s.load.output_max = 150;
    s.expects_preemption = true;
  }
  {
    Scenario& s = add("cancelled", "most clients leave, at any time or token, or end single choices early");
    s.load.cancelled = 60;
    s.load.choice_finished = 25;
    s.load.several_choices = 30;
    s.load.gap = milliseconds(15);
    s.expects_cancel = true;
  }
  {
    Scenario& s =
        add("deadlines", "short time-outs on slow workers: a request ends at its deadline, never before, and holds nothing afterwards");
    s.workers = {{.count = 1, .role = Role::kPrefill, .block_tokens = {16}, .device = {.prefill_token = 400'000}},
                 {.count = 1, .role = Role::kDecode, .block_tokens = {16}, .device = {.step = 10'000'000}}};
    s.load.short_timeouts = 60;
    s.expects_deadline = true;
    s.no_retries = false;  // a worker's deadline may come first
  }
  {
    Scenario& s = add("stress", "too much of everything: bursts on small pools, clients that leave, deadlines, several choices");
    s.workers = {{.count = 2, .role = Role::kPrefill, .pool_tokens = 2048, .block_tokens = {8, 16, 32}},
                 {.count = 2, .role = Role::kDecode, .pool_tokens = 2048, .block_tokens = {8, 16, 32}, .max_num_seqs = 12}};
    s.load.requests = 150;
    s.load.burst = 25;
    s.load.gap = milliseconds(15);
    s.load.output_max = 100;
    s.load.cancelled = 35;
    s.load.choice_finished = 20;
    s.load.several_choices = 25;
    s.load.prompt_logprobs = 15;
    s.load.short_timeouts = 20;
    s.no_retries = false;
    s.expects_queue = s.expects_cancel = s.expects_deadline = true;
  }
  {
    Scenario& s = add("slow-network", "10 ms away, 1 MB/s, every message in pieces");
    s.network = {.latency = milliseconds(10), .jitter = milliseconds(8), .bytes_per_ms = 1000, .split_one_in = 1};
    s.fabric = {.job = milliseconds(2), .bytes_per_ms = 2000};
    s.load.gap = milliseconds(100);
  }
  {
    Scenario& s = add("workers-die", "a prefill and a decode worker are killed and come back as others: streams go on elsewhere");
    s.faults = {{.kind = Fault::Kind::kKill, .at = milliseconds(800), .lasts = milliseconds(700), .host = "p1"},
                {.kind = Fault::Kind::kKill, .at = milliseconds(2200), .lasts = milliseconds(800), .host = "d1"},
                {.kind = Fault::Kind::kKill, .at = milliseconds(3700), .host = "d0"}};
    busy(s.load);
    s.no_retries = false;
    s.expects_resume = true;
  }
  {
    Scenario& s = add("rolling-restart", "every worker is asked to end in turn, as by SIGTERM, and comes back: no stream is lost");
    Duration at = milliseconds(500);
    for (const char* name : {"p1", "d1", "p0", "d0"}) {
      s.faults.push_back({.kind = Fault::Kind::kDrain, .at = at, .lasts = milliseconds(300), .host = name, .value = 20'000'000});
      at += milliseconds(1200);
    }
    busy(s.load);
    s.no_retries = false;
    s.expects_move = true;
  }
  {
    Scenario& s = add("bad-network", "hand-off links and legs are cut, stalled and throttled for a while");
    s.faults = {{.kind = Fault::Kind::kCut, .at = milliseconds(500), .lasts = milliseconds(400), .host = "p0", .to = "d0"},
                {.kind = Fault::Kind::kStall, .at = milliseconds(1200), .lasts = milliseconds(600), .host = "d1", .to = "p1"},
                {.kind = Fault::Kind::kCut, .at = milliseconds(2200), .lasts = milliseconds(400), .host = "d0", .to = "gateway"},
                {.kind = Fault::Kind::kStall, .at = milliseconds(3000), .lasts = milliseconds(400), .host = "gateway", .to = "p0"},
                {.kind = Fault::Kind::kThrottle,
                 .at = milliseconds(3600),
                 .lasts = std::chrono::seconds(20),
                 .host = "p1",
                 .to = "d1",
                 .value = 20}};
    s.fabric.damaged_one_in = 200;
    busy(s.load);
    s.no_retries = false;
    s.expects_resume = true;
  }
  return all;
}

}  // namespace

std::span<const Scenario> scenarios() {
  static const std::vector<Scenario> all = make();
  return all;
}

std::vector<std::string> worker_names(const Scenario& scenario) {
  std::vector<std::string> names;
  int count[3] = {};
  for (const WorkerGroup& group : scenario.workers) {
    for (int i = 0; i < group.count; ++i) {
      const char letter = group.role == Role::kPrefill ? 'p' : group.role == Role::kDecode ? 'd' : 'w';
      names.push_back(letter + std::to_string(count[static_cast<int>(group.role)]++));
    }
  }
  return names;
}

Duration calm_at(const Scenario& scenario) {
  Duration calm{};
  for (const Fault& f : scenario.faults) {
    const Duration drains = f.kind == Fault::Kind::kDrain ? Duration(f.value) : Duration(0);
    calm = std::max(calm, f.at + drains + f.lasts);
  }
  return calm;
}

const Scenario* find_scenario(std::string_view name) {
  const auto all = scenarios();
  const auto found = std::find_if(all.begin(), all.end(), [&](const Scenario& s) { return s.name == name; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace baton::sim
