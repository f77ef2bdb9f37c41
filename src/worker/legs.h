#pragma once
// What a worker's legs do with the events of engine and hand-off: they become lines of the leg's answer. `on_over` is called once, after
// the last line.

#include <functional>
#include <memory>
#include <utility>

#include "worker/handoff_source.h"
#include "worker/handoff_target.h"
#include "worker/leg_stream.h"

namespace baton::worker {

class DecodeLegSink final : public LeaseSink {
 public:
  DecodeLegSink(std::shared_ptr<LegStream> stream, std::string worker, bool local, Attempt attempt, std::function<void()> on_over)
      : stream_(std::move(stream)), worker_(std::move(worker)), local_(local), attempt_(attempt), on_over_(std::move(on_over)) {}

  void on_committed(Committed committed) override;
  void on_attempt_failed(wire::HandoffTimes times) override;
  void on_lease_failed(Status status) override { over(wire::Failed{std::move(status)}); }
  void on_served(const wire::Served& served) override;
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) override {
    stream_->send(wire::PromptLogprobs{std::move(entries)});
  }
  void on_token(wire::TokenEvent event) override { stream_->token(std::move(event)); }
  void on_preempted(int choice) override { stream_->send(wire::Preempted{choice}); }
  void on_finish(wire::FinishEvent event) override { stream_->send(event); }
  void on_done(Status status) override;

 private:
  void over(const wire::LegEvent& last);
  const std::shared_ptr<LegStream> stream_;
  const std::string worker_;
  const bool local_;  // the prompt is computed here
  const Attempt attempt_;
  bool started_ = false;
  std::function<void()> on_over_;
};

class PrefillLegSink final : public HandoffSink {
 public:
  PrefillLegSink(std::shared_ptr<LegStream> stream, wire::Served served, Attempt attempt, std::function<void()> on_over)
      : stream_(std::move(stream)), served_(std::move(served)), attempt_(attempt), on_over_(std::move(on_over)) {}

  void on_claimed(bool found) override { stream_->send(wire::Claimed{found}); }
  void on_retained(HoldId hold, const std::optional<Status>& reason, const wire::HandoffTimes& times) override;
  void on_started(std::int32_t cached_tokens) override;
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) override {
    stream_->send(wire::PromptLogprobs{std::move(entries)});
  }
  void on_first(const std::vector<engine::PrefillSink::First>& first) override;
  void on_end(const End& end) override;

 private:
  void send_served(const wire::HandoffTimes& times);
  void over(const wire::LegEvent& last);
  const std::shared_ptr<LegStream> stream_;
  wire::Served served_;
  const Attempt attempt_;
  std::vector<engine::PrefillSink::First> first_;
  std::function<void()> on_over_;
};

}  // namespace baton::worker
