#pragma once
// Blocking TCP with deadlines, in frames: a length of 4 bytes, then so many bytes. For meeting.cc.

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace baton::device::gloo {

// A time of now_ns() at which waits end.
using DeadlineNs = std::int64_t;

class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();

  static Result<Socket> listen(const std::string& host, int port);
  // Again and again while nobody listens there.
  static Result<Socket> dial(const std::string& host, int port, DeadlineNs deadline);
  // kDeadlineExceeded if nobody comes.
  Result<Socket> accept(DeadlineNs deadline) const;

  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  bool gone() const;              // the other end has closed it
  std::string address() const;    // this end's, without the port
  int port() const;               // this end's
  std::string peer_name() const;  // "10.0.0.2:41234"

  Status send_frame(std::string_view bytes, DeadlineNs deadline) const;
  // kDataLoss if it is longer than `bytes_max`; kUnavailable if the other end closes.
  Result<std::string> receive_frame(std::size_t bytes_max, DeadlineNs deadline) const;

 private:
  Status wait(short events, DeadlineNs deadline) const;
  Status receive(char* to, std::size_t bytes, DeadlineNs deadline) const;
  int fd_;
};

}  // namespace baton::device::gloo
