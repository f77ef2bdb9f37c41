#include "wire/worker_api.h"

#include <algorithm>
#include <array>
#include <limits>

#include "wire/json_fields.h"

namespace baton::wire {

namespace json {
template <>
struct EnumNames<Role> {
  static constexpr const char* kNames[] = {"prefill", "decode", "both"};
};
template <>
struct EnumNames<FinishReason> {
  static constexpr const char* kNames[] = {"stop", "length", "abort"};
};
}  // namespace json

// The fields of each message, written once for both directions. In the visitors' namespace, where argument-dependent lookup finds them.
namespace json {

template <class V, Is<SamplingParams> T>
void fields(V& v, T& s) {
  v("temperature", s.temperature);
  v("top_p", s.top_p);
  v("top_k", s.top_k);
  v("min_p", s.min_p);
  v("repetition_penalty", s.repetition_penalty);
  v("presence_penalty", s.presence_penalty);
  v("frequency_penalty", s.frequency_penalty);
  v("logit_bias", s.logit_bias);
  v("stop_token_ids", s.stop_token_ids);
  v("eos_ids", s.eos_ids);
  v("ignore_eos", s.ignore_eos);
  v("max_tokens", s.max_tokens, kFromZero);
  v("min_tokens", s.min_tokens, kFromZero);
  v("logprobs", s.logprobs, Bounds{.min = -1, .max = kLogprobsMax});
  v("prompt_logprobs", s.prompt_logprobs, Bounds{.min = -1, .max = kLogprobsMax});
}

template <class V, Is<GenerateRequest> T>
void fields(V& v, T& r) {
  v("id", r.id);
  v("ids", r.ids, kFromZero);
  v("n_prompt", r.n_prompt, kFromZero);
  v("sampling", r.sampling);
  v("seed", r.seed);
  v("first_choice", r.first_choice, kFromZero);
  v("n", r.n, kFromOne);
  v("timeout_us", r.timeout, Bounds{.min = 0, .max = kTimeoutMax.count()});
  v("cache_salt", r.cache_salt);
  v("priority", r.priority);
  v("traceparent", r.traceparent);
}

template <class V, Is<LegName> T>
void fields(V& v, T& name) {
  v("gateway", name.gateway);
  v("leg", name.leg);
}

template <class V, Is<DecodeLeg> T>
void fields(V& v, T& leg) {
  v("request", leg.request);
  v("attempt", leg.attempt, kFromOne);
  v("local_prefill", leg.local_prefill);
  v("name", leg.name);
}

template <class V, Is<PrefillLeg> T>
void fields(V& v, T& leg) {
  v("request", leg.request);
  v("attempt", leg.attempt, kFromOne);
  v("lease", leg.lease);
  v("claim", leg.claim);
  v("decode_worker", leg.decode_worker);
  v("link_host", leg.link_host);
  v("link_port", leg.link_port, kPort);
  v("decode_incarnation", leg.decode_incarnation);
}

template <class V, Is<TokenLogprob> T>
void fields(V& v, T& t) {
  v("token", t.token, kFromZero);
  v("logprob", t.logprob, kLogprob);
}

template <class V, Is<TokenEvent> T>
void fields(V& v, T& t) {
  v("choice", t.choice, kFromZero);
  v("position", t.position, kFromZero);
  v("token", t.token, kFromZero);
  v("logprob", t.logprob, kLogprob);
  v("top", t.top);
}

template <class V, Is<Reserved> T>
void fields(V& v, T& e) {
  v("lease", e.lease);
}
template <class V, Is<Started> T>
void fields(V&, T&) {}
template <class V, Is<Committed> T>
void fields(V& v, T& e) {
  v("attempt", e.attempt, kFromOne);
  v("first", e.first);
}
template <class V, Is<Nacked> T>
void fields(V& v, T& e) {
  v("status", e.status);
}
template <class V, Is<Claimed> T>
void fields(V& v, T& e) {
  v("found", e.found);
}
template <class V, Is<Retained> T>
void fields(V& v, T& e) {
  v("hold", e.hold);
  v("reason", e.reason);
}
template <class V, Is<Tokens> T>
void fields(V& v, T& e) {
  v("tokens", e.tokens);
}
template <class V, Is<Preempted> T>
void fields(V& v, T& e) {
  v("choice", e.choice, kFromZero);
}
template <class V, Is<FinishEvent> T>
void fields(V& v, T& e) {
  v("choice", e.choice, kFromZero);
  v("reason", e.reason);
  v("stop_token", e.stop_token, kFromZero);
}
template <class V, Is<PromptLogprobs> T>
void fields(V& v, T& e) {
  v("entries", e.entries);
}
template <class V, Is<HandoffTimes> T>
void fields(V& v, T& t) {
  v("attempt", t.attempt, kFromOne);
  v("epoch", t.epoch);
  v("started_us", t.started_us);
  v("attached_us", t.attached_us);
  v("granted_us", t.granted_us);
  v("computed_us", t.computed_us);
  v("first_token_us", t.first_token_us);
  v("commit_us", t.commit_us);
  v("ended_us", t.ended_us);
  v("failure", t.failure);
  v("ready_us", t.ready_us);
  v("announced_us", t.announced_us);
  v("verified_us", t.verified_us);
  v("verified_bytes", t.verified_bytes, kFromZero);
  v("chunks", t.chunks);
}
template <class V, Is<Served> T>
void fields(V& v, T& s) {
  v("prefill_worker", s.prefill_worker);
  v("decode_worker", s.decode_worker);
  v("disaggregated", s.disaggregated);
  v("attempts", s.attempts);
  v("prompt_tokens", s.prompt_tokens, kFromZero);
  v("cached_tokens", s.cached_tokens, kFromZero);
  v("kv_bytes", s.kv_bytes, kFromZero);
  v("kv_bytes_early", s.kv_bytes_early, kFromZero);
  v("reserved_ms", s.reserved_ms);
  v("prefill_start_ms", s.prefill_start_ms);
  v("prefill_end_ms", s.prefill_end_ms);
  v("committed_ms", s.committed_ms);
  v("first_token_ms", s.first_token_ms);
  v("handoff", s.handoff);
}
template <class V, Is<Done> T>
void fields(V&, T&) {}
template <class V, Is<Failed> T>
void fields(V& v, T& e) {
  v("status", e.status);
}

template <class V, Is<Alive> T>
void fields(V&, T&) {}
template <class V, Is<Draining> T>
void fields(V&, T&) {}

template <class V, Is<KvSchema> T>
void fields(V& v, T& k) {
  v("layers", k.layers, kFromZero);
  v("kv_heads", k.kv_heads, kFromZero);
  v("head_dim", k.head_dim, kFromZero);
  v("dtype", k.dtype);
}

template <class V, Is<WorkerStatus> T>
void fields(V& v, T& s) {
  v("name", s.name);
  v("role", s.role);
  v("incarnation", s.incarnation);
  v("protocol", s.protocol);
  v("model_digest", s.model_digest);
  v("numerics_id", s.numerics_id);
  v("kv", s.kv);
  v("tensor_parallel_size", s.tensor_parallel_size, kFromZero);
  v("takes_handoffs", s.takes_handoffs);
  v("link_port", s.link_port, kPort);
  v("ready", s.ready);
  v("draining", s.draining);
  v("running", s.running, kFromZero);
  v("waiting", s.waiting, kFromZero);
  v("block_tokens", s.block_tokens, kFromZero);
  v("blocks_total", s.blocks_total, kFromZero);
  v("blocks_free", s.blocks_free, kFromZero);
  v("blocks_cached", s.blocks_cached, kFromZero);
  v("blocks_held", s.blocks_held, kFromZero);
  v("blocks_promised", s.blocks_promised, kFromZero);
  v("blocks_retained", s.blocks_retained, kFromZero);
  v("balanced", s.balanced);
  v("max_num_seqs", s.max_num_seqs, kFromZero);
  v("max_model_len", s.max_model_len, kFromZero);
  v("queued_prefill_tokens", s.queued_prefill_tokens, kFromZero);
  v("prefill_tokens_per_s", s.prefill_tokens_per_s);
  v("steps", s.steps);
  v("step_running_ms", s.step_running_ms);
  v("step_budget_ms", s.step_budget_ms);
  v("oldest_held_ms", s.oldest_held_ms);
  v("leases", s.leases);
  v("handoffs", s.handoffs);
  v("held_ms", s.held_ms);
  v("prompt_tokens", s.prompt_tokens);
  v("prompt_tokens_computed", s.prompt_tokens_computed);
  v("generation_tokens", s.generation_tokens);
  v("preemptions", s.preemptions);
  v("prefix_queries", s.prefix_queries);
  v("prefix_hits", s.prefix_hits);
  v("handoffs_ok", s.handoffs_ok);
  v("handoffs_failed", s.handoffs_failed);
  v("kv_bytes", s.kv_bytes);
  v("holds_claimed", s.holds_claimed);
  v("holds_dropped", s.holds_dropped);
  v("links_refused", s.links_refused);
}

}  // namespace json

namespace {

using json::Reader;
using json::Writer;

// In the order of LegEvent's alternatives.
constexpr std::array<std::string_view, std::variant_size_v<LegEvent>> kEventNames = {
    "reserved", "started",         "committed", "nacked", "claimed", "retained", "tokens",  "preempted",
    "finish",   "prompt_logprobs", "served",    "done",   "failed",  "alive",    "draining"};

template <std::size_t I = 0>
Result<LegEvent> read_event(std::size_t index, const Reader::Json& json) {
  if constexpr (I < std::variant_size_v<LegEvent>) {
    if (index != I) return read_event<I + 1>(index, json);
    auto event = Reader::read<std::variant_alternative_t<I, LegEvent>>(json);
    if (!event.ok()) return event.status();
    return LegEvent(std::move(*event));
  } else {
    return Status(Code::kInternal, "no such event");
  }
}

// A generated token stands behind the prompt, and a prompt cannot be longer than what was sent.
Status check_request(const GenerateRequest& request) {
  if (static_cast<std::size_t>(request.n_prompt) > request.ids.size())
    return Status(Code::kInvalidArgument, "request.n_prompt: " + std::to_string(request.n_prompt) + " but there are " +
                                              std::to_string(request.ids.size()) + " ids");
  return {};
}

template <class T>
Result<T> read_message(std::string_view text, std::string_view what) {
  auto parsed = Reader::parse(text);
  if (!parsed.ok()) return parsed.status().with_context(what);
  auto message = Reader::read<T>(*parsed);
  if (!message.ok()) return message.status().with_context(what);
  return message;
}

}  // namespace

std::string_view to_string(Role role) { return json::EnumNames<Role>::kNames[static_cast<int>(role)]; }

std::optional<Role> role_from_string(std::string_view name) {
  for (const Role role : {Role::kPrefill, Role::kDecode, Role::kBoth})
    if (to_string(role) == name) return role;
  return std::nullopt;
}

std::string to_json(const DecodeLeg& leg) { return Writer::dump(Writer::encode(leg)); }
std::string to_json(const PrefillLeg& leg) { return Writer::dump(Writer::encode(leg)); }
std::string to_json(const WorkerStatus& status) { return Writer::dump(Writer::encode(status)); }

std::string to_json(const LegEvent& event) {
  Writer writer;
  writer.object()["event"] = kEventNames[event.index()];
  std::visit([&](const auto& e) { fields(writer, e); }, event);
  return Writer::dump(writer.object());
}

Result<DecodeLeg> decode_leg_from_json(std::string_view json) {
  auto leg = read_message<DecodeLeg>(json, "decode leg");
  if (!leg.ok()) return leg;
  if (const Status status = check_request(leg->request); !status.ok()) return status.with_context("decode leg");
  return leg;
}

Result<PrefillLeg> prefill_leg_from_json(std::string_view json) {
  auto leg = read_message<PrefillLeg>(json, "prefill leg");
  if (!leg.ok()) return leg;
  if (const Status status = check_request(leg->request); !status.ok()) return status.with_context("prefill leg");
  return leg;
}

Result<WorkerStatus> worker_status_from_json(std::string_view json) {
  const auto parsed = Reader::parse(json);
  if (!parsed.ok()) return parsed.status().with_context("worker status");
  const auto protocol = parsed->find("protocol");
  if (protocol != parsed->end() && protocol->is_number_integer() && *protocol != kProtocolVersion) {
    WorkerStatus other;
    other.protocol = static_cast<int>(std::clamp<std::int64_t>(protocol->get<std::int64_t>(), 0, std::numeric_limits<int>::max()));
    return other;
  }
  auto status = Reader::read<WorkerStatus>(*parsed);
  if (!status.ok()) return status.status().with_context("worker status");
  return status;
}

Result<LegEvent> leg_event_from_json(std::string_view line) {
  auto parsed = Reader::parse(line);
  if (!parsed.ok()) return parsed.status().with_context("leg event");
  const auto name = parsed->find("event");
  if (name == parsed->end() || !name->is_string()) return Status(Code::kInvalidArgument, "leg event: event: missing or not a string");
  for (std::size_t i = 0; i < kEventNames.size(); ++i) {
    if (name->get_ref<const std::string&>() != kEventNames[i]) continue;
    auto event = read_event(i, *parsed);
    if (!event.ok()) return event.status().with_context("leg event " + std::string(kEventNames[i]));
    return event;
  }
  return Status(Code::kInvalidArgument, "leg event: event: unknown event " + name->get<std::string>().substr(0, 40));
}

}  // namespace baton::wire
