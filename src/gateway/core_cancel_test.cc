// The end of a request in each of its states, however it ends: everything that it holds is given back at once, each leg is closed once,
// there is exactly one outcome (none for a client that went away), and what comes late changes nothing.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gateway/test_core.h"

namespace baton::gateway {
namespace {

using std::chrono::seconds;
using testing::healthy;
using testing::kLost;
using testing::kMs;
using testing::request_of;
using wire::Role;

const Status kFull(Code::kResourceExhausted, "full");

class CoreCancelTest : public testing::CoreTest {
 public:
  using Workers = std::vector<std::pair<std::string, Role>>;
  static Workers pair() { return {{"p0", Role::kPrefill}, {"d0", Role::kDecode}}; }
  static Workers three() { return {{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}}; }

  void begin(const Workers& workers, int n = 1) {
    decodes_.clear(), prefills_.clear(), cancelled_.clear(), done_.clear(), tokens_.clear(), finishes_.clear();
    blocker_.reset();
    start(workers);
    choices_ = n;
  }
  void report(int worker, const std::function<void(wire::WorkerStatus&)>& change) {
    const auto& config = core_->registry().at(WorkerId(worker)).config;
    wire::WorkerStatus s = healthy(config.name, config.role);
    change(s);
    core_->on_status(now_, WorkerId(worker), s);
    pump();
  }
  void block() {
    auto r = request_of({1, 2, 3, 4});
    r.id = "blocker";
    blocker_ = submit(std::move(r));
  }
  void send() {
    auto r = request_of({1, 2, 3}, choices_);
    r.timeout = seconds(30);
    key_ = submit(std::move(r));
  }
  wire::LegEvent first_tokens(std::int32_t position = 3) const {
    wire::Tokens tokens;
    for (int c = 0; c < choices_; ++c) tokens.tokens.push_back(token(position, 50 + position, c));
    return tokens;
  }
  // The stages of a hand-off, each from the one before.
  void reserved() { send(), event(decode(), wire::Reserved{LeaseId(77)}); }
  void computed() { reserved(), event(prefill(), wire::Started{}), event(prefill(), first_tokens()); }
  void committed() {
    computed();
    event(decode(), wire::Committed{prefills_.back().body.attempt, std::get<wire::Tokens>(first_tokens()).tokens});
  }
  void decoding() { committed(), event(prefill(), wire::Done{}), event(decode(), first_tokens(4)); }
  void moving() { decoding(), event(decode(), wire::Draining{}); }

  std::size_t open_of_blocker() const { return blocker_ ? 1 : 0; }
  RequestKey key() const { return key_; }
  const StartDecode& first_decode() const { return decodes_.front(); }
  void finish_first_choice() { event(decode(), finish(0)); }
  void preempt() { event(decode(), wire::Preempted{0}); }
  void lose_decode() { ended(decode(), LegEnd::Kind::kBroken, kLost); }
  void refuse_decode() { ended(decode(), LegEnd::Kind::kRefused, kFull); }
  void retain() { event(prefill(), wire::Retained{HoldId(77), kLost}); }
  void reserve_again() { event(decode(), wire::Reserved{LeaseId(88)}); }
  void finish_all() {
    for (int c = 0; c < choices_; ++c) event(decode(), finish(c));
  }

 protected:
  void expect_nothing_held(const char* when) {
    if (blocker_) core_->cancel(now_, *blocker_), pump();
    EXPECT_EQ(core_->open_legs(), 0u) << when;
    EXPECT_EQ(core_->next_deadline(), kNever) << when;
    const Stats s = core_->stats();
    EXPECT_EQ(s.waiting + s.running, 0u) << when;
    EXPECT_EQ(s.conflicts + s.garbage, 0u) << when;
    for (const Worker& w : core_->registry().workers()) {
      EXPECT_EQ(w.legs, 0) << when << ", " << w.name();
      EXPECT_EQ(w.sequences, 0) << when << ", " << w.name();
      EXPECT_EQ(w.blocks_promised, 0) << when << ", " << w.name();
      EXPECT_EQ(w.prefill_blocks, 0) << when << ", " << w.name();
      EXPECT_EQ(w.prefill_tokens, 0) << when << ", " << w.name();
    }
  }
  // Everything that any of its legs may still say.
  void say_all_late() {
    const auto decodes = decodes_;
    const auto prefills = prefills_;
    for (const auto& d : decodes) {
      if (d.body.request.id == "blocker") continue;
      event(d.leg, wire::Reserved{LeaseId(99)});
      event(d.leg, wire::Committed{d.body.attempt, {token(3, 53)}});
      event(d.leg, wire::Tokens{{token(4, 54)}});
      event(d.leg, wire::Preempted{0});
      event(d.leg, finish());
      ended(d.leg, LegEnd::Kind::kBroken, kLost);
    }
    for (const auto& p : prefills) {
      event(p.leg, wire::Claimed{true});
      event(p.leg, wire::Retained{HoldId(77), kLost});
      event(p.leg, first_tokens());
      event(p.leg, wire::Done{});
      ended(p.leg, LegEnd::Kind::kUnreachable, kLost);
    }
  }

  int choices_ = 1;
  RequestKey key_;
  std::optional<RequestKey> blocker_;
};

struct State {
  const char* name;
  std::function<void(CoreCancelTest&)> reach;
  bool over = false;  // every choice has ended: only the connections are open
};

const State kStates[] = {
    {"queued for a decode worker",
     [](auto& t) {
       t.begin(CoreCancelTest::pair());
       t.report(1, [](auto& s) { s.max_num_seqs = 1; });
       t.block(), t.send();
     }},
    {"queued for a prefill worker",
     [](auto& t) {
       t.begin(CoreCancelTest::pair());
       t.report(0, [](auto& s) { s.blocks_total = s.blocks_free = 1; });
       t.block(), t.send();
     }},
    {"refused, waiting to ask again", [](auto& t) { t.begin(CoreCancelTest::pair()), t.send(), t.refuse_decode(); }},
    {"asking again",
     [](auto& t) {
       t.begin(CoreCancelTest::pair()), t.send(), t.refuse_decode();
       t.report(1, [](auto&) {});
     }},
    {"reserving", [](auto& t) { t.begin(CoreCancelTest::three()), t.send(); }},
    {"prefill sent", [](auto& t) { t.begin(CoreCancelTest::three()), t.reserved(); }},
    {"prefilling where it decodes", [](auto& t) { t.begin({{"w0", Role::kBoth}}), t.send(); }},
    {"transferring", [](auto& t) { t.begin(CoreCancelTest::three()), t.computed(); }},
    {"transferring, two choices", [](auto& t) { t.begin(CoreCancelTest::three(), 2), t.computed(); }},
    {"decode worker lost while P computes, reserving elsewhere",
     [](auto& t) { t.begin(CoreCancelTest::three()), t.reserved(), t.lose_decode(); }},
    {"retained, reserving elsewhere", [](auto& t) { t.begin(CoreCancelTest::three()), t.computed(), t.lose_decode(), t.retain(); }},
    {"retained, queued",
     [](auto& t) { t.begin(CoreCancelTest::three()), t.computed(), t.lose_decode(), t.refuse_decode(), t.refuse_decode(); }},
    {"claiming", [](auto& t) { t.begin(CoreCancelTest::three()), t.computed(), t.lose_decode(), t.retain(), t.reserve_again(); }},
    {"committed, P not done", [](auto& t) { t.begin(CoreCancelTest::three()), t.committed(); }},
    {"decoding", [](auto& t) { t.begin(CoreCancelTest::three()), t.decoding(); }},
    {"preempted", [](auto& t) { t.begin(CoreCancelTest::three()), t.decoding(), t.preempt(); }},
    {"one of two choices ended", [](auto& t) { t.begin(CoreCancelTest::three(), 2), t.decoding(), t.finish_first_choice(); }},
    {"moving, reserving", [](auto& t) { t.begin(CoreCancelTest::three()), t.moving(); }},
    {"moving, prefilling", [](auto& t) { t.begin(CoreCancelTest::three()), t.moving(), t.reserve_again(); }},
    {"moving two choices", [](auto& t) { t.begin(CoreCancelTest::three(), 2), t.moving(), t.reserve_again(); }},
    {"cut amid its stream, reserving elsewhere", [](auto& t) { t.begin(CoreCancelTest::three()), t.decoding(), t.lose_decode(); }},
    {"cut amid its stream, two choices", [](auto& t) { t.begin(CoreCancelTest::three(), 2), t.decoding(), t.lose_decode(); }},
    {"complete, connections open", [](auto& t) { t.begin(CoreCancelTest::three()), t.decoding(), t.finish_all(); }, true},
};

TEST_F(CoreCancelTest, TheClientGoesAway) {
  for (const State& state : kStates) {
    SCOPED_TRACE(state.name);
    state.reach(*this);
    ASSERT_TRUE(done_.empty());
    const std::size_t open = core_->open_legs() - open_of_blocker(), before = cancelled_.size();
    core_->cancel(now_, key_);
    pump();
    EXPECT_EQ(cancelled_.size() - before, open) << "each leg is closed, once, at once";
    core_->cancel(now_, key_);
    core_->finish_choice(now_, key_, 0);
    pump();
    say_all_late();
    EXPECT_EQ(cancelled_.size() - before, open);
    EXPECT_TRUE(done_.empty()) << "nothing is said to a client that went away";
    EXPECT_EQ(core_->stats().cancelled, 1u);
    expect_nothing_held("after the cancel");
  }
}

TEST_F(CoreCancelTest, ItsTimeRunsOut) {
  for (const State& state : kStates) {
    SCOPED_TRACE(state.name);
    state.reach(*this);
    const std::size_t open = core_->open_legs() - open_of_blocker(), before = cancelled_.size();
    advance(seconds(30) - 1 * kMs);
    advance(1 * kMs);
    ASSERT_EQ(done_.size(), 1u);
    if (state.over) {
      EXPECT_TRUE(done_[0].ok()) << done_[0].to_string();
    } else {
      // One that has not begun is told to come again, before its time is over.
      EXPECT_TRUE(done_[0].code() == Code::kDeadlineExceeded || done_[0].code() == Code::kResourceExhausted) << done_[0].to_string();
    }
    EXPECT_GE(cancelled_.size() - before, open);
    core_->cancel(now_, key_);
    pump();
    say_all_late();
    EXPECT_EQ(done_.size(), 1u);
    EXPECT_EQ(core_->stats().cancelled, 0u);
    expect_nothing_held("after its deadline");
  }
}

TEST_F(CoreCancelTest, TheClientEndsEveryChoice) {
  for (const State& state : kStates) {
    SCOPED_TRACE(state.name);
    state.reach(*this);
    const std::size_t open = core_->open_legs() - open_of_blocker(), before = cancelled_.size();
    for (int i = 0; i < 2; ++i) {
      for (int choice = 0; choice < choices_; ++choice) core_->finish_choice(now_, key_, choice);
      pump();
    }
    if (state.over) advance(CoreOptions{}.linger);
    ASSERT_EQ(done_.size(), 1u);
    EXPECT_TRUE(done_[0].ok()) << done_[0].to_string();
    EXPECT_EQ(finishes_.size(), static_cast<std::size_t>(choices_));
    EXPECT_EQ(cancelled_.size() - before, open);
    say_all_late();
    EXPECT_EQ(done_.size(), 1u);
    EXPECT_EQ(finishes_.size(), static_cast<std::size_t>(choices_));
    expect_nothing_held("after its last choice");
  }
}

// Whatever state it was in, the next one finds the house as if it had never been there.
TEST_F(CoreCancelTest, TheNextRequestIsServed) {
  for (const State& state : kStates) {
    SCOPED_TRACE(state.name);
    state.reach(*this);
    core_->cancel(now_, key_);
    if (blocker_) core_->cancel(now_, *blocker_);
    for (int w = 0; w < static_cast<int>(core_->registry().workers().size()); ++w) report(w, [](auto&) {});
    decodes_.clear(), prefills_.clear(), done_.clear(), tokens_.clear();
    choices_ = 1;
    send();
    ASSERT_EQ(decodes_.size(), 1u);
    if (!decodes_[0].body.local_prefill) {
      event(decode(), wire::Reserved{LeaseId(5)});
      event(prefill(), first_tokens());
      event(decode(), wire::Committed{prefills_.back().body.attempt, {token(3, 53)}});
      event(prefill(), wire::Done{});
    } else {
      event(decode(), first_tokens());
    }
    event(decode(), finish());
    event(decode(), wire::Done{});
    ASSERT_EQ(done_.size(), 1u);
    EXPECT_TRUE(done_[0].ok()) << done_[0].to_string();
    expect_nothing_held("after the next one");
  }
}

}  // namespace
}  // namespace baton::gateway
