#include "worker/legs.h"

#include "base/mutant.h"

namespace baton::worker {

void DecodeLegSink::on_committed(Committed c) {
  stream_->send(wire::Committed{c.attempt, std::move(c.first)});
  wire::Served served;
  served.decode_worker = worker_;
  served.disaggregated = true;
  served.kv_bytes = static_cast<std::int64_t>(c.kv_bytes);
  served.cached_tokens = c.cached_tokens;
  served.handoff = std::move(c.times);
  stream_->send(served);
}

void DecodeLegSink::on_attempt_failed(wire::HandoffTimes times) {
  wire::Served served;
  served.decode_worker = worker_;
  served.disaggregated = true;
  served.handoff = std::move(times);
  stream_->send(served);
}

void DecodeLegSink::on_served(const wire::Served& served) {
  if (!local_) return;  // the hand-off's source knows how the prompt was served
  if (!std::exchange(started_, true)) stream_->send(wire::Started{});
  wire::Served named = served;
  named.decode_worker = worker_;
  if (served.first_token_ms >= 0) {  // the prompt is done: how it went
    const auto us = [](double ms) { return static_cast<std::int64_t>(ms * 1e3); };
    wire::HandoffTimes& times = named.handoff.emplace();
    times.attempt = attempt_;
    times.started_us = us(served.prefill_start_ms);
    times.computed_us = times.first_token_us = us(served.first_token_ms);
  }
  stream_->send(named);
}

void DecodeLegSink::on_done(Status status) {
  if (status.ok()) return over(wire::Done{});
  over(wire::Failed{std::move(status)});
}

void DecodeLegSink::over(const wire::LegEvent& last) {
  stream_->end(last);
  if (const auto on_over = std::exchange(on_over_, nullptr)) on_over();
}

void PrefillLegSink::on_started(std::int32_t cached_tokens) {
  served_.cached_tokens = cached_tokens;
  stream_->send(wire::Started{});
  stream_->send(served_);
}

void PrefillLegSink::on_first(const std::vector<engine::PrefillSink::First>& first) {
  first_ = first;
  if (BATON_MUTANT(first_token_lost)) return;
  for (const auto& f : first) stream_->token(f.token);
}

void PrefillLegSink::on_retained(HoldId hold, const std::optional<Status>& reason, const wire::HandoffTimes& times) {
  if (reason) send_served(times);
  stream_->send(wire::Retained{hold, reason});
}

void PrefillLegSink::send_served(const wire::HandoffTimes& times) {
  wire::Served served = served_;
  served.handoff = times;
  stream_->send(served);
}

void PrefillLegSink::on_end(const End& end) {
  switch (end.state) {
    case transfer::Sender::State::kAcked: {
      served_.kv_bytes = static_cast<std::int64_t>(end.kv_bytes);
      served_.kv_bytes_early = static_cast<std::int64_t>(end.kv_bytes_early);
      send_served(end.times);
      wire::Committed committed{attempt_, {}};
      for (auto& f : first_) committed.first.push_back(std::move(f.token));
      stream_->send(committed);
      return over(wire::Done{});
    }
    case transfer::Sender::State::kNoKv:
      send_served(end.times);
      for (const auto& f : first_) stream_->send(*f.finish);
      return over(wire::Done{});
    case transfer::Sender::State::kNacked:
      send_served(end.times);
      return over(wire::Nacked{end.status});
    default:
      send_served(end.times);
      return over(wire::Failed{end.status});
  }
}

void PrefillLegSink::over(const wire::LegEvent& last) {
  stream_->end(last);
  if (const auto on_over = std::exchange(on_over_, nullptr)) on_over();
}

}  // namespace baton::worker
