#include "gateway/gateway.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <type_traits>

#include "base/log.h"
#include "base/mutant.h"
#include "gateway/kv_snapshot.h"
#include "gateway/line_splitter.h"

namespace baton::gateway {
namespace {

constexpr std::size_t kErrorBodyMax = 64u << 10;
constexpr std::size_t kStatusBodyMax = 1u << 20;
constexpr std::size_t kPostsMax = 1024;                        // finish_choice calls under way
constexpr Duration kLegIdle = std::chrono::hours(24);          // the core has deadlines for every wait of a leg
constexpr Duration kAfterLastEvent = std::chrono::seconds(2);  // from Done or Failed to the end of the answer
constexpr Duration kPostTimeout = std::chrono::seconds(2);

// The status of an answer other than 200. A worker sends a Failed event; what is between may send anything.
Status refusal(int http_status, const std::string& body, const std::string& retry_after) {
  int seconds = 0;
  std::from_chars(retry_after.data(), retry_after.data() + retry_after.size(), seconds);
  const auto with_hint = [&](Status status) { return seconds > 0 ? status.with_retry_after(std::min(seconds, 60)) : status; };
  if (const auto event = wire::leg_event_from_json(body); event.ok()) {
    if (const auto* failed = std::get_if<wire::Failed>(&*event)) return with_hint(failed->status);
  }
  const Code code = http_status == 429                         ? Code::kResourceExhausted
                    : http_status == 503                       ? Code::kUnavailable
                    : http_status == 400 || http_status == 422 ? Code::kInvalidArgument
                    : http_status == 413                       ? Code::kPayloadTooLarge
                                                               : Code::kInternal;
  return with_hint(Status(code, "answered " + std::to_string(http_status) + ": " + body.substr(0, 200)));
}

}  // namespace

class Gateway::Impl : public std::enable_shared_from_this<Gateway::Impl> {
 public:
  Impl(net::Executor& executor, net::HttpClient& client, GatewayOptions options)
      : executor_(executor),
        client_(client),
        options_(std::move(options)),
        core_(options_.core, options_.workers),
        pollers_(options_.workers.size()) {}

  // --- lifecycle
  void start() {
    for (std::size_t i = 0; i < pollers_.size(); ++i) poll(WorkerId(static_cast<std::int32_t>(i)));
  }
  // No callback runs afterwards.
  void stop() {
    stopped_ = true;
    for (Poller& poller : pollers_) {
      executor_.cancel(poller.timer);
      poller.call.reset();
    }
    executor_.cancel(wake_timer_);
    for (auto& [id, leg] : legs_) executor_.cancel(leg.end_timer);
    legs_.clear();
    posts_.clear();
    sinks_.clear();
    kv_.reset();
    kv_waiting_.clear();
  }

  // --- calls
  RequestKey submit(wire::GenerateRequest request, std::shared_ptr<wire::GenerateSink> sink) {
    const RequestKey key = core_.submit(now(), std::move(request));
    sinks_[key] = std::move(sink);
    executor_.post([weak = weak_from_this()] {
      if (const auto self = weak.lock(); self && !self->stopped_) self->act();
    });
    return key;
  }
  void cancel(RequestKey key) {
    if (stopped_) return;
    if (sinks_.erase(key) == 0) return;  // done
    core_.cancel(now(), key);
    act();
  }
  void finish_choice(RequestKey key, int choice) {
    if (stopped_) return;
    core_.finish_choice(now(), key, choice);
    act();
  }

  void debug_kv(Gateway::KvDone done) {
    if (stopped_ || kv_waiting_.size() >= Gateway::kKvWaitersMax) return done(std::nullopt);
    kv_waiting_.push_back(std::move(done));
    if (kv_) return;
    kv_ = std::make_unique<KvSnapshot>(executor_, client_, core_.registry().workers(), options_.kv_timeout,
                                       [weak = weak_from_this()](const std::string& json) {
                                         const auto self = weak.lock();
                                         if (!self) return;
                                         self->kv_.reset();
                                         for (const auto& waiting : std::exchange(self->kv_waiting_, {})) waiting(json);
                                       });
  }

  const Core& core() const { return core_; }
  std::uint64_t garbled() const { return garbled_; }
  TimePoint now() const { return executor_.clock().now(); }
  std::size_t open_legs() const { return legs_.size(); }

 private:
  struct Poller {
    std::unique_ptr<net::HttpCall> call;
    net::Executor::TimerId timer = 0;  // of the next poll, or of this one's time-out
    TimePoint started{};
    int http_status = 0;
    std::string body;
    bool again = false;  // asked for while one was under way
  };
  struct Leg {
    explicit Leg(std::size_t line_bytes_max) : lines(line_bytes_max) {}
    std::unique_ptr<net::HttpCall> call;
    LineSplitter lines;
    int http_status = 0;
    std::string retry_after, error_body;
    net::Executor::TimerId end_timer = 0;
  };

  // Executes what the core asked for, until it asks for nothing. A sink called from here may call back: that only adds actions.
  void act() {
    if (acting_) return;
    acting_ = true;
    const auto self = shared_from_this();
    for (auto actions = core_.take_actions(); !actions.empty(); actions = core_.take_actions()) {
      for (Action& action : actions) {
        std::visit([this](auto& a) { execute(a); }, action);
        if (stopped_) return;  // a sink destroyed the gateway
      }
    }
    acting_ = false;
    set_wake();
  }

  void set_wake() {
    const TimePoint next = core_.next_deadline();
    if (next == wake_at_) return;
    executor_.cancel(wake_timer_);
    wake_timer_ = 0;
    wake_at_ = next;
    if (next == kNever) return;
    wake_timer_ = executor_.after(std::max(Duration(1), next - now()), [this] {
      wake_at_ = kNever;
      core_.on_time(now());
      act();
    });
  }

  // --- actions
  void execute(StartDecode& a) { start_leg(a.leg, a.worker, "/internal/decode", wire::to_json(a.body)); }
  void execute(StartPrefill& a) { start_leg(a.leg, a.worker, "/internal/prefill", wire::to_json(a.body)); }
  void execute(CancelLeg& a) {
    if (!BATON_MUTANT(cancel_not_forwarded)) drop_leg(a.leg);
  }
  void execute(PollNow& a) {
    Poller& poller = at(a.worker);
    if (poller.call) {
      poller.again = true;
    } else {
      poll(a.worker);
    }
  }
  void execute(Remark& a) {
    const log::About about{a.request, a.trace_id};
    if (a.trouble) {
      log::info(about, "{}", a.text);
    } else {
      log::debug(about, "{}", a.text);
    }
  }
  void execute(FinishChoice& a) {
    if (posts_.size() >= kPostsMax) return;  // the choice then runs to its own end, unheard
    net::HttpClientRequest request =
        request_to(a.worker, "/internal/finish_choice?gateway=" + std::to_string(options_.core.identity.value) +
                                 "&leg=" + std::to_string(a.leg.value) + "&choice=" + std::to_string(a.choice));
    request.idle_timeout = kPostTimeout;
    const std::uint64_t id = ++last_post_;
    posts_[id] =
        client_.call(std::move(request), {.on_headers = {}, .on_data = {}, .on_done = [this, id](const Status&) { posts_.erase(id); }});
  }
  void execute(Deliver& a) {
    const auto found = sinks_.find(a.request);
    if (found == sinks_.end()) return;  // cancelled meanwhile
    const std::shared_ptr<wire::GenerateSink> sink = found->second;
    std::visit(
        [&](auto& event) {
          using T = std::remove_cvref_t<decltype(event)>;
          if constexpr (std::same_as<T, wire::Served>) {
            sink->on_served(event);
          } else if constexpr (std::same_as<T, wire::PromptLogprobs>) {
            sink->on_prompt_logprobs(std::move(event.entries));
          } else if constexpr (std::same_as<T, wire::TokenEvent>) {
            sink->on_token(std::move(event));
          } else if constexpr (std::same_as<T, wire::FinishEvent>) {
            sink->on_finish(event);
          } else {
            sinks_.erase(found);
            sink->on_done(std::move(event));
          }
        },
        a.event);
  }

  // --- legs
  net::HttpClientRequest request_to(WorkerId id, std::string target) const {
    const WorkerConfig& config = core_.registry().at(id).config;
    net::HttpClientRequest request;
    request.host = config.host;
    request.port = config.port;
    request.target = std::move(target);
    return request;
  }

  void start_leg(LegId id, WorkerId worker, const char* target, std::string body) {
    net::HttpClientRequest request = request_to(worker, target);
    request.headers.add("content-type", "application/json");
    request.body = std::move(body);
    request.idle_timeout = kLegIdle;
    Leg& leg = legs_.emplace(id, options_.line_bytes_max).first->second;
    leg.call =
        client_.call(std::move(request), {.on_headers = [this, id](int status, const net::Headers& h) { on_leg_headers(id, status, h); },
                                          .on_data = [this, id](std::string_view data) { on_leg_data(id, data); },
                                          .on_done = [this, id](const Status& status) { on_leg_done(id, status); }});
  }

  void drop_leg(LegId id) {
    const auto found = legs_.find(id);
    if (found == legs_.end()) return;
    executor_.cancel(found->second.end_timer);
    legs_.erase(found);
  }

  void end_leg(LegId id, LegEnd end) {
    drop_leg(id);
    core_.on_leg_end(now(), id, end);
    act();
  }

  void on_leg_headers(LegId id, int status, const net::Headers& headers) {
    Leg& leg = legs_.at(id);
    leg.http_status = status;
    leg.retry_after = std::string(headers.get("retry-after"));
  }

  void on_leg_data(LegId id, std::string_view data) {
    Leg& leg = legs_.at(id);
    if (leg.http_status != 200) {
      leg.error_body.append(data.substr(0, kErrorBodyMax - std::min(kErrorBodyMax, leg.error_body.size())));
      return;
    }
    Status garbage;
    bool last = false;
    const bool fits = leg.lines.push(data, [&](std::string_view line) {
      if (!garbage.ok()) return;
      auto event = wire::leg_event_from_json(line);
      if (!event.ok()) {
        garbage = Status(Code::kDataLoss, event.status().message());
        return;
      }
      last |= std::holds_alternative<wire::Done>(*event) || std::holds_alternative<wire::Failed>(*event);
      core_.on_leg_event(now(), id, std::move(*event));
    });
    if (!fits) garbage = Status(Code::kDataLoss, "sent a line of over " + std::to_string(options_.line_bytes_max) + " bytes");
    if (!garbage.ok()) {
      ++garbled_;
      return end_leg(id, {LegEnd::Kind::kBroken, garbage});
    }
    // The core has forgotten it; the connection is kept for the next one if it ends in time.
    if (last && leg.end_timer == 0) leg.end_timer = executor_.after(kAfterLastEvent, [this, id] { legs_.erase(id); });
    act();
  }

  void on_leg_done(LegId id, const Status& status) {
    const Leg& leg = legs_.at(id);
    if (status.ok() && leg.http_status != 200)
      return end_leg(id, {LegEnd::Kind::kRefused, refusal(leg.http_status, leg.error_body, leg.retry_after)});
    if (status.ok() && leg.lines.pending() > 0)
      return end_leg(id, {LegEnd::Kind::kBroken, Status(Code::kDataLoss, "the answer ended amid a line")});
    if (status.ok()) return end_leg(id, {LegEnd::Kind::kComplete, Status()});
    const bool unreachable = leg.http_status == 0 && status.code() == Code::kUnavailable;
    end_leg(id, {unreachable ? LegEnd::Kind::kUnreachable : LegEnd::Kind::kBroken, status});
  }

  // --- polls
  Poller& at(WorkerId id) { return pollers_[static_cast<std::size_t>(id.value)]; }

  void poll(WorkerId id) {
    Poller& poller = at(id);
    executor_.cancel(poller.timer);
    poller.started = now();
    poller.http_status = 0;
    poller.body.clear();
    poller.again = false;
    const bool suspect = core_.registry().at(id).liveness == Liveness::kSuspect;
    const Duration timeout = suspect ? options_.suspect_poll_timeout : options_.poll_timeout;
    net::HttpClientRequest request = request_to(id, "/internal/status");
    request.method = "GET";
    request.connect_timeout = request.idle_timeout = 2 * options_.poll_timeout;  // ours, over all of the poll, comes first
    poller.call =
        client_.call(std::move(request), {.on_headers = [this, id](int status, const net::Headers&) { at(id).http_status = status; },
                                          .on_data =
                                              [this, id](std::string_view data) {
                                                Poller& p = at(id);
                                                if (p.body.size() + data.size() <= kStatusBodyMax) p.body.append(data);
                                              },
                                          .on_done = [this, id](const Status& status) { on_polled(id, status); }});
    poller.timer = executor_.after(timeout, [this, id, timeout] {
      on_polled(id, Status(Code::kDeadlineExceeded, "no status within " + std::to_string(timeout.count() / 1000) + " ms"));
    });
  }

  void on_polled(WorkerId id, const Status& status) {
    Poller& poller = at(id);
    executor_.cancel(poller.timer);
    poller.call.reset();
    const Worker& worker = core_.registry().at(id);
    const Liveness before = worker.liveness;
    const std::string problem_before = worker.problem;
    if (!status.ok()) {
      core_.on_poll_failed(now(), id, poller.http_status == 0 && status.code() == Code::kUnavailable, status.message());
    } else if (poller.http_status != 200) {
      core_.on_poll_failed(now(), id, false, "its status answers " + std::to_string(poller.http_status));
    } else if (const auto report = wire::worker_status_from_json(poller.body); report.ok()) {
      core_.on_status(now(), id, *report);
    } else {
      core_.on_poll_failed(now(), id, false, report.status().message());
    }
    log_change(worker, before, problem_before);
    act();
    if (stopped_) return;
    if (poller.call) return;  // act() asked for another
    const Duration since = now() - poller.started;
    const Duration wait = poller.again ? Duration(0) : std::max(Duration(0), options_.poll_interval - since);
    poller.timer = executor_.after(wait, [this, id] { poll(id); });
  }

  static void log_change(const Worker& worker, Liveness before, const std::string& problem_before) {
    if (worker.liveness == before && worker.problem == problem_before) return;
    if (before == Liveness::kSuspect && worker.liveness == Liveness::kAlive) return;  // a leg broke, the worker did not
    const std::string text = "worker " +
                             (worker.name().empty() ? worker.config.host + ":" + std::to_string(worker.config.port) : worker.name()) +
                             " (" + std::string(wire::to_string(worker.config.role)) + ") is " + std::string(to_string(worker.liveness)) +
                             (worker.problem.empty() ? "" : ": " + worker.problem);
    if (worker.liveness == Liveness::kIncompatible || (worker.liveness == Liveness::kDead && before != Liveness::kUnknown)) {
      log::warn("{}", text);
    } else {
      log::info("{}", text);
    }
  }

  net::Executor& executor_;
  net::HttpClient& client_;
  const GatewayOptions options_;
  Core core_;
  std::vector<Poller> pollers_;
  std::map<LegId, Leg> legs_;
  std::map<RequestKey, std::shared_ptr<wire::GenerateSink>> sinks_;
  std::map<std::uint64_t, std::unique_ptr<net::HttpCall>> posts_;
  std::uint64_t last_post_ = 0;
  std::unique_ptr<KvSnapshot> kv_;  // under way
  std::vector<Gateway::KvDone> kv_waiting_;
  std::uint64_t garbled_ = 0;  // legs that were cut for bytes that are no event
  net::Executor::TimerId wake_timer_ = 0;
  TimePoint wake_at_ = kNever;
  bool acting_ = false;
  bool stopped_ = false;
};

namespace {

template <class Impl>
class Call final : public wire::GenerateCall {
 public:
  Call(std::weak_ptr<Impl> impl, RequestKey key) : impl_(std::move(impl)), key_(key) {}
  ~Call() override {
    if (const auto impl = impl_.lock()) impl->cancel(key_);
  }
  void finish_choice(int choice) override {
    if (const auto impl = impl_.lock()) impl->finish_choice(key_, choice);
  }

 private:
  const std::weak_ptr<Impl> impl_;
  const RequestKey key_;
};

}  // namespace

Gateway::Gateway(net::Executor& executor, net::HttpClient& client, GatewayOptions options)
    : impl_(std::make_shared<Impl>(executor, client, std::move(options))) {
  impl_->start();
}
Gateway::~Gateway() { impl_->stop(); }

std::unique_ptr<wire::GenerateCall> Gateway::generate(wire::GenerateRequest request, std::shared_ptr<wire::GenerateSink> sink) {
  const RequestKey key = impl_->submit(std::move(request), std::move(sink));
  return std::make_unique<Call<Impl>>(impl_, key);
}

std::optional<std::string> Gateway::not_ready() const { return impl_->core().not_ready(); }
const std::vector<Worker>& Gateway::workers() const { return impl_->core().registry().workers(); }
Stats Gateway::stats() const { return impl_->core().stats(); }
std::size_t Gateway::open_legs() const { return impl_->open_legs(); }

std::optional<std::string> Gateway::debug_request(const std::string& id) const {
  const auto record = impl_->core().record(impl_->now(), id);
  if (!record) return std::nullopt;
  return to_json(*record);
}

void Gateway::debug_kv(KvDone done) { impl_->debug_kv(std::move(done)); }

std::vector<Gateway::Counter> Gateway::counters() const {
  const Stats s = stats();
  std::vector<Counter> out = {
      {"gateway_requests", s.requests},
      {"gateway_requests_rejected", s.rejected},
      {"gateway_requests_failed", s.failed},
      {"gateway_requests_cancelled", s.cancelled},
      {"gateway_retries", s.retries_decode_refused, {{"leg", "decode"}, {"cause", "refused"}}},
      {"gateway_retries", s.retries_decode_lost, {{"leg", "decode"}, {"cause", "lost"}}},
      {"gateway_retries", s.retries_decode_failed - s.retries_decode_lost, {{"leg", "decode"}, {"cause", "failed"}}},
      {"gateway_retries", s.retries_prefill_refused, {{"leg", "prefill"}, {"cause", "refused"}}},
      {"gateway_retries", s.retries_prefill_lost, {{"leg", "prefill"}, {"cause", "lost"}}},
      {"gateway_retries", s.retries_prefill_failed - s.retries_prefill_lost, {{"leg", "prefill"}, {"cause", "failed"}}},
      {"gateway_retries", s.retries_nacked, {{"leg", "prefill"}, {"cause", "nacked"}}},
      {"gateway_garbage", s.garbage + impl_->garbled()},
      {"gateway_streams_resumed", s.resumed},
      {"gateway_claims", s.claims},
      {"gateway_claims_missed", s.claims_missed},
      {"gateway_streams_moved", s.moved},
      {"gateway_fallbacks", s.fallbacks},
      {"gateway_duplicate_tokens", s.duplicates_dropped},
      {"gateway_conflicting_tokens", s.conflicts},
      {"gateway_waits_expired", s.waits_expired},
      {"gateway_runs_queued", s.queued},
      {"gateway_kv_bytes", s.kv_bytes},
  };
  const std::vector<TenantStats> tenants = impl_->core().tenants();
  for (std::size_t i = 1; i < tenants.size(); ++i) {  // the first is everybody without a key
    const auto add = [&](const char* name, std::uint64_t value) { out.push_back({name, value, {{"key", tenants[i].name}}}); };
    add("key_requests", tenants[i].requests);
    add("key_requests_rejected", tenants[i].rejected);
    add("key_tokens", tenants[i].tokens);
  }
  return out;
}

}  // namespace baton::gateway
