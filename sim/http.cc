#include "sim/http.h"

#include <optional>
#include <utility>

namespace baton::sim {
namespace {

// A frame is its kind, the length of its body as four bytes, and the body.
constexpr std::size_t kHeaderBytes = 5;
enum Kind : char { kRequest = 'Q', kHead = 'H', kData = 'D', kEnd = 'E' };

void put_u32(std::string& out, std::size_t value) {
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>(value >> shift & 255));
}
std::size_t get_u32(std::string_view in) {
  std::size_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(in[static_cast<std::size_t>(i)]);
  return value;
}
void put(std::string& out, std::string_view text) {
  put_u32(out, text.size());
  out += text;
}
std::string take(std::string_view& in) {
  const std::size_t size = get_u32(in);
  std::string text(in.substr(4, size));
  in.remove_prefix(4 + size);
  return text;
}
void put(std::string& out, const net::Headers& headers) {
  put_u32(out, headers.fields().size());
  for (const auto& [name, value] : headers.fields()) {
    put(out, name);
    put(out, value);
  }
}
net::Headers take_headers(std::string_view& in) {
  net::Headers headers;
  std::size_t count = get_u32(in);
  in.remove_prefix(4);
  for (; count > 0; --count) {
    std::string name = take(in);
    headers.add(std::move(name), take(in));
  }
  return headers;
}
std::string frame(Kind kind, std::string_view body) {
  std::string out(1, kind);
  put(out, body);
  return out;
}
// The next whole frame, if it is there.
std::optional<std::pair<Kind, std::string>> next_frame(std::string& buffer) {
  if (buffer.size() < kHeaderBytes) return std::nullopt;
  const std::size_t size = get_u32(std::string_view(buffer).substr(1));
  if (buffer.size() < kHeaderBytes + size) return std::nullopt;
  std::pair<Kind, std::string> out(static_cast<Kind>(buffer[0]), buffer.substr(kHeaderBytes, size));
  buffer.erase(0, kHeaderBytes + size);
  return out;
}

// ---------------------------------------------------------------------------------------------------------------- client

// A call lives until its last callback; the application's handle drops it earlier.
class Call : public std::enable_shared_from_this<Call> {
 public:
  Call(Host& host, net::HttpClientRequest request, net::HttpClientCallbacks callbacks)
      : host_(host), request_(std::move(request)), callbacks_(std::move(callbacks)) {}
  ~Call() { host_.cancel(idle_); }

  void start(Network& network) {
    network.connect(host_, request_.host, request_.port, request_.connect_timeout,
                    [weak = weak_from_this()](Result<std::unique_ptr<net::Link>> link) {
                      const auto self = weak.lock();
                      if (!self) return;
                      if (!link.ok()) return self->done(link.status());
                      self->connected(std::move(link).value());
                    });
  }
  void drop() {
    over_ = true;
    host_.cancel(idle_);
    link_.reset();
    callbacks_ = {};
  }

 private:
  void connected(std::unique_ptr<net::Link> link) {
    link_ = std::move(link);
    link_->start({.on_bytes =
                      [weak = weak_from_this()](std::string_view bytes) {
                        if (const auto self = weak.lock()) self->on_bytes(bytes);
                      },
                  .on_closed =
                      [weak = weak_from_this()](const Status& why) {
                        if (const auto self = weak.lock()) self->done(Status(Code::kUnavailable, "the answer was cut: " + why.message()));
                      }});
    std::string body;
    put(body, request_.method);
    put(body, request_.target);
    put(body, request_.headers);
    put(body, request_.body);
    if (Status s = link_->send(frame(kRequest, body)); !s.ok()) return done(s);
    wait();
  }
  void wait() {
    host_.cancel(idle_);
    idle_ = host_.after(request_.idle_timeout, [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->done(Status(Code::kDeadlineExceeded, "nothing was received in time"));
    });
  }
  // Data is passed on as it comes, whatever frame it belongs to.
  void on_bytes(std::string_view bytes) {
    const auto self = shared_from_this();
    wait();
    buffer_ += bytes;
    while (!over_) {
      if (data_left_ > 0) {
        if (buffer_.empty()) return;
        std::string data = buffer_.substr(0, data_left_);
        buffer_.erase(0, data.size());
        data_left_ -= data.size();
        const auto on_data = callbacks_.on_data;
        if (on_data) on_data(data);
        continue;
      }
      if (!buffer_.empty() && buffer_[0] == kData) {
        if (buffer_.size() < kHeaderBytes) return;
        data_left_ = get_u32(std::string_view(buffer_).substr(1));
        buffer_.erase(0, kHeaderBytes);
        continue;
      }
      const auto next = next_frame(buffer_);
      if (!next) return;
      if (next->first == kEnd) return done(Status());
      std::string_view in = next->second;
      const int status = static_cast<int>(get_u32(in));
      in.remove_prefix(4);
      const auto on_headers = callbacks_.on_headers;
      if (on_headers) on_headers(status, take_headers(in));
    }
  }
  void done(Status status) {
    if (over_) return;
    const auto self = shared_from_this();
    const auto on_done = callbacks_.on_done;
    drop();
    if (on_done) on_done(std::move(status));
  }

  Host& host_;
  const net::HttpClientRequest request_;
  net::HttpClientCallbacks callbacks_;
  std::unique_ptr<net::Link> link_;
  std::string buffer_;
  std::size_t data_left_ = 0;
  net::Executor::TimerId idle_ = 0;
  bool over_ = false;
};

class CallHandle final : public net::HttpCall {
 public:
  explicit CallHandle(std::shared_ptr<Call> call) : call_(std::move(call)) {}
  ~CallHandle() override { call_->drop(); }
  void cancel() override { call_->drop(); }

 private:
  const std::shared_ptr<Call> call_;
};

}  // namespace

std::unique_ptr<net::HttpCall> HttpClient::call(net::HttpClientRequest request, net::HttpClientCallbacks callbacks) {
  const auto call = std::make_shared<Call>(host_, std::move(request), std::move(callbacks));
  call->start(network_);
  return std::make_unique<CallHandle>(call);
}

// ---------------------------------------------------------------------------------------------------------------- server

struct HttpServer::Connection {
  std::unique_ptr<net::Link> link;
  std::string buffer;
  bool asked = false;   // the request has come
  bool closed = false;  // the client is gone
  std::function<void()> on_close;
};

class HttpServer::Responder final : public net::HttpResponder {
 public:
  Responder(Host& host, std::weak_ptr<Connections> connections, std::uint64_t id)
      : host_(host), connections_(std::move(connections)), id_(id) {}
  ~Responder() override {
    if (!begun_) respond(500, {}, "");
    remove();  // without an end the answer is cut
  }
  void respond(int status, net::Headers headers, std::string body) override {
    if (begun_) return;
    begun_ = true;
    send(head(status, headers) + frame(kData, body) + frame(kEnd, ""));
    remove();
  }
  void start_stream(int status, net::Headers headers) override {
    if (begun_) return;
    begun_ = true;
    send(head(status, headers));
  }
  bool write(std::string chunk) override { return send(frame(kData, chunk)); }
  void end() override {
    send(frame(kEnd, ""));
    remove();
  }
  void on_close(std::function<void()> handler) override {
    if (const auto c = find(); c && !c->closed) c->on_close = std::move(handler);
  }
  bool closed() const override {
    const auto c = find();
    return c && c->closed;
  }

 private:
  static std::string head(int status, const net::Headers& headers) {
    std::string body;
    put_u32(body, static_cast<std::size_t>(status));
    put(body, headers);
    return frame(kHead, body);
  }
  std::shared_ptr<Connection> find() const {
    const auto all = connections_.lock();
    if (!all) return nullptr;
    const auto found = all->find(id_);
    return found == all->end() ? nullptr : found->second;
  }
  bool send(std::string bytes) {
    const auto c = find();
    if (!c || c->closed) return false;
    if (c->link->send(std::move(bytes)).ok()) return true;
    c->closed = true;
    host_.post([c] {
      c->link.reset();
      if (const auto handler = std::exchange(c->on_close, nullptr)) handler();
    });
    return false;
  }
  void remove() {
    if (const auto all = connections_.lock()) {
      const auto dropped = all->extract(id_);
      if (!dropped.empty()) dropped.mapped()->on_close = nullptr;
    }
  }
  Host& host_;
  const std::weak_ptr<Connections> connections_;
  const std::uint64_t id_;
  bool begun_ = false;
};

HttpServer::HttpServer(Host& host, Network& network, int port, Handler handler) : host_(host), handler_(std::move(handler)) {
  network.listen(host, port, [this](std::unique_ptr<net::Link> link) { accept(std::move(link)); });
}

HttpServer::~HttpServer() {
  const auto dropped = std::exchange(*connections_, {});
  for (const auto& [id, c] : dropped) c->on_close = nullptr;
}

void HttpServer::accept(std::unique_ptr<net::Link> link) {
  const std::uint64_t id = next_++;
  const auto c = std::make_shared<Connection>();
  net::Link& started = *link;
  c->link = std::move(link);
  connections_->emplace(id, c);
  const std::weak_ptr<Connection> weak = c;
  started.start({.on_bytes =
                     [this, weak, id](std::string_view bytes) {
                       const auto self = weak.lock();
                       if (!self || self->asked) return;
                       self->buffer += bytes;
                       const auto request = next_frame(self->buffer);
                       if (!request) return;
                       self->asked = true;
                       std::string_view in = request->second;
                       net::HttpRequest r;
                       r.method = take(in);
                       r.path = take(in);
                       if (const auto query = r.path.find('?'); query != std::string::npos) {
                         r.query = r.path.substr(query + 1);
                         r.path.resize(query);
                       }
                       r.headers = take_headers(in);
                       r.body = take(in);
                       r.remote = self->link->peer();
                       handler_(std::move(r), std::make_shared<Responder>(host_, connections_, id));
                     },
                 .on_closed =
                     [weak, id, all = std::weak_ptr(connections_)](const Status&) {
                       const auto self = weak.lock();
                       if (!self || self->closed) return;
                       self->closed = true;
                       self->link.reset();
                       const auto handler = std::exchange(self->on_close, nullptr);
                       if (!self->asked) {
                         if (const auto connections = all.lock()) connections->erase(id);
                       }
                       if (handler) handler();
                     }});
}

}  // namespace baton::sim
