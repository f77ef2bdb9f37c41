// More than a cluster can do, for minutes: one prefill and one decode worker of random speeds, a key that sends several times what they
// manage, and one that sends less than its share.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "base/rng.h"
#include "gateway/test_core.h"

namespace baton::gateway {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::healthy;
using wire::Role;

class Overload {
 public:
  struct Key {
    int sent = 0, refused = 0, served = 0;
    Duration longest_wait{};  // to the first token, of those that were served
  };

  explicit Overload(std::uint64_t seed) : rng_(seed) {
    slots_ = 2 + static_cast<int>(rng_.below(7));
    holding_ = milliseconds(500 + static_cast<int>(rng_.below(2500)));
    prompt_ = 50 + static_cast<int>(rng_.below(350));
    speed_ = 1000 + static_cast<std::int64_t>(rng_.below(4000));
    CoreOptions options;
    options.queue_wait_max = kLimit;
    options.tenants.resize(3);
    options.tenants[1].name = "flood", options.tenants[2].name = "calm";
    core_ = std::make_unique<Core>(options, std::vector<WorkerConfig>{{"p0", "h", 1, Role::kPrefill}, {"d0", "h", 2, Role::kDecode}});
    // What one more request takes from whichever of the two is the bottleneck.
    each_ = std::max(Duration(prompt_ * 1'000'000 / speed_), holding_ / slots_);
  }

  void run() {
    poll();
    arrivals(1, each_ / 3);
    arrivals(2, each_ * 4);
    while (!events_.empty() && now_ < TimePoint{} + kLasts) {
      now_ = events_.begin()->first.first;
      const auto what = std::move(events_.begin()->second);
      events_.erase(events_.begin());
      what();
      while (core_->next_deadline() <= now_) core_->on_time(now_);
      act();
    }
  }

  static constexpr Duration kLimit = seconds(20), kLasts = seconds(300);
  Key flood, calm;
  Duration each() const { return each_; }
  Duration longest_holding() const { return holding_ * 3 / 2; }
  Duration prefill_of_all() const { return Duration(slots_ * prompt_ * 1'500'000 / speed_); }

 private:
  void at(TimePoint when, std::function<void()> what) { events_.emplace(std::pair(when, ++sequence_), std::move(what)); }
  // Half to one and a half of it.
  Duration about(Duration d) { return d / 2 + Duration(rng_.below(static_cast<std::uint64_t>(d.count()) + 1)); }

  void arrivals(int tenant, Duration gap) {
    at(now_ + about(gap), [this, tenant, gap] {
      Key& key = tenant == 1 ? flood : calm;
      ++key.sent;
      auto r = testing::request_of(std::vector<TokenId>(
          static_cast<std::size_t>(prompt_) / 2 + rng_.below(static_cast<std::uint64_t>(prompt_)), static_cast<TokenId>(++last_)));
      r.id = std::to_string(last_);
      r.timeout = seconds(600);
      r.tenant = tenant;
      const RequestKey request = core_->submit(now_, std::move(r));
      clients_[request] = {now_, tenant};
      arrivals(tenant, gap);
    });
  }

  void poll() {
    for (const LegId leg : open_) core_->on_leg_event(now_, leg, wire::Alive{});
    auto p = healthy("p0", Role::kPrefill), d = healthy("d0", Role::kDecode);
    p.queued_prefill_tokens = backlog_, p.prefill_tokens_per_s = static_cast<double>(speed_);
    d.max_num_seqs = slots_;
    core_->on_status(now_, WorkerId(0), p);
    core_->on_status(now_, WorkerId(1), d);
    at(now_ + milliseconds(200), [this] { poll(); });
  }

  void act() {
    for (auto actions = core_->take_actions(); !actions.empty(); actions = core_->take_actions())
      for (Action& action : actions) {
        if (auto* decode = std::get_if<StartDecode>(&action)) {
          open_.insert(decode->leg);
          at(now_ + milliseconds(1), [this, leg = decode->leg] { core_->on_leg_event(now_, leg, wire::Reserved{LeaseId(leg.value)}); });
        }
        if (auto* prefill = std::get_if<StartPrefill>(&action)) compute(*prefill);
        if (auto* deliver = std::get_if<Deliver>(&action)) hear(*deliver);
      }
  }

  // P computes one prompt after the other, D decodes as many as it has been given.
  void compute(const StartPrefill& a) {
    const auto tokens = std::ssize(a.body.request.ids);
    const LegId decode(a.body.lease.value);
    open_.insert(a.leg);
    backlog_ += tokens;
    busy_until_ = std::max(busy_until_, now_) + Duration(tokens * 1'000'000 / speed_);
    at(busy_until_, [this, a, tokens, decode] {
      const wire::TokenEvent first{0, static_cast<std::int32_t>(tokens), 5, {}, {}};
      backlog_ -= tokens;
      core_->on_leg_event(now_, a.leg, wire::Tokens{{first}});
      core_->on_leg_event(now_, decode, wire::Committed{a.body.attempt, {first}});
      core_->on_leg_event(now_, a.leg, wire::Done{});
      open_.erase(a.leg);
      at(now_ + about(holding_), [this, decode] {
        core_->on_leg_event(now_, decode, wire::FinishEvent{0, wire::FinishReason::kStop, {}});
        core_->on_leg_event(now_, decode, wire::Done{});
        open_.erase(decode);
      });
    });
  }

  void hear(const Deliver& a) {
    const Client& client = clients_.at(a.request);
    Key& key = client.tenant == 1 ? flood : calm;
    if (std::holds_alternative<wire::TokenEvent>(a.event)) {
      key.longest_wait = std::max(key.longest_wait, now_ - client.arrived);
      ++key.served;
    } else if (const auto* status = std::get_if<Status>(&a.event); status != nullptr && !status->ok()) {
      EXPECT_EQ(status->code(), Code::kResourceExhausted) << status->to_string();
      EXPECT_GE(status->retry_after_s(), 1);
      EXPECT_LE(status->retry_after_s(), 60);
      EXPECT_EQ(now_, client.arrived) << "at once, or not at all";
      ++key.refused;
    }
  }

  struct Client {
    TimePoint arrived{};
    int tenant = 0;
  };
  Rng rng_;
  int slots_ = 0;
  std::int64_t prompt_ = 0, speed_ = 0, backlog_ = 0;
  Duration holding_{}, each_{};
  TimePoint now_{}, busy_until_{};
  std::uint64_t sequence_ = 0;
  int last_ = 0;
  std::map<std::pair<TimePoint, std::uint64_t>, std::function<void()>> events_;
  std::set<LegId> open_;
  std::map<RequestKey, Client> clients_;
  std::unique_ptr<Core> core_;
};

TEST(CoreOverload, TheQueueIsBoundedInTimeAndWhoSendsLessThanItsShareDoesNotFeelIt) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Overload world(seed);
    world.run();
    const Overload::Key &flood = world.flood, &calm = world.calm;
    EXPECT_GT(flood.refused, flood.sent / 2);
    // What it was told when it came leaves out who came after it with a better right: here a quarter of what is dispatched, and those that
    // were admitted before anything was measured.
    EXPECT_LE(flood.longest_wait, 2 * Overload::kLimit);
    EXPECT_GE(flood.longest_wait, Overload::kLimit / 2) << "refused though there was time";
    EXPECT_GE((flood.served + calm.served) * world.each(), Overload::kLasts * 3 / 4) << "refused though there was nothing to do";
    EXPECT_EQ(calm.refused, 0);
    EXPECT_GE(calm.served, calm.sent - 1);
    // For a place, and for those whose prompts have been sent before: whatever the other one has waiting.
    EXPECT_LE(calm.longest_wait, world.longest_holding() + world.prefill_of_all());
  }
}

}  // namespace
}  // namespace baton::gateway
