#pragma once
// HTTP/1.1 server and client with streaming bodies, over Boost.Beast (which no header outside net/*.cc shows).
// All callbacks run on the loop's thread.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "net/event_loop.h"

namespace baton::net {

// Few, so a vector; names compare without case.
class Headers {
 public:
  void add(std::string name, std::string value) { fields_.emplace_back(std::move(name), std::move(value)); }
  // The first value, or empty.
  std::string_view get(std::string_view name) const;
  const std::vector<std::pair<std::string, std::string>>& fields() const { return fields_; }

 private:
  std::vector<std::pair<std::string, std::string>> fields_;
};

struct HttpRequest {
  std::string method;
  std::string path;   // without the query, percent-decoded
  std::string query;  // raw
  Headers headers;
  std::string body;
  std::string remote;  // "127.0.0.1:54321"
};

// The answer to one request, used on the loop's thread. All calls are no-ops after the client went away. Destroyed before any answer was
// begun, it answers 500.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  // A whole answer with Content-Length.
  virtual void respond(int status, Headers headers, std::string body) = 0;
  // Starts a chunked answer; each write() is one chunk and one send.
  virtual void start_stream(int status, Headers headers) = 0;
  // False if the client is gone, also because more than the server's `stream_buffer_bytes_max` was waiting for it: it was aborted as too
  // slow.
  virtual bool write(std::string chunk) = 0;
  // Ends the stream properly. Without it (responder destroyed) the connection is cut, which tells the client that the answer is not whole.
  virtual void end() = 0;
  // Called once if the client goes away, or is aborted as too slow, before the answer is complete; never inside another call. Set at most
  // once. It is dropped when the answer is complete, and when the server is destroyed. A client that half-closes after its request counts
  // as gone, as with most servers.
  virtual void on_close(std::function<void()> handler) = 0;
  virtual bool closed() const = 0;  // the client went away before the answer was complete
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any free one
  int listen_fd =
      -1;  // an already bound and listening socket (handed over by the supervisor) instead of host and port; not closed by the server
  std::size_t body_bytes_max = 32u << 20;  // 413 beyond, before the body is read in full
  std::size_t header_bytes_max = 64u << 10;
  // Beyond, those that have waited longest for a request make room, first those that never sent one; where all are at work: 503 and
  // close. Never more than half of the files that the process may open.
  std::size_t connections_max = 8192;
  std::size_t stream_buffer_bytes_max = 4u << 20;
  Duration header_timeout = std::chrono::seconds(30);    // a half-sent request is cut after this (also the body's idle limit)
  Duration request_timeout = std::chrono::seconds(300);  // and after this, however steadily it trickles
  Duration keep_alive = std::chrono::seconds(75);
  Duration write_timeout = std::chrono::seconds(60);  // a client that reads nothing for this long is aborted
};

class HttpServer {
 public:
  using Handler = std::function<void(HttpRequest request, std::shared_ptr<HttpResponder> responder)>;
  // Binds at once: a taken port is kUnavailable with the address and "in use" in the message.
  static Result<std::unique_ptr<HttpServer>> listen(EventLoop& loop, HttpServerOptions options, Handler handler);
  virtual ~HttpServer() = default;
  virtual int port() const = 0;
  // Idle connections are closed; running answers go on, and close theirs.
  virtual void stop_accepting() = 0;
  virtual std::size_t connections() const = 0;
};

// A client call; destroying the handle (or cancel()) closes the connection, which cancels the call at the other side.
class HttpCall {
 public:
  virtual ~HttpCall() = default;
  virtual void cancel() = 0;  // no callback after it
};

struct HttpClientRequest {
  std::string method = "POST";
  std::string host;  // name or address
  int port = 0;
  std::string target;  // path and query
  Headers headers;     // Host, Content-Length are added
  std::string body;
  Duration connect_timeout = std::chrono::seconds(2);
  Duration idle_timeout = std::chrono::seconds(60);  // nothing received for this long
};

// None runs inside call(). Each may cancel or destroy its call, or make another.
struct HttpClientCallbacks {
  std::function<void(int status, const Headers&)> on_headers;
  std::function<void(std::string_view data)> on_data;
  // Exactly once unless cancelled: ok after a complete answer of any status; kUnavailable if the peer cannot be reached or cut the answer,
  // kDeadlineExceeded on a time-out, kDataLoss if what it sent is not HTTP.
  std::function<void(Status)> on_done;
};

struct HttpClientOptions {
  std::size_t idle_per_peer_max = 256;  // kept alive; more are closed when their call ends
  std::size_t idle_max = 2048;
  Duration idle_timeout = std::chrono::seconds(60);  // shorter than servers' keep_alive, so that few stale ones are met
};

// Keep-alive connections per peer (idle ones are kept up to a bound and dropped when the peer closes them). A call whose reused connection
// turns out to be closed, with nothing received, is tried once more on a fresh one; nothing else is retried. Calls go on if the client is
// destroyed.
class HttpClient {
 public:
  static std::unique_ptr<HttpClient> create(EventLoop& loop, HttpClientOptions options = {});
  virtual ~HttpClient() = default;
  virtual std::unique_ptr<HttpCall> call(HttpClientRequest request, HttpClientCallbacks callbacks) = 0;
};

}  // namespace baton::net
