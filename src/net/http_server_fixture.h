#pragma once
// For tests of the HTTP server: one on a loop of its own thread, and clients by hand.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "net/http.h"
#include "net/test_util.h"

namespace baton::net {

// "5\r\nhello\r\n..." up to the end mark. Says "bad" if the framing is not exactly right.
inline std::string unchunk(std::string_view bytes) {
  std::string body;
  while (true) {
    const auto line_end = bytes.find("\r\n");
    if (line_end == std::string_view::npos) return "bad: no size line";
    const std::size_t size = std::stoul(std::string(bytes.substr(0, line_end)), nullptr, 16);
    bytes.remove_prefix(line_end + 2);
    if (bytes.size() < size + 2 || bytes.substr(size, 2) != "\r\n") return "bad: chunk cut";
    body += bytes.substr(0, size);
    bytes.remove_prefix(size + 2);
    if (size == 0) return bytes.empty() ? body : "bad: bytes after the end";
  }
}

inline int status_of(const std::string& answer) { return answer.size() > 12 ? std::stoi(answer.substr(9, 3)) : 0; }

class HttpServerTest : public ::testing::Test {
 protected:
  ~HttpServerTest() override {
    thread_.run([this] {
      server_.reset();
      held_.clear();
    });
  }

  void serve(HttpServer::Handler handler, HttpServerOptions options = {}) {
    thread_.run([&] {
      auto server = HttpServer::listen(thread_.loop(), options, std::move(handler));
      ASSERT_TRUE(server.ok()) << server.status().to_string();
      server_ = std::move(*server);
      port_ = server_->port();
    });
  }
  // Answers with what it was asked.
  void serve_echo(HttpServerOptions options = {}) {
    serve(
        [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
          ++handled_;
          Headers headers;
          headers.add("content-type", "text/plain");
          responder->respond(200, headers, request.method + " " + request.path + "|" + request.query + "|" + request.body);
        },
        options);
  }
  // Keeps the responders, and counts the clients that went away.
  void serve_held(bool stream, HttpServerOptions options = {}) {
    serve(
        [this, stream](HttpRequest, std::shared_ptr<HttpResponder> responder) {
          responder->on_close([this] { ++closed_; });
          if (stream) responder->start_stream(200, {});
          held_.push_back(std::move(responder));
        },
        options);
  }
  RawSocket connect(int receive_bytes = 0) { return RawSocket::connect(port_, receive_bytes); }
  bool eventually(const std::function<bool()>& condition) { return thread_.eventually(condition); }
  std::size_t connections() {
    return thread_.run([this] { return server_->connections(); });
  }

  LoopThread thread_;
  std::unique_ptr<HttpServer> server_;
  int port_ = 0;
  // Of the loop's thread.
  std::vector<std::shared_ptr<HttpResponder>> held_;
  int handled_ = 0;
  int closed_ = 0;
};

inline constexpr std::string_view kGet = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

}  // namespace baton::net
