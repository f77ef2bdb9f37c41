#pragma once
// A non-blocking TCP socket on a loop, what waits to be sent on it, and a cheap deadline. For net/*.cc only.

#include <sys/uio.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "base/status.h"
#include "net/asio.h"
#include "net/event_loop_impl.h"

namespace baton::net {

struct Io {
  enum State { kDone, kBlocked, kEof, kError };
  State state = kDone;
  std::size_t bytes = 0;
  int error = 0;  // errno of kError
};

// Reads and writes are plain system calls made at once; only waiting goes through Asio. So a chunk costs one send() and no allocation.
class Socket {
 public:
  // Takes over `fd`, which must be non-blocking.
  Socket(EventLoop& loop, int fd);
  ~Socket() { close(); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  bool open() const { return descriptor_.has_value(); }
  int fd() const { return fd_; }
  void close();
  // Closes with RST: what the kernel still holds for a dead or slow peer is freed at once, and the peer sees an error, not an end.
  void reset();
  void shutdown_send();

  Io read(char* to, std::size_t bytes_max);
  Io write(std::span<const iovec> parts);

  // `ready` runs once; it is dropped unrun by close(), unless it was already on its way: it must check open().
  template <class F>
  void wait_read(F ready) {
    wait(AsioDescriptor::wait_read, std::move(ready));
  }
  template <class F>
  void wait_write(F ready) {
    wait(AsioDescriptor::wait_write, std::move(ready));
  }

 private:
  template <class F>
  void wait(AsioDescriptor::wait_type what, F ready) {
    descriptor_->async_wait(what, [ready = std::move(ready)](error_code error) mutable {
      if (!error) ready();
    });
  }

  std::optional<AsioDescriptor> descriptor_;
  int fd_;
};

// Bytes that wait for the peer. The caller bounds them by pending().
class OutBuffer {
 public:
  std::size_t pending() const { return bytes_.size() - sent_; }
  void queue(std::string_view bytes);
  // Sends what waits and then `parts`, in one system call if the socket takes them; the rest is queued.
  Io send(Socket& socket, std::span<const std::string_view> parts);
  // The same for one large part, which is moved instead of copied where possible.
  Io send_owned(Socket& socket, std::string_view head, std::string body);
  Io flush(Socket& socket) { return send(socket, {}); }
  void clear() { *this = OutBuffer(); }

 private:
  std::string bytes_;
  std::size_t sent_ = 0;  // of bytes_
};

// A deadline that is moved often and rarely expires: moving it later costs nothing. `Owner` has on_deadline() and is held weakly.
template <class Owner>
class Deadline {
 public:
  void set(EventLoop& loop, TimePoint at, const std::shared_ptr<Owner>& owner) {
    at_ = at;
    if (at == kNever || (armed_ <= at)) return;
    if (!timer_) timer_.emplace(loop.impl().io->get_executor());
    arm(loop, owner);
  }
  void clear() { at_ = kNever; }
  void drop() {
    timer_.reset();
    at_ = armed_ = kNever;
  }

 private:
  void arm(EventLoop& loop, const std::shared_ptr<Owner>& owner) {
    armed_ = at_;
    timer_->expires_after(at_ - loop.clock().now());
    timer_->async_wait([this, &loop, weak = std::weak_ptr(owner)](error_code error) {
      if (error) return;
      auto alive = weak.lock();
      if (!alive || !timer_) return;
      const TimePoint now = loop.clock().now();
      if (armed_ > now) return;  // armed again since
      armed_ = kNever;
      if (at_ == kNever) return;
      if (at_ > now) return arm(loop, alive);
      at_ = kNever;
      alive->on_deadline();
    });
  }

  std::optional<AsioTimer> timer_;
  TimePoint at_ = kNever;
  TimePoint armed_ = kNever;
};

// "127.0.0.1:8000", "[::1]:8000" of the peer of `fd`.
std::string peer_name(int fd);
std::string errno_text(int error);
void set_no_delay(int fd);

}  // namespace baton::net
