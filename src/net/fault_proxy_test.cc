#include "net/fault_proxy.h"

#include <cerrno>

#include "net/test_util.h"

namespace baton::net {
namespace {

// Deterministic and without a period that a lost or repeated piece could hide in.
std::string noise(std::size_t bytes, std::uint32_t seed) {
  std::string out(bytes, '\0');
  for (char& c : out) c = static_cast<char>((seed = seed * 1664525u + 1013904223u) >> 24);
  return out;
}

class FaultProxyTest : public testing::Test {
 protected:
  FaultProxyTest() {
    thread_.run([this] {
      FaultProxyOptions options;
      options.target_port = target_.port();
      options.seed = 7;
      auto proxy = FaultProxy::listen(thread_.loop(), options);
      ASSERT_TRUE(proxy.ok()) << proxy.status().to_string();
      proxy_ = std::move(*proxy);
    });
  }
  ~FaultProxyTest() override {
    thread_.run([this] { proxy_.reset(); });
  }

  struct Ends {
    RawSocket client, target;
  };
  Ends connect() {
    RawSocket client = RawSocket::connect(proxy_->port());
    RawSocket target = target_.accept();
    // Both ways carry bytes: the proxy knows both sockets, so what a test does next is not lost on a half-made connection.
    EXPECT_TRUE(client.send("?"));
    EXPECT_EQ(target.receive_exactly(1), "?");
    EXPECT_TRUE(target.send("!"));
    EXPECT_EQ(client.receive_exactly(1), "!");
    return {std::move(client), std::move(target)};
  }
  void set(Way way, const PathFaults& faults) {
    thread_.run([&] { proxy_->set(way, faults); });
  }
  FaultProxy::Stats::Path path(Way way) {
    return thread_.run([&] { return proxy_->stats().path[static_cast<std::size_t>(way)]; });
  }
  bool read_by_proxy(Way way, std::uint64_t bytes) {
    return thread_.eventually([&] { return proxy_->stats().path[static_cast<std::size_t>(way)].read == bytes; });
  }
  bool nothing_open() {
    return thread_.eventually([&] { return proxy_->stats().open == 0; });
  }
  static bool ended_by_reset(RawSocket& socket) {
    socket.receive_all();
    return socket.error() == ECONNRESET;
  }

  RawListener target_;
  LoopThread thread_;
  std::unique_ptr<FaultProxy> proxy_;
};

TEST_F(FaultProxyTest, WithoutFaultsItOnlyForwards) {
  auto [client, target] = connect();
  const std::string up = noise(3u << 20, 1), down = noise(2u << 20, 2);
  std::thread sender([&] {
    EXPECT_TRUE(client.send(up));
    client.shutdown_send();
  });
  EXPECT_EQ(target.receive_all(), up) << "and the half-close behind it";
  sender.join();
  std::thread answer([&] {
    EXPECT_TRUE(target.send(down));
    target.close();
  });
  EXPECT_EQ(client.receive_all(), down);
  EXPECT_EQ(client.error(), 0);
  answer.join();
  EXPECT_TRUE(nothing_open());
}

TEST_F(FaultProxyTest, AResetReachesTheOtherSide) {
  auto first = connect();
  first.target.reset();
  EXPECT_TRUE(ended_by_reset(first.client));
  auto second = connect();
  second.client.reset();
  EXPECT_TRUE(ended_by_reset(second.target));
  EXPECT_TRUE(nothing_open());
}

TEST_F(FaultProxyTest, ATargetThatDoesNotListenResets) {
  int unused = 0;
  {
    const RawListener gone;
    unused = gone.port();
  }
  std::unique_ptr<FaultProxy> proxy;
  thread_.run([&] {
    FaultProxyOptions options;
    options.target_port = unused;
    auto listening = FaultProxy::listen(thread_.loop(), options);
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    proxy = std::move(*listening);
  });
  RawSocket client = RawSocket::connect(proxy->port());
  EXPECT_TRUE(ended_by_reset(client));
  thread_.run([&] { proxy.reset(); });
}

TEST_F(FaultProxyTest, DelayedBytesWaitUntilTheDelayIsLifted) {
  auto [client, target] = connect();
  set(Way::kUp, {.delay = std::chrono::hours(1)});
  EXPECT_TRUE(client.send("late"));
  EXPECT_TRUE(read_by_proxy(Way::kUp, 1 + 4));
  EXPECT_EQ(path(Way::kUp).passed, 1u);
  EXPECT_TRUE(target.send("the other way is not touched"));
  EXPECT_EQ(client.receive_exactly(28), "the other way is not touched");
  set(Way::kUp, {});
  EXPECT_EQ(target.receive_exactly(4), "late");
}

TEST_F(FaultProxyTest, JitterKeepsTheOrder) {
  auto [client, target] = connect();
  set(Way::kUp, {.delay = std::chrono::microseconds(100), .jitter = std::chrono::milliseconds(2)});
  const std::string bytes = noise(2000, 3);
  for (std::size_t at = 0; at < bytes.size(); at += 20) EXPECT_TRUE(client.send(std::string_view(bytes).substr(at, 20)));
  EXPECT_EQ(target.receive_exactly(bytes.size()), bytes);
}

TEST_F(FaultProxyTest, AThrottledPathIsSlowAndLosesNothing) {
  auto [client, target] = connect();
  set(Way::kUp, {.bytes_per_second = 1000});  // a quarter of an hour for all of it
  const std::string bytes = noise(1u << 20, 4);
  std::thread sender([&] { EXPECT_TRUE(client.send(bytes)); });
  const std::string begin = target.receive_exactly(40);  // two of its pieces
  EXPECT_LT(path(Way::kUp).passed, bytes.size() / 2);
  set(Way::kUp, {});
  EXPECT_EQ(begin + target.receive_exactly(bytes.size() - begin.size()), bytes);
  sender.join();
}

TEST_F(FaultProxyTest, AHeldPathStopsItsSenderAndGoesOn) {
  auto [client, target] = connect();
  set(Way::kUp, {.hold = true});
  const std::string bytes = noise(16u << 20, 5);  // more than all buffers on the way
  std::thread sender([&] { EXPECT_TRUE(client.send(bytes)); });
  EXPECT_TRUE(target.send("answer"));
  EXPECT_EQ(client.receive_exactly(6), "answer");
  EXPECT_EQ(path(Way::kUp).passed, 1u);
  set(Way::kUp, {});
  EXPECT_EQ(target.receive_exactly(bytes.size()), bytes);
  sender.join();
}

TEST_F(FaultProxyTest, ABlackHoleSwallowsWithoutAWordAndResetsWhenItIsLifted) {
  auto running = connect(), other = connect();
  set(Way::kDown, {.swallow = true});
  EXPECT_TRUE(running.target.send("never seen"));
  EXPECT_TRUE(read_by_proxy(Way::kDown, 2 + 10));
  EXPECT_EQ(path(Way::kDown).swallowed, 10u);
  RawSocket client = RawSocket::connect(proxy_->port());  // accepted, as before
  RawSocket target = target_.accept();
  EXPECT_TRUE(client.send("question"));
  EXPECT_EQ(target.receive_exactly(8), "question");
  set(Way::kDown, {});
  EXPECT_TRUE(ended_by_reset(running.client));
  EXPECT_TRUE(other.target.send("lost nothing"));
  EXPECT_EQ(other.client.receive_exactly(12), "lost nothing");
  connect();
}

TEST_F(FaultProxyTest, CutsWithAResetOrAnEnd) {
  auto reset = connect();
  thread_.run([&] { proxy_->cut(true); });
  EXPECT_TRUE(ended_by_reset(reset.client));
  EXPECT_TRUE(ended_by_reset(reset.target));
  auto ended = connect();
  thread_.run([&] { proxy_->cut(false); });
  EXPECT_EQ(ended.client.receive_all(), "");
  EXPECT_EQ(ended.client.error(), 0);
  EXPECT_EQ(ended.target.receive_all(), "");
  EXPECT_EQ(ended.target.error(), 0);
  EXPECT_TRUE(nothing_open());
}

TEST_F(FaultProxyTest, HalfClosesOneWay) {
  auto [client, target] = connect();
  thread_.run([&] { proxy_->half_close(Way::kUp); });
  EXPECT_EQ(target.receive_all(), "");
  EXPECT_EQ(target.error(), 0);
  EXPECT_TRUE(target.send("still here"));
  EXPECT_EQ(client.receive_exactly(10), "still here");
}

TEST_F(FaultProxyTest, RefusesWhileToldTo) {
  thread_.run([&] { proxy_->refuse(true); });
  RawSocket refused = RawSocket::connect(proxy_->port());
  EXPECT_TRUE(ended_by_reset(refused));
  thread_.run([&] { proxy_->refuse(false); });
  connect();
}

}  // namespace
}  // namespace baton::net
