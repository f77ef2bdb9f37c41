#include "net/event_loop.h"

#include <csignal>
#include <mutex>
#include <vector>

#include "net/test_util.h"

namespace baton::net {
namespace {

using std::chrono::milliseconds;

TEST(EventLoop, PostedWorkRunsInOrderOnTheLoopsThread) {
  EventLoop loop;
  std::vector<int> order;
  std::thread::id ran_on;
  for (int i = 0; i < 10; ++i) loop.post([&, i] { order.push_back(i); });
  EXPECT_TRUE(order.empty());
  loop.post([&] {
    ran_on = std::this_thread::get_id();
    loop.stop();
  });
  std::thread thread([&] { loop.run(); });
  const auto expected = thread.get_id();
  thread.join();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(ran_on, expected);
}

TEST(EventLoop, PostsFromManyThreadsAllRun) {
  LoopThread thread;
  int sum = 0;  // of the loop's thread: no lock
  std::vector<std::thread> posters;
  for (int t = 0; t < 4; ++t)
    posters.emplace_back([&] {
      for (int i = 0; i < 10'000; ++i) thread.loop().post([&] { ++sum; });
    });
  for (auto& poster : posters) poster.join();
  EXPECT_EQ(thread.run([&] { return sum; }), 40'000);
}

TEST(EventLoop, TimersRunOnceInTheOrderOfTheirTimesAndNotEarly) {
  EventLoop loop;
  std::vector<int> order;
  const TimePoint start = loop.clock().now();
  loop.after(milliseconds(30), [&] {
    order.push_back(30);
    EXPECT_GE(loop.clock().now() - start, milliseconds(30));
    loop.stop();
  });
  loop.after(milliseconds(10), [&] { order.push_back(10); });
  loop.after(milliseconds(20), [&] { order.push_back(20); });
  loop.after(Duration(0), [&] { order.push_back(0); });
  loop.run();
  EXPECT_EQ(order, (std::vector<int>{0, 10, 20, 30}));
}

TEST(EventLoop, CancelledTimersDoNotRun) {
  EventLoop loop;
  const auto never = [] { ADD_FAILURE() << "cancelled"; };
  loop.cancel(loop.after(milliseconds(1), never));
  // Both are due in the same turn; the first cancels the second.
  Executor::TimerId second = 0;
  loop.after(milliseconds(1), [&] { loop.cancel(second); });
  second = loop.after(milliseconds(1), never);
  const TimePoint busy_until = loop.clock().now() + milliseconds(3);
  while (loop.clock().now() < busy_until) {
  }
  // A timer may cancel itself, and unknown ids are nothing.
  Executor::TimerId own = 0;
  own = loop.after(milliseconds(2), [&] { loop.cancel(own); });
  loop.cancel(0);
  loop.cancel(987654);
  loop.after(milliseconds(10), [&] { loop.stop(); });
  loop.run();
}

TEST(EventLoop, StopEndsRunAndRunMayBeCalledAgain) {
  EventLoop loop;
  int ran = 0;
  for (int i = 0; i < 3; ++i) {
    loop.post([&] {
      ++ran;
      loop.stop();
    });
    loop.run();
    EXPECT_EQ(ran, i + 1);
  }
}

TEST(EventLoop, EachSignalIsDelivered) {
  EventLoop loop;
  std::vector<int> seen;
  loop.on_signals({SIGUSR1, SIGUSR2}, [&](int signal) {
    seen.push_back(signal);
    if (seen.size() == 3) return loop.stop();
    std::raise(signal == SIGUSR1 ? SIGUSR2 : SIGUSR1);
  });
  loop.post([] { std::raise(SIGUSR1); });
  loop.run();
  EXPECT_EQ(seen, (std::vector<int>{SIGUSR1, SIGUSR2, SIGUSR1}));
}

TEST(EventLoop, ReadableOnceForDataAndForTheOtherEndClosed) {
  int ends[2];
  ASSERT_EQ(0, ::pipe(ends));
  EventLoop loop;
  int calls = 0;
  loop.on_readable(ends[0], [&] {
    ++calls;
    char byte;
    EXPECT_EQ(1, ::read(ends[0], &byte, 1));  // still the caller's, and open
    // Again, for the close.
    loop.on_readable(ends[0], [&] {
      ++calls;
      EXPECT_EQ(0, ::read(ends[0], &byte, 1));
      loop.stop();
    });
    ::close(ends[1]);
  });
  loop.post([&] { EXPECT_EQ(1, ::write(ends[1], "x", 1)); });
  loop.run();
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(0, ::close(ends[0]));
}

TEST(EventLoop, DestroyingItDropsWorkThatUsesItAndLeavesDescriptorsOpen) {
  int ends[2];
  ASSERT_EQ(0, ::pipe(ends));
  // What is destroyed with the loop may itself call the loop.
  struct Owner {
    EventLoop* loop;
    ~Owner() {
      loop->cancel(1);
      loop->post([] { ADD_FAILURE(); });
      loop->after(milliseconds(1), [] { ADD_FAILURE(); });
    }
  };
  {
    auto loop = std::make_unique<EventLoop>();
    auto owner = [&] { return std::make_shared<Owner>(Owner{loop.get()}); };
    loop->after(std::chrono::hours(1), [o = owner()] { ADD_FAILURE(); });
    loop->after(std::chrono::hours(1), [o = owner()] { ADD_FAILURE(); });
    loop->post([o = owner()] { ADD_FAILURE(); });
    loop->on_readable(ends[0], [o = owner()] { ADD_FAILURE(); });
    loop->on_signals({SIGUSR1}, [o = owner()](int) { ADD_FAILURE(); });
  }
  EXPECT_EQ(1, ::write(ends[1], "x", 1));
  EXPECT_EQ(0, ::close(ends[0]));
  EXPECT_EQ(0, ::close(ends[1]));
}

}  // namespace
}  // namespace baton::net
