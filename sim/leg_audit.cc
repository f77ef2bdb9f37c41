#include "sim/leg_audit.h"

#include <algorithm>

namespace baton::sim {
namespace {

constexpr Duration kHeartbeats = std::chrono::milliseconds(500);  // two: who says nothing for longer may be given up

// Runs of one choice have its number behind a slash.
std::string of_client(const std::string& id) { return id.substr(0, id.find('/')); }

}  // namespace

struct LegAudit::DecodeLeg {
  std::uint64_t number = 0;
  std::string request;  // the client's
  int first_choice = 0, choices = 1;
  std::string worker;
  TimePoint heard_at{};  // by the gateway's clock
  bool draining = false, decodes = false, over = false;
  std::string tail{};  // of what was heard: events come in any pieces
};

class LegAudit::Watched final : public net::HttpCall {
 public:
  Watched(LegAudit& audit, std::shared_ptr<DecodeLeg> leg) : audit_(audit), leg_(std::move(leg)) {
    audit_.open_[leg_->number] = leg_.get();
  }
  ~Watched() override { cancel(); }
  void cancel() override {
    if (inner) inner->cancel();
    if (audit_.open_.erase(leg_->number) > 0 && !leg_->over) audit_.left(*leg_);
  }
  std::unique_ptr<net::HttpCall> inner;

 private:
  LegAudit& audit_;
  const std::shared_ptr<DecodeLeg> leg_;
};

std::unique_ptr<net::HttpCall> LegAudit::call(net::HttpClientRequest request, net::HttpClientCallbacks callbacks) {
  if (request.target == "/internal/decode") {
    if (const auto leg = wire::decode_leg_from_json(request.body); leg.ok()) {
      check_deadline(leg->request);
      check_placement(request.host, leg->request);
      return watch(std::move(request), std::move(callbacks), leg->request);
    }
  } else if (request.target == "/internal/prefill") {
    if (const auto leg = wire::prefill_leg_from_json(request.body); leg.ok()) {
      check_deadline(leg->request);
      check_attempt(*leg);
      if (leg->claim == HoldId()) check_placement(request.host, leg->request);
      callbacks.on_headers = [this, id = leg->request.id, ids = leg->request.ids.size(), on = std::move(callbacks.on_headers)](
                                 int status, const net::Headers& headers) {
        if (status == 200) count_prefill(id, ids);
        on(status, headers);
      };
    }
  }
  return client_.call(std::move(request), std::move(callbacks));
}

std::unique_ptr<net::HttpCall> LegAudit::watch(net::HttpClientRequest request, net::HttpClientCallbacks callbacks,
                                               const wire::GenerateRequest& of) {
  auto leg = std::make_shared<DecodeLeg>(
      DecodeLeg{.number = ++legs_, .request = of_client(of.id), .first_choice = of.first_choice, .choices = of.n, .worker = request.host});
  auto watched = std::make_unique<Watched>(*this, leg);
  callbacks.on_data = [this, leg, on = std::move(callbacks.on_data)](std::string_view data) {
    heard(*leg, data);
    on(data);
  };
  callbacks.on_done = [leg, on = std::move(callbacks.on_done)](Status status) {
    leg->over = true;
    on(std::move(status));
  };
  watched->inner = client_.call(std::move(request), std::move(callbacks));
  return watched;
}

void LegAudit::fail(std::string_view invariant, const std::string& request, const std::string& what) {
  failures_.add(gateway_.real_now(), invariant, "request " + request + ": " + what);
}

void LegAudit::check_deadline(const wire::GenerateRequest& request) {
  if (request.timeout <= Duration(1)) return;  // the least that a leg can say: it may have passed already
  const TimePoint deadline = gateway_.clock().now() + request.timeout;
  const std::string id = of_client(request.id);
  const auto [first, inserted] = deadlines_.try_emplace(id, deadline);
  if (deadline > first->second + Duration(1)) fail("I11", id, "a leg may last longer than the request");
}

void LegAudit::check_attempt(const wire::PrefillLeg& leg) {
  Attempt& last = prefills_[leg.request.id];
  if (leg.attempt <= last) fail("I7", leg.request.id, "another prefill is attempt " + std::to_string(leg.attempt.value) + " again");
  last = leg.attempt;
}

void LegAudit::check_placement(const std::string& host, const wire::GenerateRequest& request) {
  const gateway::Worker* worker = believes_(host);
  if (worker != nullptr && worker->status.draining) fail("I30", request.id, "is sent to " + host + ", which drains");
}

// A continuation has more ids: there was progress, and the budget is whole again.
void LegAudit::count_prefill(const std::string& id, std::size_t ids) {
  auto& [last, count] = begun_[id];
  if (std::exchange(last, ids) != ids) count = 0;
  if (++count > kPrefillsMax) fail("I18", id, "prefill number " + std::to_string(count) + " of the same ids: that is no retry budget");
}

void LegAudit::heard(DecodeLeg& leg, std::string_view data) {
  leg.heard_at = gateway_.clock().now();
  leg.tail.append(data);
  const auto says = [&](std::string_view event) { return leg.tail.find(event) != std::string::npos; };
  if (!leg.draining) leg.draining = says(R"("event":"draining")");
  if (!leg.decodes) leg.decodes = says(R"("event":"committed")") || says(R"("event":"tokens")");
  if (!leg.over) leg.over = says(R"("event":"done")") || says(R"("event":"failed")");
  constexpr std::size_t kLongest = 24;
  if (leg.tail.size() > kLongest) leg.tail.erase(0, leg.tail.size() - kLongest);
}

// A leg on a worker that goes down, which streamed on, was cancelled. If its choices go on, then where they are decoded already.
void LegAudit::left(const DecodeLeg& leg) {
  if (stopped_) return;
  const gateway::Worker* worker = believes_(leg.worker);
  const bool well = worker != nullptr && worker->status.draining && worker->liveness == gateway::Liveness::kAlive && !worker->hung &&
                    gateway_.clock().now() - leg.heard_at < kHeartbeats;
  if (!leg.draining || !leg.decodes || !well) return;
  for (const auto& [number, other] : open_) {
    const bool replaces =
        other->request == leg.request && other->first_choice >= leg.first_choice && other->first_choice < leg.first_choice + leg.choices;
    if (!replaces || other->decodes) continue;
    // Unless all of the request is over.
    gateway_.post([this, number, request = leg.request, from = leg.worker] {
      if (open_.contains(number)) fail("I30", request, "has left " + from + ", which drains, before it is decoded elsewhere");
    });
  }
}

}  // namespace baton::sim
