#include <vector>

#include "net/http_connection.h"
#include "net/listener.h"

namespace baton::net {
namespace {

// Connections beyond the limit that are being told so. More than these are closed without a word.
constexpr std::size_t kRefusalsMax = 64;

class HttpServerImpl final : public HttpServer {
 public:
  explicit HttpServerImpl(std::shared_ptr<ServerCore> core) : core_(std::move(core)) {}

  ~HttpServerImpl() override {
    if (listener_) listener_->close();
    core_->alive = false;
    drop_connections([](const Connection&) { return true; });
  }

  Status listen() {
    BATON_ASSIGN_OR_RETURN(listener_, Listener::listen(core_->loop, core_->options.host, core_->options.port, core_->options.listen_fd,
                                                       [core = core_](int fd) { accept(core, fd); }));
    return {};
  }

  int port() const override { return listener_->port(); }

  void stop_accepting() override {
    listener_->close();
    core_->draining = true;
    drop_connections([](const Connection& connection) { return connection.idle(); });
  }

  std::size_t connections() const override { return core_->connections.size(); }

 private:
  static void accept(const std::shared_ptr<ServerCore>& core, int fd) {
    const std::size_t open = core->connections.size();
    const auto connection = std::make_shared<Connection>(core, fd);
    if (open < core->options.connections_max)
      connection->start();
    else if (open < core->options.connections_max + kRefusalsMax)
      connection->refuse();
  }

  template <class Predicate>
  void drop_connections(Predicate predicate) {
    // Dropping may run destructors of the user's, which may end other connections.
    std::vector<std::weak_ptr<Connection>> all;
    for (Connection* connection : core_->connections) all.push_back(connection->weak_from_this());
    for (const auto& weak : all)
      if (const auto connection = weak.lock(); connection && predicate(*connection)) connection->drop();
  }

  const std::shared_ptr<ServerCore> core_;
  std::shared_ptr<Listener> listener_;
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::listen(EventLoop& loop, HttpServerOptions options, Handler handler) {
  auto server = std::make_unique<HttpServerImpl>(std::make_shared<ServerCore>(loop, std::move(options), std::move(handler)));
  BATON_RETURN_IF_ERROR(server->listen());
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace baton::net
