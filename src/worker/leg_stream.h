#pragma once
// One streamed answer of a worker: events as JSON lines. What happens within one turn of the loop is written at once, and its tokens are
// one line: a step's tokens cost one write per request.

#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "net/event_loop.h"
#include "net/http.h"
#include "wire/worker_api.h"

namespace baton::worker {

// What a leg is about, for the lines of the log.
struct LegSubject {
  std::string what;  // "decode leg, attempt 2"
  std::string request, trace_id;
  log::About about() const { return {request, trace_id}; }
};

class LegStream : public std::enable_shared_from_this<LegStream> {
 public:
  // Events may be sent before start(); nothing is written until then, so that a leg can still be refused.
  static std::shared_ptr<LegStream> create(net::Executor& loop, std::shared_ptr<net::HttpResponder> responder, LegSubject subject);
  void start();  // 200
  ~LegStream() = default;

  void token(wire::TokenEvent event);
  void send(const wire::LegEvent& event);
  // Called now and then: says Alive if nothing was written since the last call.
  void beat();
  // The last event, Done or Failed or Nacked; nothing after it is written.
  void end(const wire::LegEvent& event);
  const LegSubject& subject() const { return subject_; }
  bool ended() const { return responder_ == nullptr; }

 private:
  LegStream(net::Executor& loop, std::shared_ptr<net::HttpResponder> responder, LegSubject subject)
      : loop_(loop), subject_(std::move(subject)), responder_(std::move(responder)) {}
  void append_tokens();
  void flush();
  void flush_later();

  net::Executor& loop_;
  const LegSubject subject_;
  std::shared_ptr<net::HttpResponder> responder_;  // null once ended
  std::vector<wire::TokenEvent> tokens_;
  std::string lines_;
  bool started_ = false, flush_posted_ = false;
  bool quiet_ = false;  // since the last beat
};

// An answer that is not a stream: the status's HTTP code, Retry-After where trying again may help, and a Failed event as its body.
void refuse(net::HttpResponder& responder, const Status& status, int retry_after_s);

}  // namespace baton::worker
