#include <deque>
#include <map>
#include <utility>

#include "net/dial.h"
#include "net/http_parser.h"
#include "net/http_text.h"
#include "net/socket.h"

namespace baton::net {
namespace {

// A head, a chunk's size line or trailers: what the parser takes only whole.
constexpr std::size_t kUnparsedBytesMax = 64u << 10;

class Call;
class Pool;

// A connection of the client: in use by one call, or idle in the pool. It always waits for input, so that a close by the peer is seen.
class Peer final : public std::enable_shared_from_this<Peer> {
 public:
  Peer(std::shared_ptr<Pool> pool, std::string key, std::unique_ptr<Socket> socket)
      : pool(std::move(pool)), key(std::move(key)), socket(std::move(socket)) {}
  void arm_read();
  void on_deadline();  // idle for too long

  const std::shared_ptr<Pool> pool;
  const std::string key;
  const std::unique_ptr<Socket> socket;
  Call* call = nullptr;
  bool reading = false;
  Deadline<Peer> deadline;
};

class Pool final : public std::enable_shared_from_this<Pool> {
 public:
  Pool(EventLoop& l, HttpClientOptions options) : loop(l), options_(options) {}

  // The connection used last, since it is the least likely to be stale. Null if there is none.
  std::shared_ptr<Peer> take(const std::string& key) {
    auto found = idle_.find(key);
    if (found == idle_.end()) return nullptr;
    auto peer = std::move(found->second.back());
    found->second.pop_back();
    if (found->second.empty()) idle_.erase(found);
    --idle_count_;
    peer->deadline.clear();
    return peer;
  }

  void put(std::shared_ptr<Peer> peer) {
    if (closed_) return peer->socket->close();
    auto& peers = idle_[peer->key];
    if (peers.size() >= options_.idle_per_peer_max || idle_count_ >= options_.idle_max) {
      if (peers.empty()) idle_.erase(peer->key);
      return peer->socket->close();
    }
    peer->deadline.set(loop, loop.clock().now() + options_.idle_timeout, peer);
    peers.push_back(std::move(peer));
    ++idle_count_;
  }

  void drop(Peer& peer) {
    peer.socket->close();
    peer.deadline.drop();
    auto found = idle_.find(peer.key);
    if (found == idle_.end()) return;
    auto& peers = found->second;
    for (auto at = peers.begin(); at != peers.end(); ++at) {
      if (at->get() != &peer) continue;
      peers.erase(at);
      --idle_count_;
      break;
    }
    if (peers.empty()) idle_.erase(found);
  }

  void close() {
    closed_ = true;
    for (auto& [key, peers] : idle_)
      for (auto& peer : peers) {
        peer->socket->close();
        peer->deadline.drop();
      }
    idle_.clear();
    idle_count_ = 0;
  }

  EventLoop& loop;

 private:
  const HttpClientOptions options_;
  bool closed_ = false;
  std::map<std::string, std::deque<std::shared_ptr<Peer>>> idle_;
  std::size_t idle_count_ = 0;
};

class Call final : public std::enable_shared_from_this<Call> {
 public:
  Call(std::shared_ptr<Pool> pool, HttpClientRequest request, HttpClientCallbacks callbacks)
      : pool_(std::move(pool)), request_(std::move(request)), callbacks_(std::move(callbacks)) {}

  void start() {
    if (finished_) return;
    head_ = make_head();
    if (auto peer = pool_->take(key()))
      attach(std::move(peer), true);
    else
      connect();
  }

  void cancel() {
    if (finished_) return;
    const auto self = shared_from_this();
    finished_ = true;
    release(false);
    drop_callbacks();
  }

  void on_readable() {
    const auto self = shared_from_this();
    char* const scratch = pool_->loop.impl().scratch.get();
    const Io result = peer_->socket->read(scratch, EventLoop::Impl::kScratchBytes);
    switch (result.state) {
      case Io::kBlocked:
        break;
      case Io::kDone:
        received_ = true;
        touch();
        return on_input({scratch, result.bytes});
      case Io::kEof:
        if (parser_->put_eof()) return finish(Status(), false);
        return on_cut("closed the connection");
      case Io::kError:
        return on_cut(errno_text(result.error));
    }
    peer_->arm_read();
  }

  void on_deadline() {
    finish(Status(Code::kDeadlineExceeded, key() + ": nothing received for " + std::to_string(to_seconds(request_.idle_timeout)) + " s"),
           false);
  }

 private:
  std::string key() const { return request_.host + ":" + std::to_string(request_.port); }

  std::string make_head() const {
    std::string head;
    head.reserve(256);
    head.append(request_.method).append(" ").append(request_.target.empty() ? "/" : request_.target).append(" HTTP/1.1\r\n");
    append_field(head, "host",
                 request_.host.find(':') == std::string::npos ? key() : "[" + request_.host + "]:" + std::to_string(request_.port));
    for (const auto& [name, value] : request_.headers.fields())
      if (!equal_ignoring_case(name, "host") && !equal_ignoring_case(name, "content-length")) append_field(head, name, value);
    if (!request_.body.empty() || (request_.method != "GET" && request_.method != "HEAD"))
      append_field(head, "content-length", std::to_string(request_.body.size()));
    return head + "\r\n";
  }

  void connect() {
    dial_ = Dial::start(pool_->loop, request_.host, request_.port, request_.connect_timeout,
                        [weak = weak_from_this()](Result<std::unique_ptr<Socket>> socket) {
                          const auto self = weak.lock();
                          if (!self || self->finished_) return;
                          self->dial_.reset();
                          if (!socket.ok()) return self->finish(socket.status(), false);
                          self->attach(std::make_shared<Peer>(self->pool_, self->key(), std::move(*socket)), false);
                        });
  }

  void attach(std::shared_ptr<Peer> peer, bool reused) {
    peer_ = std::move(peer);
    peer_->call = this;
    reused_ = reused;
    received_ = false;
    sent_ = 0;
    parser_ = std::make_unique<ResponseParser>(request_.method == "HEAD", ResponseParser::Sink{[this](int status, Headers headers) {
                                                                                                 return run([&] {
                                                                                                   if (callbacks_.on_headers)
                                                                                                     callbacks_.on_headers(status, headers);
                                                                                                 });
                                                                                               },
                                                                                               [this](std::string_view data) {
                                                                                                 return run([&] {
                                                                                                   if (callbacks_.on_data)
                                                                                                     callbacks_.on_data(data);
                                                                                                 });
                                                                                               }});
    touch();
    peer_->arm_read();
    send_request();
  }

  void send_request() {
    const std::size_t total = head_.size() + request_.body.size();
    if (sent_ == total) return;
    iovec parts[2];
    std::size_t count = 0;
    if (sent_ < head_.size()) parts[count++] = {head_.data() + sent_, head_.size() - sent_};
    const std::size_t body_sent = sent_ < head_.size() ? 0 : sent_ - head_.size();
    if (body_sent < request_.body.size())
      parts[count++] = {const_cast<char*>(request_.body.data()) + body_sent, request_.body.size() - body_sent};
    const Io result = peer_->socket->write({parts, count});
    // An error is seen by the reader too, after what the peer may have answered (413, say) before it closed.
    if (result.state == Io::kError) return;
    sent_ += result.bytes;
    if (sent_ == total) return;
    if (result.bytes > 0) touch();
    peer_->socket->wait_write([weak = weak_from_this(), peer = peer_] {
      const auto self = weak.lock();
      if (self && self->peer_ == peer) self->send_request();
    });
  }

  void on_input(std::string_view bytes) {
    const std::size_t waiting = in_.size();
    if (waiting > 0) {
      in_.append(bytes);
      bytes = in_;
    }
    const std::size_t taken = parser_->put(bytes);
    if (finished_) return;  // cancelled by a callback
    if (parser_->failed()) return finish(Status(Code::kDataLoss, key() + " sent invalid HTTP: " + parser_->error_message()), false);
    if (parser_->done()) {
      const bool whole = sent_ == head_.size() + request_.body.size();
      return finish(Status(), parser_->keep_alive() && whole && taken == bytes.size());
    }
    if (waiting > 0)
      in_.erase(0, taken);
    else
      in_.assign(bytes.substr(taken));
    if (in_.size() > kUnparsedBytesMax) return finish(Status(Code::kDataLoss, key() + " sent an endless chunk line or trailer"), false);
    peer_->arm_read();
  }

  // The peer went away before the answer was whole.
  void on_cut(const std::string& how) {
    // It had closed the idle connection before it saw this request; that says nothing about the peer.
    if (reused_ && !received_) {
      release(false);
      return connect();
    }
    finish(Status(Code::kUnavailable, key() + " " + how + (received_ ? " before the answer was complete" : " without an answer")), false);
  }

  void touch() { deadline_.set(pool_->loop, pool_->loop.clock().now() + request_.idle_timeout, shared_from_this()); }

  void release(bool reusable) {
    deadline_.clear();
    if (dial_) std::exchange(dial_, nullptr)->cancel();
    const auto peer = std::exchange(peer_, nullptr);
    if (!peer) return;
    peer->call = nullptr;
    if (!reusable) return peer->socket->close();
    peer->arm_read();
    pool_->put(peer);
  }

  void finish(Status status, bool reusable) {
    if (finished_) return;
    const auto self = shared_from_this();
    finished_ = true;
    release(reusable);
    running_ = true;
    if (callbacks_.on_done) callbacks_.on_done(std::move(status));
    running_ = false;
    drop_callbacks();
  }

  // Runs a callback, which may cancel or destroy the call. False if it did.
  template <class F>
  bool run(F callback) {
    if (finished_) return false;
    running_ = true;
    callback();
    running_ = false;
    if (finished_) drop_callbacks();
    return !finished_;
  }

  // Not while one of them runs: it may be a lambda that still uses its captures.
  void drop_callbacks() {
    if (running_) return;
    const auto unused = std::exchange(callbacks_, {});
  }

  const std::shared_ptr<Pool> pool_;
  const HttpClientRequest request_;
  HttpClientCallbacks callbacks_;
  std::string head_;
  std::shared_ptr<Dial> dial_;
  std::shared_ptr<Peer> peer_;
  std::unique_ptr<ResponseParser> parser_;
  std::string in_;  // received and not yet parsed
  Deadline<Call> deadline_;
  std::size_t sent_ = 0;  // of head_ and body
  bool reused_ = false;
  bool received_ = false;
  bool running_ = false;
  bool finished_ = false;
};

void Peer::arm_read() {
  if (reading || !socket->open()) return;
  reading = true;
  socket->wait_read([self = shared_from_this()] {
    self->reading = false;
    if (!self->socket->open()) return;
    if (self->call != nullptr) return self->call->on_readable();
    // Closed by the peer, or bytes that nobody asked for.
    self->pool->drop(*self);
  });
}

void Peer::on_deadline() {
  if (call == nullptr) pool->drop(*this);
}

class HttpCallImpl final : public HttpCall {
 public:
  explicit HttpCallImpl(std::shared_ptr<Call> call) : call_(std::move(call)) {}
  ~HttpCallImpl() override { call_->cancel(); }
  void cancel() override { call_->cancel(); }

 private:
  const std::shared_ptr<Call> call_;
};

class HttpClientImpl final : public HttpClient {
 public:
  HttpClientImpl(EventLoop& loop, HttpClientOptions options) : pool_(std::make_shared<Pool>(loop, options)) {}
  ~HttpClientImpl() override { pool_->close(); }

  std::unique_ptr<HttpCall> call(HttpClientRequest request, HttpClientCallbacks callbacks) override {
    auto call = std::make_shared<Call>(pool_, std::move(request), std::move(callbacks));
    // Posted, so that no callback runs before the caller has the handle.
    pool_->loop.post([call] { call->start(); });
    return std::make_unique<HttpCallImpl>(std::move(call));
  }

 private:
  const std::shared_ptr<Pool> pool_;
};

}  // namespace

std::unique_ptr<HttpClient> HttpClient::create(EventLoop& loop, HttpClientOptions options) {
  return std::make_unique<HttpClientImpl>(loop, options);
}

}  // namespace baton::net
