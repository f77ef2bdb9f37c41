#pragma once
// Blocking HTTP for commands: each call runs the loop until its answer is there.

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "net/event_loop.h"
#include "net/http.h"

namespace baton::app {

struct HttpAnswer {
  int status = 0;
  net::Headers headers;
  std::string body;
};

class LocalHttp {
 public:
  // `url`: "http://host:port" (a path in it is ignored).
  static Result<LocalHttp> open(const std::string& url);
  static Result<LocalHttp> open(const std::string& host, int port);

  Result<HttpAnswer> get(const std::string& target, Duration timeout = std::chrono::seconds(5));
  Result<HttpAnswer> post(const std::string& target, const std::string& json, Duration timeout = std::chrono::minutes(10));
  // Streams a POST; `on_event` gets the text after "data: " of each event and returns false to cancel. A status other than 200 comes back
  // with its body and no events.
  Result<HttpAnswer> post_events(const std::string& target, const std::string& json, std::function<bool(std::string_view data)> on_event,
                                 Duration idle_timeout = std::chrono::minutes(10));
  void set_api_key(std::string key) { api_key_ = std::move(key); }
  // Of each request; one named Authorization takes the place of the key.
  void add_header(std::string name, std::string value) { headers_.add(std::move(name), std::move(value)); }
  net::EventLoop& loop() { return *loop_; }
  const std::string& host() const { return host_; }
  int port() const { return port_; }

 private:
  Result<HttpAnswer> run(net::HttpClientRequest request, std::function<bool(std::string_view)> on_event);
  std::string host_;
  int port_ = 0;
  std::string api_key_;
  net::Headers headers_;
  std::unique_ptr<net::EventLoop> loop_;
  std::unique_ptr<net::HttpClient> client_;
};

// Splits a byte stream of server-sent events into the data of each.
class EventSplitter {
 public:
  // Calls `on_event` for each complete event; stops and returns false when it does.
  bool push(std::string_view bytes, const std::function<bool(std::string_view)>& on_event);

 private:
  std::string buffer_;
};

}  // namespace baton::app
