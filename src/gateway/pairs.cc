#include "gateway/pairs.h"

#include <algorithm>

namespace baton::gateway {

bool Pairs::stale(WorkerId prefill, WorkerId decode, const Way& way) const {
  return way.prefill != registry_.at(prefill).status.incarnation || way.decode != registry_.at(decode).status.incarnation;
}

void Pairs::failed(TimePoint now, WorkerId prefill, WorkerId decode) {
  const auto [found, fresh] = ways_.try_emplace({prefill, decode});
  Way& way = found->second;
  if (fresh || stale(prefill, decode, way)) {
    way = {registry_.at(prefill).status.incarnation, registry_.at(decode).status.incarnation, kFirstPause, now + kFirstPause};
    return;
  }
  if (now < way.until && !way.tried) return;  // requests that went this way together fail together
  way.tried = false;
  way.pause = std::min(2 * way.pause, kLastPause);
  way.until = now + way.pause;
}

bool Pairs::avoid(TimePoint now, WorkerId prefill, WorkerId decode) const {
  const auto way = ways_.find({prefill, decode});
  return way != ways_.end() && !stale(prefill, decode, way->second) && now < way->second.until;
}

void Pairs::on_used(TimePoint now, WorkerId prefill, WorkerId decode) {
  const auto way = ways_.find({prefill, decode});
  if (way == ways_.end() || now < way->second.until) return;
  if (stale(prefill, decode, way->second)) return void(ways_.erase(way));
  way->second.tried = true;
  way->second.until = now + way->second.pause;
}

}  // namespace baton::gateway
