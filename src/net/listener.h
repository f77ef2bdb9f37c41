#pragma once
// A listening TCP socket, bound here or handed over. For net/*.cc only.

#include <functional>
#include <memory>
#include <string>

#include "net/socket.h"

namespace baton::net {

class Listener : public std::enable_shared_from_this<Listener> {
 public:
  // `on_socket` gets each accepted socket: non-blocking, close-on-exec, TCP_NODELAY. An adopted `listen_fd` (>= 0) is never closed here.
  static Result<std::shared_ptr<Listener>> listen(EventLoop& loop, const std::string& host, int port, int listen_fd,
                                                  std::function<void(int fd)> on_socket);
  ~Listener() { close(); }
  int port() const { return port_; }
  // No `on_socket` after it. May be called inside `on_socket`.
  void close();

 private:
  Listener(EventLoop& loop, std::function<void(int)> on_socket) : loop_(loop), on_socket_(std::move(on_socket)) {}
  void wait();
  void accept_some();

  EventLoop& loop_;
  std::function<void(int)> on_socket_;
  std::optional<AsioDescriptor> descriptor_;
  int fd_ = -1;
  int port_ = 0;
  bool adopted_ = false;
  bool failing_ = false;
  Executor::TimerId retry_ = 0;
};

}  // namespace baton::net
