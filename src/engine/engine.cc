#include "engine/engine.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/log.h"
#include "engine/scheduler.h"

namespace baton::engine {
namespace {

constexpr Duration kUnmeasured = std::chrono::seconds(10);  // allowed to the first step of a kind, on however slow a machine

class EngineImpl final : public Engine {
 public:
  EngineImpl(net::Executor& loop, std::unique_ptr<StepExecutor> executor, const EngineOptions& options)
      : loop_(loop),
        max_step_(options.max_step),
        scheduler_(options),
        executor_(std::move(executor)),
        self_(std::make_shared<EngineImpl*>(this)) {
    // The executor may have posted a callback that runs after this engine is gone.
    std::weak_ptr<EngineImpl*> weak = self_;
    executor_->start({.on_result =
                          [weak](StepResult& result) {
                            if (const auto self = weak.lock()) (*self)->on_result(result);
                          },
                      .on_layer =
                          [weak](std::uint64_t step, int layer) {
                            if (const auto self = weak.lock()) (*self)->on_layer(step, layer);
                          }});
  }

  ~EngineImpl() override {
    if (timer_at_ != kNever) loop_.cancel(timer_);
  }

  std::unique_ptr<wire::GenerateCall> generate(wire::GenerateRequest request, std::shared_ptr<wire::GenerateSink> sink) override {
    const std::int32_t n_prompt = request.n_prompt;
    Result<SeqId> id = scheduler_.add(std::move(request), Purpose::kGenerate, now());
    if (!id.ok()) return refused(id.status(), std::move(sink));
    clients_[*id] = Client{.sink = std::move(sink), .prefill = nullptr, .n_prompt = n_prompt, .arrival = now(), .served = {}};
    kick();
    return std::make_unique<Call>(self_, *id);
  }

  Result<SeqId> prefill(wire::GenerateRequest request, std::shared_ptr<PrefillSink> sink) override {
    BATON_ASSIGN_OR_RETURN(const SeqId id, scheduler_.add(std::move(request), Purpose::kHandoffSource, now()));
    clients_[id] = Client{.sink = nullptr, .prefill = std::move(sink), .n_prompt = 0, .arrival = now(), .served = {}};
    kick();
    return id;
  }

  std::span<const BlockId> blocks(SeqId seq) const override { return scheduler_.blocks(seq); }

  Status reserve(LeaseId lease, const wire::GenerateRequest& request) override {
    (void)scheduler_.take_blocks_short();
    Status status = scheduler_.reserve(lease, request);
    if (status.code() == Code::kResourceExhausted && tell_lacking()) status = scheduler_.reserve(lease, request);
    return status;
  }

  void unreserve(LeaseId lease) override {
    scheduler_.unreserve(lease);
    kick();
  }

  Result<Grant> grant(LeaseId lease, const wire::GenerateRequest& request) override { return scheduler_.grant(lease, request, now()); }

  std::unique_ptr<wire::GenerateCall> start_decode(SeqId seq, std::vector<PrefillSink::First> first,
                                                   std::shared_ptr<wire::GenerateSink> sink) override {
    if (Status status = scheduler_.start_decode(seq, std::move(first)); !status.ok()) {
      release(seq);
      return refused(std::move(status), std::move(sink));
    }
    clients_[seq] = Client{.sink = std::move(sink), .prefill = nullptr, .n_prompt = 0, .arrival = now(), .served = {}};
    kick();
    return std::make_unique<Call>(self_, seq);
  }

  void release(SeqId seq) override {
    scheduler_.release(seq);
    clients_.erase(seq);
    kick();
  }

  void on_blocks_lacking(std::function<void(std::int32_t)> lacking) override { lacking_ = std::move(lacking); }
  void ask_again() override { kick(); }

  EngineStatus status() const override {
    EngineStatus s = scheduler_.status();
    if (scheduler_.step_running()) s.step_running = now() - submitted_at_;
    s.step_budget = std::max({max_step_, slowest_step_, s.step_expected, s.step_unmeasured ? kUnmeasured : Duration(0)});
    return s;
  }
  std::vector<SequenceHold> holds() const override { return scheduler_.holds(); }
  Status check() const override { return scheduler_.check(); }
  const kv::BlockPool& pool() const override { return scheduler_.pool(); }

 private:
  struct Client {
    std::shared_ptr<wire::GenerateSink> sink;  // one of the two
    std::shared_ptr<PrefillSink> prefill;
    std::int32_t n_prompt = 0;
    TimePoint arrival;
    wire::Served served;
    bool first_token = false;
  };

  class Call final : public wire::GenerateCall {
   public:
    Call(std::weak_ptr<EngineImpl*> engine, SeqId id) : engine_(std::move(engine)), id_(id) {}
    ~Call() override {
      if (const auto engine = engine_.lock()) (*engine)->release(id_);
    }
    void finish_choice(int choice) override {
      const auto engine = engine_.lock();
      if (!engine) return;
      (*engine)->scheduler_.finish_choice(id_, choice);
      (*engine)->kick();
    }

   private:
    const std::weak_ptr<EngineImpl*> engine_;
    const SeqId id_;
  };

  TimePoint now() const { return loop_.clock().now(); }

  // The sink is not called before the caller has its handle. Ids of refused calls count down, so that they are no sequence's.
  std::unique_ptr<wire::GenerateCall> refused(Status status, std::shared_ptr<wire::GenerateSink> sink) {
    const SeqId id(--refused_id_);
    clients_[id] = Client{.sink = std::move(sink), .prefill = nullptr, .n_prompt = 0, .arrival = now(), .served = {}};
    loop_.post([weak = std::weak_ptr(self_), id, status = std::move(status)] {
      const auto self = weak.lock();
      if (!self) return;
      const auto client = (*self)->clients_.extract(id);
      if (!client.empty()) client.mapped().sink->on_done(status);
    });
    return std::make_unique<Call>(self_, id);
  }

  // Plans the next step soon: once, however much happens until then.
  void kick() {
    if (std::exchange(kicked_, true)) return;
    loop_.post([weak = std::weak_ptr(self_)] {
      if (const auto self = weak.lock()) {
        (*self)->kicked_ = false;
        (*self)->pump();
      }
    });
  }

  // The device first, then the clients: delivery overlaps with the step.
  void pump() {
    scheduler_.expire(now());
    if (const StepPlan* plan = scheduler_.schedule()) {
      submitted_at_ = now();
      executor_->submit(*plan);
    }
    deliver();
    (void)tell_lacking();
    set_timer();
  }

  bool tell_lacking() {
    const std::int32_t blocks = scheduler_.take_blocks_short();
    if (blocks == 0 || !lacking_) return false;
    lacking_(blocks);
    return true;
  }

  void on_result(StepResult& result) {
    // A step that took exceptionally long is forgotten within some tens of others.
    slowest_step_ = std::max(now() - submitted_at_, slowest_step_ - slowest_step_ / 16);
    if (!result.status.ok()) log::error("the device has failed: {}", result.status.message());
    scheduler_.on_result(result);
    pump();
  }

  void on_layer(std::uint64_t step, int layer) {
    if (!scheduler_.step_running() || scheduler_.plan().step != step) return;
    for (const StepRow& row : scheduler_.plan().rows) {
      if (!row.report_layers) continue;
      const auto it = clients_.find(row.seq);
      if (it == clients_.end()) continue;
      const std::shared_ptr<PrefillSink> sink = it->second.prefill;
      const bool first = row.begin == it->second.served.cached_tokens;
      sink->on_layer(layer, first ? 0 : row.begin, row.end);
    }
  }

  // Sinks may call back into the engine; what that brings about is delivered by the outer loop.
  void deliver() {
    if (std::exchange(delivering_, true)) return;
    while (!scheduler_.outputs().empty()) {
      delivery_.swap(scheduler_.outputs());
      for (Output& output : delivery_) std::visit([&](auto& event) { handle(output.request, event); }, output.event);
      delivery_.clear();
    }
    delivering_ = false;
  }

  Client* find(SeqId id) {
    const auto it = clients_.find(id);
    return it == clients_.end() ? nullptr : &it->second;
  }

  // Callbacks go through a copy of the pointer: a sink may release its own request.
  void handle(SeqId id, Output::Started& event) {
    Client* c = find(id);
    if (c == nullptr) return;
    c->served.cached_tokens = event.cached_tokens;
    if (const auto prefill = c->prefill) return prefill->on_started(event.cached_tokens);
    c->served.prompt_tokens = c->n_prompt;
    c->served.cached_tokens = std::min(event.cached_tokens, c->n_prompt);
    c->served.prefill_start_ms = to_ms(now() - c->arrival);
    const auto sink = c->sink;
    sink->on_served(wire::Served(c->served));
  }

  void handle(SeqId id, Output::PromptLogprobs& event) {
    Client* c = find(id);
    if (c == nullptr) return;
    if (const auto prefill = c->prefill) return prefill->on_prompt_logprobs(std::move(event.entries));
    const auto sink = c->sink;
    sink->on_prompt_logprobs(std::move(event.entries));
  }

  void handle(SeqId id, Output::First& event) {
    Client* c = find(id);
    if (c == nullptr) return;
    const auto prefill = c->prefill;
    prefill->on_first(std::move(event.tokens));
  }

  void handle(SeqId id, wire::TokenEvent& event) {
    Client* c = find(id);
    if (c == nullptr) return;
    const auto sink = c->sink;
    if (c->n_prompt > 0 && !std::exchange(c->first_token, true)) {
      c->served.prefill_end_ms = c->served.first_token_ms = to_ms(now() - c->arrival);
      sink->on_served(wire::Served(c->served));
      if (find(id) == nullptr) return;
    }
    sink->on_token(std::move(event));
  }

  void handle(SeqId id, Output::Preempted& event) {
    Client* c = find(id);
    if (c == nullptr) return;
    const auto sink = c->sink;
    sink->on_preempted(event.choice);
  }

  void handle(SeqId id, wire::FinishEvent& event) {
    Client* c = find(id);
    if (c == nullptr) return;
    const auto sink = c->sink;
    sink->on_finish(event);
  }

  void handle(SeqId id, Output::Done& event) {
    const auto client = clients_.extract(id);
    if (client.empty()) return;
    if (client.mapped().prefill) return client.mapped().prefill->on_failed(std::move(event.status));
    client.mapped().sink->on_done(std::move(event.status));
  }

  void set_timer() {
    const TimePoint next = scheduler_.next_deadline();
    if (next == timer_at_) return;
    if (timer_at_ != kNever) loop_.cancel(timer_);
    timer_at_ = next;
    if (next == kNever) return;
    timer_ = loop_.after(std::max(next - now(), Duration(0)), [weak = std::weak_ptr(self_)] {
      if (const auto self = weak.lock()) {
        (*self)->timer_at_ = kNever;
        (*self)->pump();
      }
    });
  }

  net::Executor& loop_;
  const Duration max_step_;
  Scheduler scheduler_;
  std::unique_ptr<StepExecutor> executor_;  // after the scheduler: its thread reads the plan until it is joined
  std::map<SeqId, Client> clients_;
  std::function<void(std::int32_t)> lacking_;
  std::uint64_t refused_id_ = 0;
  std::vector<Output> delivery_;
  bool kicked_ = false, delivering_ = false;
  TimePoint submitted_at_{};  // of the running step
  Duration slowest_step_{};   // of late
  TimePoint timer_at_ = kNever;
  net::Executor::TimerId timer_ = 0;
  std::shared_ptr<EngineImpl*> self_;  // whoever outlives the engine holds it weakly
};

}  // namespace

std::unique_ptr<Engine> Engine::create(net::Executor& loop, std::unique_ptr<StepExecutor> executor, const EngineOptions& options) {
  return std::make_unique<EngineImpl>(loop, std::move(executor), options);
}

}  // namespace baton::engine
