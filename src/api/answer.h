#pragma once
// The answer to one chat or completion request, streamed or whole: joins the events of its Generator calls (one per prompt) to its HTTP
// response.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "api/choice.h"
#include "api/metrics.h"
#include "api/request.h"
#include "net/event_loop.h"
#include "net/http.h"
#include "wire/generate.h"

namespace baton::api {

// What answers share; all borrowed, all outlive every answer.
struct AnswerContext {
  net::Executor& loop;
  wire::Generator& generator;
  Metrics& metrics;
  const text::Tokenizer& tokenizer;
  std::string model;  // the name that replies carry
  std::string fingerprint;
};

class Answer : public std::enable_shared_from_this<Answer> {
 public:
  // Starts the calls and sees the response through; keeps itself alive until then. `id` names the request everywhere; `on_end` is called
  // once.
  static void start(const AnswerContext& context, ParsedRequest request, std::shared_ptr<net::HttpResponder> responder, std::string id,
                    std::function<void()> on_end);
  Answer(const AnswerContext& context, ParsedRequest request, std::shared_ptr<net::HttpResponder> responder, std::string id,
         std::function<void()> on_end);
  ~Answer();

 private:
  class PromptSink;
  struct Choice;
  struct Prompt;

  void run();
  void on_served(Prompt& prompt, const wire::Served& served);
  void on_prompt_logprobs(Prompt& prompt, std::vector<std::optional<wire::TokenEvent>> entries);
  void on_token(Prompt& prompt, wire::TokenEvent event);
  void on_finish(Prompt& prompt, const wire::FinishEvent& event);
  void on_done(Prompt& prompt, const Status& status);

  Choice* choice(Prompt& prompt, int index);
  void flush_pending();
  void take_token(Choice& choice, bool hidden, bool last);
  void finish_choice(Choice& choice, const char* reason, std::optional<TokenId> stop_token);
  void begin_stream();
  void open_choice(Choice& choice);
  void write_chunk(Choice& choice, const std::string& text, const std::vector<ShownLogprob>& logprobs, const std::vector<TokenId>& ids,
                   const char* finish_reason);
  void append_stop_reason(std::string& out, const Choice& choice) const;
  void append_usage(std::string& out) const;
  net::Headers headers() const;
  void complete();
  void respond_whole();
  void fail(const Status& status);
  void end(const char* reason);
  void record(const char* reason);

  const AnswerContext& context_;
  const ParsedRequest request_;
  const std::shared_ptr<net::HttpResponder> responder_;
  const std::string id_;         // the request's own
  const std::string public_id_;  // "chatcmpl-..." or "cmpl-..."
  std::function<void()> on_end_;
  const TimePoint arrival_;
  const std::int64_t created_;
  std::string head_;  // {"id":..,"object":..,"created":..,"model":..,"choices":[

  std::vector<std::unique_ptr<Prompt>> prompts_;
  std::vector<std::unique_ptr<Choice>> choices_;
  wire::Served served_;  // of the first prompt
  int open_choices_ = 0;
  bool streaming_ = false;  // headers are out
  bool flush_posted_ = false;
  bool ended_ = false;
  TimePoint first_token_{}, last_token_{};
  bool any_token_ = false;
  std::string out_;  // events gathered for one write
};

}  // namespace baton::api
