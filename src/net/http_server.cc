#include <sys/resource.h>

#include <algorithm>
#include <vector>

#include "net/http_connection.h"
#include "net/listener.h"

namespace baton::net {
namespace {

// Connections beyond the limit that are being told so. More than these are closed without a word.
constexpr std::size_t kRefusalsMax = 64;

// What an HTTP server leaves of the files that the process may open: each request takes connections to workers as well.
std::size_t connections_that_fit(std::size_t wanted) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return wanted;
  return std::min<std::size_t>(wanted, std::max<rlim_t>(limit.rlim_cur / 2, 1));
}

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
    if (core->connections.size() >= core->options.connections_max) make_room(*core);
    const std::size_t open = core->connections.size();
    const auto connection = std::make_shared<Connection>(core, fd);
    if (open < core->options.connections_max)
      connection->start();
    else if (open < core->options.connections_max + kRefusalsMax)
      connection->refuse();
  }

  // Some at once, so that a flood does not have all connections looked at for each of its own.
  static void make_room(ServerCore& core) {
    std::vector<Connection*> idle;
    for (Connection* connection : core.connections)
      if (connection->idle()) idle.push_back(connection);
    const std::size_t some = std::min(idle.size(), std::max<std::size_t>(1, core.options.connections_max / 64));
    std::partial_sort(idle.begin(), idle.begin() + static_cast<std::ptrdiff_t>(some), idle.end(),
                      [](const Connection* a, const Connection* b) { return a->worth() < b->worth(); });
    // An idle connection has no exchange, so dropping one runs no code of the user's.
    for (std::size_t i = 0; i < some; ++i) idle[i]->drop();
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
  options.connections_max = connections_that_fit(options.connections_max);
  auto server = std::make_unique<HttpServerImpl>(std::make_shared<ServerCore>(loop, std::move(options), std::move(handler)));
  BATON_RETURN_IF_ERROR(server->listen());
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace baton::net
