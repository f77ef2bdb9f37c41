#include "device/gloo/tcp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/spin.h"

namespace baton::device::gloo {
namespace {

constexpr int kRedialMs = 50;

int left_ms(DeadlineNs deadline) {
  const std::int64_t ms = (deadline - now_ns() + 999'999) / 1'000'000;
  return static_cast<int>(std::clamp<std::int64_t>(ms, 0, 1'000'000'000));
}

std::string at(const std::string& host, int port) { return host + ":" + std::to_string(port); }

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;
Result<Addresses> look_up(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); error != 0)
    return Status(Code::kInvalidArgument, "--master-addr " + at(host, port) + ": " + gai_strerror(error));
  return Addresses(found, &freeaddrinfo);
}

std::string text_of(const sockaddr_storage& address, socklen_t length, bool with_port) {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "?";
  return with_port ? std::string(host) + ":" + port : host;
}

}  // namespace

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

Result<Socket> Socket::listen(const std::string& host, int port) {
  BATON_ASSIGN_OR_RETURN(const Addresses found, look_up(host, port));
  Socket socket(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.open()) return Status(Code::kInternal, std::string("cannot create a socket: ") + std::strerror(errno));
  const int on = 1;
  setsockopt(socket.fd_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(socket.fd_, found->ai_addr, found->ai_addrlen) == 0 && ::listen(socket.fd_, 64) == 0) return socket;
  const int error = errno;
  if (error == EADDRINUSE)
    return Status(Code::kUnavailable, "--master-addr: " + at(host, port) + " is already in use; choose another port");
  if (error == EADDRNOTAVAIL)
    return Status(Code::kInvalidArgument, "--master-addr: this host, which is node 0, has no address " + host + "; give one that it has");
  return Status(Code::kUnavailable, "--master-addr: cannot listen on " + at(host, port) + ": " + std::strerror(error));
}

Result<Socket> Socket::dial(const std::string& host, int port, DeadlineNs deadline) {
  BATON_ASSIGN_OR_RETURN(const Addresses found, look_up(host, port));
  std::string why = "no time to try";
  while (now_ns() < deadline) {
    Socket socket(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.open()) return Status(Code::kInternal, std::string("cannot create a socket: ") + std::strerror(errno));
    int error = connect(socket.fd_, found->ai_addr, found->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      socklen_t size = sizeof error;
      if (!socket.wait(POLLOUT, deadline).ok()) {
        error = ETIMEDOUT;
      } else if (getsockopt(socket.fd_, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
        error = errno;
      }
    }
    if (error == 0) {
      const int on = 1;
      setsockopt(socket.fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      return socket;
    }
    why = std::strerror(error);
    poll(nullptr, 0, std::min(kRedialMs, left_ms(deadline)));
  }
  return Status(Code::kDeadlineExceeded, "node 0 cannot be reached at " + at(host, port) + " (" + why + "); is it started?");
}

Status Socket::wait(short events, DeadlineNs deadline) const {
  pollfd p{.fd = fd_, .events = events, .revents = 0};
  for (;;) {
    const int ready = poll(&p, 1, left_ms(deadline));
    if (ready > 0) return {};
    if (ready == 0) return {Code::kDeadlineExceeded, "nothing came in time"};
    if (errno != EINTR) return {Code::kInternal, std::string("poll: ") + std::strerror(errno)};
  }
}

Result<Socket> Socket::accept(DeadlineNs deadline) const {
  for (;;) {
    BATON_RETURN_IF_ERROR(wait(POLLIN, deadline));
    Socket socket(accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.open()) return socket;
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
      return Status(Code::kInternal, std::string("accept: ") + std::strerror(errno));
  }
}

bool Socket::gone() const {
  char byte = 0;
  const ssize_t n = recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

std::string Socket::address() const {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  return getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length) == 0 ? text_of(address, length, false) : "?";
}

int Socket::port() const {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                             : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
}

std::string Socket::peer_name() const {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  return getpeername(fd_, reinterpret_cast<sockaddr*>(&address), &length) == 0 ? text_of(address, length, true) : "?";
}

Status Socket::send_frame(std::string_view bytes, DeadlineNs deadline) const {
  std::string frame(4, '\0');
  for (int i = 0; i < 4; ++i) frame[static_cast<std::size_t>(i)] = static_cast<char>(bytes.size() >> (8 * i) & 0xff);
  frame += bytes;
  for (std::size_t sent = 0; sent < frame.size();) {
    const ssize_t n = send(fd_, frame.data() + sent, frame.size() - sent, MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      BATON_RETURN_IF_ERROR(wait(POLLOUT, deadline));
    } else if (errno != EINTR) {
      return {Code::kUnavailable, std::string("the connection broke: ") + std::strerror(errno)};
    }
  }
  return {};
}

Status Socket::receive(char* to, std::size_t bytes, DeadlineNs deadline) const {
  while (bytes > 0) {
    BATON_RETURN_IF_ERROR(wait(POLLIN, deadline));
    const ssize_t n = recv(fd_, to, bytes, 0);
    if (n > 0) {
      to += n, bytes -= static_cast<std::size_t>(n);
    } else if (n == 0) {
      return {Code::kUnavailable, "the other end closed the connection"};
    } else if (errno != EAGAIN && errno != EINTR) {
      return {Code::kUnavailable, std::string("the connection broke: ") + std::strerror(errno)};
    }
  }
  return {};
}

Result<std::string> Socket::receive_frame(std::size_t bytes_max, DeadlineNs deadline) const {
  unsigned char head[4];
  BATON_RETURN_IF_ERROR(receive(reinterpret_cast<char*>(head), sizeof head, deadline));
  const std::size_t size = head[0] | head[1] << 8 | head[2] << 16 | static_cast<std::size_t>(head[3]) << 24;
  if (size > bytes_max) return Status(Code::kDataLoss, "a message of " + std::to_string(size) + " bytes, which is none of ours");
  std::string bytes(size, '\0');
  BATON_RETURN_IF_ERROR(receive(bytes.data(), size, deadline));
  return bytes;
}

}  // namespace baton::device::gloo
