// Scenarios as text. The names of the fields are said once, in fields(), for writing and for reading.

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <map>

#include "sim/scenario.h"

namespace baton::sim {
namespace {

constexpr std::array<std::string_view, Fault::kKinds> kFaultKinds = {"cut",        "stall",      "throttle",     "kill",    "drain",
                                                                     "freeze",     "clock-jump", "clock-rate",   "squeeze", "slow-device",
                                                                     "fetch-late", "fetch-lost", "fetch-damaged"};

// Each visits the fields of its struct with their names: v(name, field).
template <class V, class S>
void fields(V& v, S& s, const WorkerGroup*) {
  v("role", s.role);
  v("count", s.count);
  v("pool_tokens", s.pool_tokens);
  v("block_tokens", s.block_tokens);
  v("ranks", s.ranks);
  v("max_num_seqs", s.max_num_seqs);
  v("max_num_batched_tokens", s.max_num_batched_tokens);
  v("step_ns", s.device.step);
  v("prefill_token_ns", s.device.prefill_token);
  v("decode_row_ns", s.device.decode_row);
  v("context_token_ns", s.device.context_token);
}
template <class V, class S>
void fields(V& v, S& s, const Load*) {
  v("requests", s.requests);
  v("gap_us", s.gap);
  v("burst", s.burst);
  v("prompt_min", s.prompt_min);
  v("prompt_max", s.prompt_max);
  v("output_min", s.output_min);
  v("output_max", s.output_max);
  v("families", s.families);
  v("shared_prompts", s.shared_prompts);
  v("sampled", s.sampled);
  v("truncated", s.truncated);
  v("penalties", s.penalties);
  v("biased", s.biased);
  v("several_choices", s.several_choices);
  v("logprobs", s.logprobs);
  v("prompt_logprobs", s.prompt_logprobs);
  v("cancelled", s.cancelled);
  v("choice_finished", s.choice_finished);
  v("slow_clients", s.slow_clients);
  v("timeout_us", s.timeout);
  v("short_timeouts", s.short_timeouts);
  v("probes", s.probes);
  v("skip", s.skip);
}
template <class V, class S>
void fields(V& v, S& s, const NetworkModel*) {
  v("latency_us", s.latency);
  v("jitter_us", s.jitter);
  v("bytes_per_ms", s.bytes_per_ms);
  v("split_one_in", s.split_one_in);
  v("buffer_bytes_max", s.buffer_bytes_max);
}
template <class V, class S>
void fields(V& v, S& s, const FabricModel*) {
  v("job_us", s.job);
  v("bytes_per_ms", s.bytes_per_ms);
  v("jobs_max", s.jobs_max);
  v("damaged_one_in", s.damaged_one_in);
  v("damaged_unseen_one_in", s.damaged_unseen_one_in);
}
template <class V, class S>
void fields(V& v, S& s, const Fault*) {
  v("kind", s.kind);
  v("at_us", s.at);
  v("lasts_us", s.lasts);
  v("host", s.host);
  v("to", s.to);
  v("value", s.value);
}
template <class V, class S>
void fields(V& v, S& s, const Scenario*) {
  v("name", s.name);
  v("seed", s.seed);
  v("layers", s.layers);
  v("kv_heads", s.kv_heads);
  v("sockets_inherited", s.sockets_inherited);
  v("limit_us", s.limit);
  v("settle_us", s.settle);
  v("no_retries", s.no_retries);
  v("expects_preemption", s.expects_preemption);
  v("expects_queue", s.expects_queue);
  v("expects_cancel", s.expects_cancel);
  v("expects_deadline", s.expects_deadline);
  v("expects_resume", s.expects_resume);
  v("expects_move", s.expects_move);
}

// --- values

template <std::integral T>
std::string write(const T& value) {
  return std::to_string(+value);
}
std::string write(const Duration& value) { return std::to_string(value.count()); }
std::string write(const std::string& value) { return value; }
std::string write(const wire::Role& value) { return std::string(wire::to_string(value)); }
std::string write(const Fault::Kind& value) { return std::string(to_string(value)); }
std::string write(const std::vector<int>& value) {
  std::string out;
  for (const int v : value) out += (out.empty() ? "" : ",") + std::to_string(v);
  return out;
}

template <std::integral T>
bool read(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}
bool read(std::string_view text, bool& value) {
  value = text == "1";
  return text == "0" || text == "1";
}
bool read(std::string_view text, Duration& value) {
  std::int64_t us = 0;
  if (!read(text, us) || us < 0) return false;
  value = Duration(us);
  return true;
}
bool read(std::string_view text, std::string& value) {
  value = text;
  return true;
}
bool read(std::string_view text, wire::Role& value) {
  for (const auto role : {wire::Role::kPrefill, wire::Role::kDecode, wire::Role::kBoth}) {
    if (text == wire::to_string(role)) return value = role, true;
  }
  return false;
}
bool read(std::string_view text, Fault::Kind& value) {
  const auto found = std::find(kFaultKinds.begin(), kFaultKinds.end(), text);
  if (found == kFaultKinds.end()) return false;
  value = static_cast<Fault::Kind>(found - kFaultKinds.begin());
  return true;
}
bool read(std::string_view text, std::vector<int>& value) {
  value.clear();
  while (!text.empty()) {
    const auto comma = std::min(text.find(','), text.size());
    if (!read(text.substr(0, comma), value.emplace_back())) return false;
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return true;
}

// --- lines

struct Writer {
  std::string line;
  std::map<std::string_view, std::string> defaults;
  bool learning = false;  // the defaults
  template <class T>
  void operator()(std::string_view name, const T& value) {
    std::string text = write(value);
    if (learning) {
      defaults[name] = std::move(text);
    } else if (text != defaults[name]) {
      line += " " + std::string(name) + "=" + text;
    }
  }
};

template <class S>
std::string line(std::string_view what, const S& s) {
  Writer writer;
  const S standard{};
  writer.learning = true;
  fields(writer, standard, static_cast<const S*>(nullptr));
  writer.learning = false;
  fields(writer, s, static_cast<const S*>(nullptr));
  return std::string(what) + writer.line + "\n";
}

struct Reader {
  std::string_view key, value;
  bool known = false, good = false;
  template <class T>
  void operator()(std::string_view name, T& field) {
    if (name != key) return;
    known = true;
    good = read(value, field);
  }
};

template <class S>
Status parse(std::string_view text, S& s) {
  while (!text.empty()) {
    const auto space = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, space);
    text.remove_prefix(std::min(space + 1, text.size()));
    if (word.empty()) continue;
    const auto eq = word.find('=');
    if (eq == std::string_view::npos) return {Code::kInvalidArgument, "'" + std::string(word) + "' is not key=value"};
    Reader reader{word.substr(0, eq), word.substr(eq + 1)};
    fields(reader, s, static_cast<const S*>(nullptr));
    if (!reader.known) return {Code::kInvalidArgument, "there is no field '" + std::string(reader.key) + "' here"};
    if (!reader.good) return {Code::kInvalidArgument, "'" + std::string(word) + "' has a wrong value"};
  }
  return {};
}

bool on_path(Fault::Kind kind) { return kind <= Fault::Kind::kThrottle; }
bool of_any_process(Fault::Kind kind) {
  return kind == Fault::Kind::kKill || kind == Fault::Kind::kFreeze || kind == Fault::Kind::kClockJump || kind == Fault::Kind::kClockRate;
}

Status check(const Scenario& s) {
  const auto bad = [](std::string why) { return Status(Code::kInvalidArgument, std::move(why)); };
  const std::vector<std::string> names = worker_names(s);
  if (names.empty()) return bad("a scenario needs workers");
  for (const WorkerGroup& g : s.workers) {
    const bool blocks = !g.block_tokens.empty() &&
                        std::all_of(g.block_tokens.begin(), g.block_tokens.end(), [&](int b) { return b > 0 && b <= g.pool_tokens; });
    const bool ranks = !g.ranks.empty() && std::all_of(g.ranks.begin(), g.ranks.end(), [](int r) { return r >= 1 && r <= 64; });
    if (g.count < 0 || !blocks || !ranks || g.max_num_seqs < 1 || g.max_num_batched_tokens < 1)
      return bad("a group of workers makes no sense");
  }
  const Load& l = s.load;
  if (l.requests < 0 || l.burst < 1 || l.families < 1 || l.prompt_min < 1 || l.prompt_max < l.prompt_min || l.output_min < 1 ||
      l.output_max < l.output_min || l.probes < 0)
    return bad("the load makes no sense");
  if (s.network.bytes_per_ms < 1 || s.fabric.bytes_per_ms < 1) return bad("a bandwidth must be positive");
  for (const Fault& f : s.faults) {
    const auto worker = [&](const std::string& name) { return std::find(names.begin(), names.end(), name) != names.end(); };
    const auto process = [&](const std::string& name) { return name == "gateway" || worker(name); };
    const bool sound = on_path(f.kind)          ? (f.host == "*" || process(f.host)) && (f.to == "*" || process(f.to))
                       : of_any_process(f.kind) ? process(f.host)
                                                : worker(f.host);
    const bool rate = f.kind == Fault::Kind::kClockRate ? f.value > -500'000 && f.value < 1'000'000 : f.value >= 0;
    const bool counts = f.kind == Fault::Kind::kThrottle || f.kind == Fault::Kind::kFetchLost || f.kind == Fault::Kind::kFetchDamaged;
    if (!sound || !rate || (counts && f.value < 1))
      return bad("the fault '" + std::string(to_string(f.kind)) + "' has a wrong place or value");
  }
  return {};
}

}  // namespace

std::string_view to_string(Fault::Kind kind) { return kFaultKinds[static_cast<std::size_t>(kind)]; }

std::string to_text(const Scenario& s) {
  std::string out = line("scenario", s);
  if (!s.about.empty()) out += "about " + s.about + "\n";
  for (const WorkerGroup& group : s.workers) out += line("workers", group);
  out += line("load", s.load) + line("network", s.network) + line("fabric", s.fabric);
  for (const Fault& fault : s.faults) out += line("fault", fault);
  return out;
}

Result<Scenario> scenario_from_text(std::string_view text) {
  Scenario s;
  int number = 0;
  for (bool first = true; !text.empty();) {
    const auto end = std::min(text.find('\n'), text.size());
    std::string_view rest = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (!rest.empty() && rest.back() == '\r') rest.remove_suffix(1);
    if (rest.empty() || rest[0] == '#') continue;
    const auto space = std::min(rest.find(' '), rest.size());
    const std::string_view what = rest.substr(0, space);
    rest.remove_prefix(std::min(space + 1, rest.size()));
    Status status;
    if (std::exchange(first, false) && what != "scenario") {
      status = Status(Code::kInvalidArgument, "a scenario begins with 'scenario'");
    } else if (what == "scenario") {
      status = parse(rest, s);
    } else if (what == "about") {
      s.about = rest;
    } else if (what == "workers") {
      status = parse(rest, s.workers.emplace_back());
    } else if (what == "load") {
      status = parse(rest, s.load);
    } else if (what == "network") {
      status = parse(rest, s.network);
    } else if (what == "fabric") {
      status = parse(rest, s.fabric);
    } else if (what == "fault") {
      status = parse(rest, s.faults.emplace_back());
    } else {
      status = Status(Code::kInvalidArgument, "there is no line '" + std::string(what) + "'");
    }
    if (!status.ok()) return status.with_context("scenario, line " + std::to_string(number));
  }
  if (Status status = check(s); !status.ok()) return status.with_context("scenario");
  return s;
}

}  // namespace baton::sim
