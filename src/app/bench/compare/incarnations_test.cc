#include "app/bench/compare/incarnations.h"

#include <gtest/gtest.h>

#include "wire/worker_api.h"

namespace baton::app {
namespace {

std::string workers(std::vector<std::pair<std::string, std::uint64_t>> names_and_incarnations) {
  std::string out = "[";
  for (const auto& [name, incarnation] : names_and_incarnations) {
    wire::WorkerStatus status;
    status.name = name;
    status.incarnation.value = incarnation;
    status.ready = incarnation > 0;
    out += (out.size() > 1 ? "," : "") + wire::to_json(status);
  }
  return out + "]";
}

std::string between(const std::string& before, const std::string& after) { return change(incarnations_of(before), incarnations_of(after)); }

TEST(Incarnations, AWorkerThatWasStartedAgainIsAnotherOne) {
  const std::string before = workers({{"prefill-0", 7}, {"decode-0", 8}});
  EXPECT_EQ(incarnations_of(before).size(), 2U);
  EXPECT_EQ(between(before, before), "");
  EXPECT_EQ(between(before, workers({{"decode-0", 8}, {"prefill-0", 7}})), "") << "in any order";
  EXPECT_EQ(between(before, workers({{"prefill-0", 7}, {"decode-0", 9}})), "worker decode-0 ended and was started again");
  EXPECT_EQ(between(before, workers({{"prefill-0", 7}})), "worker decode-0 ended");
  EXPECT_EQ(between(workers({{"prefill-0", 7}}), before), "worker decode-0 is new");
}

TEST(Incarnations, OneThatIsNotReadyIsTold) {
  EXPECT_EQ(not_ready(workers({{"prefill-0", 7}, {"decode-0", 8}})), "");
  EXPECT_EQ(not_ready(workers({{"prefill-0", 7}, {"decode-0", 0}})), "decode-0");
  EXPECT_EQ(not_ready("[1]"), "");
}

TEST(Incarnations, AnAnswerThatIsNoListHasNone) {
  EXPECT_TRUE(incarnations_of("").empty());
  EXPECT_TRUE(incarnations_of("{}").empty());
  EXPECT_TRUE(incarnations_of("[1,{\"name\":\"a\"}]").empty());
}

}  // namespace
}  // namespace baton::app
