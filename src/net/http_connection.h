#pragma once
// The server's side of one connection: requests in order, one answer at a time. For net/*.cc only.

#include <memory>
#include <set>
#include <string>

#include "net/http.h"
#include "net/http_parser.h"
#include "net/socket.h"

namespace baton::net {

class Connection;
class Exchange;

// What the connections of one server share. It outlives the server while a responder is still held.
struct ServerCore {
  ServerCore(EventLoop& l, HttpServerOptions o, HttpServer::Handler h) : loop(l), options(std::move(o)), handler(std::move(h)) {}
  EventLoop& loop;
  const HttpServerOptions options;
  const HttpServer::Handler handler;
  bool alive = true;      // false once the server is gone: no callback after that
  bool draining = false;  // answers end their connection
  std::set<Connection*> connections;
  std::int64_t date_second = -1;  // of `date`, made once a second
  std::string date;
};

class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<ServerCore> core, int fd);
  ~Connection();
  void start();
  // Answers 503 whatever is asked, and closes.
  void refuse();
  // Closes without telling the handler of a running answer.
  void drop();
  bool idle() const { return phase_ == Phase::kReading && !parser_ && in_.empty(); }
  // Of idle ones, the least goes first where room is wanted.
  std::pair<bool, TimePoint> worth() const { return {!first_request_, since_}; }

  // For Exchange. Each queues or sends; none calls the user's code before it returns.
  void send_answer(std::string head, std::string body);
  void send_stream_head(std::string head);
  bool send_chunk(std::string_view chunk, bool chunked);
  void end_stream(bool end_mark, bool close);
  void cut(bool reset);
  std::string make_head(int status, const Headers& headers) const;

  bool answers_keep_alive() const { return keep_alive_ && !core_->draining; }
  ServerCore& core() { return *core_; }

 private:
  friend class Deadline<Connection>;
  enum class Phase {
    kReading,    // waiting for a request, or in the middle of one
    kAnswering,  // until the answer has been handed over and is out of our buffer
    kLingering,  // answered for good: the peer may still be sending, and must be able to read the answer before it gets a RST
    kClosed,
  };

  void arm_read();
  void on_readable();
  void on_end_of_input(bool error);
  void process_input();
  std::size_t feed(std::string_view bytes);
  void dispatch();
  void fail(int status, std::string message);
  void after_send(const Io& result);
  void answered();
  void linger();
  void peer_gone(bool reset);
  void close_now();
  void update_deadline();
  void on_deadline();

  const std::shared_ptr<ServerCore> core_;
  Socket socket_;
  Deadline<Connection> deadline_;
  Phase phase_ = Phase::kReading;
  std::string in_;  // received and not yet parsed
  std::unique_ptr<RequestParser> parser_;
  OutBuffer out_;
  Exchange* exchange_ = nullptr;  // the running one; it holds this connection
  std::string remote_;
  TimePoint since_{};          // of what the deadline of this phase counts from
  TimePoint request_began_{};  // its first byte
  std::size_t lingered_bytes_ = 0;
  bool first_request_ = true;
  bool reading_ = false;  // a wait for input is pending
  bool blocked_ = false;  // a wait for room to send is pending
  bool flush_posted_ = false;
  bool processing_ = false;  // process_input is on the stack
  bool continued_ = false;   // "100 Continue" was sent for this request
  bool keep_alive_ = false;
  bool input_ended_ = false;
};

}  // namespace baton::net
