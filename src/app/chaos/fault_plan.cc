#include "app/chaos/fault_plan.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <utility>

namespace baton::app {

const char* to_string(FaultKind kind) {
  static constexpr const char* kNames[] = {"kill", "stop", "term", "proxy", "gateway"};
  return kNames[static_cast<int>(kind)];
}

const char* to_string(PathFault fault) {
  static constexpr const char* kNames[kPathFaults] = {"reset", "end", "half-close", "black hole", "hold", "throttle", "delay", "refuse"};
  return kNames[static_cast<int>(fault)];
}

Result<std::vector<FaultKind>> parse_faults(const std::string& list) {
  std::vector<FaultKind> out;
  for (std::size_t at = 0; at <= list.size();) {
    const std::size_t comma = std::min(list.find(',', at), list.size());
    const std::string word = list.substr(at, comma - at);
    at = comma + 1;
    if (word == "none") continue;
    const auto* found = std::ranges::find_if(kFaultKinds, [&](FaultKind kind) { return word == to_string(kind); });
    if (word == "all") {
      out.assign(std::begin(kFaultKinds), std::end(kFaultKinds));
    } else if (found == std::end(kFaultKinds)) {
      return Status(Code::kInvalidArgument, fmt::format("--faults: `{}` is not one of kill, stop, term, proxy, gateway, all, none", word));
    } else if (std::ranges::find(out, *found) == out.end()) {
      out.push_back(*found);
    }
  }
  return out;
}

FaultPlan::FaultPlan(FaultPlanOptions options) {
  Stream kills{{}, options.kill_every, {}, Rng(options.seed, 1)}, others{{}, options.other_every, {}, Rng(options.seed, 2)};
  for (const FaultKind kind : options.kinds) (kind == FaultKind::kKill ? kills : others).kinds.push_back(kind);
  for (Stream* stream : {&kills, &others}) {
    if (stream->kinds.empty()) continue;
    stream->at = gap(*stream);
    streams_.push_back(std::move(*stream));
  }
}

// Half to one and a half of the mean.
Duration FaultPlan::gap(Stream& stream) {
  const auto every = static_cast<std::uint64_t>(std::max<std::int64_t>(2, stream.every.count()));
  return Duration(static_cast<std::int64_t>(every / 2 + stream.rng.below(every)));
}

Fault FaultPlan::draw(Stream& stream) {
  Rng& rng = stream.rng;
  Fault fault;
  fault.at = stream.at;
  fault.kind = stream.kinds[rng.below(stream.kinds.size())];
  fault.target = rng.next_u64();
  fault.length = std::chrono::milliseconds(1000 + rng.below(3000));
  fault.path = static_cast<PathFault>(rng.below(kPathFaults));
  const std::uint64_t ways = 1 + rng.below(3);
  fault.up = ways & 1;
  fault.down = ways & 2;
  stream.at += gap(stream);
  return fault;
}

std::optional<Fault> FaultPlan::next() {
  if (streams_.empty()) return std::nullopt;
  return draw(*std::ranges::min_element(streams_, {}, &Stream::at));
}

}  // namespace baton::app
