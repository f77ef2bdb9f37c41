// Registry, prefix index, placement and the request log, each on its own.

#include "gateway/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "gateway/choice_stream.h"
#include "gateway/prefix_index.h"
#include "gateway/registry.h"
#include "gateway/request_log.h"

namespace baton::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using wire::Role;

class PlacementTest : public ::testing::Test {
 protected:
  void build(std::vector<std::pair<std::string, Role>> workers) {
    std::vector<WorkerConfig> configs;
    for (const auto& [name, role] : workers) configs.push_back({name, "h", 1, role});
    registry_.emplace(RegistryOptions{}, configs);
    for (std::size_t i = 0; i < workers.size(); ++i) report(static_cast<int>(i), [](auto&) {});
  }
  void report(int id, const std::function<void(wire::WorkerStatus&)>& edit, Duration at = {}) {
    const Worker& w = registry_->at(WorkerId(id));
    wire::WorkerStatus s;
    s.name = w.config.name, s.role = w.config.role, s.incarnation = Incarnation(1);
    s.model_digest = "m", s.kv = {2, 2, 64, "bf16"}, s.ready = true;
    s.block_tokens = 4, s.blocks_total = s.blocks_free = 100, s.max_num_seqs = 10;
    s.prefill_tokens_per_s = 1000;
    edit(s);
    registry_->on_status(TimePoint{} + at, WorkerId(id), s);
  }
  Need need(std::int32_t tokens, std::int32_t out = 4) {
    ids_.resize(static_cast<std::size_t>(tokens));
    std::iota(ids_.begin(), ids_.end(), 0);
    return {ids_, 1, out, ""};
  }
  DecodePlacement decode(const Need& n, const Tried& tried = {}, Fallback fallback = Fallback::kLocal) {
    return *Placement(*registry_).decode(n, tried, fallback);
  }
  WorkerId prefill(const Need& n, const Tried& tried = {}) { return *Placement(*registry_).prefill(n, tried); }
  void cache(int id, std::span<const TokenId> ids) { registry_->at(WorkerId(id)).prefixes.insert(wire::prefix_chain(ids, 4, "")); }

  std::optional<Registry> registry_;
  std::vector<TokenId> ids_;
};

TEST_F(PlacementTest, PrefillGoesWhereItEndsFirst) {
  build({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}});
  EXPECT_EQ(prefill(need(100)), WorkerId(0)) << "equal: the lower id";
  registry_->at(WorkerId(0)).placed = 1;
  EXPECT_EQ(prefill(need(100)), WorkerId(1)) << "equal: the one chosen less often";
  report(1, [](auto& s) { s.queued_prefill_tokens = 500; });
  EXPECT_EQ(prefill(need(100)), WorkerId(0)) << "a shorter queue";
  report(1, [](auto& s) { s.queued_prefill_tokens = 500, s.prefill_tokens_per_s = 10000; });
  EXPECT_EQ(prefill(need(100)), WorkerId(1)) << "a longer queue on a faster worker";
  cache(0, need(100).ids);
  EXPECT_EQ(prefill(need(100)), WorkerId(0)) << "cached";
  registry_->at(WorkerId(0)).prefill_tokens = 10000;
  EXPECT_EQ(prefill(need(100)), WorkerId(1)) << "what was sent since the last report counts";
  EXPECT_EQ(Placement(*registry_).prefill_estimate(WorkerId(0), need(100)), std::chrono::seconds(10) + std::chrono::milliseconds(1));
}

TEST_F(PlacementTest, DecodeGoesWhereThereIsRoom) {
  build({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  EXPECT_EQ(decode(need(40)).worker, WorkerId(1));
  report(1, [](auto& s) { s.running = 3; });
  EXPECT_EQ(decode(need(40)).worker, WorkerId(2)) << "fewer sequences";
  report(2, [](auto& s) { s.blocks_free = 5; });
  EXPECT_EQ(decode(need(40)).worker, WorkerId(1)) << "the other lacks the blocks";
  report(2, [](auto& s) { s.blocks_free = 5, s.blocks_cached = 95; });
  EXPECT_EQ(decode(need(40)).worker, WorkerId(2)) << "cached blocks are as good as free ones";
  registry_->at(WorkerId(2)).blocks_promised = 95;
  EXPECT_EQ(decode(need(40)).worker, WorkerId(1)) << "promised to others";
  registry_->at(WorkerId(2)).blocks_promised = 0;
  cache(1, need(40).ids);
  EXPECT_EQ(decode(need(40)).worker, WorkerId(1)) << "a full hit is worth three more sequences of ten";
}

TEST_F(PlacementTest, BlocksOfChoicesShareThePrompt) {
  build({{"d0", Role::kDecode}});
  Need n = need(10, 8);  // two full blocks, two tokens more
  EXPECT_EQ(Placement(*registry_).blocks(WorkerId(0), n), 2 + 3);
  n.choices = 4;
  EXPECT_EQ(Placement(*registry_).blocks(WorkerId(0), n), 2 + 4 * 3);
}

TEST_F(PlacementTest, RolesDecideWhoDoesWhat) {
  const auto where = [&](Fallback fallback = Fallback::kLocal) {
    const auto d = decode(need(8), {}, fallback);
    return std::tuple(d.worker.value, d.local_prefill, d.fallback);
  };
  build({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"b0", Role::kBoth}});
  EXPECT_EQ(where(), std::tuple(1, false, false));
  registry_->on_poll_failed(TimePoint{}, WorkerId(1), true, "refused");
  EXPECT_EQ(where(), std::tuple(2, false, false)) << "a worker of both roles decodes for the prefill worker";
  registry_->on_poll_failed(TimePoint{}, WorkerId(0), true, "refused");
  EXPECT_EQ(where(), std::tuple(2, true, false)) << "aggregated, as meant";
  EXPECT_TRUE(registry_->ready());
  report(1, [](auto&) {});
  registry_->on_poll_failed(TimePoint{}, WorkerId(2), true, "refused");
  EXPECT_EQ(where(), std::tuple(1, true, true)) << "decode alone";
  EXPECT_FALSE(registry_->ready());
  EXPECT_FALSE(Placement(*registry_).decode(need(8), {}, Fallback::kFail).ok());
  registry_->on_poll_failed(TimePoint{}, WorkerId(1), true, "refused");
  report(0, [](auto&) {});
  EXPECT_EQ(where(), std::tuple(0, true, true)) << "prefill alone";
}

TEST_F(PlacementTest, WhoTakesNoHandOffsDecodesWhatItPrefills) {
  build({{"p0", Role::kPrefill}, {"b0", Role::kBoth}, {"b1", Role::kBoth}});
  report(1, [](auto& s) { s.takes_handoffs = false; });
  EXPECT_EQ(decode(need(8)).worker, WorkerId(2)) << "the other one takes them";
  registry_->on_poll_failed(TimePoint{}, WorkerId(2), true, "refused");
  EXPECT_EQ(decode(need(8)).worker, WorkerId(1));
  EXPECT_TRUE(decode(need(8)).local_prefill) << "though there is a prefill worker";
}

TEST_F(PlacementTest, TriedWorkersComeLastOrNotAtAll) {
  build({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}});
  EXPECT_EQ(prefill(need(8), {.refused = {}, .failed = {WorkerId(0)}}), WorkerId(1));
  EXPECT_EQ(prefill(need(8), {.refused = {WorkerId(1)}, .failed = {WorkerId(0)}}), WorkerId(0));
  EXPECT_FALSE(Placement(*registry_).prefill(need(8), {.refused = {WorkerId(0), WorkerId(1)}, .failed = {}}).ok());
  registry_->on_leg_broken(WorkerId(0), "reset");
  EXPECT_EQ(prefill(need(8)), WorkerId(1)) << "suspect";
}

TEST_F(PlacementTest, IncompatibleWorkersAreNamedWithTheDifference) {
  build({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  const auto problem = [&](const std::function<void(wire::WorkerStatus&)>& edit) {
    report(1, edit);
    EXPECT_EQ(registry_->at(WorkerId(1)).liveness, Liveness::kIncompatible);
    EXPECT_FALSE(registry_->ready());
    return registry_->at(WorkerId(1)).problem;
  };
  EXPECT_EQ(problem([](auto& s) { s.model_digest = "m2"; }), "serves the model m2, but p0 serves m");
  EXPECT_EQ(problem([](auto& s) { s.kv.kv_heads = 8; }),
            "has the KV schema (2 layers, 8 KV heads of 64, bf16), but p0 has (2 layers, 2 KV heads of 64, bf16)");
  EXPECT_EQ(problem([](auto& s) { s.protocol = 9; }), "speaks protocol 9, this gateway speaks " + std::to_string(wire::kProtocolVersion));
  EXPECT_EQ(problem([](auto& s) { s.role = Role::kPrefill; }), "has the role prefill, expected decode");
  EXPECT_EQ(problem([](auto& s) { s.name = "d7"; }), "is worker d7, expected d0");
  EXPECT_THAT(registry_->describe(), HasSubstr("d0 (decode) incompatible: is worker d7"));
  report(1, [](auto& s) { s.numerics_id = "another"; });
  EXPECT_TRUE(registry_->ready()) << "numerics may differ";
  // Once nobody serves the old model any more, the new one is welcome: a rolling change of model.
  report(1, [](auto& s) { s.model_digest = "m2"; });
  registry_->on_poll_failed(TimePoint{}, WorkerId(0), true, "refused");
  report(1, [](auto& s) { s.model_digest = "m2"; });
  EXPECT_EQ(registry_->at(WorkerId(1)).liveness, Liveness::kAlive);
}

TEST_F(PlacementTest, HealthMeansProgress) {
  build({{"d0", Role::kBoth}});
  const auto step = [&](std::uint64_t steps, int running, int at_s) {
    report(0, [&](auto& s) { s.steps = steps, s.running = running; }, std::chrono::seconds(at_s));
    return registry_->at(WorkerId(0)).usable();
  };
  EXPECT_TRUE(step(5, 1, 1));
  EXPECT_TRUE(step(5, 1, 10));
  EXPECT_FALSE(step(5, 1, 11)) << "work, and no step for 10 s";
  EXPECT_THAT(registry_->describe(), HasSubstr("makes no step"));
  EXPECT_TRUE(step(6, 1, 12));
  EXPECT_TRUE(step(6, 0, 100)) << "idle is healthy";
  EXPECT_TRUE(step(6, 1, 101));
}

TEST_F(PlacementTest, DeathIsOneRefusalOrSilenceForTheProgressTimeout) {
  build({{"d0", Role::kBoth}});
  const WorkerId id(0);
  const auto fail = [&](int at_ms, bool unreachable = false) {
    return registry_->on_poll_failed(TimePoint{} + std::chrono::milliseconds(at_ms), id, unreachable, unreachable ? "refused" : "slow");
  };
  EXPECT_EQ(fail(1500), Registry::Change::kNone) << "one missed poll may be the gateway's own pause";
  report(0, [](auto&) {}, std::chrono::milliseconds(1600));
  EXPECT_EQ(fail(2100), Registry::Change::kNone) << "an answer in between counts";
  EXPECT_EQ(fail(2599), Registry::Change::kNone) << "two misses, but heard of within the second";
  EXPECT_EQ(fail(2600), Registry::Change::kLost);
  EXPECT_EQ(fail(2700), Registry::Change::kNone) << "lost once";
  report(0, [](auto&) {}, std::chrono::milliseconds(3000));
  EXPECT_EQ(fail(3000, true), Registry::Change::kLost);
  report(0, [](auto&) {}, std::chrono::milliseconds(3000));
  registry_->on_leg_broken(id, "reset");
  EXPECT_EQ(fail(3001), Registry::Change::kLost) << "a broken leg and a missed poll";
}

TEST_F(PlacementTest, AWorkerThatTalksOnItsLegsIsNotSilent) {
  build({{"d0", Role::kBoth}});
  const WorkerId id(0);
  const auto at = [](int ms) { return TimePoint{} + std::chrono::milliseconds(ms); };
  for (int ms = 500; ms <= 5000; ms += 500) {
    registry_->on_heard(at(ms - 100), id);
    EXPECT_EQ(registry_->on_poll_failed(at(ms), id, false, "slow"), Registry::Change::kNone) << ms;
  }
  EXPECT_EQ(registry_->on_poll_failed(at(5900), id, false, "slow"), Registry::Change::kLost);
}

TEST_F(PlacementTest, AHungStepIsOlderThanItsBudgetAllows) {
  build({{"d0", Role::kBoth}});
  const auto step = [&](double running_ms, double budget_ms) {
    const Worker& w = registry_->at(WorkerId(0));
    wire::WorkerStatus s = w.status;
    s.step_running_ms = running_ms, s.step_budget_ms = budget_ms;
    return registry_->on_status(TimePoint{}, WorkerId(0), s);
  };
  EXPECT_EQ(step(999, 100), Registry::Change::kNone) << "no step has less than the progress time-out";
  EXPECT_EQ(step(1000, 100), Registry::Change::kHung);
  EXPECT_FALSE(registry_->at(WorkerId(0)).usable());
  EXPECT_THAT(registry_->describe(), HasSubstr("a step runs for 1000 ms"));
  EXPECT_EQ(step(1500, 100), Registry::Change::kNone) << "its legs are lost once";
  EXPECT_EQ(step(0, 100), Registry::Change::kNone);
  EXPECT_TRUE(registry_->at(WorkerId(0)).usable()) << "it goes on";
  EXPECT_EQ(step(3999, 1000), Registry::Change::kNone) << "slow steps are not hung ones";
  EXPECT_EQ(step(4000, 1000), Registry::Change::kHung);
}

TEST(PrefixIndex, ForgetsTheLeastRecentTailsFirst) {
  const auto chain = [](TokenId first, int blocks) {
    std::vector<TokenId> ids(static_cast<std::size_t>(blocks) * 2, first);
    return wire::prefix_chain(ids, 2, "");
  };
  PrefixIndex index(6);
  index.insert(chain(1, 3));
  index.insert(chain(2, 3));
  EXPECT_EQ(index.match(chain(1, 5)), 3u);
  EXPECT_EQ(index.match(chain(3, 5)), 0u);
  index.insert(chain(1, 3));  // used again
  index.insert(chain(3, 2));
  EXPECT_EQ(index.match(chain(1, 3)), 3u);
  EXPECT_EQ(index.match(chain(2, 3)), 1u) << "its tail went, its head serves on";
  index.insert(chain(4, 50));
  EXPECT_EQ(index.size(), 6u);
  EXPECT_EQ(index.match(chain(4, 50)), 6u);
  index.clear();
  EXPECT_EQ(index.match(chain(4, 50)), 0u);
}

TEST(ChoiceStream, EmitsOnceAndInOrder) {
  using V = ChoiceStream::Verdict;
  ChoiceStream stream(10);
  std::vector<wire::TokenEvent> ready;
  const auto offer = [&](std::int32_t position, TokenId token) { return stream.offer({0, position, token, {}, {}}, ready); };
  EXPECT_EQ(offer(9, 1), V::kGarbage);
  EXPECT_EQ(offer(11, 6), V::kHeld);
  EXPECT_EQ(offer(11, 6), V::kDuplicate);
  EXPECT_EQ(offer(11, 7), V::kConflict);
  EXPECT_TRUE(stream.has_gap());
  EXPECT_EQ(offer(10, 5), V::kNew);
  EXPECT_EQ(ready.size(), 2u);
  EXPECT_EQ(offer(10, 5), V::kDuplicate);
  EXPECT_EQ(offer(10, 4), V::kConflict);
  EXPECT_THAT(stream.tokens(), ElementsAre(5, 6));
  stream.finish();
  EXPECT_EQ(offer(12, 1), V::kLate);
  ChoiceStream flood(0);
  for (int i = 1; i <= 64; ++i) EXPECT_EQ(flood.offer({0, i, 1, {}, {}}, ready), V::kHeld);
  EXPECT_EQ(flood.offer({0, 65, 1, {}, {}}, ready), V::kGarbage) << "bounded";
}

TEST(RequestLog, KeepsTheLatest) {
  RequestLog log(2);
  for (const char* id : {"a", "b", "a", "c"}) {
    RequestRecord r;
    r.id = id;
    r.tokens = static_cast<std::int64_t>(log.size());
    log.put(std::move(r));
  }
  EXPECT_EQ(log.size(), 2u);
  EXPECT_NE(log.find("a"), nullptr);
  EXPECT_EQ(log.find("b"), nullptr);
  EXPECT_NE(log.find("c"), nullptr);
  RequestRecord r;
  for (std::size_t i = 0; i < 2 * RequestRecord::kEventsMax; ++i) r.add(Duration(1500), "e", "detail \xff");
  EXPECT_EQ(r.events.size(), RequestRecord::kEventsMax);
  EXPECT_THAT(to_json(r), HasSubstr("\"events_dropped\":256"));
  EXPECT_THAT(to_json(r), HasSubstr("\"ms\":1.5"));
}

}  // namespace
}  // namespace baton::gateway
