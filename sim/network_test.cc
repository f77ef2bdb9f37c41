// The simulated world itself: if it lied, everything else here would.

#include "sim/network.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "sim/http.h"

namespace baton::sim {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;

TEST(EventQueue, EqualTimesRunInTheOrderOfScheduling) {
  EventQueue queue;
  std::vector<int> ran;
  queue.at(TimePoint(milliseconds(2)), [&] { ran.push_back(3); });
  queue.at(TimePoint(milliseconds(1)), [&] {
    ran.push_back(1);
    queue.at(TimePoint(), [&] { ran.push_back(2); });  // a time that has passed means now
  });
  const auto cancelled = queue.at(TimePoint(milliseconds(2)), [&] { ran.push_back(-1); });
  queue.at(TimePoint(milliseconds(2)), [&] { ran.push_back(4); });
  queue.cancel(cancelled);
  while (queue.run_one()) {
  }
  EXPECT_THAT(ran, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(queue.now(), TimePoint(milliseconds(2)));
}

TEST(Host, FrozenItRunsNothingAndLaterAllInOrder) {
  EventQueue queue;
  Host host(queue, "h", milliseconds(7));
  std::vector<int> ran;
  host.post([&] { ran.push_back(1); });
  host.after(milliseconds(1), [&] { ran.push_back(2); });
  const auto cancelled = host.after(milliseconds(1), [&] { ran.push_back(-1); });
  host.freeze();
  while (queue.run_one()) {
  }
  EXPECT_TRUE(ran.empty());
  host.cancel(cancelled);
  host.thaw();
  while (queue.run_one()) {
  }
  EXPECT_THAT(ran, ElementsAre(1, 2));
  EXPECT_EQ(host.clock().now(), queue.now() + milliseconds(7));
}

TEST(Host, ItsTimersGoByItsOwnClock) {
  EventQueue queue;
  Host host(queue, "h", milliseconds(7));
  std::vector<TimePoint> ran;
  const auto timer = [&](Duration delay) { host.after(delay, [&] { ran.push_back(queue.now()); }); };
  const auto run_all = [&] {
    while (queue.run_one()) {
    }
  };
  host.set_rate(500'000);  // three seconds while two pass
  timer(milliseconds(30));
  run_all();
  EXPECT_THAT(ran, ElementsAre(TimePoint(milliseconds(20))));
  EXPECT_EQ(host.clock().now(), TimePoint(milliseconds(37)));
  host.set_rate(0);
  timer(milliseconds(10));
  timer(milliseconds(50));
  host.jump(milliseconds(40));  // the first one is due at once
  run_all();
  EXPECT_THAT(ran, ElementsAre(TimePoint(milliseconds(20)), TimePoint(milliseconds(20)), TimePoint(milliseconds(30))));
  host.set_rate(-500'000);
  timer(milliseconds(10));
  run_all();
  EXPECT_EQ(ran.back(), TimePoint(milliseconds(50)));
}

TEST(Host, WhatADestroyedOneWasToRunNeverRuns) {
  EventQueue queue;
  {
    Host host(queue, "h");
    host.post([] { FAIL(); });
  }
  while (queue.run_one()) {
  }
}

class NetworkTest : public ::testing::Test {
 protected:
  NetworkTest() {
    network_.add(a_);
    network_.add(b_);
    network_.listen(b_, 1, [this](std::unique_ptr<net::Link> link) {
      accepted_ = std::move(link);
      accepted_->start({[this](std::string_view bytes) {
                          received_ += bytes;
                          ++pieces_;
                          arrived_at_ = queue_.now();
                        },
                        [this](const Status&) { ++closed_; }});
    });
  }
  void connect(int port = 1) {
    network_.connect(a_, "b", port, milliseconds(100), [this](Result<std::unique_ptr<net::Link>> link) {
      if (!link.ok()) {
        refused_ = link.status();
        return;
      }
      link_ = std::move(link).value();
      link_->start({[](std::string_view) {}, [this](const Status&) { ++link_closed_; }});
    });
    run();
  }
  void run(Duration time = milliseconds(200)) {
    const TimePoint end = queue_.now() + time;
    while (queue_.next() <= end) queue_.run_one();
    // Time passes also where nothing happens.
    queue_.at(end, [] {});
    while (queue_.now() < end) queue_.run_one();
  }

  EventQueue queue_;
  Trace trace_;
  Network network_{queue_, trace_, 1, {.latency = milliseconds(1), .jitter = Duration(100), .bytes_per_ms = 1000, .split_one_in = 2}};
  Host a_{queue_, "a"}, b_{queue_, "b"};
  std::unique_ptr<net::Link> link_, accepted_;
  std::optional<Status> refused_;
  std::string received_;
  int pieces_ = 0, closed_ = 0, link_closed_ = 0;
  TimePoint arrived_at_{};
};

TEST_F(NetworkTest, BytesArriveInOrderInOtherPieces) {
  connect();
  ASSERT_NE(link_, nullptr);
  std::string sent;
  for (int i = 0; i < 100; ++i) {
    const std::string piece = "piece " + std::to_string(i) + ";";
    ASSERT_TRUE(link_->send(piece).ok());
    sent += piece;
  }
  run();
  EXPECT_EQ(received_, sent);
  EXPECT_GT(pieces_, 110);
  link_->close();
  run();
  EXPECT_EQ(closed_, 1) << "after everything that was sent";
  accepted_.reset();
  EXPECT_EQ(network_.streams(), 0u);
}

TEST_F(NetworkTest, BandwidthAndLatencyTakeTheirTime) {
  connect();
  const TimePoint start = queue_.now();
  ASSERT_TRUE(link_->send(std::string(50'000, 'x')).ok());
  run();
  EXPECT_EQ(received_.size(), 50'000u);
  EXPECT_GE(arrived_at_ - start, milliseconds(51));
  EXPECT_LE(arrived_at_ - start, milliseconds(53));
  network_.throttle("a", "b", 100);
  const TimePoint slow = queue_.now();
  ASSERT_TRUE(link_->send(std::string(10'000, 'x')).ok());
  run();
  EXPECT_GE(arrived_at_ - slow, milliseconds(101));
}

TEST_F(NetworkTest, StalledBytesComeWhenReleased) {
  connect();
  network_.stall("a", "b");
  ASSERT_TRUE(link_->send("hello").ok());
  run();
  EXPECT_EQ(received_, "");
  EXPECT_EQ(closed_, 0) << "nobody can tell";
  network_.release("a", "b");
  run();
  EXPECT_EQ(received_, "hello");
}

TEST_F(NetworkTest, ACutBreaksBothEndsAndNewOnesTimeOut) {
  connect();
  ASSERT_TRUE(link_->send("lost").ok());
  network_.cut("a", "b");
  run();
  EXPECT_EQ(received_, "");
  EXPECT_EQ(closed_ + link_closed_, 2);
  EXPECT_FALSE(link_->send("more").ok());
  connect();
  ASSERT_TRUE(refused_);
  EXPECT_EQ(refused_->code(), Code::kDeadlineExceeded);
  network_.mend("a", "b");
  link_.reset();
  connect();
  EXPECT_NE(link_, nullptr);
}

// Amid a message: what is on its way arrives up to some byte.
TEST_F(NetworkTest, FaultsTakeEffectAmidAMessage) {
  std::set<std::size_t> cut_at, stalled_at;
  for (int i = 0; i < 50; ++i) {
    connect();
    ASSERT_TRUE(link_->send(std::string(100, 'x')).ok());
    network_.cut("a", "b");
    run();
    cut_at.insert(std::exchange(received_, "").size());
    network_.mend("a", "b");
    connect();
    ASSERT_TRUE(link_->send(std::string(100, 'x')).ok());
    network_.stall("a", "b");
    run();
    stalled_at.insert(received_.size());
    network_.release("a", "b");
    run();
    EXPECT_EQ(std::exchange(received_, "").size(), 100u);
  }
  EXPECT_GT(cut_at.size(), 15u);
  EXPECT_LE(*cut_at.rbegin(), 100u);
  EXPECT_GT(stalled_at.size(), 15u);
}

TEST_F(NetworkTest, FaultsOfOnePathAddUp) {
  connect();
  network_.stall("a", "b");
  network_.stall("a", "b");
  ASSERT_TRUE(link_->send("hello").ok());
  network_.release("a", "b");
  run();
  EXPECT_EQ(received_, "");
  network_.release("a", "b");
  network_.throttle("a", "b", 1);
  ASSERT_TRUE(link_->send(std::string(10'000, 'x')).ok());
  run();
  EXPECT_LT(received_.size(), 10'000u) << "ten seconds at this speed";
  network_.unthrottle("a", "b");
  run();
  EXPECT_EQ(received_.size(), 10'005u);
}

TEST_F(NetworkTest, AnInheritedSocketAnswersLater) {
  network_.remove(b_, /*keeps_sockets=*/true);
  connect();
  ASSERT_NE(link_, nullptr) << "the kernel accepts for the dead";
  ASSERT_TRUE(link_->send("are you there").ok());
  run();
  EXPECT_EQ(received_, "");
  network_.add(b_);
  network_.listen(b_, 1, [this](std::unique_ptr<net::Link> link) {
    accepted_ = std::move(link);
    accepted_->start({[this](std::string_view bytes) { received_ += bytes; }, [this](const Status&) { ++closed_; }});
  });
  run();
  EXPECT_EQ(received_, "are you there");
  link_.reset();
  run();
  EXPECT_EQ(closed_, 1);
}

TEST_F(NetworkTest, NobodyListens) {
  connect(2);
  ASSERT_TRUE(refused_);
  EXPECT_EQ(refused_->code(), Code::kUnavailable);
  EXPECT_EQ(network_.streams(), 0u);
}

TEST_F(NetworkTest, ADeadHostsStreamsBreak) {
  connect();
  network_.remove(b_);
  run();
  EXPECT_EQ(link_closed_, 1);
  connect();
  ASSERT_TRUE(refused_);
  EXPECT_EQ(refused_->code(), Code::kUnavailable);
}

class HttpTest : public ::testing::Test {
 protected:
  HttpTest() {
    network_.add(a_);
    network_.add(b_);
    server_ = std::make_unique<HttpServer>(b_, network_, 80, [this](net::HttpRequest request, std::shared_ptr<net::HttpResponder> r) {
      request_ = std::move(request);
      responder_ = std::move(r);
      responder_->on_close([this] { ++gone_; });
    });
  }
  void call() {
    net::HttpClientRequest r;
    r.host = "b";
    r.port = 80;
    r.target = "/x?y=1";
    r.body = "body";
    r.headers.add("k", "v");
    r.idle_timeout = milliseconds(500);
    call_ = client_.call(std::move(r), {.on_headers = [this](int status, const net::Headers&) { status_ = status; },
                                        .on_data = [this](std::string_view data) { data_ += data; },
                                        .on_done = [this](Status s) { done_.push_back(std::move(s)); }});
    run();
  }
  void run(Duration time = milliseconds(50)) {
    const TimePoint end = queue_.now() + time;
    while (queue_.next() <= end) queue_.run_one();
  }
  EventQueue queue_;
  Trace trace_;
  Network network_{queue_, trace_, 1, {.split_one_in = 1}};
  Host a_{queue_, "a"}, b_{queue_, "b"};
  HttpClient client_{a_, network_};
  std::unique_ptr<HttpServer> server_;
  net::HttpRequest request_;
  std::shared_ptr<net::HttpResponder> responder_;
  std::unique_ptr<net::HttpCall> call_;
  int status_ = 0, gone_ = 0;
  std::string data_;
  std::vector<Status> done_;
};

TEST_F(HttpTest, AStreamedAnswer) {
  call();
  EXPECT_EQ(request_.method, "POST");
  EXPECT_EQ(request_.path, "/x");
  EXPECT_EQ(request_.query, "y=1");
  EXPECT_EQ(request_.body, "body");
  EXPECT_EQ(request_.headers.get("K"), "v");
  responder_->start_stream(200, {});
  EXPECT_TRUE(responder_->write("one "));
  EXPECT_TRUE(responder_->write("two"));
  run();
  EXPECT_EQ(status_, 200);
  EXPECT_EQ(data_, "one two");
  EXPECT_TRUE(done_.empty());
  responder_->end();
  responder_.reset();
  run();
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
  EXPECT_EQ(gone_, 0);
  EXPECT_EQ(server_->connections() + network_.streams(), 0u);
}

TEST_F(HttpTest, AnAnswerWithoutEndIsCut) {
  call();
  responder_->start_stream(200, {});
  responder_.reset();
  run();
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kUnavailable);
}

TEST_F(HttpTest, NoAnswerAtAllIs500) {
  call();
  responder_.reset();
  run();
  EXPECT_EQ(status_, 500);
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_TRUE(done_[0].ok());
}

TEST_F(HttpTest, ADroppedCallIsNoticedByTheServer) {
  call();
  responder_->start_stream(200, {});
  run();
  call_.reset();
  run();
  EXPECT_EQ(gone_, 1);
  EXPECT_TRUE(responder_->closed());
  EXPECT_FALSE(responder_->write("x"));
  responder_.reset();
  EXPECT_TRUE(done_.empty());
  EXPECT_EQ(server_->connections() + network_.streams(), 0u);
}

TEST_F(HttpTest, SilenceTimesOut) {
  call();
  run(milliseconds(1000));
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].code(), Code::kDeadlineExceeded);
}

}  // namespace
}  // namespace baton::sim
