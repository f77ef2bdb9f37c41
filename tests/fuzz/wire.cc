// The JSON between gateway and workers: what is accepted can be written, and what is written reads as the same message.

#include "base/status.h"
#include "tests/fuzz/fuzz.h"
#include "wire/kv_report.h"
#include "wire/worker_api.h"

namespace baton::fuzz {
namespace {

template <class Decode>
void check(std::string_view input, Decode decode) {
  const auto message = decode(input);
  if (!message.ok()) {
    BATON_CHECK(message.status().code() == Code::kInvalidArgument && !message.status().message().empty());
    return;
  }
  const std::string text = wire::to_json(*message);
  BATON_CHECK_MSG(text.find('\n') == std::string::npos, text);
  const auto again = decode(text);
  BATON_CHECK_MSG(again.ok(), again.status().to_string() + " of " + text);
  BATON_CHECK_MSG(wire::to_json(*again) == text, text);
}

template <std::size_t I = 0>
void add_events(std::vector<std::string>& out) {
  if constexpr (I < std::variant_size_v<wire::LegEvent>) {
    std::variant_alternative_t<I, wire::LegEvent> event;
    const wire::TokenEvent token{.choice = 1, .position = 200, .token = 17, .logprob = -0.5f, .top = {{17, -0.5f}, {4, -2.0f}}};
    if constexpr (requires { event.status; }) event.status = Status(Code::kDataLoss, "digest of layer 3");
    if constexpr (requires { event.attempt; }) event.attempt = Attempt(2);
    if constexpr (requires { event.handoff; }) {
      wire::HandoffTimes& times = event.handoff.emplace();
      times.epoch = Epoch(7);
      times.failure = Status(Code::kUnavailable, "the link was lost");
      times.ready_us = {100, 200}, times.announced_us = {110, -1}, times.verified_us = {150, -1}, times.verified_bytes = {640, 0};
      times.chunks = {{64, 200}};
    }
    if constexpr (requires { event.first; }) event.first = {token};
    if constexpr (requires { event.tokens; }) event.tokens = {token, token};
    if constexpr (requires { event.entries; }) event.entries = {std::nullopt, token};
    out.push_back(wire::to_json(wire::LegEvent(std::move(event))));
    add_events<I + 1>(out);
  }
}

}  // namespace

void run(std::string_view input) {
  check(input, wire::leg_event_from_json);
  check(input, wire::decode_leg_from_json);
  check(input, wire::prefill_leg_from_json);
  check(input, wire::worker_status_from_json);
  check(input, wire::kv_report_from_json);
}

std::vector<std::string> seeds() {
  std::vector<std::string> out;
  add_events(out);
  wire::GenerateRequest request;
  request.id = "req-1";
  request.ids = {1, 22, 333};
  request.n_prompt = 2;
  request.sampling.logit_bias = {{5, -1.5f}};
  request.sampling.stop_token_ids = {7};
  request.sampling.eos_ids = {2};
  request.cache_salt = "tenant";
  out.push_back(wire::to_json(wire::DecodeLeg{.request = request}));
  wire::PrefillLeg prefill;
  prefill.request = request;
  prefill.lease = LeaseId(0xfedcba9876543210u);
  prefill.decode_worker = "d0";
  prefill.link_host = "127.0.0.1";
  prefill.link_port = 4000;
  out.push_back(wire::to_json(prefill));
  wire::WorkerStatus status;
  status.name = "p0";
  status.kv = {30, 3, 64, "bf16"};
  status.leases = {{"reserved", 1}}, status.held_ms = {{"lease", 1.5}};
  out.push_back(wire::to_json(status));
  wire::KvReport report;
  report.name = "d0";
  report.holds.push_back({"lease", "receiving", "req-1", 1, Epoch(7), "p0", 4, 3.5, 0.25, 29'000.5});
  out.push_back(wire::to_json(report));
  return out;
}

}  // namespace baton::fuzz
