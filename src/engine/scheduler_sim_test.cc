// Random requests, cancellations, hand-offs and deadlines against two schedulers with checkable KV (fake_device.h), in small pools so that
// preemption, eviction and refusal are common. Seeds are in the failure message.

#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"
#include "engine/fake_device.h"
#include "engine/scheduler.h"

namespace baton::engine {
namespace {

struct Node {
  explicit Node(const EngineOptions& options) : scheduler(options), device(options.kv_blocks, options.block_tokens) {}
  Scheduler scheduler;
  FakeDevice device;
  bool in_flight = false, late = false;
  StepResult result;
};

struct Tracked {
  wire::GenerateRequest request;
  std::map<int, std::vector<TokenId>> tokens;  // by choice
  std::map<int, wire::FinishEvent> finished;
  std::vector<int> cut;  // choices ended by finish_choice
  int done = 0;
  Status status;
  bool cancelled = false;
  bool prompt_logprobs = false;
};

struct HandOff {
  Tracked tracked;
  LeaseId lease;
  std::optional<SeqId> source, target;
  Grant grant;
  std::vector<FirstToken> first;
  bool failed = false;
};

class Sim {
 public:
  Sim(std::uint64_t seed, bool small)
      : rng_(seed), options_p_(make_options(small, 4)), options_d_(make_options(small, 3)), p_(options_p_), d_(options_d_) {}

  void run(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFatalFailure(); ++i) {
      act();
      verify();
    }
    drain();
  }

  std::uint64_t preemptions() const { return d_.scheduler.status().preemptions + p_.scheduler.status().preemptions; }
  std::uint64_t hits() const { return d_.scheduler.status().prefix_hits; }
  int completed = 0, handed_off = 0, cancelled = 0;

 private:
  EngineOptions make_options(bool small, std::int32_t block_tokens) {
    EngineOptions o;
    o.max_model_len = 48;
    o.max_num_seqs = 1 + static_cast<int>(rng_.below(small ? 5 : 12));
    o.max_num_batched_tokens = 1 + static_cast<int>(rng_.below(40));
    o.max_chunk = static_cast<int>(rng_.below(3)) * 5;
    o.max_waiting = 20;
    o.max_step = Duration(rng_.below(2) * 2000);
    o.block_tokens = block_tokens;
    o.kv_blocks = 16 + static_cast<int>(rng_.below(small ? 6 : 60));
    o.vocab = FakeDevice::kVocab;
    o.prefix_cache = rng_.below(4) != 0;
    o.chunked_prefill = rng_.below(3) != 0;
    return o;
  }

  wire::GenerateRequest make_request(const EngineOptions& options) {
    wire::GenerateRequest r;
    const std::uint64_t family = rng_.below(3);  // prompts of a family share a prefix
    const auto length = 1 + rng_.below(30);
    for (std::uint64_t i = 0; i < length; ++i) {
      r.ids.push_back(static_cast<TokenId>(i < 18 ? (family * 7 + i) % FakeDevice::kVocab : rng_.below(FakeDevice::kVocab)));
    }
    r.n_prompt = static_cast<std::int32_t>(r.ids.size());
    r.seed = rng_.below(3);
    r.n = rng_.below(4) == 0 ? 1 + static_cast<int>(rng_.below(static_cast<std::uint64_t>(std::min(options.max_num_seqs, 4)))) : 1;
    if (r.n == 1 && rng_.below(4) == 0) {  // a continuation of some choice
      r.n_prompt = 1 + static_cast<std::int32_t>(rng_.below(length));
      r.first_choice = static_cast<int>(rng_.below(3));
    }
    r.sampling.max_tokens = static_cast<int>(r.ids.size()) - r.n_prompt + 1 + static_cast<int>(rng_.below(30));
    r.sampling.eos_ids = {1, 2};
    r.sampling.stop_token_ids = {5};
    r.sampling.ignore_eos = rng_.below(2) == 0;
    r.sampling.min_tokens = static_cast<int>(rng_.below(4));
    r.sampling.prompt_logprobs = rng_.below(6) == 0 ? 1 : -1;
    r.priority = static_cast<int>(rng_.below(3));
    r.cache_salt = rng_.below(5) == 0 ? "other" : "";
    r.timeout = rng_.below(12) == 0 ? Duration(rng_.below(30000)) : std::chrono::hours(1);
    return r;
  }

  void act() {
    switch (rng_.below(9)) {
      case 0: {  // a request for D alone
        Tracked t{.request = make_request(options_d_), .tokens = {}, .finished = {}, .cut = {}, .status = {}};
        const Result<SeqId> id = d_.scheduler.add(t.request, Purpose::kGenerate, now_);
        if (id.ok()) {
          local_[*id] = std::move(t);
        } else {
          // Those of make_request() fit, so that a refusal means a full queue, or a longest form larger than a small pool.
          EXPECT_TRUE(id.status().code() == Code::kResourceExhausted || id.status().message().find("cache holds") != std::string::npos)
              << id.status().to_string();
        }
        break;
      }
      case 1:
        start_hand_off();
        break;
      case 2: {  // cancel something
        if (rng_.below(4) != 0) break;
        if (!local_.empty() && rng_.below(2) == 0) {
          auto it = std::next(local_.begin(), static_cast<std::ptrdiff_t>(rng_.below(local_.size())));
          d_.scheduler.release(it->first);
          d_.scheduler.release(it->first);
          gone_.insert(it->first);
          local_.erase(it);
          ++cancelled;
        } else if (!hand_offs_.empty()) {
          end_hand_off(std::next(hand_offs_.begin(), static_cast<std::ptrdiff_t>(rng_.below(hand_offs_.size()))));
          ++cancelled;
        }
        break;
      }
      case 3: {  // a stop string was found
        if (local_.empty() || rng_.below(3) != 0) break;
        auto& [id, t] = *std::next(local_.begin(), static_cast<std::ptrdiff_t>(rng_.below(local_.size())));
        if (t.tokens.empty()) break;
        const int choice = t.request.first_choice + static_cast<int>(rng_.below(static_cast<std::uint64_t>(t.request.n)));
        if (!t.tokens.contains(choice)) break;
        t.cut.push_back(choice);
        d_.scheduler.finish_choice(id, choice);
        break;
      }
      case 4:
        advance_hand_offs();
        break;
      default:
        step(rng_.below(2) == 0 ? p_ : d_);
        break;
    }
    now_ += Duration(rng_.below(300));
    p_.scheduler.expire(now_);
    d_.scheduler.expire(now_);
    collect();
  }

  // Half a step: submit, or deliver. Between the two anything may happen.
  void step(Node& node) {
    if (node.in_flight) {
      node.in_flight = false;
      if (node.late) node.device.run(node.scheduler.plan(), node.result);
      node.scheduler.on_result(node.result);
    } else if (const StepPlan* plan = node.scheduler.schedule()) {
      // The device works at the step's start or at its end: a block that is reused, or a record that is freed, in between is found out.
      int logits = 0;
      for (const StepRow& row : plan->rows) logits += row.prompt_logprobs >= 0 ? row.end - row.begin : row.sample ? 1 : 0;
      EXPECT_LE(logits, std::max(options_p_.max_num_seqs, options_d_.max_num_seqs));
      const EngineOptions& options = &node == &p_ ? options_p_ : options_d_;
      if (!options.chunked_prefill) verify_whole(*plan, options);
      node.late = rng_.below(2) == 0;
      if (!node.late) node.device.run(*plan, node.result);
      node.in_flight = true;
    }
  }

  // Without chunks: prompts end in the step that they begin in, apart from decoding sequences, as many as fit or one.
  static void verify_whole(const StepPlan& plan, const EngineOptions& options) {
    std::int32_t tokens = 0;
    int prompts = 0, decodes = 0, cut = 0;
    for (const StepRow& row : plan.rows) {
      tokens += row.end - row.begin;
      // Behind a prefix hit a prompt can be one token long, too.
      prompts += row.end - row.begin > 1;
      decodes += row.end - row.begin == 1 && row.begin > 0 && row.prompt_logprobs < 0;
      cut += row.end != static_cast<std::int32_t>(row.ids->size()) && row.prompt_logprobs < 0;
    }
    EXPECT_EQ(cut, 0);
    if (!options.prefix_cache) {
      EXPECT_TRUE(prompts == 0 || decodes == 0) << prompts << " prompts beside " << decodes << " decoding sequences";
    }
    EXPECT_TRUE(plan.rows.size() == 1 || tokens <= std::max(options.max_num_batched_tokens, options.max_num_seqs)) << tokens << " tokens";
  }

  void start_hand_off() {
    HandOff h;
    h.tracked.request = make_request(options_d_);
    h.lease = LeaseId(next_lease_++);
    const Status status = d_.scheduler.reserve(h.lease, h.tracked.request);
    if (!status.ok()) {
      EXPECT_TRUE(status.code() == Code::kResourceExhausted || status.code() == Code::kInvalidArgument) << status.to_string();
      return;
    }
    const Result<SeqId> source = p_.scheduler.add(h.tracked.request, Purpose::kHandoffSource, now_);
    if (!source.ok()) {
      d_.scheduler.unreserve(h.lease);
      return;
    }
    h.source = *source;
    hand_offs_.emplace(h.lease.value, std::move(h));
  }

  void advance_hand_offs() {
    for (auto it = hand_offs_.begin(); it != hand_offs_.end();) {
      HandOff& h = it->second;
      auto next = std::next(it);
      if (h.failed) {
        end_hand_off(it);
      } else if (!h.grant.blocks.empty() && !h.first.empty() && h.source) {
        const auto length = static_cast<std::int32_t>(h.tracked.request.ids.size());
        const auto from = p_.scheduler.blocks(*h.source);
        d_.device.copy_from(p_.device, from, h.grant.blocks, h.grant.cached_tokens, length);
        p_.scheduler.release(*h.source);
        h.source.reset();
        for (const FirstToken& f : h.first) h.tracked.tokens[f.token.choice].push_back(f.token.token);
        local_[*h.target] = std::move(h.tracked);
        const Status status = d_.scheduler.start_decode(*h.target, h.first);
        EXPECT_TRUE(status.ok()) << status.to_string();
        ++handed_off;
        hand_offs_.erase(it);
      } else if (h.grant.blocks.empty() && rng_.below(2) == 0) {
        Result<Grant> grant = d_.scheduler.grant(h.lease, h.tracked.request, now_);
        EXPECT_TRUE(grant.ok()) << grant.status().to_string();
        h.grant = *grant;
        h.target = h.grant.seq;
      }
      it = next;
    }
  }

  void end_hand_off(std::map<std::uint64_t, HandOff>::iterator it) {
    HandOff& h = it->second;
    if (h.source) {
      p_.scheduler.release(*h.source);
      gone_p_.insert(*h.source);
    }
    if (h.target) {
      d_.scheduler.release(*h.target);
    } else {
      d_.scheduler.unreserve(h.lease);
      d_.scheduler.unreserve(h.lease);
    }
    hand_offs_.erase(it);
  }

  void collect() {
    for (Output& o : p_.scheduler.outputs()) {
      const auto it = std::find_if(hand_offs_.begin(), hand_offs_.end(), [&](auto& h) { return h.second.source == o.request; });
      if (it == hand_offs_.end()) {
        EXPECT_TRUE(gone_p_.contains(o.request)) << "an event of nobody";
        continue;
      }
      if (auto* first = std::get_if<Output::First>(&o.event)) it->second.first = first->tokens;
      if (auto* done = std::get_if<Output::Done>(&o.event)) {
        EXPECT_EQ(done->status.code(), Code::kDeadlineExceeded);
        EXPECT_TRUE(it->second.first.empty());
        it->second.failed = true;
      }
    }
    p_.scheduler.outputs().clear();
    for (Output& o : d_.scheduler.outputs()) {
      const auto it = local_.find(o.request);
      if (it == local_.end()) {
        EXPECT_TRUE(gone_.contains(o.request)) << "an event of nobody";
        continue;
      }
      Tracked& t = it->second;
      EXPECT_EQ(t.done, 0) << "an event after the last";
      if (auto* token = std::get_if<wire::TokenEvent>(&o.event)) {
        auto& tokens = t.tokens[token->choice];
        EXPECT_FALSE(t.finished.contains(token->choice)) << "a token after its finish";
        EXPECT_EQ(token->position, static_cast<std::int32_t>(t.request.ids.size() + tokens.size()));
        tokens.push_back(token->token);
      } else if (auto* finish = std::get_if<wire::FinishEvent>(&o.event)) {
        EXPECT_TRUE(t.finished.emplace(finish->choice, *finish).second) << "two finishes";
      } else if (auto* logprobs = std::get_if<Output::PromptLogprobs>(&o.event)) {
        EXPECT_FALSE(std::exchange(t.prompt_logprobs, true));
        EXPECT_TRUE(t.tokens.empty());
        ASSERT_EQ(static_cast<std::int32_t>(logprobs->entries.size()), t.request.n_prompt);
        for (std::int32_t i = 0; i < t.request.n_prompt; ++i) {
          const auto& entry = logprobs->entries[static_cast<std::size_t>(i)];
          ASSERT_EQ(entry.has_value(), i > 0);
          if (i > 0) {
            EXPECT_EQ(entry->logprob, -static_cast<float>(i));
          }
        }
      } else if (auto* done = std::get_if<Output::Done>(&o.event)) {
        ++t.done;
        t.status = done->status;
        settle(o.request);
      }
    }
    d_.scheduler.outputs().clear();
  }

  void settle(SeqId id) {
    const Tracked t = std::move(local_.at(id));
    local_.erase(id);
    gone_.insert(id);
    const bool complete = t.status.ok();
    if (!complete) {
      EXPECT_EQ(t.status.code(), Code::kDeadlineExceeded) << t.status.to_string();
    }
    for (int c = t.request.first_choice; c < t.request.first_choice + t.request.n; ++c) {
      const std::vector<TokenId> expected = FakeDevice::reference(t.request, c, options_d_.max_model_len);
      const auto it = t.tokens.find(c);
      const std::vector<TokenId> got = it == t.tokens.end() ? std::vector<TokenId>{} : it->second;
      ASSERT_LE(got.size(), expected.size());
      const bool cut = std::find(t.cut.begin(), t.cut.end(), c) != t.cut.end();
      EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin())) << "tokens differ from the reference";
      if (!complete) continue;
      ++completed;
      ASSERT_TRUE(t.finished.contains(c));
      if (cut) continue;
      EXPECT_EQ(got.size(), expected.size()) << "ended early";
      const TokenId last = expected.back();
      const bool length = static_cast<int>(expected.size() + t.request.ids.size()) - t.request.n_prompt >= t.request.sampling.max_tokens ||
                          static_cast<std::int64_t>(expected.size() + t.request.ids.size()) >= options_d_.max_model_len;
      const wire::FinishEvent& f = t.finished.at(c);
      if (f.reason == wire::FinishReason::kStop) {
        EXPECT_EQ(f.stop_token, last);
      } else {
        EXPECT_TRUE(length);
      }
    }
  }

  void verify() {
    for (Node* node : {&p_, &d_}) {
      const Status status = node->scheduler.check();
      ASSERT_TRUE(status.ok()) << status.to_string();
      ASSERT_TRUE(node->device.errors().empty()) << node->device.errors().front();
    }
  }

  // Everything that was begun ends, in bounded time, and nothing is left.
  void drain() {
    for (int i = 0; i < 20000 && !(local_.empty() && hand_offs_.empty()) && !testing::Test::HasFatalFailure(); ++i) {
      step(p_);
      step(d_);
      advance_hand_offs();
      collect();
      verify();
    }
    ASSERT_TRUE(local_.empty() && hand_offs_.empty())
        << "stuck with " << local_.size() << " requests and " << hand_offs_.size() << " hand-offs";
    for (Node* node : {&p_, &d_}) {
      while (node->in_flight) step(*node);
      const EngineStatus s = node->scheduler.status();
      EXPECT_TRUE(node->scheduler.idle());
      EXPECT_EQ(s.blocks_free + s.blocks_cached, s.blocks_total);
      EXPECT_EQ(s.blocks_reserved, 0);
      EXPECT_EQ(s.running + s.waiting, 0);
    }
  }

  Rng rng_;
  const EngineOptions options_p_, options_d_;
  Node p_, d_;
  TimePoint now_{};
  std::map<SeqId, Tracked> local_;  // on D: its own requests, and those it took over
  std::map<std::uint64_t, HandOff> hand_offs_;
  std::set<SeqId> gone_, gone_p_;
  std::uint64_t next_lease_ = 1;
};

void run_seeds(std::uint64_t from, std::uint64_t to, bool small) {
  std::uint64_t preemptions = 0, hits = 0;
  int completed = 0, handed_off = 0, cancelled = 0;
  for (std::uint64_t seed = from; seed < to; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Sim sim(seed, small);
    sim.run(2000);
    if (testing::Test::HasFailure()) return;
    preemptions += sim.preemptions();
    hits += sim.hits();
    completed += sim.completed;
    handed_off += sim.handed_off;
    cancelled += sim.cancelled;
  }
  // The test is worth something only if these happen.
  EXPECT_GT(preemptions, 20u);
  EXPECT_GT(hits, 1000u);
  EXPECT_GT(completed, 200);
  EXPECT_GT(handed_off, 50);
  EXPECT_GT(cancelled, 50);
}

// However many more urgent requests come, and go on coming: the least urgent one is done once it has aged, and those before it are done.
TEST(SchedulerSim, NobodyStarves) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    EngineOptions o;
    o.max_model_len = 48;
    o.max_num_seqs = 1 + static_cast<int>(rng.below(3));
    o.max_num_batched_tokens = 8 + static_cast<int>(rng.below(20));
    o.block_tokens = 4;
    o.kv_blocks = 14 + static_cast<int>(rng.below(8));  // so few that running ones are preempted, too
    o.max_waiting = 20;
    o.vocab = FakeDevice::kVocab;
    o.chunked_prefill = seed % 2 == 0;
    Node node(o);
    TimePoint now{};
    const auto add = [&](int priority) {
      wire::GenerateRequest r;
      for (std::uint64_t i = 1 + rng.below(20); i > 0; --i) r.ids.push_back(static_cast<TokenId>(rng.below(FakeDevice::kVocab)));
      r.n_prompt = static_cast<std::int32_t>(r.ids.size());
      r.sampling.max_tokens = 1 + static_cast<int>(rng.below(20));
      r.sampling.ignore_eos = true;
      r.priority = priority;
      r.seed = rng.below(1000);
      return node.scheduler.add(std::move(r), Purpose::kGenerate, now);
    };
    const int running_first = static_cast<int>(rng.below(3));
    for (int i = 0; i < running_first; ++i) ASSERT_TRUE(add(-6).ok());
    const SeqId patient = *add(6);
    bool done = false;
    // Whoever is before it when it has aged: at most the queue and what runs, of at most 20 tokens each.
    const TimePoint limit = now + Scheduler::kAgeing + std::chrono::seconds(1) * 20 * (o.max_waiting + o.max_num_seqs);
    while (!done && now < limit) {
      while (add(-6).ok()) {
      }
      if (const StepPlan* plan = node.scheduler.schedule()) {
        node.device.run(*plan, node.result);
        node.scheduler.on_result(node.result);
      }
      now += std::chrono::seconds(1);
      for (const Output& out : node.scheduler.outputs()) done |= out.request == patient && std::holds_alternative<Output::Done>(out.event);
      node.scheduler.outputs().clear();
      ASSERT_TRUE(node.device.errors().empty()) << node.device.errors().front();
    }
    EXPECT_TRUE(done) << "still waiting after " << to_seconds(now - TimePoint{}) << " s";
    EXPECT_GE(now, TimePoint{} + Scheduler::kAgeing - std::chrono::seconds(10)) << "the urgent ones were not enough to show anything";
  }
}

TEST(SchedulerSim, SmallPools) { run_seeds(0, 60, true); }
TEST(SchedulerSim, LargerPools) { run_seeds(1000, 1040, false); }

}  // namespace
}  // namespace baton::engine
