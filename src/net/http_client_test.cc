#include <algorithm>
#include <map>

#include "net/http.h"
#include "net/test_util.h"

namespace baton::net {
namespace {

struct Answer {
  int status = 0;
  Headers headers;
  std::string body;
  Status done;
};

class HttpClientTest : public testing::Test {
 protected:
  HttpClientTest() {
    thread_.run([this] { client_ = HttpClient::create(thread_.loop()); });
  }
  ~HttpClientTest() override {
    thread_.run([this] {
      calls_.clear();
      client_.reset();
      server_.reset();
      held_.clear();
    });
  }

  static HttpClientRequest request(int port, std::string target = "/", std::string body = "") {
    HttpClientRequest request;
    request.host = "127.0.0.1";
    request.port = port;
    request.target = std::move(target);
    request.body = std::move(body);
    return request;
  }

  using Future = std::shared_ptr<Awaited<Answer>>;
  // Starts a call that collects the whole answer.
  Future begin(HttpClientRequest request) {
    auto awaited = std::make_shared<Awaited<Answer>>();
    thread_.run([&] {
      auto answer = std::make_shared<Answer>();
      calls_.push_back(client_->call(std::move(request), {[answer](int status, const Headers& headers) {
                                                            answer->status = status;
                                                            answer->headers = headers;
                                                          },
                                                          [answer](std::string_view data) { answer->body += data; },
                                                          [answer, awaited](Status status) {
                                                            answer->done = std::move(status);
                                                            awaited->set(std::move(*answer));
                                                          }}));
    });
    return awaited;
  }
  Answer fetch(HttpClientRequest request) { return begin(std::move(request))->get(); }

  // Echoes, and says from which connection the request came.
  void serve(HttpServerOptions options = {}) {
    thread_.run([&] {
      server_ =
          std::move(HttpServer::listen(thread_.loop(), options, [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
            remotes_.push_back(request.remote);
            if (request.path == "/hold") return held_.push_back(std::move(responder));
            if (request.path == "/stream") {
              responder->start_stream(200, {});
              for (int i = 0; i < 1000; ++i) responder->write(std::to_string(i) + "\n");
              return responder->end();
            }
            Headers headers;
            headers.add("x-method", request.method);
            headers.add("x-host", std::string(request.headers.get("host")));
            responder->respond(200, headers, std::move(request.body));
          })).value();
      port_ = server_->port();
    });
  }
  bool eventually(const std::function<bool()>& condition) { return thread_.eventually(condition); }

  LoopThread thread_;
  std::unique_ptr<HttpClient> client_;
  std::unique_ptr<HttpServer> server_;
  int port_ = 0;
  std::vector<std::unique_ptr<HttpCall>> calls_;
  std::vector<std::shared_ptr<HttpResponder>> held_;
  std::vector<std::string> remotes_;
};

TEST_F(HttpClientTest, SendsTheRequestAsItShould) {
  RawListener listener;
  auto call = request(listener.port(), "/a?b=c", "the body");
  call.headers.add("x-one", "1\r\nevil: 2");
  auto answer = begin(std::move(call));
  auto peer = listener.accept();
  EXPECT_EQ(peer.receive_until("the body"), "POST /a?b=c HTTP/1.1\r\nhost: 127.0.0.1:" + std::to_string(listener.port()) +
                                                "\r\nx-one: 1  evil: 2\r\ncontent-length: 8\r\n\r\nthe body");
  peer.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 418 Tea\r\nX-Two: 2\r\nContent-Le");
  peer.send("ngth: 3\r\n\r\nab");
  peer.send("c");
  const Answer got = answer->get();
  EXPECT_TRUE(got.done.ok()) << got.done.to_string();
  EXPECT_EQ(got.status, 418);
  EXPECT_EQ(got.headers.get("x-two"), "2");
  EXPECT_EQ(got.body, "abc");
}

TEST_F(HttpClientTest, AnswersInEveryFraming) {
  const struct {
    const char* method;
    const char* bytes;
    int status;
    const char* body;
  } cases[] = {
      {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, ""},
      {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x\r\nd\r\n0\r\nT: v\r\n\r\n", 200, "abcd"},
      {"GET", "HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, "until the end"},
      {"GET", "HTTP/1.0 200 OK\r\n\r\nold", 200, "old"},
      {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, ""},
      {"GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, ""},
      {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, ""},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.bytes);
    for (bool piecewise : {false, true}) {
      RawListener listener;
      auto call = request(listener.port());
      call.method = c.method;
      auto answer = begin(std::move(call));
      auto peer = listener.accept();
      peer.receive_until("\r\n\r\n");
      const std::string_view bytes = c.bytes;
      for (std::size_t at = 0; at < bytes.size(); at += piecewise ? 1 : bytes.size())
        ASSERT_TRUE(peer.send(bytes.substr(at, piecewise ? 1 : bytes.size())));
      peer.shutdown_send();
      const Answer got = answer->get();
      EXPECT_TRUE(got.done.ok()) << got.done.to_string();
      EXPECT_EQ(got.status, c.status);
      EXPECT_EQ(got.body, c.body);
    }
  }
}

TEST_F(HttpClientTest, ReusesItsConnections) {
  serve();
  for (int i = 0; i < 20; ++i) {
    const Answer answer = fetch(request(port_, "/", "body " + std::to_string(i)));
    ASSERT_TRUE(answer.done.ok());
    ASSERT_EQ(answer.body, "body " + std::to_string(i));
    ASSERT_EQ(fetch(request(port_, "/stream")).done.ok(), true);
  }
  thread_.run([this] {
    EXPECT_EQ(server_->connections(), 1u);
    EXPECT_EQ(std::count(remotes_.begin(), remotes_.end(), remotes_[0]), 40);
  });
  // Calls at the same time each have their own.
  std::vector<Future> parallel;
  for (int i = 0; i < 8; ++i) parallel.push_back(begin(request(port_, "/hold")));
  ASSERT_TRUE(eventually([this] { return held_.size() == 8; }));
  thread_.run([this] {
    EXPECT_EQ(server_->connections(), 8u);
    for (auto& responder : held_) responder->respond(200, {}, "held");
  });
  for (auto& answer : parallel) EXPECT_EQ(answer->get().body, "held");
}

TEST_F(HttpClientTest, LargeBodiesBothWays) {
  serve();
  std::string big(16u << 20, 'x');
  for (std::size_t i = 0; i < big.size(); i += 1009) big[i] = static_cast<char>('a' + i % 26);
  const Answer answer = fetch(request(port_, "/", big));
  ASSERT_TRUE(answer.done.ok()) << answer.done.to_string();
  EXPECT_TRUE(answer.body == big);
}

TEST_F(HttpClientTest, ReadsAnEarlyRefusalOfABigBody) {
  HttpServerOptions options;
  options.body_bytes_max = 1000;
  serve(options);
  const Answer answer = fetch(request(port_, "/", std::string(32u << 20, 'x')));
  EXPECT_TRUE(answer.done.ok()) << answer.done.to_string();
  EXPECT_EQ(answer.status, 413);
}

TEST_F(HttpClientTest, ResolvesNames) {
  serve();
  auto call = request(port_, "/", "x");
  call.host = "localhost";
  const Answer answer = fetch(std::move(call));
  EXPECT_TRUE(answer.done.ok()) << answer.done.to_string();
  EXPECT_EQ(answer.headers.get("x-host"), "localhost:" + std::to_string(port_));
  auto unknown = request(port_);
  unknown.host = "no-such-host.invalid";
  EXPECT_FALSE(fetch(std::move(unknown)).done.ok());
}

TEST_F(HttpClientTest, AnIdleConnectionThatTheServerClosedIsNotUsed) {
  RawListener listener;
  auto first = begin(request(listener.port()));
  {
    auto peer = listener.accept();
    peer.receive_until("\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    EXPECT_TRUE(first->get().done.ok());
  }
  auto second = begin(request(listener.port()));
  auto peer = listener.accept();
  peer.receive_until("\r\n\r\n");
  peer.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo");
  EXPECT_EQ(second->get().body, "two");
}

TEST_F(HttpClientTest, IdleConnectionsAreBoundedInNumberAndTime) {
  serve();
  HttpClientOptions options;
  options.idle_per_peer_max = 2;
  options.idle_timeout = std::chrono::milliseconds(50);
  thread_.run([&] { client_ = HttpClient::create(thread_.loop(), options); });
  std::vector<Future> parallel;
  for (int i = 0; i < 5; ++i) parallel.push_back(begin(request(port_, "/hold")));
  ASSERT_TRUE(eventually([this] { return held_.size() == 5; }));
  std::size_t fewest = 5;
  thread_.run([&] {
    for (auto& responder : held_) responder->respond(200, {}, "");
  });
  for (auto& answer : parallel) EXPECT_TRUE(answer->get().done.ok());
  EXPECT_TRUE(eventually([&] {
    fewest = std::min(fewest, server_->connections());
    return fewest <= 2;
  }));
  EXPECT_TRUE(eventually([this] { return server_->connections() == 0; }));
  EXPECT_TRUE(fetch(request(port_, "/", "x")).done.ok());
}

TEST_F(HttpClientTest, RetriesOnceOnAStaleConnectionOnly) {
  RawListener listener;
  const std::string ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
  auto first = begin(request(listener.port()));
  auto peer = listener.accept();
  peer.receive_until("\r\n\r\n");
  peer.send(ok);
  EXPECT_TRUE(first->get().done.ok());

  // The peer closes when the request is already on its way: a fresh connection is tried.
  auto second = begin(request(listener.port(), "/second", "body"));
  EXPECT_NE(peer.receive_until("body").find("/second"), std::string::npos);
  peer.reset();
  auto fresh = listener.accept();
  EXPECT_NE(fresh.receive_until("body").find("/second"), std::string::npos);
  fresh.send(ok);
  EXPECT_TRUE(second->get().done.ok());

  // Also on a reused one, but something was received: no second try.
  auto third = begin(request(listener.port(), "/third"));
  fresh.receive_until("\r\n\r\n");
  fresh.send("HTTP/1.1 2");
  fresh.close();
  EXPECT_EQ(third->get().done.code(), Code::kUnavailable);

  // A fresh connection that is cut is not tried again.
  auto fourth = begin(request(listener.port(), "/fourth"));
  auto once = listener.accept();
  once.receive_until("\r\n\r\n");
  once.close();
  EXPECT_EQ(fourth->get().done.code(), Code::kUnavailable);
}

TEST_F(HttpClientTest, CutAndGarbledAnswersAreErrors) {
  const struct {
    const char* bytes;
    Code code;
  } cases[] = {
      {"", Code::kUnavailable},
      {"HTTP/1.1 200 OK\r\nContent-Le", Code::kUnavailable},
      {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", Code::kUnavailable},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", Code::kUnavailable},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Code::kDataLoss},
      {"SSH-2.0-OpenSSH\r\n\r\n", Code::kDataLoss},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.bytes);
    RawListener listener;
    auto answer = begin(request(listener.port()));
    auto peer = listener.accept();
    peer.receive_until("\r\n\r\n");
    peer.send(c.bytes);
    peer.close();
    const Status status = answer->get().done;
    EXPECT_EQ(status.code(), c.code) << status.to_string();
    EXPECT_NE(status.message().find(std::to_string(listener.port())), std::string::npos);
  }
}

TEST_F(HttpClientTest, RefusedConnectionsAndTimeoutsAreErrors) {
  int unused_port = 0;
  {
    RawListener listener;
    unused_port = listener.port();
  }
  const Status refused = fetch(request(unused_port)).done;
  EXPECT_EQ(refused.code(), Code::kUnavailable);
  EXPECT_NE(refused.message().find("127.0.0.1:" + std::to_string(unused_port)), std::string::npos);

  RawListener silent;
  auto call = request(silent.port());
  call.idle_timeout = std::chrono::milliseconds(50);
  EXPECT_EQ(fetch(call).done.code(), Code::kDeadlineExceeded);
  // Also after some of the answer.
  auto started = begin(call);
  silent.accept();
  auto peer = silent.accept();
  peer.receive_until("\r\n\r\n");
  peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
  const Answer answer = started->get();
  EXPECT_EQ(answer.done.code(), Code::kDeadlineExceeded);

  // A backlog that is full drops SYNs.
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  ASSERT_EQ(0, ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address));
  ASSERT_EQ(0, ::listen(fd, 0));
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  auto filler = RawSocket::connect(ntohs(address.sin_port));
  auto late = request(ntohs(address.sin_port));
  late.connect_timeout = std::chrono::milliseconds(50);
  late.idle_timeout = std::chrono::milliseconds(100);
  EXPECT_EQ(fetch(late).done.code(), Code::kDeadlineExceeded);
  ::close(fd);
}

TEST_F(HttpClientTest, CancelClosesTheConnectionAndIsSilent) {
  serve();
  for (bool destroy : {false, true}) {
    bool called = false;
    bool closed = false;
    thread_.run([&] { calls_.push_back(client_->call(request(port_, "/hold"), {nullptr, nullptr, [&](Status) { called = true; }})); });
    ASSERT_TRUE(eventually([this] { return held_.size() == 1; }));
    thread_.run([&] {
      held_[0]->on_close([&] { closed = true; });
      if (destroy) {
        calls_.clear();
      } else {
        calls_.back()->cancel();
        calls_.back()->cancel();
      }
    });
    EXPECT_TRUE(eventually([&] { return closed; }));
    thread_.run([&] {
      EXPECT_FALSE(called);
      held_.clear();
    });
  }
  // Before it was even started, and while it connects.
  thread_.run([&] { client_->call(request(port_, "/hold"), {nullptr, nullptr, [](Status) { ADD_FAILURE(); }}); });
  thread_.run([&] {
    calls_.push_back(client_->call(request(port_, "/hold"), {nullptr, nullptr, [](Status) { ADD_FAILURE(); }}));
    thread_.loop().post([this] { calls_.clear(); });
  });
  EXPECT_TRUE(fetch(request(port_, "/", "x")).done.ok());
}

TEST_F(HttpClientTest, CallsMayBeCancelledOrDestroyedInEveryCallback) {
  serve();
  for (int where = 0; where < 3; ++where) {
    for (bool destroy : {false, true}) {
      SCOPED_TRACE(where);
      auto handle = std::make_shared<std::unique_ptr<HttpCall>>();
      int calls = 0;
      bool stopped = false;
      const std::string capture(100, 'c');  // must stay usable in the callback that destroys it
      auto stop = [&, handle, destroy, capture] {
        stopped = true;
        if (destroy)
          handle->reset();
        else
          (*handle)->cancel();
        EXPECT_EQ(capture, std::string(100, 'c'));
      };
      auto step = [&, stop, where](int here) {
        EXPECT_FALSE(stopped) << "a callback after cancel()";
        ++calls;
        if (here == where) stop();
      };
      thread_.run([&] {
        *handle = client_->call(request(port_, "/stream"), {[step](int, const Headers&) { step(0); }, [step](std::string_view) { step(1); },
                                                            [step](Status) { step(2); }});
      });
      EXPECT_TRUE(eventually([&] { return stopped; }));
      EXPECT_TRUE(fetch(request(port_, "/", "after")).done.ok());
      thread_.run([&] { handle->reset(); });
    }
  }
}

TEST_F(HttpClientTest, NextCallFromOnDoneReusesTheConnection) {
  serve();
  auto done = std::make_shared<Awaited<int>>();
  std::function<void(int)> next = [&](int left) {
    calls_.clear();  // destroys the call whose on_done runs
    if (left == 0) return done->set(0);
    calls_.push_back(client_->call(request(port_, "/", "x"), {nullptr, nullptr, [&next, left](Status status) {
                                                                EXPECT_TRUE(status.ok());
                                                                next(left - 1);
                                                              }}));
  };
  thread_.run([&] { next(50); });
  done->get();
  thread_.run([this] { EXPECT_EQ(server_->connections(), 1u); });
}

TEST_F(HttpClientTest, ClientMayBeDestroyedInACallbackAndBeforeItsCalls) {
  serve();
  auto done = std::make_shared<Awaited<Status>>();
  thread_.run([&] {
    calls_.push_back(client_->call(request(port_, "/stream"), {[this](int, const Headers&) { client_.reset(); }, nullptr,
                                                               [done](Status status) { done->set(std::move(status)); }}));
  });
  EXPECT_TRUE(done->get().ok());
  EXPECT_TRUE(eventually([this] { return server_->connections() == 0; }));  // not kept by anybody
}

}  // namespace
}  // namespace baton::net
