#include "wire/worker_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/rng.h"

namespace baton::wire {
namespace {

using ::testing::HasSubstr;

// Random messages, with the extremes of each type among the values.
class Maker {
 public:
  explicit Maker(std::uint64_t seed) : rng_(seed) {}

  bool coin() { return rng_.below(2) == 0; }
  int natural() { return rng_.below(8) == 0 ? std::numeric_limits<int>::max() : static_cast<int>(rng_.below(1000)); }
  std::uint64_t u64() { return rng_.below(4) == 0 ? std::numeric_limits<std::uint64_t>::max() : rng_.next_u64(); }
  std::int64_t i64() { return static_cast<std::int64_t>(rng_.next_u64() >> 1); }
  float real() {
    if (rng_.below(16) == 0) return -std::numeric_limits<float>::infinity();
    if (rng_.below(16) == 0) return std::numeric_limits<float>::denorm_min();
    return static_cast<float>(rng_.uniform() * 200 - 100);
  }
  float finite() { return static_cast<float>(rng_.uniform() * 200 - 100); }
  std::string text() {
    static const std::string kPieces[] = {"a", "\"", "\\", "\n", "\0x", "é", "漢", "😀", "/", "\x7f"};
    std::string out;
    for (std::uint64_t i = rng_.below(6); i > 0; --i) out += kPieces[rng_.below(std::size(kPieces))];
    return out;
  }
  std::vector<TokenId> ids() {
    std::vector<TokenId> out(rng_.below(20));
    for (TokenId& id : out) id = natural();
    return out;
  }
  Status failure() { return Status(static_cast<Code>(1 + rng_.below(static_cast<int>(Code::kInternal))), text()); }

  GenerateRequest request() {
    GenerateRequest r;
    r.id = text();
    r.ids = ids();
    r.n_prompt = static_cast<std::int32_t>(rng_.below(r.ids.size() + 1));
    SamplingParams& s = r.sampling;
    s.temperature = finite(), s.top_p = finite(), s.min_p = std::numeric_limits<float>::denorm_min();
    s.repetition_penalty = finite(), s.presence_penalty = finite(), s.frequency_penalty = finite();
    s.top_k = -natural();
    for (TokenId id : ids()) s.logit_bias.emplace_back(id, finite());
    s.stop_token_ids = ids(), s.eos_ids = ids();
    s.ignore_eos = coin();
    s.max_tokens = natural(), s.min_tokens = natural(), s.logprobs = static_cast<int>(rng_.below(kLogprobsMax + 2)) - 1,
    s.prompt_logprobs = -1;
    r.seed = u64();
    r.first_choice = natural(), r.n = 1 + static_cast<int>(rng_.below(9));
    r.timeout = Duration(static_cast<std::int64_t>(rng_.below(static_cast<std::uint64_t>(kTimeoutMax.count()) + 1)));
    r.cache_salt = text();
    r.priority = -natural();
    r.traceparent = text();
    return r;
  }
  TokenEvent token() {
    TokenEvent t{.choice = natural(), .position = natural(), .token = natural(), .logprob = {}, .top = {}};
    if (coin()) t.logprob = real();
    for (TokenId id : ids()) t.top.push_back({id, real()});
    return t;
  }
  Served served() {
    Served s;
    s.prefill_worker = text(), s.decode_worker = text();
    s.disaggregated = coin();
    s.attempts = natural(), s.prompt_tokens = natural(), s.cached_tokens = natural();
    s.kv_bytes = i64(), s.kv_bytes_early = i64();
    s.reserved_ms = rng_.uniform(), s.prefill_start_ms = rng_.uniform(), s.prefill_end_ms = rng_.uniform();
    s.committed_ms = rng_.uniform(), s.first_token_ms = -1;
    if (coin()) s.handoff = handoff();
    return s;
  }
  std::vector<std::int64_t> times() {
    std::vector<std::int64_t> out(rng_.below(40), -1);
    for (std::int64_t& t : out)
      if (coin()) t = i64();
    return out;
  }
  HandoffTimes handoff() {
    HandoffTimes t;
    t.attempt = Attempt(1 + static_cast<std::uint32_t>(rng_.below(9))), t.epoch = Epoch(u64());
    t.started_us = i64(), t.attached_us = i64(), t.granted_us = -1, t.computed_us = i64(), t.first_token_us = i64();
    t.commit_us = i64(), t.ended_us = -1;
    if (coin()) t.failure = failure();
    t.ready_us = times(), t.announced_us = times(), t.verified_us = times();
    for (const TokenId tokens : ids()) t.chunks.emplace_back(tokens, i64()), t.verified_bytes.push_back(tokens);
    return t;
  }
  LegEvent event() {
    switch (rng_.below(15)) {
      case 0:
        return Reserved{LeaseId(u64())};
      case 1:
        return Started{};
      case 2:
        return Committed{Attempt(1 + static_cast<std::uint32_t>(rng_.below(9))), {token(), token()}};
      case 3:
        return Nacked{failure()};
      case 4:
        return Tokens{{token(), token(), token()}};
      case 5: {
        FinishEvent f{.choice = natural(), .reason = static_cast<FinishReason>(rng_.below(3)), .stop_token = {}};
        if (coin()) f.stop_token = natural();
        return f;
      }
      case 6:
        return PromptLogprobs{{std::nullopt, token(), token()}};
      case 7:
        return served();
      case 8:
        return Done{};
      case 9:
        return Claimed{coin()};
      case 10:
        return Alive{};
      case 11:
        return Draining{};
      case 12:
        return Retained{HoldId(u64()), coin() ? std::optional(failure()) : std::nullopt};
      case 13:
        return Preempted{natural()};
      default:
        return Failed{failure()};
    }
  }
  WorkerStatus status() {
    WorkerStatus s;
    s.name = text();
    s.role = static_cast<Role>(rng_.below(3));
    s.incarnation = Incarnation(u64());
    s.model_digest = text(), s.numerics_id = text();
    s.kv = {natural(), natural(), natural(), text()};
    s.tensor_parallel_size = natural();
    s.takes_handoffs = coin();
    s.link_port = static_cast<int>(rng_.below(65536));
    s.ready = coin(), s.draining = coin();
    s.running = natural(), s.waiting = natural();
    s.block_tokens = natural(), s.blocks_total = natural(), s.blocks_free = natural(), s.blocks_cached = natural();
    s.blocks_retained = natural(), s.holds_claimed = u64(), s.holds_dropped = u64();
    s.blocks_held = natural(), s.blocks_promised = natural(), s.balanced = coin(), s.links_refused = u64();
    for (const TokenId n : ids()) s.leases.emplace_back(text(), n), s.handoffs.emplace_back(text(), n), s.held_ms.emplace_back(text(), n);
    s.max_num_seqs = natural(), s.max_model_len = i64(), s.queued_prefill_tokens = i64();
    s.prefill_tokens_per_s = rng_.uniform() * 1e6, s.oldest_held_ms = rng_.uniform();
    s.step_running_ms = rng_.uniform(), s.step_budget_ms = rng_.uniform();
    s.steps = u64(), s.prompt_tokens = u64(), s.prompt_tokens_computed = u64(), s.generation_tokens = u64(), s.preemptions = u64();
    s.prefix_queries = u64(), s.prefix_hits = u64(), s.handoffs_ok = u64(), s.handoffs_failed = u64(), s.kv_bytes = u64();
    return s;
  }
  Rng& rng() { return rng_; }

 private:
  Rng rng_;
};

TEST(Codecs, RequestArrivesAsItWasSent) {
  Maker make(1);
  for (int i = 0; i < 300; ++i) {
    PrefillLeg leg;
    leg.request = make.request();
    leg.attempt = Attempt(7);
    leg.lease = LeaseId(make.u64());
    leg.claim = HoldId(make.u64());
    leg.decode_worker = make.text(), leg.link_host = make.text();
    leg.link_port = 65535;
    leg.decode_incarnation = Incarnation(make.u64());
    const auto back = prefill_leg_from_json(to_json(leg));
    ASSERT_TRUE(back.ok()) << back.status().to_string() << "\n" << to_json(leg);
    EXPECT_EQ(back->attempt, leg.attempt);
    EXPECT_EQ(back->lease, leg.lease);
    EXPECT_EQ(back->claim, leg.claim);
    EXPECT_EQ(back->decode_worker, leg.decode_worker);
    EXPECT_EQ(back->link_host, leg.link_host);
    EXPECT_EQ(back->link_port, leg.link_port);
    EXPECT_EQ(back->decode_incarnation, leg.decode_incarnation);
    const GenerateRequest &a = leg.request, &b = back->request;
    EXPECT_EQ(a.id, b.id);
    EXPECT_EQ(a.ids, b.ids);
    EXPECT_EQ(a.n_prompt, b.n_prompt);
    EXPECT_EQ(a.seed, b.seed);
    EXPECT_EQ(a.first_choice, b.first_choice);
    EXPECT_EQ(a.n, b.n);
    EXPECT_EQ(a.timeout, b.timeout);
    EXPECT_EQ(a.cache_salt, b.cache_salt);
    EXPECT_EQ(a.priority, b.priority);
    const SamplingParams &s = a.sampling, &t = b.sampling;
    EXPECT_EQ(s.temperature, t.temperature);
    EXPECT_EQ(s.top_p, t.top_p);
    EXPECT_EQ(s.top_k, t.top_k);
    EXPECT_EQ(s.min_p, t.min_p);
    EXPECT_EQ(s.repetition_penalty, t.repetition_penalty);
    EXPECT_EQ(s.presence_penalty, t.presence_penalty);
    EXPECT_EQ(s.frequency_penalty, t.frequency_penalty);
    EXPECT_EQ(s.logit_bias, t.logit_bias);
    EXPECT_EQ(s.stop_token_ids, t.stop_token_ids);
    EXPECT_EQ(s.eos_ids, t.eos_ids);
    EXPECT_EQ(s.ignore_eos, t.ignore_eos);
    EXPECT_EQ(s.max_tokens, t.max_tokens);
    EXPECT_EQ(s.min_tokens, t.min_tokens);
    EXPECT_EQ(s.logprobs, t.logprobs);
    EXPECT_EQ(s.prompt_logprobs, t.prompt_logprobs);
    const auto decode = decode_leg_from_json(to_json(DecodeLeg{leg.request, Attempt(2), true, {Incarnation(make.u64()), 9}}));
    ASSERT_TRUE(decode.ok());
    EXPECT_EQ(decode->attempt, Attempt(2));
    EXPECT_TRUE(decode->local_prefill);
    EXPECT_EQ(decode->name.leg, 9u);
    EXPECT_EQ(decode->request.ids, leg.request.ids);
  }
}

// The text is a function of every field, and the fields are compared with an independent look at some events below.
TEST(Codecs, EventsAndStatusAreFixedPoints) {
  Maker make(2);
  for (int i = 0; i < 2000; ++i) {
    const LegEvent event = make.event();
    const std::string line = to_json(event);
    EXPECT_EQ(line.find('\n'), std::string::npos) << "one event a line";
    const auto back = leg_event_from_json(line);
    ASSERT_TRUE(back.ok()) << back.status().to_string() << "\n" << line;
    EXPECT_EQ(back->index(), event.index());
    EXPECT_EQ(to_json(*back), line);
    const WorkerStatus status = make.status();
    const auto status_back = worker_status_from_json(to_json(status));
    ASSERT_TRUE(status_back.ok()) << status_back.status().to_string();
    EXPECT_EQ(to_json(*status_back), to_json(status));
    EXPECT_EQ(status_back->incarnation, status.incarnation);
    EXPECT_EQ(status_back->kv, status.kv);
    EXPECT_EQ(status_back->role, status.role);
  }
}

TEST(Codecs, EventsKeepTheirValues) {
  const TokenEvent token{.choice = 3, .position = 17, .token = 42, .logprob = -1.5f, .top = {{9, -0.25f}}};
  const auto tokens = leg_event_from_json(to_json(LegEvent(Tokens{{token}})));
  ASSERT_TRUE(tokens.ok());
  const TokenEvent& back = std::get<Tokens>(*tokens).tokens.at(0);
  EXPECT_EQ(back.choice, 3);
  EXPECT_EQ(back.position, 17);
  EXPECT_EQ(back.token, 42);
  EXPECT_EQ(back.logprob, -1.5f);
  EXPECT_EQ(back.top.at(0).token, 9);
  EXPECT_EQ(back.top.at(0).logprob, -0.25f);

  const auto failed = leg_event_from_json(to_json(LegEvent(Failed{Status(Code::kDataLoss, "digest of layer 3")})));
  ASSERT_TRUE(failed.ok());
  EXPECT_EQ(std::get<Failed>(*failed).status.to_string(), "data_loss: digest of layer 3");

  const auto retained = leg_event_from_json(to_json(LegEvent(Retained{HoldId(5), Status(Code::kUnavailable, "link")})));
  ASSERT_TRUE(retained.ok());
  EXPECT_EQ(std::get<Retained>(*retained).hold, HoldId(5));
  EXPECT_EQ(std::get<Retained>(*retained).reason->to_string(), "unavailable: link");
  EXPECT_FALSE(std::get<Retained>(*leg_event_from_json(R"({"event":"retained","hold":1})")).reason.has_value());
  EXPECT_TRUE(std::get<Claimed>(*leg_event_from_json(R"({"event":"claimed","found":true})")).found);

  const auto finish = leg_event_from_json(R"({"event":"finish","choice":1,"reason":"length"})");
  ASSERT_TRUE(finish.ok());
  EXPECT_EQ(std::get<FinishEvent>(*finish).reason, FinishReason::kLength);
  EXPECT_EQ(std::get<FinishEvent>(*finish).stop_token, std::nullopt);

  const auto prompt = leg_event_from_json(to_json(LegEvent(PromptLogprobs{{std::nullopt, token}})));
  ASSERT_TRUE(prompt.ok());
  EXPECT_FALSE(std::get<PromptLogprobs>(*prompt).entries.at(0).has_value());
  EXPECT_EQ(std::get<PromptLogprobs>(*prompt).entries.at(1)->token, 42);
}

TEST(Codecs, ErrorsNameTheField) {
  const auto message = [](std::string_view line) { return leg_event_from_json(line).status().message(); };
  EXPECT_THAT(message(""), HasSubstr("not JSON"));
  EXPECT_THAT(message("[1]"), HasSubstr("expected a JSON object"));
  EXPECT_THAT(message("{}"), HasSubstr("event: missing"));
  EXPECT_THAT(message(R"({"event":"bogus"})"), HasSubstr("unknown event bogus"));
  EXPECT_THAT(message(R"({"event":"reserved"})"), HasSubstr("reserved: lease: missing"));
  EXPECT_THAT(message(R"({"event":"reserved","lease":-1})"), HasSubstr("lease: out of range"));
  EXPECT_THAT(message(R"({"event":"reserved","lease":1.5})"), HasSubstr("lease: expected an integer"));
  EXPECT_THAT(message(R"({"event":"finish","choice":0,"reason":"bored"})"), HasSubstr("reason: expected one of stop length abort"));
  EXPECT_THAT(message(R"({"event":"tokens","tokens":[{"choice":0,"position":1,"token":2,"top":[]},{"choice":0,"position":"x"}]})"),
              HasSubstr("tokens[1].position: expected an integer"));
  EXPECT_THAT(message(R"({"event":"failed","status":{"code":"ok","message":""}})"), HasSubstr("status: a failure cannot be ok"));

  Maker make(3);
  DecodeLeg leg{make.request(), Attempt(1), false};
  leg.request.ids = {1, 2};
  leg.request.n_prompt = 3;
  EXPECT_THAT(decode_leg_from_json(to_json(leg)).status().message(), HasSubstr("n_prompt: 3 but there are 2 ids"));
  leg.request.n_prompt = 1;
  leg.request.ids[1] = -5;
  EXPECT_THAT(decode_leg_from_json(to_json(leg)).status().message(), HasSubstr("request.ids[1]: out of range"));
}

// What a worker would compute with, wait for or make room for is refused where it is no sane number.
TEST(Codecs, HostileNumbersAreRefused) {
  Maker make(5);
  DecodeLeg leg{make.request(), Attempt(1), false};
  const std::string good = to_json(leg);
  ASSERT_TRUE(decode_leg_from_json(good).ok());
  const auto why = [&](const std::string& field, const std::string& value) {
    const std::string key = "\"" + field + "\":";
    const std::size_t begin = good.find(key) + key.size(), end = good.find_first_of(",}", begin);
    return decode_leg_from_json(good.substr(0, begin) + value + good.substr(end)).status().message();
  };
  for (const char* field : {"temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}) {
    for (const char* value : {"\"nan\"", "\"inf\"", "\"-inf\""}) {
      EXPECT_THAT(why(field, value), HasSubstr(std::string(field) + ": expected a finite number"));
    }
    EXPECT_THAT(why(field, "1e39"), HasSubstr(std::string(field) + ": out of range"));
    EXPECT_THAT(why(field, "1e999"), HasSubstr("not JSON"));
    EXPECT_THAT(why(field, "NaN"), HasSubstr("not JSON"));
  }
  for (const char* field : {"timeout_us", "logprobs", "prompt_logprobs", "n"}) {
    EXPECT_THAT(why(field, "9223372036854775807"), HasSubstr(std::string(field) + ": out of range"));
    EXPECT_THAT(why(field, "-2"), HasSubstr(std::string(field) + ": out of range"));
    EXPECT_THAT(why(field, "18446744073709551616"), HasSubstr(std::string(field) + ": expected an integer"));
  }
}

// Of a field that is said twice the last counts: what one reader checks is what every reader sees.
TEST(Codecs, TheLastOfTwoEqualKeysCounts) {
  const auto event = leg_event_from_json(R"({"event":"reserved","lease":"x","lease":7})");
  ASSERT_TRUE(event.ok()) << event.status().to_string();
  EXPECT_EQ(std::get<Reserved>(*event).lease, LeaseId(7));
  EXPECT_FALSE(leg_event_from_json(R"({"event":"reserved","lease":7,"lease":"x"})").ok());
}

TEST(Codecs, AWorkerOfAnotherVersionIsKnownByItsProtocol) {
  const std::string other = std::to_string(kProtocolVersion + 1), own = std::to_string(kProtocolVersion);
  for (const std::string& text : {"{\"protocol\":" + other + ",\"role\":7}", "{\"protocol\":" + other + "}"}) {
    const auto status = worker_status_from_json(text);
    ASSERT_TRUE(status.ok()) << status.status().to_string();
    EXPECT_EQ(status->protocol, kProtocolVersion + 1);
    EXPECT_FALSE(status->ready);
  }
  EXPECT_FALSE(worker_status_from_json("{\"protocol\":" + own + "}").ok());
  EXPECT_FALSE(worker_status_from_json("{\"protocol\":\"" + other + "\"}").ok());
}

TEST(Codecs, TextThatIsNotUtf8IsRepaired) {
  const std::string line = to_json(LegEvent(Failed{Status(Code::kInternal, "bad \xff byte")}));
  const auto back = leg_event_from_json(line);
  ASSERT_TRUE(back.ok());
  EXPECT_THAT(std::get<Failed>(*back).status.message(), HasSubstr("bad \xEF\xBF\xBD byte"));
}

// Whatever bytes come, the answer is a message or an error; and what is accepted can be written again.
TEST(Codecs, MutatedBytesNeverCrash) {
  Maker make(4);
  static constexpr std::string_view kSplices[] = {"null",     "-1",   "1e999", "99999999999999999999", "{", "}", "[", "]", "\"", ",",
                                                  "[[[[[[[[", "\xff", "true"};
  int accepted = 0, refused = 0;
  for (int i = 0; i < 20000; ++i) {
    const std::uint64_t kind = make.rng().below(4);
    std::string text = kind == 0   ? to_json(make.event())
                       : kind == 1 ? to_json(make.status())
                       : kind == 2 ? to_json(DecodeLeg{make.request(), Attempt(1), make.coin()})
                                   : to_json(PrefillLeg{make.request(), Attempt(1), LeaseId(1), HoldId(2), "d", "h", 1, Incarnation(1)});
    for (std::uint64_t edits = make.rng().below(4); edits > 0 && !text.empty(); --edits) {
      const std::size_t at = make.rng().below(text.size());
      switch (make.rng().below(4)) {
        case 0:
          text[at] = static_cast<char>(make.rng().below(256));
          break;
        case 1:
          text.erase(at, 1 + make.rng().below(12));
          break;
        case 2:
          text.insert(at, kSplices[make.rng().below(std::size(kSplices))]);
          break;
        default:
          text.resize(at);
      }
    }
    const auto event = leg_event_from_json(text);
    const auto status = worker_status_from_json(text);
    const auto decode = decode_leg_from_json(text);
    const auto prefill = prefill_leg_from_json(text);
    if (event.ok()) {
      EXPECT_TRUE(leg_event_from_json(to_json(*event)).ok()) << text;
    }
    if (status.ok()) {
      EXPECT_TRUE(worker_status_from_json(to_json(*status)).ok()) << text;
    }
    if (decode.ok()) {
      EXPECT_TRUE(decode_leg_from_json(to_json(*decode)).ok()) << text;
    }
    if (prefill.ok()) {
      EXPECT_TRUE(prefill_leg_from_json(to_json(*prefill)).ok()) << text;
    }
    (event.ok() || status.ok() || decode.ok() || prefill.ok() ? accepted : refused)++;
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 1000);
}

TEST(Codecs, DeepNestingIsRefused) {
  const std::string deep = "{\"event\":" + std::string(100000, '[');
  EXPECT_FALSE(leg_event_from_json(deep).ok());
  EXPECT_FALSE(leg_event_from_json("{\"event\":" + std::string(100000, '[') + std::string(100000, ']') + "}").ok());
}

TEST(Role, NamesRoundTrip) {
  for (const Role role : {Role::kPrefill, Role::kDecode, Role::kBoth}) EXPECT_EQ(role_from_string(to_string(role)), role);
  EXPECT_EQ(role_from_string("prefil"), std::nullopt);
}

}  // namespace
}  // namespace baton::wire
