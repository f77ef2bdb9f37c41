#include "sim/leg_audit.h"

#include <utility>

namespace baton::sim {

std::unique_ptr<net::HttpCall> LegAudit::call(net::HttpClientRequest request, net::HttpClientCallbacks callbacks) {
  if (request.target == "/internal/decode") {
    if (const auto leg = wire::decode_leg_from_json(request.body); leg.ok()) check_deadline(leg->request);
  } else if (request.target == "/internal/prefill") {
    if (const auto leg = wire::prefill_leg_from_json(request.body); leg.ok()) {
      check_deadline(leg->request);
      check_attempt(*leg);
    }
  }
  return client_.call(std::move(request), std::move(callbacks));
}

void LegAudit::check_deadline(const wire::GenerateRequest& request) {
  if (request.timeout <= Duration(1)) return;  // the least that a leg can say: it may have passed already
  const TimePoint deadline = gateway_.clock().now() + request.timeout;
  const std::string id = request.id.substr(0, request.id.find('.'));  // runs of one choice have its number behind a dot
  const auto [first, inserted] = deadlines_.try_emplace(id, deadline);
  if (deadline > first->second + Duration(1))
    failures_.add(gateway_.real_now(), "I11", "request " + id + ": a leg may last longer than the request");
}

void LegAudit::check_attempt(const wire::PrefillLeg& leg) {
  Attempt& last = prefills_[leg.request.id];
  if (leg.attempt <= last)
    failures_.add(gateway_.real_now(), "I7",
                  "request " + leg.request.id + ": another prefill is attempt " + std::to_string(leg.attempt.value) + " again");
  last = leg.attempt;
}

}  // namespace baton::sim
