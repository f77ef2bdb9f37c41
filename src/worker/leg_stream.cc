#include "worker/leg_stream.h"

#include <utility>

namespace baton::worker {

std::shared_ptr<LegStream> LegStream::create(net::Executor& loop, std::shared_ptr<net::HttpResponder> responder, LegSubject subject) {
  return std::shared_ptr<LegStream>(new LegStream(loop, std::move(responder), std::move(subject)));
}

void LegStream::start() {
  net::Headers headers;
  headers.add("content-type", "application/x-ndjson");
  started_ = true;
  responder_->start_stream(200, std::move(headers));
  flush();
}

void LegStream::token(wire::TokenEvent event) {
  if (ended()) return;
  tokens_.push_back(std::move(event));
  flush_later();
}

void LegStream::send(const wire::LegEvent& event) {
  if (ended()) return;
  append_tokens();
  lines_ += wire::to_json(event);
  lines_ += '\n';
  flush_later();
}

void LegStream::beat() {
  if (std::exchange(quiet_, true)) {
    send(wire::Alive{});
    flush();
    quiet_ = true;  // that was not news
  }
}

void LegStream::end(const wire::LegEvent& event) {
  if (ended()) return;
  if (const auto* failed = std::get_if<wire::Failed>(&event)) {
    log::info(subject_.about(), "{} failed: {}", subject_.what, failed->status.to_string());
  } else if (const auto* nacked = std::get_if<wire::Nacked>(&event)) {
    log::info(subject_.about(), "{} nacked: {}", subject_.what, nacked->status.to_string());
  } else {
    log::debug(subject_.about(), "{} is done", subject_.what);
  }
  send(event);
  flush();
  if (auto responder = std::exchange(responder_, nullptr)) responder->end();
}

void LegStream::append_tokens() {
  if (tokens_.empty()) return;
  lines_ += wire::to_json(wire::Tokens{std::exchange(tokens_, {})});
  lines_ += '\n';
}

void LegStream::flush() {
  append_tokens();
  if (!started_ || ended() || lines_.empty()) return;
  quiet_ = false;
  (void)responder_->write(std::exchange(lines_, {}));  // false: the client is gone, which on_close tells
}

void LegStream::flush_later() {
  if (std::exchange(flush_posted_, true)) return;
  loop_.post([self = shared_from_this()] {
    self->flush_posted_ = false;
    self->flush();
  });
}

void refuse(net::HttpResponder& responder, const Status& status, int retry_after_s) {
  net::Headers headers;
  headers.add("content-type", "application/json");
  if (retryable(status.code())) headers.add("retry-after", std::to_string(retry_after_s));
  responder.respond(http_status(status.code()), std::move(headers), wire::to_json(wire::Failed{status}));
}

}  // namespace baton::worker
