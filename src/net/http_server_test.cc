#include <sys/resource.h>

#include <algorithm>
#include <map>
#include <set>

#include "net/http_server_fixture.h"

namespace baton::net {
namespace {

TEST_F(HttpServerTest, AnswersWithAllPartsOfTheRequest) {
  Awaited<HttpRequest> seen;
  serve([&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    Headers headers;
    headers.add("X-Reply", "yes");
    responder->respond(201, headers, "made");
    seen.set(std::move(request));
  });
  auto client = connect();
  client.send("POST /a%20b/c?q=%201&r HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nContent-Length: 4\r\n\r\nbody");
  const std::string answer = client.receive_answer();
  EXPECT_EQ(answer.substr(0, 22), "HTTP/1.1 201 Created\r\n");
  EXPECT_NE(answer.find("\r\nX-Reply: yes\r\n"), std::string::npos);
  EXPECT_NE(answer.find("\r\ndate: "), std::string::npos);
  EXPECT_TRUE(answer.ends_with("\r\ncontent-length: 4\r\n\r\nmade")) << answer;
  const HttpRequest request = seen.get();
  EXPECT_EQ(request.method, "POST");
  EXPECT_EQ(request.path, "/a b/c");
  EXPECT_EQ(request.query, "q=%201&r");
  EXPECT_EQ(request.headers.get("x-oNE"), "1");
  EXPECT_EQ(request.body, "body");
  EXPECT_EQ(request.remote.substr(0, 10), "127.0.0.1:");
}

TEST_F(HttpServerTest, KeepsTheConnectionForFurtherRequests) {
  serve_echo();
  auto client = connect();
  for (int i = 0; i < 100; ++i) {
    client.send("GET /" + std::to_string(i) + " HTTP/1.1\r\nHost: a\r\n\r\n");
    ASSERT_TRUE(client.receive_answer().ends_with("GET /" + std::to_string(i) + "||"));
  }
  EXPECT_EQ(connections(), 1u);
}

TEST_F(HttpServerTest, ConnectionCloseIsObeyed) {
  serve_echo();
  auto client = connect();
  client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  const std::string answer = client.receive_all();
  EXPECT_EQ(client.error(), 0);
  EXPECT_NE(answer.find("connection: close\r\n"), std::string::npos);
  EXPECT_TRUE(answer.ends_with("GET /||"));
  client.close();
  EXPECT_TRUE(eventually([this] { return server_->connections() == 0; }));
}

TEST_F(HttpServerTest, PipelinedRequestsAreAnsweredInOrderEvenIfTheFirstIsSlow) {
  serve([this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    ++handled_;
    if (request.path == "/slow")
      held_.push_back(responder);
    else
      responder->respond(200, {}, request.path + request.body);
  });
  auto client = connect();
  std::string requests = "GET /slow HTTP/1.1\r\nHost: a\r\n\r\nPOST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok";
  for (int i = 0; i < 50; ++i) requests += "GET /" + std::to_string(i) + " HTTP/1.1\r\nHost: a\r\n\r\n";
  client.send(requests);
  ASSERT_TRUE(eventually([this] { return held_.size() == 1; }));
  EXPECT_EQ(thread_.run([this] { return handled_; }), 1);
  thread_.run([this] {
    held_[0]->respond(200, {}, "slow");
    EXPECT_EQ(handled_, 1);  // the next request does not reach the handler from inside respond()
  });
  EXPECT_TRUE(client.receive_answer().ends_with("\r\n\r\nslow"));
  EXPECT_TRUE(client.receive_answer().ends_with("\r\n\r\n/pok"));
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(client.receive_answer().ends_with("\r\n\r\n/" + std::to_string(i)));
}

TEST_F(HttpServerTest, RequestsMayArriveInAnyPieces) {
  serve_echo();
  const std::string request =
      "\r\nPOST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n";
  for (std::size_t piece : {1, 2, 3, 7, 31}) {
    auto client = connect();
    for (std::size_t at = 0; at < request.size(); at += piece) ASSERT_TRUE(client.send(request.substr(at, piece)));
    ASSERT_TRUE(client.receive_answer().ends_with("POST /p||abcde"));
  }
}

TEST_F(HttpServerTest, StreamsOneChunkPerWrite) {
  serve_held(true);
  auto client = connect();
  client.send(kGet);
  ASSERT_TRUE(eventually([this] { return held_.size() == 1; }));
  const std::string head = client.receive_until("\r\n\r\n");
  EXPECT_EQ(status_of(head), 200);
  EXPECT_NE(head.find("transfer-encoding: chunked\r\n"), std::string::npos);
  EXPECT_EQ(head.find("content-length"), std::string::npos);
  // Each is on the wire before the next is written.
  for (const std::string text : {"data: a\n\n", "data: bb\n\n"}) {
    thread_.run([&] { EXPECT_TRUE(held_[0]->write(text)); });
    EXPECT_EQ(client.receive_some(), (text.size() == 9 ? "9\r\n" : "a\r\n") + text + "\r\n");
  }
  thread_.run([this] {
    EXPECT_TRUE(held_[0]->write(""));  // nothing, and not the end mark
    held_[0]->end();
    EXPECT_FALSE(held_[0]->write("late"));
    held_[0]->end();
  });
  EXPECT_EQ(client.receive_until("\r\n\r\n"), "0\r\n\r\n");
  // The connection goes on.
  client.send(kGet);
  EXPECT_EQ(status_of(client.receive_until("\r\n\r\n")), 200);
  EXPECT_EQ(thread_.run([this] { return closed_; }), 0);
}

TEST_F(HttpServerTest, HeadAndFirstChunkLeaveTogether) {
  serve([](HttpRequest, std::shared_ptr<HttpResponder> responder) {
    responder->start_stream(200, {});
    responder->write("first");
    responder->end();
  });
  auto client = connect();
  client.send(kGet);
  const std::string first = client.receive_some();
  EXPECT_NE(first.find("5\r\nfirst\r\n"), std::string::npos) << first;
}

TEST_F(HttpServerTest, LargeAnswersAndStreamsArriveWhole) {
  std::string big(20u << 20, 'x');
  for (std::size_t i = 0; i < big.size(); i += 997) big[i] = static_cast<char>('a' + i % 26);
  HttpServerOptions options;
  options.stream_buffer_bytes_max = 64u << 20;
  serve(
      [&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
        if (request.path == "/whole") return responder->respond(200, {}, big);
        responder->start_stream(200, {});
        for (std::size_t at = 0; at < big.size(); at += 100'000) EXPECT_TRUE(responder->write(big.substr(at, 100'000)));
        responder->end();
      },
      options);
  auto client = connect();
  client.send("GET /whole HTTP/1.1\r\nHost: a\r\n\r\n");
  client.receive_until("\r\n\r\n");
  EXPECT_TRUE(client.receive_exactly(big.size()) == big);
  client.send("GET /stream HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  client.receive_until("\r\n\r\n");
  EXPECT_TRUE(unchunk(client.receive_all()) == big);
}

TEST_F(HttpServerTest, Http10ClientsGetUnchunkedStreams) {
  serve([](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    if (request.path == "/whole") return responder->respond(200, {}, "whole");
    responder->start_stream(200, {});
    responder->write("ab");
    responder->write("cd");
    if (request.path == "/stream") responder->end();
  });
  auto client = connect();
  client.send("GET /stream HTTP/1.0\r\n\r\n");
  const std::string answer = client.receive_all();
  EXPECT_EQ(answer.find("chunked"), std::string::npos);
  EXPECT_TRUE(answer.ends_with("\r\n\r\nabcd"));
  EXPECT_EQ(client.error(), 0);

  auto kept = connect();
  kept.send("GET /whole HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_NE(kept.receive_answer().find("connection: keep-alive"), std::string::npos);
  kept.send("GET /whole HTTP/1.0\r\n\r\n");
  EXPECT_TRUE(kept.receive_all().ends_with("\r\n\r\nwhole"));

  // Without end() the client must not take the answer for whole.
  auto cut = connect();
  cut.send("GET /cut HTTP/1.0\r\n\r\n");
  cut.receive_all();
  EXPECT_EQ(cut.error(), ECONNRESET);
}

TEST_F(HttpServerTest, HeadGetsHeadersOnly) {
  serve([](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    if (request.path == "/whole") return responder->respond(200, {}, "12345");
    responder->start_stream(200, {});
    EXPECT_TRUE(responder->write("chunk"));
    responder->end();
  });
  auto client = connect();
  client.send("HEAD /whole HTTP/1.1\r\nHost: a\r\n\r\nHEAD /stream HTTP/1.1\r\nHost: a\r\n\r\nGET /whole HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_NE(client.receive_until("\r\n\r\n").find("content-length: 5\r\n"), std::string::npos);
  EXPECT_NE(client.receive_until("\r\n\r\n").find("transfer-encoding: chunked\r\n"), std::string::npos);
  EXPECT_TRUE(client.receive_answer().ends_with("\r\n\r\n12345"));
}

TEST_F(HttpServerTest, NoContentHasNoLength) {
  serve([](HttpRequest, std::shared_ptr<HttpResponder> responder) { responder->respond(204, {}, ""); });
  auto client = connect();
  client.send(kGet);
  EXPECT_EQ(client.receive_until("\r\n\r\n").find("content-length"), std::string::npos);
  client.send(kGet);
  EXPECT_EQ(status_of(client.receive_until("\r\n\r\n")), 204);
}

TEST_F(HttpServerTest, HeaderValuesCannotStartNewFields) {
  serve([](HttpRequest, std::shared_ptr<HttpResponder> responder) {
    Headers headers;
    headers.add("x-id", "a\r\nset-cookie: b");
    headers.add("Content-Length", "999");
    responder->respond(200, headers, "ok");
  });
  auto client = connect();
  client.send(kGet);
  const std::string answer = client.receive_answer();
  EXPECT_NE(answer.find("x-id: a  set-cookie: b\r\n"), std::string::npos);
  EXPECT_TRUE(answer.ends_with("content-length: 2\r\n\r\nok"));
  EXPECT_EQ(answer.find("999"), std::string::npos);
}

// What arrives, and the status that must answer it before the connection ends.
struct BadRequest {
  const char* name;
  std::string bytes;
  int status;
};

TEST_F(HttpServerTest, BadRequestsAreAnsweredAndClosed) {
  HttpServerOptions options;
  options.header_bytes_max = 4096;
  options.body_bytes_max = 1000;
  serve_echo(options);
  const BadRequest cases[] = {
      {"not http", "hello there\r\n\r\n", 400},
      {"tls hello", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + "\r\n\r\n", 400},
      {"bad field", "GET / HTTP/1.1\r\nno colon\r\n\r\n", 400},
      {"space before colon", "GET / HTTP/1.1\r\nA : b\r\n\r\n", 400},
      {"bad length", "POST / HTTP/1.1\r\nContent-Length: 1x\r\n\r\n", 400},
      {"negative length", "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400},
      {"two lengths", "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400},
      {"length and chunked", "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"unknown coding", "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nGET / HTTP/1.1\r\n\r\n", 400},
      {"a coding that only begins as chunked", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked/1.1\r\n\r\n0\r\n\r\n", 400},
      {"chunked twice", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"bad chunk size", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
      {"bad percent", "GET /%zz HTTP/1.1\r\n\r\n", 400},
      {"version 2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
      {"long target", "GET /" + std::string(5000, 'a') + " HTTP/1.1\r\n\r\n", 431},
      {"long field", "GET / HTTP/1.1\r\nA: " + std::string(5000, 'a') + "\r\n\r\n", 431},
      {"endless head", "GET / HTTP/1.1\r\nA: " + std::string(100'000, 'a'), 431},
      {"length over the limit", "POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n" + std::string(1001, 'a'), 413},
      {"huge length", "POST / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n", 413},
      {"chunk over the limit", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n", 413},
      {"chunks over the limit", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n200\r\n" + std::string(512, 'a') + "\r\n200\r\n",
       413},
  };
  for (const BadRequest& bad : cases) {
    SCOPED_TRACE(bad.name);
    auto client = connect();
    client.send(bad.bytes);
    const std::string answer = client.receive_all();
    EXPECT_EQ(status_of(answer), bad.status) << answer;
    EXPECT_NE(answer.find("connection: close\r\n"), std::string::npos);
    EXPECT_NE(answer.find("{\"error\":{\"message\":"), std::string::npos);
    EXPECT_EQ(client.error(), 0);
  }
  EXPECT_EQ(thread_.run([this] { return handled_; }), 0);
  // One under each limit is served.
  auto client = connect();
  client.send("POST / HTTP/1.1\r\nA: " + std::string(3500, 'a') + "\r\nContent-Length: 1000\r\n\r\n" + std::string(1000, 'b'));
  EXPECT_EQ(status_of(client.receive_answer()), 200);
}

TEST_F(HttpServerTest, TooLargeIsAnsweredBeforeTheBodyAndReadableByAClientThatSendsItAll) {
  HttpServerOptions options;
  options.body_bytes_max = 1u << 20;
  serve_echo(options);
  const std::string head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 67108864\r\n";
  {  // answered on the announcement alone
    auto client = connect();
    client.send(head + "\r\n");
    EXPECT_EQ(status_of(client.receive_answer()), 413);
  }
  {  // asks first, and is told not to send
    auto client = connect();
    client.send(head + "Expect: 100-continue\r\n\r\n");
    EXPECT_EQ(status_of(client.receive_answer()), 413);
  }
  {  // sends all 64 MB before it reads
    auto client = connect();
    client.send(head + "\r\n");
    const std::string part(1u << 20, 'x');
    for (int i = 0; i < 64; ++i) ASSERT_TRUE(client.send(part)) << i;
    EXPECT_EQ(status_of(client.receive_all()), 413);
    EXPECT_EQ(client.error(), 0);
  }
}

TEST_F(HttpServerTest, EndlessChunkLinesAndTrailersAreRefused) {
  serve_echo();
  for (const char* start : {"5;x=", "0\r\nTrailer: "}) {
    auto client = connect();
    client.send(std::string("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n") + start);
    client.send(std::string(1u << 20, 'x'));
    const int status = status_of(client.receive_all());
    EXPECT_TRUE(status == 431 || status == 400) << status;
  }
  EXPECT_EQ(thread_.run([this] { return handled_; }), 0);
}

TEST_F(HttpServerTest, AHalfClosedClientGetsAnAnswerThatWasGivenAtOnce) {
  const std::string big(8u << 20, 'x');
  serve([&](HttpRequest, std::shared_ptr<HttpResponder> responder) { responder->respond(200, {}, big); });
  auto client = connect();
  client.send(kGet);
  client.shutdown_send();
  client.receive_until("\r\n\r\n");
  EXPECT_TRUE(client.receive_all() == big);
  EXPECT_EQ(client.error(), 0);
}

TEST_F(HttpServerTest, PipelinedInputIsHeldBackWhileAnAnswerRuns) {
  HttpServerOptions options;
  options.header_timeout = std::chrono::milliseconds(200);  // does not count while the server is busy
  serve(
      [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
        if (request.path == "/hold") return held_.push_back(std::move(responder));
        ++handled_;
        responder->respond(200, {}, "");
      },
      options);
  auto client = connect();
  client.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  constexpr int kRequests = 3000;  // 1.5 MB
  std::thread sender([&] {
    for (int i = 0; i < kRequests; ++i) client.send("GET / HTTP/1.1\r\nHost: a\r\nX: " + std::string(500, 'x') + "\r\n\r\n");
  });
  ASSERT_TRUE(eventually([this] { return held_.size() == 1; }));
  thread_.run([this] {
    EXPECT_EQ(handled_, 0);
    held_[0]->respond(200, {}, "");
  });
  int answered = 0;
  while (answered <= kRequests && status_of(client.receive_answer()) == 200) ++answered;
  EXPECT_EQ(answered, kRequests + 1);
  client.shutdown_send();
  sender.join();
  EXPECT_EQ(thread_.run([this] { return handled_; }), kRequests);
}

TEST_F(HttpServerTest, OutOfDescriptorsConnectionsWait) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "UBSan checks virtual calls through a pipe, and reports false errors without descriptors";
#endif
  serve_echo();
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port_));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  rlimit none = limit;
  none.rlim_cur = static_cast<rlim_t>(fd) + 1;
  ::setrlimit(RLIMIT_NOFILE, &none);
  EXPECT_EQ(0, ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address));
  RawSocket client(fd);
  client.send(kGet);
  // The loop goes on meanwhile.
  for (int i = 0; i < 100; ++i) thread_.run([] {});
  EXPECT_EQ(connections(), 0u);
  ::setrlimit(RLIMIT_NOFILE, &limit);
  EXPECT_EQ(status_of(client.receive_answer()), 200);
}

TEST_F(HttpServerTest, Continues) {
  serve_echo();
  auto client = connect();
  client.send("POST /c HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
  EXPECT_EQ(client.receive_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("he");
  client.send("llo");
  EXPECT_TRUE(client.receive_answer().ends_with("POST /c||hello"));
}

TEST_F(HttpServerTest, ClientGoneWhileTheHandlerThinks) {
  serve_held(false);
  for (bool reset : {false, true}) {
    thread_.run([this] { closed_ = 0; });
    auto client = connect();
    client.send(kGet);
    ASSERT_TRUE(eventually([this] { return held_.size() == 1; }));
    EXPECT_FALSE(thread_.run([this] { return held_[0]->closed(); }));
    if (reset)
      client.reset();
    else
      client.close();
    ASSERT_TRUE(eventually([this] { return closed_ == 1; }));
    thread_.run([this] {
      EXPECT_TRUE(held_[0]->closed());
      held_[0]->respond(200, {}, "to nobody");
      held_[0]->start_stream(200, {});
      EXPECT_FALSE(held_[0]->write("x"));
      held_[0]->end();
      held_.clear();
      EXPECT_EQ(server_->connections(), 0u);
    });
    EXPECT_EQ(thread_.run([this] { return closed_; }), 1);
  }
}

TEST_F(HttpServerTest, ClientGoneWhileStreaming) {
  serve_held(true);
  for (bool reset : {false, true}) {
    thread_.run([this] { closed_ = 0; });
    auto client = connect();
    client.send(kGet);
    client.receive_until("\r\n\r\n");
    thread_.run([this] { EXPECT_TRUE(held_.back()->write("x")); });
    client.receive_some();
    if (reset)
      client.reset();
    else
      client.close();
    // Without any write.
    ASSERT_TRUE(eventually([this] { return closed_ == 1; }));
    EXPECT_FALSE(thread_.run([this] { return held_.back()->write("y"); }));
    EXPECT_EQ(thread_.run([this] { return closed_; }), 1);
  }
}

TEST_F(HttpServerTest, OnCloseSetLateStillRuns) {
  serve([this](HttpRequest, std::shared_ptr<HttpResponder> responder) { held_.push_back(std::move(responder)); });
  auto client = connect();
  client.send(kGet);
  ASSERT_TRUE(eventually([this] { return held_.size() == 1; }));
  client.close();
  ASSERT_TRUE(eventually([this] { return held_[0]->closed(); }));
  thread_.run([this] { held_[0]->on_close([this] { ++closed_; }); });
  EXPECT_TRUE(eventually([this] { return closed_ == 1; }));
}

TEST_F(HttpServerTest, ResponderDestroyedWithoutEndCutsTheStream) {
  serve_held(true);
  auto client = connect();
  client.send(kGet);
  client.receive_until("\r\n\r\n");
  thread_.run([this] {
    held_[0]->write("part");
    held_.clear();
  });
  const std::string rest = client.receive_all();
  EXPECT_EQ(rest, "4\r\npart\r\n");
  EXPECT_EQ(connections(), 0u);
}

TEST_F(HttpServerTest, ResponderDestroyedWithoutAnAnswerIs500) {
  serve([](HttpRequest, std::shared_ptr<HttpResponder>) {});
  auto client = connect();
  client.send(kGet);
  EXPECT_EQ(status_of(client.receive_answer()), 500);
}

TEST_F(HttpServerTest, SlowClientBeyondTheBufferIsAborted) {
  HttpServerOptions options;
  options.stream_buffer_bytes_max = 1u << 20;
  serve_held(true, options);
  auto client = connect(4096);
  client.send(kGet);
  ASSERT_TRUE(eventually([this] { return held_.size() == 1; }));
  const std::size_t written = thread_.run([this] {
    const std::string chunk(10'000, 'x');
    std::size_t bytes = 0;
    while (held_[0]->write(chunk) && bytes < (100u << 20)) bytes += chunk.size();
    EXPECT_TRUE(held_[0]->closed());
    return bytes;
  });
  // Our buffer, what the kernel holds unsent, and the narrow window; not what a socket buffer can grow to.
  EXPECT_GE(written, (1u << 20) - 10'000);
  EXPECT_LE(written, 4u << 20);
  EXPECT_TRUE(eventually([this] { return closed_ == 1; }));
  client.receive_all();
  EXPECT_EQ(client.error(), ECONNRESET);
}

TEST_F(HttpServerTest, SlowClientIsAbortedAfterTheWriteTimeout) {
  HttpServerOptions options;
  options.write_timeout = std::chrono::milliseconds(100);
  options.stream_buffer_bytes_max = 64u << 20;
  serve_held(true, options);
  auto client = connect(4096);
  client.send(kGet);
  ASSERT_TRUE(eventually([this] { return held_.size() == 1; }));
  thread_.run([this] { EXPECT_TRUE(held_[0]->write(std::string(8u << 20, 'x'))); });
  EXPECT_TRUE(eventually([this] { return closed_ == 1; }));
  EXPECT_EQ(connections(), 0u);
}

TEST_F(HttpServerTest, ThousandSimultaneousStreams) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 8192);
  ::setrlimit(RLIMIT_NOFILE, &limit);
  serve_held(true);
  constexpr int kStreams = 1000;
  constexpr int kChunks = 20;
  std::vector<RawSocket> clients;
  clients.reserve(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(connect());
    clients.back().send(kGet);
  }
  ASSERT_TRUE(eventually([this] { return held_.size() == kStreams; }));
  EXPECT_EQ(connections(), std::size_t{kStreams});
  for (int c = 0; c < kChunks; ++c)
    thread_.run([this, c] {
      for (auto& responder : held_) EXPECT_TRUE(responder->write("data: " + std::to_string(c) + "\n\n"));
    });
  thread_.run([this] {
    for (auto& responder : held_) responder->end();
  });
  std::string expected;
  for (int c = 0; c < kChunks; ++c) expected += "data: " + std::to_string(c) + "\n\n";
  for (auto& client : clients) {
    client.receive_until("\r\n\r\n");
    ASSERT_EQ(unchunk(client.receive_until("0\r\n\r\n")), expected);
  }
}

TEST_F(HttpServerTest, PortInUseIsSaid) {
  serve_echo();
  HttpServerOptions options;
  options.port = port_;
  thread_.run([&] {
    auto second = HttpServer::listen(thread_.loop(), options, [](HttpRequest, std::shared_ptr<HttpResponder>) {});
    ASSERT_FALSE(second.ok());
    EXPECT_EQ(second.status().code(), Code::kUnavailable);
    EXPECT_NE(second.status().message().find("127.0.0.1:" + std::to_string(port_)), std::string::npos);
    EXPECT_NE(second.status().message().find("in use"), std::string::npos);
  });
}

TEST_F(HttpServerTest, TheSamePortCanBeBoundAgainAtOnce) {
  serve_echo();
  auto client = connect();
  client.send(kGet);
  client.receive_answer();
  thread_.run([this] { server_.reset(); });  // our side closes first: TIME_WAIT is here
  EXPECT_EQ(client.receive_all(), "");
  HttpServerOptions options;
  options.port = port_;
  serve_echo(options);
  auto again = connect();
  again.send(kGet);
  EXPECT_EQ(status_of(again.receive_answer()), 200);
}

TEST_F(HttpServerTest, AdoptsAListeningSocketAndLeavesItOpen) {
  RawListener listener;
  HttpServerOptions options;
  options.listen_fd = listener.fd();
  for (int round = 0; round < 2; ++round) {  // a restarted gateway takes it again
    serve_echo(options);
    EXPECT_EQ(port_, listener.port());
    auto client = connect();
    client.send(kGet);
    EXPECT_EQ(status_of(client.receive_answer()), 200);
    thread_.run([this] { server_.reset(); });
  }
  // While nobody serves, connections wait in the backlog.
  auto waiting = connect();
  waiting.send(kGet);
  serve_echo(options);
  EXPECT_EQ(status_of(waiting.receive_answer()), 200);

  thread_.run([&] {
    HttpServerOptions bad;
    bad.listen_fd = waiting.fd();
    EXPECT_EQ(HttpServer::listen(thread_.loop(), bad, nullptr).status().code(), Code::kInvalidArgument);
  });
}

TEST_F(HttpServerTest, StopAcceptingFinishesRunningAnswers) {
  serve_held(true);
  auto idle = connect();
  auto client = connect();
  client.send(kGet);
  ASSERT_TRUE(eventually([this] { return held_.size() == 1 && server_->connections() == 2; }));
  thread_.run([this] { server_->stop_accepting(); });
  EXPECT_EQ(idle.receive_all(), "");
  thread_.run([this] {
    EXPECT_TRUE(held_[0]->write("still"));
    held_[0]->end();
  });
  client.receive_until("\r\n\r\n");
  EXPECT_EQ(unchunk(client.receive_all()), "still");
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port_));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_NE(0, ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address));
  ::close(fd);
}

TEST_F(HttpServerTest, ServerMayBeDestroyedInItsOwnCallbacks) {
  {
    serve([this](HttpRequest, std::shared_ptr<HttpResponder> responder) {
      server_.reset();
      responder->respond(200, {}, "to nobody");
    });
    auto client = connect();
    client.send(std::string(kGet) + std::string(kGet));
    EXPECT_EQ(client.receive_all(), "");
  }
  {
    serve([this](HttpRequest, std::shared_ptr<HttpResponder> responder) {
      responder->on_close([this, responder] { server_.reset(); });
      responder->start_stream(200, {});
    });
    auto client = connect();
    client.send(kGet);
    client.receive_until("\r\n\r\n");
    client.close();
    EXPECT_TRUE(eventually([this] { return server_ == nullptr; }));
  }
}

TEST_F(HttpServerTest, RespondersMayOutliveTheServer) {
  serve_held(true);
  auto client = connect();
  client.send(kGet);
  client.receive_until("\r\n\r\n");
  thread_.run([this] {
    server_.reset();
    EXPECT_TRUE(held_[0]->closed());
    EXPECT_FALSE(held_[0]->write("x"));
  });
  thread_.run([this] { held_.clear(); });
  EXPECT_EQ(thread_.run([this] { return closed_; }), 0);  // no callback once the server is gone
}

// Pythons's own HTTP client as an oracle, where there is one.
TEST_F(HttpServerTest, PythonClientReadsStreams) {
  if (std::system("python3 -c 'import http.client' >/dev/null 2>&1") != 0) GTEST_SKIP() << "no python3";
  serve([](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    if (request.path == "/echo") return responder->respond(200, {}, std::move(request.body));
    responder->start_stream(200, {});
    for (int i = 0; i < 100; ++i) responder->write("data: " + std::to_string(i) + "\n\n");
    responder->end();
  });
  const std::string script =
      "import http.client\n"
      "c = http.client.HTTPConnection('127.0.0.1', " +
      std::to_string(port_) +
      ", timeout=20)\n"
      "for _ in range(3):\n"
      "    c.request('POST', '/stream', body='x')\n"
      "    r = c.getresponse()\n"
      "    assert r.read().decode() == ''.join(f'data: {i}\\n\\n' for i in range(100))\n"
      "    body = bytes(range(256)) * 4096\n"
      "    c.request('POST', '/echo', body=body)\n"
      "    assert c.getresponse().read() == body\n"
      "    c.request('POST', '/echo', body=iter([b'ab', b'cd']), encode_chunked=True, headers={'Transfer-Encoding': 'chunked'})\n"
      "    assert c.getresponse().read() == b'abcd'\n";
  EXPECT_EQ(std::system(("python3 -c \"" + script + "\"").c_str()), 0);
  EXPECT_TRUE(eventually([this] { return server_->connections() == 0; }));
}

}  // namespace
}  // namespace baton::net
