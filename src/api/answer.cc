#include "api/answer.h"

#include <algorithm>

#include "api/errors.h"
#include "api/json_text.h"

namespace baton::api {

struct Answer::Choice {
  Choice(int index_in, Prompt& prompt_in, const text::Tokenizer& tokenizer, const ParsedRequest& request)
      : index(index_in), prompt(prompt_in), text_state(tokenizer, request) {}
  const int index;  // over all prompts
  Prompt& prompt;
  ChoiceState text_state;
  std::optional<wire::TokenEvent> pending;  // held until the turn ends, so that a finish can join its token's chunk
  bool opened = false;
  bool done = false;
  std::size_t text_offset = 0;
  TimePoint last_token{};
  // whole answers
  std::string text;
  std::vector<ShownLogprob> logprobs;
  std::vector<TokenId> ids;
  std::string finish_reason;
  std::optional<TokenId> stop_token;
};

struct Answer::Prompt {
  int index = 0;
  std::vector<TokenId> ids;
  int n = 1;
  std::unique_ptr<wire::GenerateCall> call;
  std::int32_t cached_tokens = 0;
  std::vector<ShownLogprob> echo_logprobs;
};

class Answer::PromptSink final : public wire::GenerateSink {
 public:
  PromptSink(std::shared_ptr<Answer> answer, Prompt& prompt) : answer_(std::move(answer)), prompt_(prompt) {}
  void on_served(const wire::Served& served) override { answer_->on_served(prompt_, served); }
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) override {
    answer_->on_prompt_logprobs(prompt_, std::move(entries));
  }
  void on_token(wire::TokenEvent event) override { answer_->on_token(prompt_, std::move(event)); }
  void on_finish(wire::FinishEvent event) override { answer_->on_finish(prompt_, event); }
  void on_done(Status status) override { answer_->on_done(prompt_, status); }

 private:
  const std::shared_ptr<Answer> answer_;
  Prompt& prompt_;
};

void Answer::start(const AnswerContext& context, ParsedRequest request, std::shared_ptr<net::HttpResponder> responder, std::string id,
                   std::function<void()> on_end) {
  std::make_shared<Answer>(context, std::move(request), std::move(responder), std::move(id), std::move(on_end))->run();
}

Answer::Answer(const AnswerContext& context, ParsedRequest request, std::shared_ptr<net::HttpResponder> responder, std::string id,
               std::function<void()> on_end)
    : context_(context),
      request_(std::move(request)),
      responder_(std::move(responder)),
      id_(std::move(id)),
      public_id_((request_.endpoint == Endpoint::kChat ? "chatcmpl-" : "cmpl-") + id_),
      on_end_(std::move(on_end)),
      arrival_(context.loop.clock().now()),
      created_(context.loop.clock().unix_seconds()) {
  const char* object = request_.endpoint == Endpoint::kCompletions ? "text_completion"
                       : request_.stream                           ? "chat.completion.chunk"
                                                                   : "chat.completion";
  head_ = "{\"id\":";
  append_json_string(head_, public_id_);
  head_ += std::string(",\"object\":\"") + object + "\",\"created\":" + std::to_string(created_) + ",\"model\":";
  append_json_string(head_, context_.model);
  head_ += ",\"choices\":[";
}

Answer::~Answer() = default;

void Answer::run() {
  const auto self = shared_from_this();
  responder_->on_close([weak = weak_from_this()] {
    if (const auto answer = weak.lock()) answer->end("abort");
  });
  int index = 0;
  for (const wire::GenerateRequest& request : request_.prompts) {
    auto prompt = std::make_unique<Prompt>();
    prompt->index = static_cast<int>(prompts_.size());
    prompt->ids = request.ids;
    prompt->n = request.n;
    for (int c = 0; c < request.n; ++c, ++index) choices_.push_back(std::make_unique<Choice>(index, *prompt, context_.tokenizer, request_));
    prompts_.push_back(std::move(prompt));
  }
  open_choices_ = index;
  for (std::size_t p = 0; p < prompts_.size(); ++p) {
    wire::GenerateRequest request = request_.prompts[p];
    request.id = prompts_.size() == 1 ? id_ : id_ + "/" + std::to_string(p);  // a slash: no client can have given that id to another
    // Ids are unique among those that run, and so are the spans made of them: a client may start many requests in one span of its own.
    if (request_.trace) request.traceparent = to_traceparent(next_hop(*request_.trace, std::hash<std::string>()(request.id)));
    context_.metrics.request_started(request);
    prompts_[p]->call = context_.generator.generate(std::move(request), std::make_shared<PromptSink>(self, *prompts_[p]));
  }
}

Answer::Choice* Answer::choice(Prompt& prompt, int index) {
  const std::size_t at = static_cast<std::size_t>(prompt.index * prompt.n + index);
  return index >= 0 && index < prompt.n && at < choices_.size() ? choices_[at].get() : nullptr;
}

void Answer::on_served(Prompt& prompt, const wire::Served& served) {
  prompt.cached_tokens = served.cached_tokens;
  if (prompt.index == 0) served_ = served;
}

void Answer::on_prompt_logprobs(Prompt& prompt, std::vector<std::optional<wire::TokenEvent>> entries) {
  for (std::size_t i = 0; i < entries.size() && i < prompt.ids.size(); ++i) {
    wire::TokenEvent event = entries[i].value_or(wire::TokenEvent{});
    event.token = prompt.ids[i];
    prompt.echo_logprobs.push_back(show_logprob(context_.tokenizer, event));
  }
}

void Answer::on_token(Prompt& prompt, wire::TokenEvent event) {
  if (ended_) return;
  Choice* c = choice(prompt, event.choice);
  if (!c || c->done) return;
  const TimePoint now = context_.loop.clock().now();
  if (!any_token_) first_token_ = now;
  any_token_ = true;
  last_token_ = now;
  if (c->text_state.tokens() + (c->pending ? 1 : 0) > 0) context_.metrics.inter_token(now - c->last_token);
  c->last_token = now;
  if (c->pending) take_token(*c, false, false);
  if (c->done || ended_) return;
  c->pending = std::move(event);
  if (flush_posted_) return;
  flush_posted_ = true;
  context_.loop.post([self = shared_from_this()] { self->flush_pending(); });
}

void Answer::flush_pending() {
  flush_posted_ = false;
  if (ended_) return;
  for (const auto& c : choices_)
    if (c->pending && !ended_) take_token(*c, false, false);
  if (!ended_ && !out_.empty() && !responder_->write(std::exchange(out_, {}))) end("abort");
}

// Turns the pending token into text and, if streaming, into a chunk. `hidden`: it ended the choice and is not text. `last`: the finish
// follows and joins its token's chunk, as clients that measure the gaps between chunks expect.
void Answer::take_token(Choice& c, bool hidden, bool last) {
  ChoiceState::Piece piece = c.text_state.push(*c.pending, hidden);
  c.pending.reset();
  std::vector<ShownLogprob> logprobs;
  if (piece.logprob) logprobs.push_back(std::move(*piece.logprob));
  if (request_.stream) {
    if (last || piece.stopped) {
      c.text = std::move(piece.text);
      c.logprobs = std::move(logprobs);
      c.ids = {*piece.token};
    } else {
      write_chunk(c, piece.text, logprobs, {*piece.token}, nullptr);
    }
  } else {
    c.text += piece.text;
    c.ids.push_back(*piece.token);
    std::move(logprobs.begin(), logprobs.end(), std::back_inserter(c.logprobs));
  }
  if (piece.stopped) finish_choice(c, "stop", std::nullopt);
}

void Answer::on_finish(Prompt& prompt, const wire::FinishEvent& event) {
  if (ended_) return;
  Choice* c = choice(prompt, event.choice);
  if (!c || c->done) return;
  const char* reason = event.reason == wire::FinishReason::kStop     ? "stop"
                       : event.reason == wire::FinishReason::kLength ? "length"
                                                                     : "abort";
  if (c->pending) take_token(*c, event.stop_token && *event.stop_token == c->pending->token, true);
  if (!c->done) finish_choice(*c, reason, event.stop_token);
}

// `stop_token` or a stop string is what ended it; its text state gives up what it held.
void Answer::finish_choice(Choice& c, const char* reason, std::optional<TokenId> stop_token) {
  const bool stopped_by_text = !c.text_state.stop_string().empty();
  if (!stopped_by_text) {
    c.text += c.text_state.finish();
    if (!c.text_state.stop_string().empty()) reason = "stop";
  }
  c.done = true;
  c.finish_reason = reason;
  c.stop_token = stop_token;
  if (request_.stream) write_chunk(c, c.text, c.logprobs, c.ids, c.finish_reason.c_str());
  if (--open_choices_ == 0) return complete();
  if (stopped_by_text) {
    Prompt& prompt = c.prompt;
    const int index = c.index - prompt.index * prompt.n;
    context_.loop.post([self = shared_from_this(), &prompt, index] {
      if (prompt.call) prompt.call->finish_choice(index);
    });
  }
}

void Answer::on_done(Prompt& prompt, const Status& status) {
  if (ended_) return;
  if (!status.ok()) return fail(status);
  // Every choice has finished by contract; one that has not is an error of the generator, never a silent end.
  for (int i = 0; i < prompt.n; ++i)
    if (Choice* c = choice(prompt, i); c && !c->done)
      return fail(Status(Code::kInternal, "the generator ended without finishing every choice"));
}

net::Headers Answer::headers() const {
  net::Headers h;
  h.add("x-request-id", id_);
  if (!served_.prefill_worker.empty()) h.add("x-baton-prefill-worker", served_.prefill_worker);
  if (!served_.decode_worker.empty()) h.add("x-baton-decode-worker", served_.decode_worker);
  h.add("x-baton-disaggregated", served_.disaggregated ? "true" : "false");
  if (served_.attempts > 1) h.add("x-baton-attempts", std::to_string(served_.attempts));
  if (!served_.fallback.empty()) h.add("x-baton-fallback", served_.fallback);
  return h;
}

void Answer::begin_stream() {
  streaming_ = true;
  net::Headers h = headers();
  h.add("Content-Type", "text/event-stream; charset=utf-8");
  h.add("Cache-Control", "no-cache");
  h.add("X-Accel-Buffering", "no");
  responder_->start_stream(200, std::move(h));
}

// What comes before a choice's first token: chat's role chunk, a completion's echo.
void Answer::open_choice(Choice& c) {
  c.opened = true;
  const std::string index = std::to_string(c.index);
  if (request_.endpoint == Endpoint::kChat) {
    out_ += "data: " + head_ + "{\"index\":" + index +
            ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]";
    if (request_.return_token_ids) {
      out_ += ",\"prompt_token_ids\":" + Json(c.prompt.ids).dump();
    }
    out_ += "}\n\n";
  } else if (request_.echo) {
    const std::string& text = request_.prompt_texts[static_cast<std::size_t>(c.prompt.index)];
    write_chunk(c, text, c.prompt.echo_logprobs, {}, nullptr);
  }
}

void Answer::write_chunk(Choice& c, const std::string& text, const std::vector<ShownLogprob>& logprobs, const std::vector<TokenId>& ids,
                         const char* finish_reason) {
  if (!streaming_) begin_stream();
  if (!c.opened) open_choice(c);
  const bool chat = request_.endpoint == Endpoint::kChat;
  out_ += "data: ";
  out_ += head_;
  out_ += "{\"index\":";
  out_ += std::to_string(c.index);
  out_ += chat ? ",\"delta\":{\"content\":" : ",\"text\":";
  append_json_string(out_, text);
  out_ += chat ? "},\"logprobs\":" : ",\"logprobs\":";
  if (logprobs.empty()) {
    out_ += "null";
  } else if (chat) {
    append_chat_logprobs(out_, logprobs, request_.tokens_as_ids);
  } else {
    append_completion_logprobs(out_, logprobs, request_.tokens_as_ids, c.text_offset);
  }
  if (finish_reason) {
    out_ += ",\"finish_reason\":\"";
    out_ += finish_reason;
    out_ += '"';
    append_stop_reason(out_, c);
  } else {
    out_ += ",\"finish_reason\":null";
    if (!chat) out_ += ",\"stop_reason\":null";
  }
  if (request_.return_token_ids) out_ += ",\"token_ids\":" + Json(ids).dump();
  out_ += "}]";
  if (request_.continuous_usage) {
    out_ += ',';
    append_usage(out_);
  }
  out_ += "}\n\n";
}

void Answer::append_stop_reason(std::string& out, const Choice& c) const {
  out += ",\"stop_reason\":";
  const std::vector<TokenId>& own = request_.prompts[static_cast<std::size_t>(c.prompt.index)].sampling.stop_token_ids;
  if (!c.text_state.stop_string().empty()) {
    append_json_string(out, c.text_state.stop_string());
  } else if (c.stop_token && std::find(own.begin(), own.end(), *c.stop_token) != own.end()) {
    out += std::to_string(*c.stop_token);
  } else {
    out += "null";
  }
}

void Answer::append_usage(std::string& out) const {
  std::int64_t prompt = 0, cached = 0, generated = 0;
  for (const auto& p : prompts_) {
    prompt += static_cast<std::int64_t>(p->ids.size());
    cached += p->cached_tokens;
  }
  for (const auto& c : choices_) generated += c->text_state.tokens();
  out += "\"usage\":{\"prompt_tokens\":" + std::to_string(prompt) + ",\"total_tokens\":" + std::to_string(prompt + generated) +
         ",\"completion_tokens\":" + std::to_string(generated) + ",\"prompt_tokens_details\":{\"cached_tokens\":" + std::to_string(cached) +
         "}}";
}

// Every choice has ended.
void Answer::complete() {
  if (request_.echo && !request_.stream) {
    for (const auto& p : prompts_)
      if (request_.prompts[static_cast<std::size_t>(p->index)].sampling.prompt_logprobs >= 0 && p->echo_logprobs.empty())
        return fail(Status(Code::kUnavailable, "the prompt's log-probabilities were lost on the way; retry"));
  }
  if (!request_.stream) {
    respond_whole();
  } else {
    if (request_.include_usage) {
      out_ += "data: " + head_ + "],";
      append_usage(out_);
      out_ += "}\n\n";
    }
    out_ += "data: [DONE]\n\n";
    if (responder_->write(std::exchange(out_, {}))) responder_->end();
  }
  end(choices_.front()->finish_reason == "length" ? "length" : "stop");
}

void Answer::respond_whole() {
  const bool chat = request_.endpoint == Endpoint::kChat;
  std::string body = head_;
  for (const auto& c : choices_) {
    if (c->index) body += ',';
    body += "{\"index\":" + std::to_string(c->index);
    const std::string echo = request_.echo ? request_.prompt_texts[static_cast<std::size_t>(c->prompt.index)] : std::string();
    body += chat ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"text\":";
    append_json_string(body, echo + c->text);
    body += chat ? "},\"logprobs\":" : ",\"logprobs\":";
    std::vector<ShownLogprob> logprobs = request_.echo ? c->prompt.echo_logprobs : std::vector<ShownLogprob>();
    logprobs.insert(logprobs.end(), c->logprobs.begin(), c->logprobs.end());
    if (logprobs.empty()) {
      body += "null";
    } else if (chat) {
      append_chat_logprobs(body, logprobs, request_.tokens_as_ids);
    } else {
      append_completion_logprobs(body, logprobs, request_.tokens_as_ids, c->text_offset);
    }
    body += ",\"finish_reason\":\"" + c->finish_reason + '"';
    append_stop_reason(body, *c);
    if (request_.return_token_ids) body += ",\"prompt_token_ids\":" + Json(c->prompt.ids).dump() + ",\"token_ids\":" + Json(c->ids).dump();
    body += '}';
  }
  body += "],";
  append_usage(body);
  body += ",\"system_fingerprint\":";
  append_json_string(body, context_.fingerprint);
  body += '}';
  net::Headers h = headers();
  h.add("Content-Type", "application/json");
  responder_->respond(200, std::move(h), std::move(body));
}

// Before the first byte a real HTTP status, after it an error event; never a 200 that looks complete.
void Answer::fail(const Status& status) {
  if (!streaming_) {
    respond_error(*responder_, ApiError{status, ""}, headers());
  } else {
    out_ += "data: " + error_body(ApiError{status, ""}) + "\n\ndata: [DONE]\n\n";
    if (responder_->write(std::exchange(out_, {}))) responder_->end();
  }
  end(status.code() == Code::kCancelled ? "abort" : "error");
}

void Answer::end(const char* reason) {
  if (ended_) return;
  ended_ = true;
  record(reason);
  // Calls end outside of their own callbacks; ending them cancels what still runs and lets go of this answer.
  context_.loop.post([self = shared_from_this()] {
    for (const auto& prompt : self->prompts_) prompt->call.reset();
    if (self->on_end_) std::exchange(self->on_end_, {})();
  });
}

void Answer::record(const char* reason) {
  const TimePoint now = context_.loop.clock().now();
  std::int32_t prompt = 0, cached = 0, generated = 0;
  for (const auto& p : prompts_) {
    prompt += static_cast<std::int32_t>(p->ids.size());
    cached += p->cached_tokens;
  }
  for (const auto& c : choices_) generated += c->text_state.tokens();
  const auto ms = [](double value) { return value < 0 ? Duration(-1) : Duration(static_cast<std::int64_t>(value * 1e3)); };
  const bool prefilled = served_.prefill_start_ms >= 0 && served_.prefill_end_ms >= 0;
  context_.metrics.request_finished({reason, prompt, cached, generated, ms(served_.prefill_start_ms),
                                     prefilled ? ms(served_.prefill_end_ms - served_.prefill_start_ms) : Duration(-1),
                                     any_token_ ? last_token_ - first_token_ : Duration(-1),
                                     any_token_ ? first_token_ - arrival_ : Duration(-1), now - arrival_, served_.disaggregated,
                                     served_.kv_bytes});
}

}  // namespace baton::api
