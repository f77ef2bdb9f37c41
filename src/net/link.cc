#include "net/link.h"

#include "net/dial.h"
#include "net/listener.h"
#include "net/socket.h"

namespace baton::net {
namespace {

class TcpStream final : public std::enable_shared_from_this<TcpStream> {
 public:
  TcpStream(EventLoop& loop, std::unique_ptr<Socket> socket, std::size_t buffer_bytes_max)
      : peer(peer_name(socket->fd())), loop_(loop), socket_(std::move(socket)), buffer_bytes_max_(buffer_bytes_max) {}

  void start(Link::Handlers handlers) {
    BATON_CHECK_MSG(!started_, "a link is started once");
    started_ = true;
    handlers_ = std::move(handlers);
    if (socket_->open()) wait_read();
  }

  Status send(std::string bytes) {
    if (!socket_->open()) return Status(Code::kUnavailable, "the link to " + peer + " is closed");
    if (bytes.size() + out_.pending() > buffer_bytes_max_ && (blocked_ || bytes.size() > buffer_bytes_max_))
      return Status(Code::kResourceExhausted, "the link to " + peer + " is " + std::to_string(out_.pending()) + " bytes behind");
    if (blocked_) {
      out_.queue(bytes);
      return {};
    }
    return after_send(out_.send_owned(*socket_, {}, std::move(bytes)));
  }

  void close() {
    socket_->close();
    out_.clear();
    drop_handlers();
  }

  const std::string peer;

 private:
  void wait_read() {
    socket_->wait_read([self = shared_from_this()] {
      if (self->socket_->open()) self->on_readable();
    });
  }

  void on_readable() {
    char* const scratch = loop_.impl().scratch.get();
    const Io result = socket_->read(scratch, EventLoop::Impl::kScratchBytes);
    if (result.state == Io::kEof) return fail(peer + " closed the link");
    if (result.state == Io::kError) return fail("the link to " + peer + " broke: " + errno_text(result.error));
    if (result.state == Io::kDone && handlers_.on_bytes) {
      running_ = true;
      handlers_.on_bytes({scratch, result.bytes});
      running_ = false;
    }
    if (socket_->open())
      wait_read();
    else
      drop_handlers();
  }

  Status after_send(const Io& result) {
    if (result.state == Io::kError) {
      const std::string message = "the link to " + peer + " broke: " + errno_text(result.error);
      // The owner is inside send(); it hears of the end later.
      loop_.post([self = shared_from_this(), message] {
        if (self->socket_->open()) self->fail(message);
      });
      return Status(Code::kUnavailable, message);
    }
    if (result.state == Io::kBlocked && !blocked_) {
      blocked_ = true;
      socket_->wait_write([self = shared_from_this()] {
        self->blocked_ = false;
        if (!self->socket_->open()) return;
        const Status ignored = self->after_send(self->out_.flush(*self->socket_));  // on_closed tells
      });
    }
    return {};
  }

  void fail(const std::string& message) {
    const auto self = shared_from_this();
    socket_->close();
    out_.clear();
    running_ = true;
    if (handlers_.on_closed) handlers_.on_closed(Status(Code::kUnavailable, message));
    running_ = false;
    drop_handlers();
  }

  // Not while one of them runs.
  void drop_handlers() {
    if (running_) return;
    const auto unused = std::exchange(handlers_, {});
  }

  EventLoop& loop_;
  const std::unique_ptr<Socket> socket_;
  const std::size_t buffer_bytes_max_;
  Link::Handlers handlers_;
  OutBuffer out_;
  bool started_ = false;
  bool running_ = false;
  bool blocked_ = false;
};

class TcpLink final : public Link {
 public:
  explicit TcpLink(std::shared_ptr<TcpStream> stream) : stream_(std::move(stream)) {}
  ~TcpLink() override { stream_->close(); }
  void start(Handlers handlers) override { stream_->start(std::move(handlers)); }
  Status send(std::string bytes) override { return stream_->send(std::move(bytes)); }
  void close() override { stream_->close(); }
  std::string peer() const override { return stream_->peer; }

 private:
  const std::shared_ptr<TcpStream> stream_;
};

class TcpLinkListenerImpl final : public TcpLinkListener {
 public:
  explicit TcpLinkListenerImpl(std::shared_ptr<Listener> listener) : listener_(std::move(listener)) {}
  ~TcpLinkListenerImpl() override { listener_->close(); }
  int port() const override { return listener_->port(); }

 private:
  const std::shared_ptr<Listener> listener_;
};

}  // namespace

void connect_tcp(EventLoop& loop, const std::string& host, int port, TcpLinkOptions options,
                 std::function<void(Result<std::unique_ptr<Link>>)> done) {
  Dial::start(loop, host, port, options.connect_timeout, [&loop, options, done = std::move(done)](Result<std::unique_ptr<Socket>> socket) {
    if (!socket.ok()) return done(socket.status());
    done(std::unique_ptr<Link>(std::make_unique<TcpLink>(std::make_shared<TcpStream>(loop, std::move(*socket), options.buffer_bytes_max))));
  });
}

Result<std::unique_ptr<TcpLinkListener>> TcpLinkListener::listen(EventLoop& loop, const std::string& host, int port, int listen_fd,
                                                                 TcpLinkOptions options,
                                                                 std::function<void(std::unique_ptr<Link>)> on_link) {
  BATON_ASSIGN_OR_RETURN(
      auto listener, Listener::listen(loop, host, port, listen_fd, [&loop, options, on_link = std::move(on_link)](int fd) {
        on_link(std::make_unique<TcpLink>(std::make_shared<TcpStream>(loop, std::make_unique<Socket>(loop, fd), options.buffer_bytes_max)));
      }));
  return std::unique_ptr<TcpLinkListener>(std::make_unique<TcpLinkListenerImpl>(std::move(listener)));
}

}  // namespace baton::net
