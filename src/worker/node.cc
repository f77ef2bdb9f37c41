#include "worker/node.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/log.h"
#include "base/mutant.h"
#include "wire/trace_context.h"
#include "worker/legs.h"

namespace baton::worker {
namespace {

constexpr int kChoicesMax = 1024;
constexpr Duration kDrainPoll = std::chrono::milliseconds(20);

Status check(const wire::GenerateRequest& r) {
  const auto ids = static_cast<std::int64_t>(r.ids.size());
  if (ids == 0 || r.n_prompt < 1 || r.n_prompt > ids) return {Code::kInvalidArgument, "request: n_prompt is not within its ids"};
  if (r.n < 1 || r.n > kChoicesMax || r.first_choice < 0 || r.first_choice > kChoicesMax)
    return {Code::kInvalidArgument, "request: n or first_choice"};
  // A hand-off's first tokens travel in one frame.
  const std::int64_t first_tokens = std::int64_t{r.n} * (40 + 8 * std::max(r.sampling.logprobs, 0));
  if (first_tokens > static_cast<std::int64_t>(transfer::Limits::kFrameBytes) - 1024)
    return {Code::kInvalidArgument, "request: logprobs of " + std::to_string(r.sampling.logprobs) + " for each of " + std::to_string(r.n) +
                                        " choices; fewer of one or the other"};
  if (r.timeout <= Duration::zero()) return {Code::kDeadlineExceeded, "the request's deadline has passed"};
  return {};
}

transfer::RetentionOptions retention(transfer::RetentionOptions options, const transfer::SourceRegion& own) {
  if (options.blocks_max == 0) options.blocks_max = own.spec().blocks / 2;
  return options;
}

LegSubject subject(std::string_view kind, const wire::GenerateRequest& request, Attempt attempt) {
  return {std::string(kind) + ", attempt " + std::to_string(attempt.value), request.id, wire::trace_id_of(request.traceparent)};
}

// A query parameter that is a number; nothing if it is missing or anything else.
template <class Number>
std::optional<Number> parameter(std::string_view query, std::string_view name) {
  while (!query.empty()) {
    const auto end = std::min(query.find('&'), query.size());
    const std::string_view pair = query.substr(0, end);
    query.remove_prefix(std::min(end + 1, query.size()));
    const auto eq = pair.find('=');
    if (eq == std::string_view::npos || pair.substr(0, eq) != name) continue;
    Number value{};
    const char *from = pair.data() + eq + 1, *to = pair.data() + pair.size();
    const auto [parsed, error] = std::from_chars(from, to, value);
    return error == std::errc() && parsed == to ? std::optional(value) : std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

Node::Node(net::Executor& loop, engine::Engine& engine, transfer::Fabric& fabric, PeerLinks::Dialer dialer, WorkerOptions options)
    : loop_(loop),
      engine_(engine),
      options_(std::move(options)),
      own_(fabric.export_pool()),
      target_(loop, engine, fabric,
              {options_.incarnation, options_.name, options_.model_digest, options_.numerics_id, options_.kv, own_.spec().block_tokens},
              options_.receiver, options_.lease_key),
      source_(loop, engine, fabric, {options_.incarnation, options_.name, options_.model_digest, options_.numerics_id, options_.kv, own_},
              std::move(dialer), {options_.sender, retention(options_.retention, own_), options_.lease_key}) {}

Node::~Node() {
  if (drain_timer_) loop_.cancel(*drain_timer_);
  if (beat_timer_) loop_.cancel(*beat_timer_);
  *alive_ = false;
}

int Node::retry_after_s() const {
  const auto s = engine_.status();
  if (s.prefill_tokens_per_s <= 0) return 1;
  return static_cast<int>(std::clamp(static_cast<double>(s.queued_prefill_tokens) / s.prefill_tokens_per_s, 1.0, 60.0));
}

// Who drains still gives out what it has.
Status Node::admission(bool claim) const {
  if (draining_ && !claim) return {Code::kUnavailable, options_.name + " is draining"};
  if (engine_.status().failed) return {Code::kUnavailable, options_.name + "'s engine has failed"};
  if (legs_.size() >= options_.legs_max)
    return {Code::kResourceExhausted, options_.name + " has " + std::to_string(legs_.size()) + " running legs"};
  return {};
}

std::function<void()> Node::closer(LegNo no) {
  return [this, alive = alive_, no] {
    if (*alive) close_leg(no);
  };
}

// ---------------------------------------------------------------------------------------------------------------- routes

void Node::handle(net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder) {
  const auto answer = [&](const Status& s) { refuse(*responder, s, retry_after_s()); };
  const auto json = [&](int status, std::string body) {
    net::Headers headers;
    headers.add("content-type", "application/json");
    responder->respond(status, std::move(headers), std::move(body));
  };
  if (request.method == "POST" && request.path == "/internal/decode") {
    auto leg = wire::decode_leg_from_json(request.body);
    return leg.ok() ? decode_leg(std::move(leg).value(), std::move(responder)) : answer(leg.status());
  }
  if (request.method == "POST" && request.path == "/internal/prefill") {
    auto leg = wire::prefill_leg_from_json(request.body);
    return leg.ok() ? prefill_leg(std::move(leg).value(), std::move(responder)) : answer(leg.status());
  }
  if (request.method == "POST" && request.path == "/internal/finish_choice") {
    const Status s = finish_choice(request.query);
    return s.ok() ? responder->respond(204, {}, "") : answer(s);
  }
  if (request.method == "GET" && request.path == "/internal/status") {
    watch_books();
    return json(200, wire::to_json(status()));
  }
  if (request.method == "GET" && request.path == "/internal/kv") return json(200, wire::to_json(kv_report()));
  if (request.method == "GET" && request.path == "/health") {
    if (engine_.status().failed) return answer(Status(Code::kUnavailable, "the engine has failed"));
    return json(200, "{}");
  }
  answer(Status(Code::kNotFound, request.method + " " + request.path + " is nothing that a worker serves"));
}

// The leg's answer is complete, or nobody reads it any more: whatever it still holds is given up.
void Node::close_leg(LegNo no) {
  auto node = legs_.extract(no);
  if (node.empty()) return;
  const LegStream& stream = *node.mapped().stream;
  if (!stream.ended()) log::debug(stream.subject().about(), "{} was closed", stream.subject().what);
  if (node.mapped().lease && !BATON_MUTANT(lease_kept_on_cancel)) target_.close(*node.mapped().lease);
  if (node.mapped().handoff) source_.close(*node.mapped().handoff);
}

Status Node::check_books() const {
  for (const auto& [no, leg] : legs_) {
    if (leg.lease && !target_.holds(*leg.lease))
      return {Code::kInternal, "the decode leg of " + leg.stream->subject().request + " is open, but its lease is gone"};
  }
  return {};
}

std::size_t Node::open_prefill_legs() const {
  return static_cast<std::size_t>(std::ranges::count_if(legs_, [](const auto& l) { return l.second.handoff.has_value(); }));
}

void Node::accept_leg(LegNo no, Leg leg, net::HttpResponder& responder) {
  const auto stream = leg.stream;
  legs_.emplace(no, std::move(leg));
  responder.on_close(closer(no));
  log::debug(stream->subject().about(), "{} begins", stream->subject().what);
  stream->start();
  if (!beat_timer_) beat_timer_ = loop_.after(options_.heartbeat, [this] { beat(); });
}

// A leg that waits or computes for long is not silent: silence is how the gateway sees that a worker hangs or its network is lost.
void Node::beat() {
  beat_timer_.reset();
  if (legs_.empty()) return;
  for (auto& [no, leg] : legs_) leg.stream->beat();
  beat_timer_ = loop_.after(options_.heartbeat, [this] { beat(); });
}

// An instance over several hosts has a part of its KV elsewhere, where a hand-off does not reach.
Status Node::handoff_possible() const {
  if (options_.takes_handoffs) return {};
  return {Code::kUnavailable, options_.name + " runs over several hosts, and takes whole requests only"};
}

void Node::decode_leg(wire::DecodeLeg body, std::shared_ptr<net::HttpResponder> responder) {
  Status s = admission(false);
  if (s.ok() && !body.local_prefill) s = handoff_possible();
  if (s.ok()) s = check(body.request);
  if (!s.ok()) return refuse(*responder, s, retry_after_s());
  const LegNo no = next_leg_++;
  Leg leg;
  leg.name = body.name;
  leg.stream = LegStream::create(loop_, responder, subject("decode leg", body.request, body.attempt));
  auto sink = std::make_shared<DecodeLegSink>(leg.stream, options_.name, body.local_prefill, body.attempt, closer(no));
  if (body.local_prefill) {
    leg.call = engine_.generate(std::move(body.request), std::move(sink));
  } else {
    const auto lease = target_.reserve(body.request, std::move(sink));
    if (!lease.ok()) return refuse(*responder, lease.status(), retry_after_s());
    leg.lease = *lease;
    leg.stream->send(wire::Reserved{*lease});
  }
  accept_leg(no, std::move(leg), *responder);
}

void Node::prefill_leg(wire::PrefillLeg body, std::shared_ptr<net::HttpResponder> responder) {
  Status s = admission(body.claim != HoldId());
  if (s.ok()) s = handoff_possible();
  if (s.ok()) s = check(body.request);
  if (s.ok() && body.lease == LeaseId() && body.claim != HoldId()) s = Status(Code::kInvalidArgument, "a claim needs a lease");
  if (s.ok() && body.lease != LeaseId() && (body.link_port < 1 || body.link_port > 65535 || body.link_host.empty()))
    s = Status(Code::kInvalidArgument, "link_host or link_port");
  if (!s.ok()) return refuse(*responder, s, retry_after_s());
  const LegNo no = next_leg_++;
  Leg leg;
  leg.stream = LegStream::create(loop_, responder, subject("prefill leg", body.request, body.attempt));
  wire::Served served;
  served.prefill_worker = options_.name;
  served.decode_worker = body.decode_worker;
  served.disaggregated = true;
  served.attempts = static_cast<int>(body.attempt.value);
  served.prompt_tokens = body.request.n_prompt;
  auto sink = std::make_shared<PrefillLegSink>(leg.stream, std::move(served), body.attempt, closer(no));
  const auto handoff = source_.start(std::move(body), std::move(sink));
  if (!handoff.ok()) return refuse(*responder, handoff.status(), retry_after_s());
  leg.handoff = *handoff;
  accept_leg(no, std::move(leg), *responder);
}

Status Node::finish_choice(const std::string& query) {
  const auto gateway = parameter<std::uint64_t>(query, "gateway"), number = parameter<std::uint64_t>(query, "leg");
  const auto choice = parameter<int>(query, "choice");
  if (!gateway || !number || !choice || *choice < 0) return {Code::kInvalidArgument, "finish_choice needs gateway, leg and choice"};
  const auto found = std::ranges::find(legs_, wire::LegName{Incarnation(*gateway), *number}, [](const auto& l) { return l.second.name; });
  if (found == legs_.end()) return {Code::kNotFound, "no decode leg " + std::to_string(*number) + " of that gateway"};
  Leg& leg = found->second;
  if (leg.lease) target_.finish_choice(*leg.lease, *choice);
  if (leg.call) leg.call->finish_choice(*choice);
  return {};
}

// ---------------------------------------------------------------------------------------------------------------- status and drain

wire::WorkerStatus Node::status() const {
  const auto engine = engine_.status();
  const auto target = target_.stats();
  const auto source = source_.stats();
  wire::WorkerStatus s;
  s.name = options_.name;
  s.role = options_.role;
  s.incarnation = options_.incarnation;
  s.model_digest = options_.model_digest;
  s.numerics_id = options_.numerics_id;
  s.tensor_parallel_size = options_.tensor_parallel_size;
  s.takes_handoffs = options_.takes_handoffs;
  s.kv = options_.kv;
  s.link_port = options_.link_port;
  s.ready = !engine.failed && !draining_;
  s.draining = draining_;
  s.running = engine.running;
  s.waiting = engine.waiting;
  s.block_tokens = own_.spec().block_tokens;
  s.blocks_total = engine.blocks_total;
  s.blocks_free = engine.blocks_free;
  s.blocks_cached = engine.blocks_cached;
  s.blocks_held = engine.blocks_held;
  s.blocks_promised = engine.blocks_reserved;
  s.balanced = imbalance(engine, target, source.open).empty();
  s.blocks_retained = source.retention.blocks;
  s.holds_claimed = source.retention.claimed;
  s.holds_dropped = source.retention.dropped;
  s.max_num_seqs = options_.max_num_seqs;
  s.max_model_len = options_.max_model_len;
  s.queued_prefill_tokens = engine.queued_prefill_tokens;
  s.prefill_tokens_per_s = engine.prefill_tokens_per_s;
  s.steps = engine.steps;
  s.step_running_ms = to_ms(engine.step_running);
  s.step_budget_ms = to_ms(engine.step_budget);
  s.oldest_held_ms = to_ms(std::max(target.oldest_held, source.oldest_held));
  using transfer::Receiver, transfer::Sender;
  for (int i = 0; i < Receiver::kStates; ++i) s.leases.emplace_back(to_string(static_cast<Receiver::State>(i)), target.by_state[i]);
  for (const auto state :
       {Sender::State::kQueued, Sender::State::kAttaching, Sender::State::kStreaming, Sender::State::kCommitting, Sender::State::kAborting})
    s.handoffs.emplace_back(to_string(state), source.by_state[static_cast<int>(state)]);
  s.handoffs.emplace_back("retained", static_cast<std::int32_t>(source.retention.holds));
  // A sequence makes progress with each step of the device.
  s.held_ms = {{"credit", to_ms(target.idle_credit)},
               {"lease", to_ms(target.idle_blocks)},
               {"handoff", to_ms(source.idle_handoff)},
               {"retained", to_ms(source.idle_retained)},
               {"sequence", to_ms(engine.step_running)}};
  s.prompt_tokens = engine.prompt_tokens;
  s.prompt_tokens_computed = engine.prompt_tokens_computed;
  s.generation_tokens = engine.generation_tokens;
  s.preemptions = engine.preemptions;
  s.prefix_queries = engine.prefix_queries;
  s.prefix_hits = engine.prefix_hits;
  // Each hand-off has one source and one target; every worker counts its own side.
  s.handoffs_ok = target.committed + source.acked;
  s.handoffs_failed = target.nacked + source.failed;
  s.kv_bytes = target.kv_bytes + source.kv_bytes;
  s.links_refused = target.links_refused + source.links_refused;
  return s;
}

wire::KvReport Node::kv_report() const {
  const TimePoint now = loop_.clock().now();
  const auto engine = engine_.status();
  const auto left = [&](TimePoint deadline) { return deadline == kNever ? std::nullopt : std::optional(to_ms(deadline - now)); };
  wire::KvReport r;
  r.name = options_.name;
  r.incarnation = options_.incarnation;
  r.block_tokens = own_.spec().block_tokens;
  r.total = engine.blocks_total, r.free = engine.blocks_free, r.cached = engine.blocks_cached, r.held = engine.blocks_held;
  r.promised = engine.blocks_reserved;
  r.problem = imbalance(engine, target_.stats(), source_.stats().open);
  if (const Status books = engine_.check(); r.problem.empty() && !books.ok()) r.problem = books.message();
  r.balanced = r.problem.empty();
  for (const auto& h : target_.held()) {
    r.holds.push_back({"lease", std::string(to_string(h.state)), h.request_id, h.attempt.value, h.epoch, h.source, h.blocks,
                       to_ms(now - h.since), to_ms(now - h.progress_at), left(h.deadline)});
  }
  for (const auto& h : source_.held()) {
    r.holds.push_back({h.retained ? "retained" : "handoff", std::string(h.state), h.request_id, h.attempt.value, h.epoch, h.target,
                       h.blocks, to_ms(now - h.since), to_ms(now - h.progress_at), left(h.deadline)});
  }
  for (const auto& h : engine_.holds()) {
    r.holds.push_back({"sequence", std::string(h.state), h.request_id, 0, Epoch(), "", h.blocks, to_ms(now - h.since),
                       to_ms(engine.step_running), left(h.deadline)});
  }
  r.trim();
  return r;
}

// What does not add up; empty: all does.
std::string Node::imbalance(const engine::EngineStatus& engine, const transfer::Receiver::Stats& target, std::size_t prompts) const {
  if (!engine.balanced) return "the counts of free, cached and held blocks are not those of the pool, or something is held for nobody";
  int leases = 0;
  for (const int n : target.by_state) leases += n;
  if (legs_.empty() && leases == 0 && prompts == 0 && engine.requests > 0) return "no leg, lease or hand-off is left, but sequences are";
  return {};
}

// Looked at with each poll. A violation is a defect: fatal where defects are looked for, an alarm where requests are served.
void Node::watch_books() {
  const auto engine = engine_.status();
  const std::string problem = imbalance(engine, target_.stats(), source_.stats().open);
  if (problem == std::exchange(alarmed_, problem)) return;
  if (problem.empty()) return log::info("{}: the books of the KV pool add up again", options_.name);
  log::warn("{}: the books of the KV pool do not add up: {}. Blocks: {} in all, {} free, {} cached, {} held, {} promised; {} sequences",
            options_.name, problem, engine.blocks_total, engine.blocks_free, engine.blocks_cached, engine.blocks_held,
            engine.blocks_reserved, engine.requests);
  BATON_CHECK_MSG(!options_.unbalanced_is_fatal, problem);
}

void Node::drain(Duration limit, std::function<void()> done) {
  if (draining_) return;
  draining_ = true;
  drained_ = std::move(done);
  drain_deadline_ = loop_.clock().now() + limit;
  log::info("{} drains: {} legs run", options_.name, legs_.size());
  for (auto& [no, leg] : legs_) leg.stream->send(wire::Draining{});
  drain_step();
}

void Node::drain_step() {
  drain_timer_.reset();
  // Past the limit the legs fail, which lets the gateway go on elsewhere; held KV then ends by the hand-offs' own deadlines.
  if (loop_.clock().now() >= drain_deadline_) {
    std::vector<LegNo> left;
    for (const auto& [no, leg] : legs_) left.push_back(no);
    for (LegNo no : left) {
      legs_.at(no).stream->end(wire::Failed{Status(Code::kUnavailable, options_.name + " is going down")});
      close_leg(no);
    }
  }
  const auto target = target_.stats();
  int leases = 0;
  for (int n : target.by_state) leases += n;
  if (legs_.empty() && leases == 0 && source_.stats().open == 0) return std::exchange(drained_, nullptr)();
  drain_timer_ = loop_.after(kDrainPoll, [this] { drain_step(); });
}

}  // namespace baton::worker
