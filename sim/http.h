#pragma once
// HTTP as client and server see it (net/http.h) over simulated streams: requests, answers in chunks that arrive in any pieces, time-outs,
// and connections that close when a call is dropped. One connection a call; the text of HTTP/1.1 is not modelled, its sizes are.

#include <functional>
#include <map>
#include <memory>

#include "net/http.h"
#include "sim/network.h"

namespace baton::sim {

class HttpClient final : public net::HttpClient {
 public:
  HttpClient(Host& host, Network& network) : host_(host), network_(network) {}
  std::unique_ptr<net::HttpCall> call(net::HttpClientRequest request, net::HttpClientCallbacks callbacks) override;

 private:
  Host& host_;
  Network& network_;
};

class HttpServer {
 public:
  using Handler = std::function<void(net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder)>;
  HttpServer(Host& host, Network& network, int port, Handler handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  std::size_t connections() const { return connections_->size(); }

 private:
  struct Connection;
  class Responder;
  using Connections = std::map<std::uint64_t, std::shared_ptr<Connection>>;
  void accept(std::unique_ptr<net::Link> link);

  Host& host_;
  const Handler handler_;
  const std::shared_ptr<Connections> connections_ = std::make_shared<Connections>();  // responders hold it weakly
  std::uint64_t next_ = 1;
};

}  // namespace baton::sim
