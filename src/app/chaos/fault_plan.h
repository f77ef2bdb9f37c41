#pragma once
// Which fault falls when: drawn from the seed alone. Pure.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "base/status.h"

namespace baton::app {

enum class FaultKind : std::uint8_t {
  kKill,     // SIGKILL of a worker; it is started again on its ports
  kStop,     // SIGSTOP of a worker, SIGCONT after a while
  kTerm,     // SIGTERM of a worker: it drains and is started again
  kProxy,    // a path between gateway and worker, or from prefill to decode workers
  kGateway,  // SIGKILL of the gateway: streams are cut, their clients send them again; or SIGSTOP and SIGCONT: they only wait
};
inline constexpr FaultKind kFaultKinds[] = {FaultKind::kKill, FaultKind::kStop, FaultKind::kTerm, FaultKind::kProxy, FaultKind::kGateway};
const char* to_string(FaultKind kind);
// "kill,proxy"; "all"; "none".
Result<std::vector<FaultKind>> parse_faults(const std::string& list);

// What a faulty path does.
enum class PathFault : std::uint8_t { kReset, kEnd, kHalfClose, kBlackHole, kHold, kThrottle, kDelay, kRefuse };
inline constexpr std::size_t kPathFaults = 8;
const char* to_string(PathFault fault);

struct Fault {
  Duration at{};  // since the load began
  FaultKind kind{};
  std::uint64_t target = 0;  // a number to choose by, of workers or of paths
  Duration length{};         // of what does not pass by itself
  PathFault path{};
  bool up = false, down = false;  // the directions of a faulty path: one or both
};

struct FaultPlanOptions {
  std::vector<FaultKind> kinds;
  Duration kill_every = std::chrono::seconds(5);    // between kills of workers, on average
  Duration other_every = std::chrono::seconds(10);  // between other faults
  std::uint64_t seed = 0;
};

// An endless list of faults, ordered by time.
class FaultPlan {
 public:
  explicit FaultPlan(FaultPlanOptions options);
  // Nothing if no kind is enabled.
  std::optional<Fault> next();

 private:
  struct Stream {
    std::vector<FaultKind> kinds;
    Duration every{}, at{};
    Rng rng;
  };
  static Duration gap(Stream& stream);
  static Fault draw(Stream& stream);

  std::vector<Stream> streams_;
};

}  // namespace baton::app
