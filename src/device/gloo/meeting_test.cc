#include "device/gloo/meeting.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/spin.h"
#include "device/gloo/tcp.h"
#include "device/gloo/test_nodes.h"

namespace baton::device::gloo {
namespace {

using ::testing::AllOf;
using testing::as_nodes;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Place;

constexpr Duration kLong = std::chrono::seconds(60);

TEST(Meeting, AllHearWhatEachSays) {
  const Place place;
  as_nodes(3, [&](int node) {
    const auto meeting = Meeting::hold(place.options(node, 3));
    ASSERT_TRUE(meeting.ok()) << meeting.status().to_string();
    EXPECT_EQ((*meeting)->address(), "127.0.0.1");
    for (int round = 0; round < 3; ++round) {
      const auto all = (*meeting)->exchange(std::string(static_cast<std::size_t>(round), '\n') + std::to_string(node), kLong);
      ASSERT_TRUE(all.ok()) << all.status().to_string();
      const std::string lines(static_cast<std::size_t>(round), '\n');
      EXPECT_THAT(*all, ElementsAre(lines + "0", lines + "1", lines + "2"));
    }
  });
}

TEST(Meeting, ADifferenceIsNamedOnAllNodes) {
  const Place place;
  as_nodes(2, [&](int node) {
    MeetingOptions o = place.options(node, 2);
    o.terms = {{"the model's digest", "abc"}, {"--dtype", node == 0 ? "bfloat16" : "float16"}};
    const Status status = Meeting::hold(o).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("--dtype is float16 on node 1"), HasSubstr("bfloat16 on node 0")));
  });
}

TEST(Meeting, SoIsAnotherNumberOfNodesAndAnotherVersion) {
  {
    const Place place;
    as_nodes(2, [&](int node) {
      const Status status = Meeting::hold(place.options(node, node == 0 ? 2 : 3)).status();
      EXPECT_EQ(status.code(), Code::kInvalidArgument);
      EXPECT_THAT(status.message(), HasSubstr("--nnodes 3"));
    });
  }
  const Place place;
  as_nodes(2, [&](int node) {
    if (node == 0) {
      EXPECT_THAT(Meeting::hold(place.options(0, 2)).status().message(), HasSubstr("another version"));
      return;
    }
    const auto socket = Socket::dial("127.0.0.1", place.options(1, 2).port, now_ns() + 60'000'000'000);
    ASSERT_TRUE(socket.ok());
    ASSERT_TRUE(socket->send_frame("baton nodes 99\n", now_ns() + 60'000'000'000).ok());
    const auto answer = socket->receive_frame(1000, now_ns() + 60'000'000'000);
    ASSERT_TRUE(answer.ok());
    EXPECT_THAT(*answer, HasSubstr("another version"));
  });
}

TEST(Meeting, StrangersAreSentAwayAndWhoLeftMayComeAgain) {
  const Place place;
  const MeetingOptions options = place.options(1, 2);
  as_nodes(2, [&](int node) {
    if (node == 0) {
      EXPECT_TRUE(Meeting::hold(place.options(0, 3)).ok());
      return;
    }
    const auto end = now_ns() + 60'000'000'000;
    const auto say = [&](std::string_view hello) {
      auto socket = Socket::dial("127.0.0.1", options.port, end);
      BATON_CHECK(socket.ok() && socket->send_frame(hello, end).ok());
      return std::move(*socket);
    };
    EXPECT_FALSE(say("GET / HTTP/1.1").receive_frame(1000, end).ok()) << "closed";
    const auto answer = say("baton nodes 1\n3\n7\n").receive_frame(1000, end);
    ASSERT_TRUE(answer.ok());
    EXPECT_THAT(*answer, HasSubstr("no node 7"));
    (void)say("baton nodes 1\n3\n1\n");  // and leaves again: its place is free
    const std::jthread first([&] { EXPECT_TRUE(Meeting::hold(place.options(1, 3)).ok()); });
    EXPECT_TRUE(Meeting::hold(place.options(2, 3)).ok());
  });
}

TEST(Meeting, TwoNodesOfOneNumber) {
  const Place place;
  int refused = 0;
  {
    std::vector<std::jthread> threads;
    std::mutex mutex;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&] {
        MeetingOptions o = place.options(1, 3);
        o.deadline = std::chrono::milliseconds(1500);
        const Status status = Meeting::hold(o).status();
        const std::lock_guard lock(mutex);
        refused += status.message().find("there is a node 1 already") != std::string::npos;
      });
    }
    MeetingOptions o = place.options(0, 3);
    o.deadline = std::chrono::milliseconds(500);
    const Status status = Meeting::hold(o).status();
    EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
    EXPECT_THAT(status.message(), HasSubstr("node 2 did not come"));
  }
  EXPECT_EQ(refused, 1);
}

TEST(Meeting, WhoNeverComesIsNamedAndWhoCameIsTold) {
  const Place place;
  as_nodes(2, [&](int node) {  // of three
    MeetingOptions o = place.options(node, 3);
    if (node == 0) o.deadline = std::chrono::milliseconds(300);
    const Status status = Meeting::hold(o).status();
    EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
    EXPECT_THAT(status.message(), HasSubstr("node 2 did not come"));
  });
}

TEST(Meeting, ANodeWithoutALeaderGivesUp) {
  MeetingOptions o;
  o.node = 1, o.host = "127.0.0.1", o.deadline = std::chrono::milliseconds(100);
  {
    const Place place;
    o.port = place.options(0, 2).port;
  }
  const Status status = Meeting::hold(o).status();
  EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
  EXPECT_THAT(status.message(), HasSubstr("cannot be reached at 127.0.0.1:"));
}

TEST(Meeting, BadAddressesAndRanksAreRefused) {
  const Place place;
  MeetingOptions o = place.options(0, 2);
  o.listen_fd = -1;
  EXPECT_THAT(Meeting::hold(o).status().message(), HasSubstr("already in use"));
  o.host = "192.0.2.1";  // nobody's
  EXPECT_THAT(Meeting::hold(o).status().message(), HasSubstr("has no address 192.0.2.1"));
  o.host = "no.such.host.invalid";
  EXPECT_EQ(Meeting::hold(o).status().code(), Code::kInvalidArgument);
  o.node = 2;
  EXPECT_THAT(Meeting::hold(o).status().message(), HasSubstr("--node-rank 2 of --nnodes 2"));
}

TEST(Meeting, WhoLeavesWhileStartingIsNamed) {
  const Place place;
  as_nodes(2, [&](int node) {
    const auto meeting = Meeting::hold(place.options(node, 2));
    ASSERT_TRUE(meeting.ok());
    if (node == 1) return;
    const auto all = (*meeting)->exchange("ready", kLong);
    EXPECT_EQ(all.status().code(), Code::kUnavailable);
    EXPECT_THAT(all.status().message(), HasSubstr("node 1 left"));
  });
}

}  // namespace
}  // namespace baton::device::gloo
