// Each seed draws its own scenario. Swarm style: a scenario has only some of the features and some of the kinds of faults, since what is
// always on hides what only happens without it.

#include <algorithm>
#include <utility>

#include "base/rng.h"
#include "sim/scenario.h"

namespace baton::sim {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;
using wire::Role;
using Kind = Fault::Kind;

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : rng_(seed, 0x5A) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(rng_.below(static_cast<std::uint64_t>(high - low + 1)));
  }
  int number(int low, int high) { return static_cast<int>(between(low, high)); }
  bool one_in(std::uint64_t n) { return rng_.below(n) == 0; }
  // Each order of magnitude as likely as the next.
  std::int64_t log_between(std::int64_t low, std::int64_t high) {
    int doublings = 0;
    while (low << (doublings + 1) <= high) ++doublings;
    const std::int64_t base = low << rng_.below(static_cast<std::uint64_t>(doublings) + 1);
    return std::min(high, base + static_cast<std::int64_t>(rng_.below(static_cast<std::uint64_t>(base))));
  }
  template <class T>
  const T& of(const std::vector<T>& values) {
    return values[rng_.below(values.size())];
  }
  // A share in per cent: often none.
  int share(int most) { return one_in(2) ? 0 : number(1, most); }

 private:
  Rng rng_;
};

WorkerGroup draw_worker(Draw& draw, Role role, const DeviceModel& device, int size) {
  WorkerGroup g;
  g.count = 1;
  g.role = role;
  g.block_tokens = {draw.of<int>({8, 16, 16, 32, 64})};
  // Tiny pools hold hardly more than the longest request.
  const int blocks_of_longest = 512 / g.block_tokens[0] + 1;
  const int tokens = size == 0 ? draw.number(576, 1024) : size == 1 ? draw.number(1024, 3072) : draw.number(4096, 8192);
  g.pool_tokens = std::max(tokens / g.block_tokens[0], blocks_of_longest) * g.block_tokens[0];
  g.max_num_seqs = draw.one_in(3) ? draw.number(4, 8) : draw.number(12, 48);
  g.max_num_batched_tokens = draw.of<int>({32, 64, 128, 256, 512});
  g.device = device;
  if (draw.one_in(6)) {  // a slower one among them
    g.device.step *= 3;
    g.device.prefill_token *= 3;
    g.device.decode_row *= 3;
  }
  return g;
}

void draw_workers(Draw& draw, Scenario& s) {
  const DeviceModel device = {.step = draw.log_between(200'000, 4'000'000),
                              .prefill_token = draw.log_between(10'000, 160'000),
                              .decode_row = draw.log_between(30'000, 400'000),
                              .context_token = draw.log_between(50, 400)};
  const int size = draw.number(0, 2);
  const auto add = [&](Role role, int count) {
    const WorkerGroup first = draw_worker(draw, role, device, size);
    for (int i = 0; i < count; ++i) s.workers.push_back(draw.one_in(2) ? first : draw_worker(draw, role, device, size));
  };
  switch (draw.number(0, 9)) {
    case 0:  // aggregated
      return add(Role::kBoth, draw.number(1, 3));
    case 1:  // all roles
      add(Role::kPrefill, draw.number(1, 2));
      add(Role::kDecode, draw.number(1, 2));
      return add(Role::kBoth, 1);
    case 2:
      add(Role::kPrefill, draw.number(1, 2));
      return add(Role::kBoth, draw.number(1, 2));
    case 3:
      add(Role::kPrefill, 1);
      return add(Role::kDecode, 1);
    default:
      add(Role::kPrefill, draw.number(1, 3));
      return add(Role::kDecode, draw.number(1, 3));
  }
}

void draw_load(Draw& draw, Load& load) {
  load.requests = 100;
  load.gap = microseconds(draw.log_between(4'000, 60'000));
  load.burst = draw.one_in(3) ? draw.number(2, 30) : 1;
  load.prompt_max = draw.of<int>({20, 60, 150, 300});
  load.output_max = draw.of<int>({3, 15, 40, 80});
  load.families = draw.number(1, 8);
  load.shared_prompts = draw.number(0, 90);
  load.sampled = draw.number(0, 100);
  load.truncated = draw.share(60);
  load.penalties = draw.share(60);
  load.biased = draw.share(30);
  load.several_choices = draw.share(40);
  load.logprobs = draw.share(40);
  load.prompt_logprobs = draw.share(12);
  load.cancelled = draw.share(50);
  load.choice_finished = draw.share(30);
  load.slow_clients = draw.share(20);
  load.short_timeouts = draw.share(20);
  load.probes = 4;
}

Fault draw_fault(Draw& draw, Kind kind, const std::vector<std::string>& workers, Duration window) {
  Fault f;
  f.kind = kind;
  f.at = microseconds(draw.between(0, window.count()));
  f.lasts = microseconds(draw.log_between(1'000, 4'000'000));
  f.host = draw.of(workers);
  switch (kind) {
    case Kind::kCut:
    case Kind::kStall:
    case Kind::kThrottle: {
      std::vector<std::string> ends = workers;
      ends.push_back("gateway");
      f.host = draw.of(ends);
      std::erase(ends, f.host);
      f.to = draw.one_in(5) ? "*" : draw.of(ends);
      if (draw.one_in(2)) std::swap(f.host, f.to);
      if (kind == Kind::kThrottle) f.value = draw.log_between(2, 2'000);
      break;
    }
    case Kind::kKill:
      if (draw.one_in(6)) f.host = "gateway";
      break;
    case Kind::kFreeze:
      if (draw.one_in(6)) f.host = "gateway";
      break;
    case Kind::kDrain:
      f.value = draw.log_between(1'000, 4'000'000);
      break;
    case Kind::kClockJump:
      if (draw.one_in(4)) f.host = "gateway";
      f.value = draw.log_between(1'000, 4'000'000);
      f.lasts = Duration(0);
      break;
    case Kind::kClockRate:
      if (draw.one_in(4)) f.host = "gateway";
      f.value = draw.one_in(2) ? -draw.log_between(100, 100'000) : draw.log_between(100, 100'000);
      break;
    case Kind::kSqueeze:
      f.value = draw.number(30, 100);
      break;
    case Kind::kSlowDevice:
      f.value = draw.log_between(50, 2'000);
      break;
    case Kind::kFetchLate:
      f.value = draw.log_between(500, 500'000);
      break;
    case Kind::kFetchLost:
    case Kind::kFetchDamaged:
      f.value = draw.log_between(2, 64);
      break;
  }
  return f;
}

void draw_faults(Draw& draw, Scenario& s) {
  if (draw.one_in(12)) return;  // nothing fails here
  std::vector<Kind> kinds;
  for (int k = 0; k < Fault::kKinds; ++k) {
    if (draw.one_in(4)) kinds.push_back(static_cast<Kind>(k));
  }
  if (kinds.empty()) kinds.push_back(static_cast<Kind>(draw.number(0, Fault::kKinds - 1)));
  const Duration window = s.load.gap * s.load.requests + milliseconds(500);
  const std::vector<std::string> workers = worker_names(s);
  const int count = static_cast<int>(draw.log_between(1, 16));
  for (int i = 0; i < count; ++i) {
    Fault f = draw_fault(draw, draw.of(kinds), workers, window);
    s.faults.push_back(f);
    // Both ways at once, as where a cable is pulled.
    if (!f.to.empty() && draw.one_in(2)) {
      std::swap(f.host, f.to);
      s.faults.push_back(f);
    }
  }
  std::stable_sort(s.faults.begin(), s.faults.end(), [](const Fault& a, const Fault& b) { return a.at < b.at; });
}

// One thing that goes wrong with hand-offs between them: several faults, where only their coincidence meets a fence.
void draw_trouble(Draw& draw, const std::vector<std::string>& prefillers, const std::vector<std::string>& decoders, Duration at,
                  std::vector<Fault>& faults) {
  Fault f;
  f.at = at;
  f.lasts = microseconds(draw.log_between(1'000, 1'000'000));
  f.host = draw.of(prefillers);
  f.to = draw.of(decoders);
  switch (draw.number(0, 12)) {
    case 0:
    case 1: {  // what P says arrives late, and the gateway loses P meanwhile
      f.kind = Kind::kStall;
      f.lasts = milliseconds(draw.log_between(250, 2'000));
      for (const std::string& decoder : decoders) {
        f.to = decoder;
        faults.push_back(f);
      }
      f.kind = Kind::kCut;
      f.at += f.lasts - milliseconds(draw.log_between(16, 160));  // the next attempt is under way when it arrives
      f.lasts = milliseconds(1);
      f.to = "gateway";
      break;
    }
    case 2:
      f.kind = draw.one_in(3) ? Kind::kStall : Kind::kCut;
      break;
    case 3:
    case 4: {  // what D says is late, and its acks are lost in the end; the gateway hears of its commits even later
      std::swap(f.host, f.to);
      f.lasts = milliseconds(draw.log_between(10, 200));
      Fault cut = f;
      cut.at += f.lasts - milliseconds(2);
      cut.lasts = milliseconds(1);
      f.kind = Kind::kStall;
      for (const std::string& prefiller : prefillers) {
        f.to = cut.to = prefiller;
        faults.push_back(f);
        faults.push_back(cut);
      }
      f.to = "gateway";
      f.lasts += milliseconds(300);
      break;
    }
    case 5:
    case 6:  // D has lost the gateway, not P
      f.kind = Kind::kCut;
      f.host = std::exchange(f.to, "gateway");
      break;
    case 7:
      f.kind = Kind::kKill;
      f.host = std::exchange(f.to, "");
      break;
    case 9:
      f.kind = Kind::kDrain;
      f.host = std::exchange(f.to, "");
      f.value = draw.log_between(30'000, 2'000'000);
      break;
    case 8:  // whoever decodes: no claim helps
      f.kind = Kind::kFetchDamaged;
      f.value = draw.number(1, 2);
      f.lasts = milliseconds(draw.log_between(200, 1'500));
      f.to.clear();
      for (const std::string& decoder : decoders) {
        f.host = decoder;
        faults.push_back(f);
      }
      return;
    default:
      f.kind = draw.one_in(2) ? Kind::kFetchLost : Kind::kFetchDamaged;
      f.host = std::exchange(f.to, "");
      f.value = draw.log_between(2, 16);
  }
  faults.push_back(f);
}

// Some seeds are about hand-offs that go wrong: prompts that are long in coming over, to one of several decode workers that the gateway, or
// the prefill worker, keeps losing. So retained KV is claimed often, and attempts overlap.
void draw_handoff_trouble(Draw& draw, Scenario& s) {
  s.workers.clear();
  const DeviceModel device = {.step = draw.log_between(500'000, 4'000'000),
                              .prefill_token = draw.log_between(40'000, 160'000),
                              .decode_row = draw.log_between(30'000, 200'000),
                              .context_token = 100};
  for (int i = draw.number(2, 3); i > 0; --i) s.workers.push_back(draw_worker(draw, Role::kPrefill, device, 0));
  for (int i = draw.number(2, 3); i > 0; --i) s.workers.push_back(draw_worker(draw, Role::kDecode, device, 1));
  s.load.prompt_min = 60;
  s.load.prompt_max = 300;
  s.load.output_max = draw.of<int>({15, 80, 150});
  s.load.shared_prompts = draw.share(40);
  s.load.gap = microseconds(draw.log_between(8'000, 60'000));
  s.load.burst = draw.number(1, 8);
  s.network.latency = microseconds(draw.log_between(10, 500));
  s.fabric = {.job = microseconds(draw.log_between(200, 3'000)), .bytes_per_ms = draw.log_between(2'000, 50'000)};
  std::vector<std::string> prefillers, decoders;
  for (const std::string& name : worker_names(s)) (name[0] == 'p' ? prefillers : decoders).push_back(name);
  s.faults.clear();
  const Duration window = s.load.gap * s.load.requests;
  for (int i = draw.number(16, 60); i > 0; --i)
    draw_trouble(draw, prefillers, decoders, microseconds(draw.between(0, window.count())), s.faults);
  std::stable_sort(s.faults.begin(), s.faults.end(), [](const Fault& a, const Fault& b) { return a.at < b.at; });
}

}  // namespace

Scenario draw_swarm(std::uint64_t seed) {
  Draw draw(seed);
  Scenario s;
  s.name = "swarm";
  s.seed = seed;
  s.layers = draw.number(1, 5);
  s.kv_heads = 1 << draw.number(0, 2);
  draw_workers(draw, s);
  Rng ranks(seed, 1);  // apart: a degree changes nothing else of a seed
  for (WorkerGroup& group : s.workers) group.ranks = {ranks.below(2) == 0 ? 1 : 2 + static_cast<int>(ranks.below(3))};
  draw_load(draw, s.load);
  s.network = {.latency = microseconds(draw.log_between(10, 4'000)),
               .jitter = microseconds(draw.log_between(1, 2'000)),
               .bytes_per_ms = draw.log_between(5'000, 1'000'000),
               .split_one_in = static_cast<std::uint64_t>(draw.number(1, 8))};
  s.fabric = {.job = microseconds(draw.log_between(5, 400)), .bytes_per_ms = draw.log_between(50'000, 5'000'000)};
  s.sockets_inherited = draw.one_in(2);
  draw_faults(draw, s);
  if (draw.one_in(3)) draw_handoff_trouble(draw, s);
  s.no_retries = false;
  return s;
}

}  // namespace baton::sim
