#include "net/http_connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>

#include "net/http_text.h"

namespace baton::net {
namespace {

// Pipelined input held while an answer is running; beyond it the peer has to wait.
constexpr std::size_t kPipelinedBytesMax = 64u << 10;
// Unsent bytes left to the kernel per connection. What is beyond waits in OutBuffer, where it is bounded and seen.
constexpr int kKernelUnsentBytesMax = 256 << 10;
constexpr Duration kLingerIdle = std::chrono::seconds(2);
constexpr Duration kLingerTotal = std::chrono::seconds(30);
constexpr std::size_t kLingerBytesMax = 256u << 20;

}  // namespace

class Exchange final : public HttpResponder {
 public:
  Exchange(std::shared_ptr<Connection> connection, bool head_only, int version)
      : connection_(std::move(connection)), head_only_(head_only), chunked_(version == 11) {}

  ~Exchange() override {
    if (state_ == State::kWaiting) respond(500, {}, "the server dropped the request without an answer\n");
    // An unchunked stream ends with its connection, so only an error tells the client that it is not whole.
    if (state_ == State::kStreaming) connection_->cut(!chunked_);
  }

  void respond(int status, Headers headers, std::string body) override {
    if (state_ != State::kWaiting) return;
    const bool bodyless = status / 100 == 1 || status == 204 || status == 304;
    std::string head = connection_->make_head(status, headers);
    if (!bodyless) append_field(head, "content-length", std::to_string(body.size()));
    append_connection_field(head, connection_->answers_keep_alive());
    if (head_only_ || bodyless) body.clear();
    finish()->send_answer(std::move(head), std::move(body));
  }

  void start_stream(int status, Headers headers) override {
    if (state_ != State::kWaiting) return;
    state_ = State::kStreaming;
    std::string head = connection_->make_head(status, headers);
    if (chunked_) append_field(head, "transfer-encoding", "chunked");
    append_connection_field(head, chunked_ && connection_->answers_keep_alive());
    connection_->send_stream_head(std::move(head));
  }

  bool write(std::string chunk) override {
    if (state_ != State::kStreaming) return false;
    if (head_only_ || chunk.empty()) return true;  // an empty chunk would be the end mark
    return connection_->send_chunk(chunk, chunked_);
  }

  void end() override {
    if (state_ != State::kStreaming) return;
    finish()->end_stream(chunked_ && !head_only_, !chunked_);
  }

  void on_close(std::function<void()> handler) override {
    if (state_ == State::kDone) return;
    on_close_ = std::move(handler);
    if (state_ == State::kClosed) post_on_close();
  }

  bool closed() const override { return state_ == State::kClosed; }

  void peer_closed() {
    state_ = State::kClosed;
    post_on_close();
  }
  void dropped() {
    state_ = State::kClosed;
    const auto unused = std::move(on_close_);
    on_close_ = nullptr;
  }

 private:
  enum class State { kWaiting, kStreaming, kDone, kClosed };

  // The connection lives on by itself; a responder kept for long must not hold it.
  std::shared_ptr<Connection> finish() {
    state_ = State::kDone;
    const auto unused = std::move(on_close_);
    on_close_ = nullptr;
    return std::move(connection_);
  }

  void append_connection_field(std::string& head, bool keep_alive) {
    if (!keep_alive)
      append_field(head, "connection", "close");
    else if (!chunked_)  // HTTP/1.0 has to be told
      append_field(head, "connection", "keep-alive");
    head += "\r\n";
  }

  // Never at once: the client's going away is often noticed inside the user's own write().
  void post_on_close() {
    if (!on_close_) return;
    connection_->core().loop.post([connection = connection_, handler = std::move(on_close_)] {
      if (connection->core().alive) handler();
    });
    on_close_ = nullptr;
  }

  std::shared_ptr<Connection> connection_;
  State state_ = State::kWaiting;
  const bool head_only_;
  const bool chunked_;
  std::function<void()> on_close_;
};

Connection::Connection(std::shared_ptr<ServerCore> core, int fd)
    : core_(std::move(core)), socket_(core_->loop, fd), remote_(peer_name(fd)) {
  core_->connections.insert(this);
  const int unsent = kKernelUnsentBytesMax;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
  // A peer that vanished without a word (power, cable) acknowledges nothing.
  const auto ack_ms = static_cast<unsigned>(std::chrono::duration_cast<std::chrono::milliseconds>(core_->options.write_timeout).count());
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ack_ms, sizeof ack_ms);
}

Connection::~Connection() { core_->connections.erase(this); }

void Connection::start() {
  since_ = core_->loop.clock().now();
  update_deadline();
  arm_read();
}

void Connection::refuse() { fail(503, "too many connections; try again later"); }

void Connection::arm_read() {
  if (reading_ || input_ended_ || phase_ == Phase::kClosed) return;
  if (phase_ == Phase::kAnswering && in_.size() >= kPipelinedBytesMax) return;
  reading_ = true;
  socket_.wait_read([self = shared_from_this()] {
    self->reading_ = false;
    self->on_readable();
  });
}

void Connection::on_readable() {
  if (phase_ == Phase::kClosed) return;
  char* const scratch = core_->loop.impl().scratch.get();
  const Io result = socket_.read(scratch, EventLoop::Impl::kScratchBytes);
  if (result.state == Io::kEof || result.state == Io::kError) return on_end_of_input(result.state == Io::kError);
  if (result.state == Io::kDone) {
    std::string_view bytes(scratch, result.bytes);
    if (phase_ == Phase::kLingering) {
      lingered_bytes_ += bytes.size();
      if (lingered_bytes_ > kLingerBytesMax) return close_now();
    } else {
      if (phase_ == Phase::kReading && parser_ && parser_->head_done()) {
        since_ = core_->loop.clock().now();
        // Bodies go to the parser straight from the scratch buffer.
        if (in_.empty()) bytes.remove_prefix(feed(bytes));
      }
      in_.append(bytes);
      process_input();
    }
  }
  if (phase_ == Phase::kClosed) return;
  update_deadline();
  arm_read();
}

void Connection::on_end_of_input(bool error) {
  input_ended_ = true;
  if (phase_ == Phase::kAnswering && !error && exchange_ == nullptr) return;  // answered, still flushing: half-closed peers get it all
  peer_gone(false);
}

// Requests that are complete in `in_` are served in order, each after the answer before it.
void Connection::process_input() {
  if (processing_) return;
  const auto self = shared_from_this();
  processing_ = true;
  while (phase_ == Phase::kReading && !in_.empty()) {
    const std::size_t taken = feed(in_);
    in_.erase(0, taken);
    if (taken == 0) break;
  }
  processing_ = false;
  // A chunk's extensions or the trailers, which the parser takes only whole.
  if (phase_ == Phase::kReading && in_.size() > core_->options.header_bytes_max) fail(431, "a chunk line or the trailers are too long");
  if (in_.empty() && in_.capacity() > (4u << 10)) in_.shrink_to_fit();
}

std::size_t Connection::feed(std::string_view bytes) {
  std::size_t skipped = 0;
  if (!parser_) {
    // Empty lines before a request line are to be ignored (RFC 9112, 2.2).
    while (skipped < bytes.size() && (bytes[skipped] == '\r' || bytes[skipped] == '\n')) ++skipped;
    if (skipped == bytes.size()) return skipped;
    parser_ = std::make_unique<RequestParser>(core_->options.header_bytes_max, core_->options.body_bytes_max);
    continued_ = false;
    since_ = request_began_ = core_->loop.clock().now();
  }
  const std::size_t taken = parser_->put(bytes.substr(skipped));
  if (parser_->error_status() != 0) {
    fail(parser_->error_status(), parser_->error_message());
    return bytes.size();
  }
  if (parser_->done()) {
    // Taken before the handler may touch `in_`.
    dispatch();
  } else if (parser_->head_done() && parser_->expects_continue() && !continued_) {
    continued_ = true;
    const std::string_view parts[] = {"HTTP/1.1 100 Continue\r\n\r\n"};
    after_send(out_.send(socket_, parts));
  }
  return skipped + taken;
}

void Connection::dispatch() {
  keep_alive_ = parser_->keep_alive();
  const int version = parser_->version();
  HttpRequest request = parser_->take();
  parser_.reset();
  request.remote = remote_;
  first_request_ = false;
  phase_ = Phase::kAnswering;
  auto exchange = std::make_shared<Exchange>(shared_from_this(), request.method == "HEAD", version);
  exchange_ = exchange.get();
  core_->handler(std::move(request), std::move(exchange));
}

std::string Connection::make_head(int status, const Headers& headers) const {
  const std::int64_t second = core_->loop.clock().unix_seconds();
  if (second != core_->date_second) {
    core_->date_second = second;
    core_->date = http_date(second);
  }
  std::string head;
  head.reserve(256);
  head.append("HTTP/1.1 ").append(std::to_string(status)).append(" ").append(reason_phrase(status)).append("\r\n");
  append_field(head, "date", core_->date);
  for (const auto& [name, value] : headers.fields()) {
    // The framing is ours.
    if (equal_ignoring_case(name, "content-length") || equal_ignoring_case(name, "transfer-encoding") ||
        equal_ignoring_case(name, "connection"))
      continue;
    append_field(head, name, value);
  }
  return head;
}

void Connection::fail(int status, std::string message) {
  parser_.reset();
  phase_ = Phase::kAnswering;
  keep_alive_ = false;
  const Code code = status == 413   ? Code::kPayloadTooLarge
                    : status == 503 ? Code::kUnavailable
                    : status == 408 ? Code::kDeadlineExceeded
                                    : Code::kInvalidArgument;
  const std::string body = "{\"error\":{\"message\":\"" + message + "\",\"type\":\"" + std::string(error_type(code)) +
                           "\",\"param\":null,\"code\":" + std::to_string(status) + "}}";
  Headers headers;
  headers.add("content-type", "application/json");
  std::string head = make_head(status, headers);
  append_field(head, "content-length", std::to_string(body.size()));
  append_field(head, "connection", "close");
  head += "\r\n";
  send_answer(std::move(head), body);
}

void Connection::send_answer(std::string head, std::string body) {
  exchange_ = nullptr;
  if (phase_ == Phase::kClosed) return;
  after_send(out_.send_owned(socket_, head, std::move(body)));
}

void Connection::send_stream_head(std::string head) {
  if (phase_ == Phase::kClosed) return;
  // Held back to the end of this turn of the loop, so that it leaves in one packet with the first chunk if that is ready.
  out_.queue(head);
  flush_posted_ = true;
  core_->loop.post([self = shared_from_this()] {
    if (!self->flush_posted_ || self->blocked_ || self->phase_ != Phase::kAnswering) return;
    self->after_send(self->out_.flush(self->socket_));
  });
}

bool Connection::send_chunk(std::string_view chunk, bool chunked) {
  if (phase_ == Phase::kClosed) return false;
  // What waits from before tells a slow client; one large chunk to a client that reads is no reason to cut it.
  const bool slow = out_.pending() > core_->options.stream_buffer_bytes_max;
  char size_line[20];
  const auto end = std::to_chars(size_line, size_line + 16, chunk.size(), 16).ptr;
  end[0] = '\r';
  end[1] = '\n';
  const std::string_view framed[] = {{size_line, static_cast<std::size_t>(end + 2 - size_line)}, chunk, "\r\n"};
  const std::span<const std::string_view> parts = chunked ? std::span(framed) : std::span(framed).subspan(1, 1);
  if (blocked_) {
    for (std::string_view part : parts) out_.queue(part);
  } else {
    after_send(out_.send(socket_, parts));
  }
  if (slow) peer_gone(true);
  return phase_ != Phase::kClosed;
}

void Connection::end_stream(bool end_mark, bool close) {
  exchange_ = nullptr;
  if (phase_ == Phase::kClosed) return;
  if (close) keep_alive_ = false;
  const std::string_view last[] = {"0\r\n\r\n"};
  if (blocked_) {
    if (end_mark) out_.queue(last[0]);
    return;
  }
  after_send(end_mark ? out_.send(socket_, last) : out_.flush(socket_));
}

void Connection::cut(bool reset) {
  exchange_ = nullptr;
  if (phase_ == Phase::kClosed) return;
  if (reset) socket_.reset();
  close_now();
}

void Connection::after_send(const Io& result) {
  flush_posted_ = false;
  if (result.state == Io::kError) return peer_gone(false);
  if (out_.pending() == 0) {
    if (phase_ == Phase::kAnswering && exchange_ == nullptr) return answered();
    return update_deadline();
  }
  if (!blocked_ || result.bytes > 0) since_ = core_->loop.clock().now();
  if (!blocked_) {
    blocked_ = true;
    socket_.wait_write([self = shared_from_this()] {
      self->blocked_ = false;
      if (self->phase_ == Phase::kAnswering || self->phase_ == Phase::kReading) self->after_send(self->out_.flush(self->socket_));
    });
  }
  update_deadline();
}

void Connection::answered() {
  if (!keep_alive_ || input_ended_ || core_->draining) return linger();
  phase_ = Phase::kReading;
  since_ = core_->loop.clock().now();
  update_deadline();
  arm_read();
  // Posted, because this may be inside the user's respond(): the next request must not reach the handler from there.
  if (!in_.empty() && !processing_) {
    core_->loop.post([self = shared_from_this()] {
      self->process_input();
      if (self->phase_ == Phase::kClosed) return;
      self->update_deadline();
      self->arm_read();
    });
  }
}

void Connection::linger() {
  if (input_ended_) return close_now();
  phase_ = Phase::kLingering;
  in_ = std::string();
  out_.clear();
  socket_.shutdown_send();
  since_ = core_->loop.clock().now();
  update_deadline();
  arm_read();
}

void Connection::peer_gone(bool reset) {
  if (phase_ == Phase::kClosed) return;
  Exchange* const exchange = std::exchange(exchange_, nullptr);
  if (reset) socket_.reset();
  close_now();
  if (exchange != nullptr) exchange->peer_closed();
}

void Connection::drop() {
  if (phase_ == Phase::kClosed) return;
  Exchange* const exchange = std::exchange(exchange_, nullptr);
  close_now();
  if (exchange != nullptr) exchange->dropped();
}

void Connection::close_now() {
  phase_ = Phase::kClosed;
  core_->connections.erase(this);
  socket_.close();
  deadline_.drop();
  out_.clear();
}

void Connection::update_deadline() {
  const HttpServerOptions& options = core_->options;
  TimePoint at = kNever;
  switch (phase_) {
    case Phase::kReading:
      at = since_ + (parser_ || first_request_ ? options.header_timeout : options.keep_alive);
      if (parser_) at = std::min(at, request_began_ + options.request_timeout);
      break;
    case Phase::kAnswering:
      if (blocked_) at = since_ + options.write_timeout;
      break;
    case Phase::kLingering:
      at = std::min(since_ + kLingerTotal, core_->loop.clock().now() + kLingerIdle);
      break;
    case Phase::kClosed:
      return;
  }
  if (at == kNever)
    deadline_.clear();
  else
    deadline_.set(core_->loop, at, shared_from_this());
}

void Connection::on_deadline() {
  switch (phase_) {
    case Phase::kReading:
      // A request that stopped half-way is told so; a connection that sent nothing is just closed.
      if (parser_) return fail(408, "the request was not complete in time");
      return close_now();
    case Phase::kAnswering:
      return peer_gone(true);
    case Phase::kLingering:
      return close_now();
    case Phase::kClosed:
      return;
  }
}

}  // namespace baton::net
