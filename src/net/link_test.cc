#include "net/link.h"

#include <deque>

#include "net/test_util.h"

namespace baton::net {
namespace {

class LinkTest : public testing::Test {
 protected:
  ~LinkTest() override {
    thread_.run([this] {
      near_.reset();
      far_.reset();
      listener_.reset();
    });
  }

  void listen(TcpLinkOptions options = {}, int listen_fd = -1) {
    thread_.run([&] {
      auto listener = TcpLinkListener::listen(thread_.loop(), "127.0.0.1", 0, listen_fd, options,
                                              [this](std::unique_ptr<Link> link) { far_ = std::move(link); });
      ASSERT_TRUE(listener.ok()) << listener.status().to_string();
      listener_ = std::move(*listener);
    });
  }
  Status connect(int port, TcpLinkOptions options = {}) {
    auto done = std::make_shared<Awaited<Status>>();
    thread_.run([&] {
      connect_tcp(thread_.loop(), "127.0.0.1", port, options, [this, done](Result<std::unique_ptr<Link>> link) {
        if (link.ok()) near_ = std::move(*link);
        done->set(link.status());
      });
    });
    return done->get();
  }
  void connect_pair(TcpLinkOptions options = {}) {
    listen(options);
    ASSERT_TRUE(connect(listener_->port(), options).ok());
    ASSERT_TRUE(eventually([this] { return far_ != nullptr; }));
  }
  bool eventually(const std::function<bool()>& condition) { return thread_.eventually(condition); }

  LoopThread thread_;
  std::unique_ptr<TcpLinkListener> listener_;
  std::unique_ptr<Link> near_, far_;
};

TEST_F(LinkTest, BytesArriveInOrderBothWays) {
  TcpLinkOptions options;
  options.buffer_bytes_max = 64u << 20;
  connect_pair(options);
  std::string sent, received, echoed;
  thread_.run([&] {
    far_->start({[&](std::string_view bytes) {
                   received += bytes;
                   EXPECT_TRUE(far_->send(std::string(bytes)).ok());
                 },
                 nullptr});
    near_->start({[&](std::string_view bytes) { echoed += bytes; }, nullptr});
    for (int i = 0; i < 3000; ++i) {
      const std::string message = std::to_string(i) + std::string(static_cast<std::size_t>(i) * 7 % 5000, static_cast<char>('a' + i % 26));
      sent += message;
      EXPECT_TRUE(near_->send(message).ok());
    }
  });
  EXPECT_TRUE(eventually([&] { return echoed.size() >= sent.size(); }));
  EXPECT_TRUE(thread_.run([&] { return received == sent && echoed == sent; }));
}

TEST_F(LinkTest, BytesSentBeforeStartAreKept) {
  connect_pair();
  std::string received;
  thread_.run([&] {
    near_->start({nullptr, nullptr});
    EXPECT_TRUE(near_->send("hello").ok());
  });
  thread_.run([&] { far_->start({[&](std::string_view bytes) { received += bytes; }, nullptr}); });
  EXPECT_TRUE(eventually([&] { return received == "hello"; }));
}

TEST_F(LinkTest, CloseIsSeenByThePeerOnlyAndOnce) {
  connect_pair();
  int near_closed = 0, far_closed = 0;
  thread_.run([&] {
    near_->start({nullptr, [&](Status) { ++near_closed; }});
    far_->start({nullptr, [&](Status status) {
                   EXPECT_EQ(status.code(), Code::kUnavailable);
                   ++far_closed;
                 }});
    near_->close();
    EXPECT_EQ(near_->send("x").code(), Code::kUnavailable);
  });
  EXPECT_TRUE(eventually([&] { return far_closed == 1; }));
  thread_.run([&] { EXPECT_EQ(far_->send("x").code(), Code::kUnavailable); });
  EXPECT_EQ(thread_.run([&] { return near_closed * 10 + far_closed; }), 1);
}

TEST_F(LinkTest, ABrokenLinkIsSaidOnceAndNeverInsideSend) {
  RawListener listener;
  ASSERT_TRUE(connect(listener.port()).ok());
  auto peer = listener.accept();
  int closed = 0;
  bool sending = false;
  thread_.run([&] {
    near_->start({nullptr, [&](Status) {
                    EXPECT_FALSE(sending);
                    ++closed;
                  }});
  });
  thread_.run([&] {
    peer.reset();
    sending = true;
    for (int i = 0; i < 100; ++i) (void)near_->send("into the void").ok();
    sending = false;
  });
  EXPECT_TRUE(eventually([&] { return closed == 1; }));
  EXPECT_EQ(thread_.run([&] { return closed; }), 1);
}

TEST_F(LinkTest, TheSendBufferIsBounded) {
  RawListener listener;
  TcpLinkOptions options;
  options.buffer_bytes_max = 1u << 20;
  ASSERT_TRUE(connect(listener.port(), options).ok());
  auto peer = listener.accept();
  std::size_t accepted = 0;
  thread_.run([&] {
    near_->start({nullptr, nullptr});
    EXPECT_EQ(near_->send(std::string((1u << 20) + 1, 'x')).code(), Code::kResourceExhausted);
    Status status;
    while (accepted < (256u << 20)) {
      status = near_->send(std::string(100'000, 'x'));
      if (!status.ok()) break;
      accepted += 100'000;
    }
    EXPECT_EQ(status.code(), Code::kResourceExhausted) << status.to_string();
  });
  // What was accepted arrives, all of it.
  EXPECT_EQ(peer.receive_exactly(accepted).size(), accepted);
  thread_.run([&] { near_->close(); });
  EXPECT_EQ(peer.receive_all(), "");
}

TEST_F(LinkTest, LinksMayBeDestroyedInTheirOwnCallbacks) {
  for (bool on_closed : {false, true}) {
    connect_pair();
    const std::string capture(100, 'c');
    thread_.run([&] {
      far_->start({[&, on_closed, capture](std::string_view bytes) {
                     EXPECT_FALSE(bytes.empty());
                     if (!on_closed) far_.reset();
                     EXPECT_EQ(capture.size(), 100u);
                   },
                   [&, capture](Status) {
                     EXPECT_TRUE(on_closed);
                     far_.reset();
                     EXPECT_EQ(capture.size(), 100u);
                   }});
      near_->start({nullptr, nullptr});
      EXPECT_TRUE(near_->send("x").ok());
    });
    if (on_closed) thread_.run([&] { near_.reset(); });
    EXPECT_TRUE(eventually([&] { return far_ == nullptr; }));
    thread_.run([&] { near_.reset(); });
  }
}

TEST_F(LinkTest, ConnectSaysWhyNot) {
  int port = 0;
  {
    RawListener listener;
    port = listener.port();
  }
  const Status status = connect(port);
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_NE(status.message().find("127.0.0.1:" + std::to_string(port)), std::string::npos);
}

TEST_F(LinkTest, ListenerAdoptsASocketAndMayBeDestroyedInItsCallback) {
  RawListener raw;
  thread_.run([&] {
    listener_ = std::move(TcpLinkListener::listen(thread_.loop(), "", 0, raw.fd(), {}, [this](std::unique_ptr<Link> link) {
                  far_ = std::move(link);
                  listener_.reset();
                })).value();
    EXPECT_EQ(listener_->port(), raw.port());
  });
  ASSERT_TRUE(connect(raw.port()).ok());
  EXPECT_TRUE(eventually([this] { return far_ != nullptr && listener_ == nullptr; }));
  EXPECT_EQ(thread_.run([this] { return far_->peer().substr(0, 10); }), "127.0.0.1:");
  // Closed by nobody: the next connection waits in its backlog.
  auto next = RawSocket::connect(raw.port());
  raw.accept();
}

}  // namespace
}  // namespace baton::net
