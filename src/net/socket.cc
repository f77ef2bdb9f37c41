#include "net/socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <system_error>

namespace baton::net {
namespace {

Io io_error(int error) {
  if (error == EAGAIN || error == EWOULDBLOCK || error == EINTR) return {Io::kBlocked, 0, 0};
  return {Io::kError, 0, error};
}

}  // namespace

Socket::Socket(EventLoop& loop, int fd) : fd_(fd) { descriptor_.emplace(loop.impl().io->get_executor(), fd); }

void Socket::close() {
  if (!descriptor_) return;
  // Released before it is closed, so that it leaves the epoll set even if a forked child holds a copy of it for a moment.
  descriptor_->release();
  descriptor_.reset();
  ::close(fd_);
}

void Socket::reset() {
  if (!descriptor_) return;
  const linger hard{1, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close();
}

void Socket::shutdown_send() { ::shutdown(fd_, SHUT_WR); }

Io Socket::read(char* to, std::size_t bytes_max) {
  const ssize_t n = ::recv(fd_, to, bytes_max, MSG_DONTWAIT);
  if (n > 0) return {Io::kDone, static_cast<std::size_t>(n), 0};
  if (n == 0) return {Io::kEof, 0, 0};
  return io_error(errno);
}

Io Socket::write(std::span<const iovec> parts) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts.data());
  message.msg_iovlen = parts.size();
  const ssize_t n = ::sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n >= 0) return {Io::kDone, static_cast<std::size_t>(n), 0};
  return io_error(errno);
}

void OutBuffer::queue(std::string_view bytes) {
  if (sent_ > (64u << 10) && sent_ > bytes_.size() / 2) {
    bytes_.erase(0, sent_);
    sent_ = 0;
  }
  bytes_.append(bytes);
}

Io OutBuffer::send(Socket& socket, std::span<const std::string_view> parts) {
  std::array<iovec, 8> vectors;
  std::size_t count = 0;
  const std::size_t waiting = pending();
  std::size_t total = waiting;
  if (waiting > 0) vectors[count++] = {bytes_.data() + sent_, waiting};
  for (std::string_view part : parts) {
    BATON_CHECK(count < vectors.size());
    if (!part.empty()) vectors[count++] = {const_cast<char*>(part.data()), part.size()};
    total += part.size();
  }
  if (total == 0) return {};
  const Io result = socket.write({vectors.data(), count});
  if (result.state == Io::kError) return result;
  std::size_t taken = result.bytes;
  if (taken >= waiting) {
    taken -= waiting;
    bytes_.clear();
    sent_ = 0;
    // A stream that was once blocked should not hold its buffer for ever.
    if (bytes_.capacity() > (64u << 10)) bytes_.shrink_to_fit();
  } else {
    sent_ += taken;
    taken = 0;
  }
  for (std::string_view part : parts) {
    const std::size_t skip = std::min(taken, part.size());
    taken -= skip;
    if (skip < part.size()) queue(part.substr(skip));
  }
  return {pending() == 0 ? Io::kDone : Io::kBlocked, result.bytes, 0};
}

Io OutBuffer::send_owned(Socket& socket, std::string_view head, std::string body) {
  if (pending() > 0 || body.size() < (64u << 10)) {
    const std::string_view parts[] = {head, body};
    return send(socket, parts);
  }
  const iovec vectors[] = {{const_cast<char*>(head.data()), head.size()}, {body.data(), body.size()}};
  const Io result = socket.write(vectors);
  if (result.state == Io::kError) return result;
  if (result.bytes < head.size()) {
    queue(head.substr(result.bytes));
    queue(body);
  } else {
    bytes_ = std::move(body);
    sent_ = result.bytes - head.size();
    if (pending() == 0) clear();
  }
  return {pending() == 0 ? Io::kDone : Io::kBlocked, result.bytes, 0};
}

std::string peer_name(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "unknown";
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (::getnameinfo(reinterpret_cast<sockaddr*>(&address), length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV))
    return "unknown";
  return address.ss_family == AF_INET6 ? "[" + std::string(host) + "]:" + port : std::string(host) + ":" + port;
}

std::string errno_text(int error) { return std::generic_category().message(error); }

void set_no_delay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

}  // namespace baton::net
