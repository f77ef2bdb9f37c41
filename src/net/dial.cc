#include "net/dial.h"

#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/ip/tcp.hpp>
#include <cerrno>
#include <vector>

namespace baton::net {
namespace {

using Tcp = asio::ip::tcp;
using Resolver = asio::ip::basic_resolver<Tcp, AsioExecutor>;

class DialImpl final : public Dial, public std::enable_shared_from_this<DialImpl> {
 public:
  DialImpl(EventLoop& loop, std::string host, int port, Done done)
      : loop_(loop), host_(std::move(host)), port_(port), done_(std::move(done)) {}

  void begin(Duration timeout) {
    // The timer holds the dial, so `done` runs even if the caller drops its handle.
    timer_ = loop_.after(timeout, [self = shared_from_this()] {
      self->finish(Status(Code::kDeadlineExceeded, "connecting to " + self->where() + " timed out"));
    });
    error_code error;
    const auto address = asio::ip::make_address(host_, error);
    if (!error) {
      endpoints_.emplace_back(address, static_cast<unsigned short>(port_));
      loop_.post([self = shared_from_this()] { self->try_next(); });
      return;
    }
    resolver_.emplace(loop_.impl().io->get_executor());
    resolver_->async_resolve(host_, std::to_string(port_), Resolver::numeric_service,
                             [self = shared_from_this()](error_code resolve_error, Resolver::results_type results) {
                               if (self->done_ == nullptr) return;
                               self->last_error_ = resolve_error.message();
                               for (const auto& entry : results) self->endpoints_.push_back(entry.endpoint());
                               self->try_next();
                             });
  }

  void cancel() override {
    if (!done_) return;
    const auto self = shared_from_this();
    done_ = nullptr;
    socket_.reset();
    resolver_.reset();
    loop_.cancel(timer_);
  }

 private:
  std::string where() const { return host_ + ":" + std::to_string(port_); }

  void finish(Result<std::unique_ptr<Socket>> result) {
    if (!done_) return;
    const auto self = shared_from_this();
    const Done done = std::move(done_);
    done_ = nullptr;
    loop_.cancel(timer_);
    resolver_.reset();
    socket_.reset();
    done(std::move(result));
  }

  void try_next() {
    if (!done_) return;
    while (next_ < endpoints_.size()) {
      const Tcp::endpoint endpoint = endpoints_[next_++];
      const int fd = ::socket(endpoint.protocol().family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
      if (fd < 0) {
        last_error_ = errno_text(errno);
        continue;
      }
      set_no_delay(fd);
      if (::connect(fd, endpoint.data(), static_cast<socklen_t>(endpoint.size())) != 0 && errno != EINPROGRESS) {
        last_error_ = errno_text(errno);
        ::close(fd);
        continue;
      }
      socket_ = std::make_unique<Socket>(loop_, fd);
      socket_->wait_write([self = shared_from_this(), fd] { self->on_writable(fd); });
      return;
    }
    finish(Status(Code::kUnavailable, "cannot connect to " + where() + ": " + last_error_));
  }

  void on_writable(int fd) {
    if (!done_ || !socket_ || socket_->fd() != fd) return;
    int error = 0;
    socklen_t length = sizeof error;
    ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error == 0) return finish(std::move(socket_));
    last_error_ = errno_text(error);
    socket_.reset();
    try_next();
  }

  EventLoop& loop_;
  const std::string host_;
  const int port_;
  Done done_;
  Executor::TimerId timer_ = 0;
  std::optional<Resolver> resolver_;
  std::vector<Tcp::endpoint> endpoints_;
  std::size_t next_ = 0;
  std::string last_error_;
  std::unique_ptr<Socket> socket_;
};

}  // namespace

std::shared_ptr<Dial> Dial::start(EventLoop& loop, const std::string& host, int port, Duration timeout, Done done) {
  auto dial = std::make_shared<DialImpl>(loop, host, port, std::move(done));
  dial->begin(timeout);
  return dial;
}

}  // namespace baton::net
