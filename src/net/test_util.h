#pragma once
// For net's tests: a loop on its own thread, and a blocking socket written by hand, so that what is on the wire is judged by other code
// than the code under test.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "net/event_loop.h"

namespace baton::net {

// Everything that must happen within it fails the test if it does not; nothing waits for it to pass.
constexpr auto kPatience = std::chrono::seconds(20);

class LoopThread {
 public:
  LoopThread() : thread_([this] { loop_.run(); }) {}
  ~LoopThread() {
    loop_.stop();
    thread_.join();
  }
  EventLoop& loop() { return loop_; }

  // Runs `work` on the loop and returns what it returns.
  template <class F>
  auto run(F work) {
    using R = std::invoke_result_t<F>;
    auto task = std::make_shared<std::packaged_task<R()>>(std::move(work));
    auto result = task->get_future();
    loop_.post([task] { (*task)(); });
    if (result.wait_for(kPatience) != std::future_status::ready) {
      ADD_FAILURE() << "the loop is stuck";
      std::abort();
    }
    return result.get();
  }

  // Polls `condition` on the loop until it holds.
  bool eventually(const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (std::chrono::steady_clock::now() < end) {
      if (run(condition)) return true;
      std::this_thread::yield();
    }
    return false;
  }

 private:
  EventLoop loop_;
  std::thread thread_;
};

// Set once by a callback, waited for by the test.
template <class T>
class Awaited {
 public:
  void set(T value) { promise_.set_value(std::move(value)); }
  T get() {
    if (future_.wait_for(kPatience) != std::future_status::ready) {
      ADD_FAILURE() << "it never happened";
      std::abort();
    }
    return future_.get();
  }

 private:
  std::promise<T> promise_;
  std::future<T> future_ = promise_.get_future();
};

class RawSocket {
 public:
  explicit RawSocket(int fd) : fd_(fd) { set_timeouts(); }
  ~RawSocket() { close(); }
  RawSocket(RawSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)), buffer_(std::move(other.buffer_)) {}
  RawSocket(const RawSocket&) = delete;
  RawSocket& operator=(const RawSocket&) = delete;

  // `receive_bytes` > 0 makes a narrow receive window.
  static RawSocket connect(int port, int receive_bytes = 0) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_bytes > 0) ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(0, ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address)) << std::strerror(errno);
    return RawSocket(fd);
  }

  // False if the peer closed before it took everything.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }

  // What is there, at least one byte; empty at the end of the stream (`error()` says whether it was a reset or a time-out).
  std::string receive_some() {
    if (!buffer_.empty()) return std::exchange(buffer_, {});
    char bytes[65536];
    const ssize_t n = ::recv(fd_, bytes, sizeof bytes, 0);
    error_ = n < 0 ? errno : 0;
    return n > 0 ? std::string(bytes, static_cast<std::size_t>(n)) : std::string();
  }
  std::string receive_until(std::string_view mark) {
    std::string all;
    while (true) {
      if (const auto at = all.find(mark); at != std::string::npos) {
        buffer_ = all.substr(at + mark.size());
        return all.substr(0, at + mark.size());
      }
      const std::string more = receive_some();
      if (more.empty()) return all;
      all += more;
    }
  }
  std::string receive_exactly(std::size_t bytes) {
    if (bytes == 0) return {};
    std::string all;
    while (all.size() < bytes) {
      const std::string more = receive_some();
      if (more.empty()) return all;
      all += more;
    }
    buffer_ = all.substr(bytes);
    return all.substr(0, bytes);
  }
  std::string receive_all() {
    std::string all;
    while (true) {
      const std::string more = receive_some();
      if (more.empty()) return all;
      all += more;
    }
  }
  // One answer with Content-Length: head and body.
  std::string receive_answer() {
    std::string answer = receive_until("\r\n\r\n");
    const auto at = answer.find("content-length: ");
    if (at != std::string::npos) answer += receive_exactly(std::stoul(answer.substr(at + 16)));
    return answer;
  }

  int error() const { return error_; }
  int fd() const { return fd_; }
  void shutdown_send() { ::shutdown(fd_, SHUT_WR); }
  void reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
  }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  void set_timeouts() {
    const timeval patience{20, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  }

  int fd_;
  int error_ = 0;
  std::string buffer_;
};

// A listening socket on a free loopback port.
class RawListener {
 public:
  RawListener() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(0, ::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address));
    EXPECT_EQ(0, ::listen(fd_, 64));
    const timeval patience{20, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  ~RawListener() { ::close(fd_); }
  int port() const {
    sockaddr_in address{};
    socklen_t length = sizeof address;
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length);
    return ntohs(address.sin_port);
  }
  int fd() const { return fd_; }
  RawSocket accept() {
    const int fd = ::accept(fd_, nullptr, nullptr);
    EXPECT_GE(fd, 0) << "nobody connected";
    return RawSocket(fd);
  }

 private:
  int fd_;
};

}  // namespace baton::net
