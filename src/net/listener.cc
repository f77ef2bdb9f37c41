#include "net/listener.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "base/log.h"

namespace baton::net {
namespace {

// Accepted in one go before other work of the loop gets its turn.
constexpr int kAcceptBatch = 64;
// Out of descriptors or memory: the pending connection stays readable, so accepting again at once would spin.
constexpr Duration kAcceptRetry = std::chrono::milliseconds(50);

Result<int> bind_and_listen(const std::string& host, int port) {
  const std::string where = host + ":" + std::to_string(port);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0) return Status(Code::kInvalidArgument, "cannot listen on " + where + ": " + ::gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  int last_error = 0;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    const int fd = ::socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
      last_error = errno;
      continue;
    }
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (::bind(fd, at->ai_addr, at->ai_addrlen) == 0 && ::listen(fd, SOMAXCONN) == 0) return fd;
    last_error = errno;
    ::close(fd);
  }
  if (last_error == EADDRINUSE) return Status(Code::kUnavailable, "cannot listen on " + where + ": the port is in use by another process");
  return Status(last_error == EACCES ? Code::kInvalidArgument : Code::kUnavailable,
                "cannot listen on " + where + ": " + errno_text(last_error));
}

int local_port(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  if (address.ss_family == AF_INET6) return ntohs(reinterpret_cast<sockaddr_in6&>(address).sin6_port);
  if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<sockaddr_in&>(address).sin_port);
  return 0;
}

}  // namespace

Result<std::shared_ptr<Listener>> Listener::listen(EventLoop& loop, const std::string& host, int port, int listen_fd,
                                                   std::function<void(int)> on_socket) {
  std::shared_ptr<Listener> listener(new Listener(loop, std::move(on_socket)));
  listener->adopted_ = listen_fd >= 0;
  if (listener->adopted_) {
    int listening = 0;
    socklen_t length = sizeof listening;
    if (::getsockopt(listen_fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || listening == 0)
      return Status(Code::kInvalidArgument, "descriptor " + std::to_string(listen_fd) + " is not a listening socket");
    ::fcntl(listen_fd, F_SETFL, ::fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
    listener->fd_ = listen_fd;
  } else {
    BATON_ASSIGN_OR_RETURN(listener->fd_, bind_and_listen(host, port));
  }
  listener->port_ = local_port(listener->fd_);
  listener->descriptor_.emplace(loop.impl().io->get_executor(), listener->fd_);
  listener->wait();
  return listener;
}

void Listener::close() {
  if (!descriptor_) return;
  loop_.cancel(retry_);
  descriptor_->release();
  descriptor_.reset();
  if (!adopted_) ::close(fd_);
}

void Listener::wait() {
  descriptor_->async_wait(AsioDescriptor::wait_read, [weak = weak_from_this()](error_code error) {
    auto self = weak.lock();
    if (!error && self) self->accept_some();
  });
}

void Listener::accept_some() {
  for (int i = 0; i < kAcceptBatch && descriptor_; ++i) {
    const int fd = ::accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      failing_ = false;
      set_no_delay(fd);
      on_socket_(fd);
      continue;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) break;
    if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO) continue;
    if (!failing_)
      log::warn("cannot accept on port {}: {}; trying again until it works{}", port_, errno_text(errno),
                errno == EMFILE || errno == ENFILE ? ". More open files are allowed by: ulimit -n 65536" : "");
    failing_ = true;
    retry_ = loop_.after(kAcceptRetry, [weak = weak_from_this()] {
      auto self = weak.lock();
      if (self && self->descriptor_) self->wait();
    });
    return;
  }
  if (descriptor_) wait();
}

}  // namespace baton::net
