#include "worker/worker.h"

#include <utility>

#include "net/http.h"
#include "net/link.h"
#include "worker/node.h"

namespace baton::worker {
namespace {

class WorkerImpl final : public Worker {
 public:
  WorkerImpl(net::EventLoop& loop, std::unique_ptr<transfer::Fabric> fabric) : loop_(loop), fabric_(std::move(fabric)) {}

  Status start(engine::Engine& engine, WorkerOptions options) {
    // Nobody is heard before the loop runs on, and then there is a node.
    BATON_ASSIGN_OR_RETURN(links_,
                           net::TcpLinkListener::listen(loop_, options.host, options.link_port, options.link_listen_fd, {},
                                                        [this](std::unique_ptr<net::Link> link) { node_->accept(std::move(link)); }));
    net::HttpServerOptions http;
    http.host = options.host;
    http.port = options.http_port;
    http.listen_fd = options.http_listen_fd;
    BATON_ASSIGN_OR_RETURN(
        server_, net::HttpServer::listen(loop_, http, [this](net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder) {
          node_->handle(std::move(request), std::move(responder));
        }));
    options.link_port = options.link_port_advertised > 0 ? options.link_port_advertised : links_->port();
    const auto dialer = [&loop = loop_](const PeerAddress& address, std::function<void(Result<std::unique_ptr<net::Link>>)> done) {
      net::connect_tcp(loop, address.first, address.second, {}, std::move(done));
    };
    node_ = std::make_unique<Node>(loop_, engine, *fabric_, dialer, std::move(options));
    return {};
  }

  int http_port() const override { return server_->port(); }
  int link_port() const override { return links_->port(); }
  wire::WorkerStatus status() const override { return node_->status(); }
  void drain(Duration limit, std::function<void()> done) override { node_->drain(limit, std::move(done)); }

 private:
  net::EventLoop& loop_;
  const std::unique_ptr<transfer::Fabric> fabric_;
  std::unique_ptr<Node> node_;  // outlives what calls it
  std::unique_ptr<net::TcpLinkListener> links_;
  std::unique_ptr<net::HttpServer> server_;
};

}  // namespace

Result<std::unique_ptr<Worker>> Worker::create(net::EventLoop& loop, engine::Engine& engine, std::span<const transfer::RankPool> ranks,
                                               WorkerOptions options) {
  BATON_CHECK(options.incarnation != Incarnation());
  // Every fetch that the receiver may have in flight and the digests of many sources at once.
  BATON_ASSIGN_OR_RETURN(auto fabric, transfer::create_shm_fabric(loop, ranks, options.receiver.fetches_max + 4096));
  auto worker = std::make_unique<WorkerImpl>(loop, std::move(fabric));
  BATON_RETURN_IF_ERROR(worker->start(engine, std::move(options)));
  return std::unique_ptr<Worker>(std::move(worker));
}

}  // namespace baton::worker
