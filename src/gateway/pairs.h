#pragma once
// Ways from prefill to decode workers. Both ends of a bad one may be sound, so neither is condemned: the pair is avoided for a while,
// longer each time; then one request tries it while the others still avoid it. A worker that starts anew has no past.

#include <map>
#include <utility>

#include "base/clock.h"
#include "gateway/registry.h"

namespace baton::gateway {

class Pairs {
 public:
  static constexpr Duration kFirstPause = std::chrono::seconds(1);
  static constexpr Duration kLastPause = std::chrono::seconds(30);

  explicit Pairs(const Registry& registry) : registry_(registry) {}

  // A hand-off between them came to nothing, by the way's fault or the receiver's.
  void failed(TimePoint now, WorkerId prefill, WorkerId decode);
  // One was committed.
  void worked(WorkerId prefill, WorkerId decode) { ways_.erase({prefill, decode}); }
  // Another pair is to be preferred.
  bool avoid(TimePoint now, WorkerId prefill, WorkerId decode) const;
  // A request goes this way. If it was avoided until now, the others wait for what becomes of it.
  void on_used(TimePoint now, WorkerId prefill, WorkerId decode);

 private:
  struct Way {
    Incarnation prefill, decode;
    Duration pause = kFirstPause;
    TimePoint until{};
    bool tried = false;  // since `until` was set: one request is on its way
  };
  bool stale(WorkerId prefill, WorkerId decode, const Way& way) const;

  const Registry& registry_;
  std::map<std::pair<WorkerId, WorkerId>, Way> ways_;  // those that failed last
};

}  // namespace baton::gateway
