#include "sim/load.h"

#include <algorithm>

#include "base/rng.h"

namespace baton::sim {
namespace {

constexpr Duration kProbesAfter = std::chrono::seconds(8);  // calm: links are dialled again, workers polled, clients retried
constexpr Duration kProbeGap = std::chrono::milliseconds(100);

int between(Rng& rng, int low, int high) { return low + static_cast<int>(rng.below(static_cast<std::uint64_t>(high - low + 1))); }
bool happens(Rng& rng, int percent) { return static_cast<int>(rng.below(100)) < percent; }

wire::GenerateRequest make_request(const Load& load, std::int64_t max_model_len, int number, std::uint64_t seed, Rng& rng) {
  wire::GenerateRequest r;
  r.id = "r" + std::to_string(number);
  const int length = between(rng, load.prompt_min, load.prompt_max);
  // A family's prefix is longer than most prompts, so that hits end anywhere.
  const int shared = happens(rng, load.shared_prompts) ? between(rng, 0, length) : 0;
  Rng family(seed, 1000 + rng.below(static_cast<std::uint64_t>(load.families)));
  for (int i = 0; i < length; ++i) r.ids.push_back(static_cast<TokenId>((i < shared ? family : rng).below(kVocab)));
  r.n_prompt = length;
  r.seed = rng.next_u64() >> 11;
  const int room = static_cast<int>(max_model_len) - length;
  auto& s = r.sampling;
  s.max_tokens = std::min(room, between(rng, load.output_min, load.output_max));
  s.temperature = happens(rng, load.sampled) ? 0.7f : 0.0f;
  if (happens(rng, load.truncated)) {
    s.top_p = 0.9f;
    s.top_k = between(rng, 1, 100);
    s.min_p = 0.05f;
  }
  if (happens(rng, load.penalties)) {
    if (rng.below(2) == 0) s.repetition_penalty = 1.1f;
    if (rng.below(2) == 0) s.presence_penalty = 0.6f;
    if (rng.below(2) == 0) s.frequency_penalty = -0.3f;
  }
  if (happens(rng, load.biased)) {
    for (int i = between(rng, 1, 5); i > 0; --i) s.logit_bias.emplace_back(static_cast<TokenId>(rng.below(kVocab)), 1.7f);
  }
  s.eos_ids = {kEos};
  s.ignore_eos = rng.below(2) == 0;
  if (rng.below(4) == 0) {  // one that stops early
    for (int i = 0; i < 40; ++i) s.stop_token_ids.push_back(static_cast<TokenId>(rng.below(kVocab)));
    s.min_tokens = between(rng, 0, std::min(4, s.max_tokens));
  }
  if (happens(rng, load.logprobs)) s.logprobs = between(rng, 0, 3);
  if (happens(rng, load.prompt_logprobs)) s.prompt_logprobs = 0;
  if (happens(rng, load.several_choices)) {
    r.n = between(rng, 2, 4);
    s.temperature = 0.7f;
  }
  if (rng.below(10) == 0) r.cache_salt = "tenant";
  r.priority = rng.below(8) == 0 ? -1 : 0;
  r.tenant = number % 3;
  r.timeout = happens(rng, load.short_timeouts) ? Duration(1 + static_cast<std::int64_t>(rng.below(2'000'000))) : load.timeout;
  return r;
}

}  // namespace

std::vector<ClientPlan> make_load(const Scenario& scenario, std::int64_t max_model_len, Duration calm) {
  const Load& load = scenario.load;
  Rng arrivals(scenario.seed, 1);
  std::vector<ClientPlan> plans;
  Duration at{};
  for (int i = 0; i < load.requests + load.probes; ++i) {
    // Uniform over twice the mean: integers only, so that a load is the same everywhere.
    if (i < load.requests && i % load.burst == 0)
      at += Duration(static_cast<std::int64_t>(arrivals.below(static_cast<std::uint64_t>(2 * load.gap.count() * load.burst + 1))));
    if (std::find(load.skip.begin(), load.skip.end(), i) != load.skip.end()) continue;
    Rng rng(scenario.seed, 1'000'000 + static_cast<std::uint64_t>(i));
    ClientPlan plan;
    plan.number = i;
    plan.arrival = at;
    plan.request = make_request(load, max_model_len, i, scenario.seed, rng);
    if (i >= load.requests) {
      plan.arrival = std::max(at, calm + kProbesAfter) + kProbeGap * (i - load.requests);
      plan.request.timeout = load.timeout;
      plans.push_back(std::move(plan));
      continue;
    }
    plan.short_of_time = plan.request.timeout < load.timeout;
    plan.may_fail = !scenario.faults.empty() && at <= calm + kProbesAfter;
    if (happens(rng, load.cancelled)) {
      if (rng.below(2) == 0) {
        plan.cancel_after = Duration(static_cast<std::int64_t>(rng.below(rng.below(2) == 0 ? 1'500'000 : 60'000)));
      } else {
        plan.cancel_at_token = between(rng, 0, plan.request.sampling.max_tokens);
      }
    }
    if (happens(rng, load.choice_finished))
      plan.finish_at = std::pair(static_cast<int>(rng.below(static_cast<std::uint64_t>(plan.request.n))),
                                 between(rng, 0, plan.request.sampling.max_tokens - 1));
    if (happens(rng, load.slow_clients)) {
      plan.reads_a_token = Duration(between(rng, 500, 50'000));
      plan.unread_max = between(rng, 4, 64);
    }
    plans.push_back(std::move(plan));
  }
  return plans;
}

Client::Client(Trace& trace, ClientPlan plan, const ModelShape& shape, std::int64_t max_model_len, Failures& failures)
    : trace_(trace), plan_(std::move(plan)), failures_(failures) {
  for (int c = 0; c < plan_.request.n; ++c) choices_[c].expected = reference(shape, plan_.request, c, max_model_len);
}

void Client::arrive(Host& gateway, wire::Generator& generator) {
  host_ = &gateway;
  gateway.post([weak = weak_from_this(), &generator] {
    if (const auto self = weak.lock()) self->start(generator);
  });
}

void Client::lost() {
  if (outcome_ != Outcome::kNone) return;
  outcome_ = Outcome::kLost;
  call_.reset();
}

void Client::start(wire::Generator& generator) {
  arrived_ = now();
  began_ = real_now();
  trace_(real_now(), plan_.request.id, "arrives", plan_.request.ids.size(), plan_.request.sampling.max_tokens, plan_.request.n);
  call_ = generator.generate(plan_.request, shared_from_this());
  if (plan_.finish_at && plan_.finish_at->second == 0) later(plan_.finish_at->first);
  if (plan_.cancel_after) {
    host_->after(*plan_.cancel_after, [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->cancel();
    });
  }
}

void Client::fail(std::string_view invariant, const std::string& what) {
  trace_(real_now(), plan_.request.id, "FAILURE", hash_bytes(what));
  failures_.add(real_now(), invariant, "request " + plan_.request.id + ": " + what);
}

void Client::end(Outcome outcome) {
  outcome_ = outcome;
  trace_(real_now(), plan_.request.id, "ends", static_cast<int>(outcome), tokens_);
}

void Client::cancel() {
  if (outcome_ != Outcome::kNone) return;
  end(Outcome::kCancelled);
  call_.reset();
}

bool Client::alive(const char* event) {
  if (outcome_ == Outcome::kNone) return true;
  fail("I8", std::string(event) + " after its terminal outcome");
  return false;
}

Client::Choice* Client::choice(int number) {
  const auto found = choices_.find(number);
  if (found != choices_.end()) return &found->second;
  fail("I13", "an event of choice " + std::to_string(number) + ", which it has not");
  return nullptr;
}

void Client::on_served(const wire::Served& served) {
  if (!alive("served")) return;
  served_ = true;
  if (served.prompt_tokens != plan_.request.n_prompt)
    fail("I16", "its usage counts " + std::to_string(served.prompt_tokens) + " prompt tokens");
  if (served.cached_tokens > served.prompt_tokens) fail("I16", "more cached than prompt tokens");
}

void Client::on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) {
  if (!alive("prompt log-probabilities")) return;
  if (std::exchange(prompt_logprobs_, true)) return fail("I13", "prompt log-probabilities came twice");
  if (tokens_ > 0) fail("I13", "prompt log-probabilities after a token");
  if (entries.size() != plan_.request.ids.size())
    return fail("I14", "as many prompt log-probabilities as " + std::to_string(entries.size()));
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto position = static_cast<std::int32_t>(i);
    const bool right = i == 0 ? !entries[i].has_value()
                              : entries[i] && entries[i]->token == plan_.request.ids[i] &&
                                    entries[i]->logprob == prompt_logprob(position, plan_.request.ids[i]);
    if (!right) return fail("I14", "a wrong log-probability of prompt token " + std::to_string(i));
  }
}

void Client::on_token(wire::TokenEvent event) {
  if (!alive("a token")) return;
  Choice* c = choice(event.choice);
  if (c == nullptr) return;
  const auto expected_position = plan_.request.n_prompt + static_cast<std::int32_t>(c->got);
  trace_(real_now(), plan_.request.id, "token", event.choice, event.position, event.token);
  if (c->finished) return fail("I13", "a token after the finish of its choice");
  if (event.position != expected_position)
    return fail("I13", "position " + std::to_string(event.position) + " instead of " + std::to_string(expected_position));
  if (c->got >= c->expected.tokens.size()) return fail("I16", "more tokens than it should have");
  const engine::Sampled& want = c->expected.tokens[c->got];
  ++c->got;
  ++tokens_;
  if (event.token != want.token)
    fail("I14", "token " + std::to_string(event.token) + " instead of " + std::to_string(want.token) + " at position " +
                    std::to_string(event.position) + " of choice " + std::to_string(event.choice));
  const auto same_top = [](const wire::TokenLogprob& a, const wire::TokenLogprob& b) {
    return a.token == b.token && a.logprob == b.logprob;
  };
  if (event.logprob != want.logprob || !std::equal(event.top.begin(), event.top.end(), want.top.begin(), want.top.end(), same_top))
    fail("I14", "wrong log-probabilities at position " + std::to_string(event.position));

  // What the client does now, it does on its own turn.
  const bool finish = plan_.finish_at && plan_.finish_at->first == event.choice && plan_.finish_at->second == static_cast<int>(c->got);
  const bool cancels = (plan_.cancel_at_token && *plan_.cancel_at_token <= static_cast<int>(c->got)) || too_much_unread();
  if (finish || cancels) later(finish ? std::optional(event.choice) : std::nullopt);
}

// Nothing holds a stream back: what a client does not read is kept for it up to a limit, and then it is cut.
bool Client::too_much_unread() {
  if (!plan_.reads_a_token) return false;
  reads_next_ = std::max(reads_next_, now()) + *plan_.reads_a_token;
  return reads_next_ - now() > *plan_.reads_a_token * plan_.unread_max;
}

void Client::later(std::optional<int> finished_choice) {
  host_->post([weak = weak_from_this(), finished_choice] {
    const auto self = weak.lock();
    if (!self || self->outcome_ != Outcome::kNone) return;
    if (!finished_choice) return self->cancel();
    Choice& choice = self->choices_.at(*finished_choice);
    if (choice.finished) return;
    choice.finished_by_us = true;
    self->trace_(self->real_now(), self->plan_.request.id, "finishes", *finished_choice);
    self->call_->finish_choice(*finished_choice);
  });
}

void Client::on_finish(wire::FinishEvent event) {
  if (!alive("a finish")) return;
  Choice* c = choice(event.choice);
  if (c == nullptr) return;
  if (std::exchange(c->finished, true)) return fail("I8", "a second finish of choice " + std::to_string(event.choice));
  if (c->finished_by_us) {
    if (event.reason != wire::FinishReason::kStop) fail("I14", "a choice that the client ended has another reason");
    return;
  }
  if (c->got != c->expected.tokens.size()) fail("I16", "a finish before its last token");
  if (event.reason != c->expected.finish.reason || event.stop_token != c->expected.finish.stop_token) fail("I14", "a wrong finish reason");
}

void Client::on_done(Status status) {
  if (!alive("done")) return;
  call_.reset();
  if (status.ok()) {
    for (const auto& [number, c] : choices_) {
      if (!c.finished) fail("I8", "done without a finish of choice " + std::to_string(number));
    }
    if (!served_) fail("I16", "nobody says who served it");
    const bool ended_by_us = std::any_of(choices_.begin(), choices_.end(), [](const auto& c) { return c.second.finished_by_us; });
    if (plan_.request.sampling.prompt_logprobs >= 0 && !prompt_logprobs_ && !ended_by_us)
      fail("I14", "prompt log-probabilities are missing");
    return end(Outcome::kComplete);
  }
  if (status.code() == Code::kDeadlineExceeded) {
    if (now() < arrived_ + plan_.request.timeout) fail("I8", "its deadline came early: " + status.to_string());
    return end(Outcome::kDeadline);
  }
  if (status.code() == Code::kResourceExhausted && plan_.short_of_time && status.retry_after_s() > 0) return end(Outcome::kDeadline);
  if (retryable(status.code()) && plan_.may_fail) {
    refusal_ = status;
    refused_at_ = real_now();
    return end(Outcome::kRefused);
  }
  fail("I18", (plan_.may_fail ? "ends with " : "though nothing fails any more, ends with ") + status.to_string());
  end(Outcome::kFailed);
}

}  // namespace baton::sim
