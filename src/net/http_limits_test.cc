// What an HTTP server lets strangers have: connections, time, and how much may wait for them.

#include <sys/resource.h>

#include "net/http_server_fixture.h"

namespace baton::net {
namespace {

class HttpLimitsTest : public HttpServerTest {};

TEST_F(HttpLimitsTest, HalfSentRequestsAreCut) {
  HttpServerOptions options;
  options.header_timeout = std::chrono::milliseconds(50);
  serve_echo(options);
  for (const char* half : {"GET / HT", "GET / HTTP/1.1\r\nHost:", "POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345"}) {
    auto client = connect();
    client.send(half);
    EXPECT_EQ(status_of(client.receive_all()), 408) << half;
    EXPECT_EQ(client.error(), 0);
  }
  auto silent = connect();
  EXPECT_EQ(silent.receive_all(), "");
  EXPECT_EQ(silent.error(), 0);
  EXPECT_EQ(thread_.run([this] { return handled_; }), 0);
}

TEST_F(HttpLimitsTest, IdleConnectionsAreClosed) {
  HttpServerOptions options;
  options.keep_alive = std::chrono::milliseconds(50);
  serve_echo(options);
  auto client = connect();
  client.send(kGet);
  EXPECT_EQ(status_of(client.receive_answer()), 200);
  EXPECT_EQ(client.receive_all(), "");
  EXPECT_EQ(client.error(), 0);
  EXPECT_TRUE(eventually([this] { return server_->connections() == 0; }));
}

TEST_F(HttpLimitsTest, BeyondTheConnectionLimit503) {
  HttpServerOptions options;
  options.connections_max = 2;
  serve_held(true, options);
  auto first = connect(), second = connect();
  for (RawSocket* client : {&first, &second}) {
    client->send(kGet);
    client->receive_until("\r\n\r\n");
  }
  {
    auto third = connect();
    third.send(kGet);
    EXPECT_EQ(status_of(third.receive_all()), 503);
    EXPECT_EQ(third.error(), 0);
  }
  first.close();
  EXPECT_TRUE(eventually([this] { return server_->connections() == 1; }));
  auto fourth = connect();
  fourth.send(kGet);
  EXPECT_EQ(status_of(fourth.receive_until("\r\n\r\n")), 200);
}

// Those that wait longest for a request make room: strangers first, then clients that keep their connection; never one at work.
TEST_F(HttpLimitsTest, IdleConnectionsMakeRoom) {
  HttpServerOptions options;
  options.connections_max = 4;
  serve_echo(options);
  auto client = connect();
  client.send(kGet);
  EXPECT_EQ(status_of(client.receive_answer()), 200);
  std::vector<RawSocket> silent;
  for (int i = 0; i < 20; ++i) silent.push_back(connect());
  auto late = connect();
  late.send(kGet);
  EXPECT_EQ(status_of(late.receive_answer()), 200);
  client.send(kGet);
  EXPECT_EQ(status_of(client.receive_answer()), 200) << "it was there first and had asked before";
  for (int i = 0; i < 17; ++i) EXPECT_EQ(silent[static_cast<std::size_t>(i)].receive_all(), "");
  auto half = connect();
  half.send("GET / HT");
  EXPECT_TRUE(eventually([this] { return server_->connections() == 4; }));
  EXPECT_EQ(silent[17].receive_all(), "");
}

TEST_F(HttpLimitsTest, ARequestThatTricklesForEverIsCut) {
  HttpServerOptions options;
  options.request_timeout = std::chrono::milliseconds(200);
  serve_echo(options);
  auto client = connect();
  client.send("POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n");
  std::thread sender([&] {
    while (client.send("x")) std::this_thread::yield();
  });
  const std::string answer = client.receive_all();
  client.shutdown_send();
  sender.join();
  EXPECT_EQ(status_of(answer), 408);
  EXPECT_EQ(thread_.run([this] { return handled_; }), 0);
}

TEST_F(HttpLimitsTest, LeavesHalfOfTheFilesToTheProcess) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  rlimit few = limit;
  few.rlim_cur = 64;
  ::setrlimit(RLIMIT_NOFILE, &few);
  serve_held(true);
  ::setrlimit(RLIMIT_NOFILE, &limit);
  std::vector<RawSocket> clients;
  for (int i = 0; i < 33; ++i) {
    clients.push_back(connect());
    clients.back().send(kGet);
    EXPECT_EQ(status_of(clients.back().receive_until("\r\n\r\n")), i < 32 ? 200 : 503) << i;
  }
}

// The log-probabilities of a long prompt are one line of many megabytes: its size alone makes nobody a slow client.
TEST_F(HttpLimitsTest, OneChunkAboveTheStreamsBufferReachesAClientThatReads) {
  HttpServerOptions options;
  options.stream_buffer_bytes_max = 1u << 20;
  const std::string big(12u << 20, 'x');
  serve(
      [&](HttpRequest, std::shared_ptr<HttpResponder> responder) {
        responder->start_stream(200, {});
        EXPECT_TRUE(responder->write(big));
        responder->end();
      },
      options);
  auto client = connect();
  client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  client.receive_until("\r\n\r\n");
  EXPECT_TRUE(unchunk(client.receive_all()) == big);
  EXPECT_EQ(client.error(), 0);
}

}  // namespace
}  // namespace baton::net
