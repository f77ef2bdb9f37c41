#include "api/api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <set>

#include "text/test_vocab.h"

namespace baton::api {
namespace {

using testing::HasSubstr;
using testing::Not;

class ManualExecutor final : public net::Executor {
 public:
  void post(std::function<void()> work) override { queue_.push_back(std::move(work)); }
  TimerId after(Duration, std::function<void()>) override { return 0; }
  void cancel(TimerId) override {}
  const Clock& clock() const override { return clock_; }
  void drain() {
    while (!queue_.empty()) {
      auto work = std::move(queue_.front());
      queue_.pop_front();
      work();
    }
  }

 private:
  ManualClock clock_;
  std::deque<std::function<void()>> queue_;
};

// Remembers what it was asked; the test plays the engine.
class FakeGenerator final : public wire::Generator {
 public:
  struct Started {
    wire::GenerateRequest request;
    std::shared_ptr<wire::GenerateSink> sink;
    bool cancelled = false;
    std::vector<int> finished_choices;
  };
  std::unique_ptr<wire::GenerateCall> generate(wire::GenerateRequest request, std::shared_ptr<wire::GenerateSink> sink) override {
    started.push_back(std::make_shared<Started>(Started{std::move(request), std::move(sink), false, {}}));
    struct Call final : wire::GenerateCall {
      explicit Call(std::shared_ptr<Started> s) : started(std::move(s)) {}
      ~Call() override {
        started->cancelled = true;
        started->sink.reset();
      }
      void finish_choice(int choice) override { started->finished_choices.push_back(choice); }
      std::shared_ptr<Started> started;
    };
    return std::make_unique<Call>(started.back());
  }
  std::vector<std::shared_ptr<Started>> started;
};

struct FakeResponder final : net::HttpResponder {
  void respond(int s, net::Headers h, std::string b) override {
    status = s;
    headers = std::move(h);
    body = std::move(b);
    complete = true;
  }
  void start_stream(int s, net::Headers h) override {
    status = s;
    headers = std::move(h);
  }
  bool write(std::string chunk) override {
    body += chunk;
    return true;
  }
  void end() override { complete = true; }
  void on_close(std::function<void()> handler) override { close_handler = std::move(handler); }
  bool closed() const override { return false; }
  int status = 0;
  net::Headers headers;
  std::string body;
  bool complete = false;
  std::function<void()> close_handler;
};

class ApiTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto json = text::tokenizer_json_from_gguf(text::test_vocab("gpt-2"));
    tokenizer_ = std::move(text::Tokenizer::from_json(*json)).value();
    text::ChatTemplateOptions chat;
    chat.source =
        "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}[{{ m.role }}]{{ m.content }}{% "
        "endfor %}";
    template_ = std::move(text::ChatTemplate::create(chat)).value();
    ApiOptions options;
    options.api_keys = keys();
    options.served_names = {"tiny", "alias"};
    options.root = "/models/tiny.gguf";
    options.version = "1.2.3";
    options.front.tokenizer = tokenizer_.get();
    options.front.chat_template = template_.get();
    options.front.max_model_len = 200;
    options.front.longest_token_bytes = 10;
    options.front.defaults.eos_ids = {text::kEos};
    options.front.draw = [n = std::uint64_t{0}]() mutable { return ++n; };
    api_ = std::make_unique<Api>(loop_, generator_, options,
                                 ApiHooks{[this] { return not_ready_; }, [this] { return workers_; },
                                          [](const std::string&) { return std::nullopt; }, [this] { return counters_; },
                                          [this] { return histograms_; }, [this](auto done) { kv_asked_.push_back(std::move(done)); }});
  }

  virtual std::vector<ApiKey> keys() const { return {}; }

  // Requests that a test leaves open hold themselves through the fake generator.
  void TearDown() override {
    for (const auto& s : generator_.started) {
      const auto sink = std::move(s->sink);
    }
  }

  std::shared_ptr<FakeResponder> send(const std::string& path, const std::string& body, const std::string& method = "POST",
                                      net::Headers headers = {}) {
    auto responder = std::make_shared<FakeResponder>();
    net::HttpRequest request;
    request.method = method;
    request.path = path;
    request.body = body;
    request.headers = std::move(headers);
    api_->handle(std::move(request), responder);
    loop_.drain();
    return responder;
  }
  std::shared_ptr<FakeResponder> chat(const std::string& more) {
    return send("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}])" + (more.empty() ? "" : "," + more) + "}");
  }
  // Plays `text` byte by byte as tokens of one choice of the last request.
  void say(const std::string& text, int choice = 0) {
    auto& s = *generator_.started.back();
    for (const char c : text) {
      if (!s.sink) return;
      s.sink->on_token(
          {choice, s.request.n_prompt + position_[choice]++, static_cast<TokenId>(static_cast<unsigned char>(c)), std::nullopt, {}});
      loop_.drain();
    }
  }
  void finish(wire::FinishReason reason, int choice = 0, std::optional<TokenId> stop = std::nullopt) {
    auto& s = *generator_.started.back();
    if (s.sink) s.sink->on_finish({choice, reason, stop});
    loop_.drain();
  }
  void done(Status status = {}) {
    auto& s = *generator_.started.back();
    if (s.sink) s.sink->on_done(std::move(status));
    loop_.drain();
  }
  static std::vector<Json> events(const std::string& body) {
    std::vector<Json> out;
    for (std::size_t at = 0; at < body.size();) {
      const std::size_t end = body.find("\n\n", at);
      EXPECT_NE(end, std::string::npos) << body.substr(at);
      const std::string event = body.substr(at, end - at);
      EXPECT_TRUE(event.starts_with("data: ")) << event;
      if (event != "data: [DONE]") out.push_back(Json::parse(event.substr(6)));
      at = end + 2;
    }
    return out;
  }
  static std::string streamed_text(const std::vector<Json>& list, int choice = 0) {
    std::string text;
    for (const Json& e : list)
      for (const Json& c : e.value("choices", Json::array()))
        if (c["index"] == choice) text += c["delta"].value("content", "");
    return text;
  }

  ManualExecutor loop_;
  FakeGenerator generator_;
  std::unique_ptr<text::Tokenizer> tokenizer_;
  std::unique_ptr<text::ChatTemplate> template_;
  std::optional<std::string> not_ready_;
  std::vector<wire::WorkerStatus> workers_;
  std::vector<Metrics::Named> counters_;
  std::vector<Metrics::NamedHistogram> histograms_;
  std::vector<std::function<void(std::optional<std::string>)>> kv_asked_;
  std::unique_ptr<Api> api_;
  std::map<int, std::int32_t> position_;
};

TEST_F(ApiTest, RendersTheTemplateAndAnswersWhole) {
  const auto r = chat(R"("temperature":0,"max_tokens":9,"seed":5)");
  ASSERT_EQ(generator_.started.size(), 1u);
  const wire::GenerateRequest& q = generator_.started[0]->request;
  EXPECT_EQ(tokenizer_->decode(q.ids, false), "[user]hi");
  EXPECT_EQ(q.n_prompt, static_cast<std::int32_t>(q.ids.size()));
  EXPECT_EQ(q.sampling.max_tokens, 9);
  EXPECT_EQ(q.seed, 5u);
  EXPECT_EQ(q.sampling.eos_ids, std::vector<TokenId>{text::kEos});
  say("yes");
  generator_.started[0]->sink->on_token({0, 20, text::kEos, std::nullopt, {}});
  finish(wire::FinishReason::kStop, 0, text::kEos);
  done();
  ASSERT_TRUE(r->complete);
  EXPECT_EQ(r->status, 200);
  const Json j = Json::parse(r->body);
  EXPECT_EQ(j["object"], "chat.completion");
  EXPECT_EQ(j["model"], "tiny");
  EXPECT_EQ(j["choices"][0]["message"]["content"], "yes");
  EXPECT_EQ(j["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(j["usage"]["completion_tokens"], 4);  // EOS counts
  EXPECT_EQ(j["usage"]["prompt_tokens"], q.n_prompt);
  EXPECT_EQ(api_->active(), 0u);
}

TEST_F(ApiTest, StreamsRoleWithTheFirstTokenAndTheFinishWithTheLast) {
  const auto r = chat(R"("stream":true,"stream_options":{"include_usage":true})");
  EXPECT_EQ(r->body, "");
  say("a");
  auto list = events(r->body);
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0]["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(list[1]["choices"][0]["delta"]["content"], "a");
  EXPECT_EQ(r->headers.get("Content-Type"), "text/event-stream; charset=utf-8");
  auto& s = *generator_.started[0];
  s.sink->on_token({0, 9, 'b', std::nullopt, {}});
  s.sink->on_finish({0, wire::FinishReason::kLength, std::nullopt});
  loop_.drain();
  list = events(r->body);
  ASSERT_EQ(list.size(), 4u);
  EXPECT_EQ(list[2]["choices"][0]["delta"]["content"], "b");
  EXPECT_EQ(list[2]["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(list[3]["choices"].empty());
  EXPECT_EQ(list[3]["usage"]["completion_tokens"], 2);
  EXPECT_TRUE(r->body.ends_with("data: [DONE]\n\n"));
  EXPECT_TRUE(r->complete);
}

TEST_F(ApiTest, NeverSendsAnEmptyChoicesChunkUnasked) {
  const auto r = chat(R"("stream":true)");
  say("a");
  finish(wire::FinishReason::kStop);
  for (const Json& e : events(r->body)) EXPECT_EQ(e["choices"].size(), 1u);
}

TEST_F(ApiTest, NeverSplitsACharacter) {
  const auto r = chat(R"("stream":true)");
  const std::string text = "aé€😀z";
  say(text);
  finish(wire::FinishReason::kStop);
  const auto list = events(r->body);
  EXPECT_EQ(streamed_text(list), text);
  EXPECT_THAT(r->body, Not(HasSubstr("\xEF\xBF\xBD")));
}

TEST_F(ApiTest, StopStringMaySpanTokensAndCancelsTheRest) {
  const auto r = chat(R"("stream":true,"stop":["END"])");
  say("one ENough EN");
  EXPECT_EQ(streamed_text(events(r->body)), "one ENough ");
  say("Dmore");
  const auto list = events(r->body);
  EXPECT_EQ(streamed_text(list), "one ENough ");
  EXPECT_EQ(list.back()["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(list.back()["choices"][0]["stop_reason"], "END");
  EXPECT_TRUE(r->complete);
  EXPECT_TRUE(generator_.started[0]->cancelled);
}

TEST_F(ApiTest, AStoppedChoiceLeavesTheOthersRunning) {
  const auto r = chat(R"("stream":true,"n":2,"stop":"X")");
  say("aX", 0);
  EXPECT_EQ(generator_.started[0]->finished_choices, std::vector<int>{0});
  EXPECT_FALSE(generator_.started[0]->cancelled);
  say("bc", 1);
  finish(wire::FinishReason::kLength, 1);
  const auto list = events(r->body);
  EXPECT_EQ(streamed_text(list, 0), "a");
  EXPECT_EQ(streamed_text(list, 1), "bc");
  EXPECT_TRUE(r->complete);
}

TEST_F(ApiTest, HeldBackTextComesOutAtTheEnd) {
  const auto r = chat(R"("stop":["END"])");
  say("so EN");
  finish(wire::FinishReason::kLength);
  EXPECT_EQ(Json::parse(r->body)["choices"][0]["message"]["content"], "so EN");
}

TEST_F(ApiTest, ErrorBeforeTheFirstTokenIsARealStatus) {
  const auto r = chat(R"("stream":true)");
  done(Status(Code::kResourceExhausted, "queue is full"));
  EXPECT_EQ(r->status, 429);
  EXPECT_EQ(r->headers.get("Retry-After"), "1");
  EXPECT_EQ(Json::parse(r->body)["error"]["code"], 429);
}

TEST_F(ApiTest, ErrorAfterTheFirstTokenIsAnEvent) {
  const auto r = chat(R"("stream":true)");
  say("a");
  done(Status(Code::kUnavailable, "worker d0 died"));
  EXPECT_EQ(r->status, 200);
  const auto list = events(r->body);
  EXPECT_EQ(list.back()["error"]["message"], "worker d0 died");
  EXPECT_TRUE(r->body.ends_with("data: [DONE]\n\n"));
}

TEST_F(ApiTest, AnEndWithoutFinishesIsAnErrorNotAnEmptyAnswer) {
  const auto r = chat("");
  done();
  EXPECT_EQ(r->status, 500);
}

TEST_F(ApiTest, AClientThatGoesAwayCancels) {
  const auto r = chat(R"("stream":true)");
  say("a");
  EXPECT_FALSE(generator_.started[0]->cancelled);
  r->close_handler();
  loop_.drain();
  EXPECT_TRUE(generator_.started[0]->cancelled);
  EXPECT_EQ(api_->active(), 0u);
}

TEST_F(ApiTest, AClientsTraceGoesOnUnderASpanOfOurOwnForEachRequest) {
  const std::string client = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  net::Headers traced;
  traced.add("TraceParent", client);
  for (int i = 0; i < 2; ++i) send("/v1/completions", R"({"prompt":["a","b"]})", "POST", traced);
  ASSERT_EQ(generator_.started.size(), 4u);
  std::set<std::uint64_t> spans;
  for (const auto& started : generator_.started) {
    const auto context = wire::parse_traceparent(started->request.traceparent);
    ASSERT_TRUE(context) << started->request.traceparent;
    EXPECT_EQ(context->trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
    EXPECT_TRUE(context->sampled);
    EXPECT_NE(context->parent, 0x00f067aa0ba902b7u) << "the client's own span is not ours";
    EXPECT_TRUE(spans.insert(context->parent).second) << "each prompt of each request has its own";
  }
}

TEST_F(ApiTest, ATraceContextThatIsInvalidOrThereTwiceIsIgnored) {
  const std::string good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  net::Headers invalid, twice;
  invalid.add("traceparent", good + "-");
  twice.add("traceparent", good), twice.add("traceparent", good);
  for (const net::Headers& headers : {net::Headers(), invalid, twice}) {
    send("/v1/completions", R"({"prompt":"a"})", "POST", headers);
    EXPECT_EQ(generator_.started.back()->request.traceparent, "");
  }
}

TEST_F(ApiTest, LogprobsInBothShapes) {
  const auto r = chat(R"("logprobs":true,"top_logprobs":2)");
  auto& s = *generator_.started[0];
  EXPECT_EQ(s.request.sampling.logprobs, 2);
  s.sink->on_token({0, 8, 'a', -0.5f, {{'a', -0.5f}, {0xC3, -1.5f}}});
  s.sink->on_finish({0, wire::FinishReason::kLength, std::nullopt});
  loop_.drain();
  const Json entry = Json::parse(r->body)["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(entry["token"], "a");
  EXPECT_EQ(entry["logprob"], -0.5);
  EXPECT_EQ(entry["bytes"], Json::array({97}));
  EXPECT_EQ(entry["top_logprobs"][1]["bytes"], Json::array({0xC3}));

  const auto c = send("/v1/completions", R"({"prompt":"hi","logprobs":1,"echo":true,"max_tokens":1})");
  auto& t = *generator_.started[1];
  EXPECT_EQ(t.request.sampling.prompt_logprobs, 1);
  t.sink->on_prompt_logprobs({std::nullopt, wire::TokenEvent{0, 1, 'i', -2.0f, {{'x', -0.1f}}}});
  t.sink->on_token({0, 2, '!', -0.25f, {{'!', -0.25f}}});
  t.sink->on_finish({0, wire::FinishReason::kLength, std::nullopt});
  loop_.drain();
  const Json choice = Json::parse(c->body)["choices"][0];
  EXPECT_EQ(choice["text"], "hi!");
  EXPECT_EQ(choice["logprobs"]["tokens"], Json::array({"h", "i", "!"}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"], Json::array({nullptr, -2.0, -0.25}));
  EXPECT_EQ(choice["logprobs"]["text_offset"], Json::array({0, 1, 2}));
  EXPECT_EQ(choice["logprobs"]["top_logprobs"][0], nullptr);
}

// A worker's line with them may be lost with its worker; an answer without what was asked for would be wrong.
TEST_F(ApiTest, AnEchoWithoutItsLogprobsIsAnError) {
  const auto c = send("/v1/completions", R"({"prompt":"hi","logprobs":1,"echo":true,"max_tokens":1})");
  auto& t = *generator_.started[0];
  t.sink->on_token({0, 2, '!', -0.25f, {{'!', -0.25f}}});
  t.sink->on_finish({0, wire::FinishReason::kLength, std::nullopt});
  loop_.drain();
  EXPECT_EQ(c->status, 503);
  EXPECT_THAT(c->body, HasSubstr("log-probabilities were lost"));
}

TEST_F(ApiTest, CompletionsTakeFourShapesOfPrompt) {
  send("/v1/completions", R"({"prompt":"ab"})");
  send("/v1/completions", R"({"prompt":["ab","c"]})");
  send("/v1/completions", R"({"prompt":[97,98]})");
  send("/v1/completions", R"({"prompt":[[97],[98,99]]})");
  ASSERT_EQ(generator_.started.size(), 6u);
  EXPECT_EQ(generator_.started[0]->request.ids, (std::vector<TokenId>{97, 98}));
  EXPECT_EQ(generator_.started[2]->request.ids, (std::vector<TokenId>{99}));
  EXPECT_EQ(generator_.started[3]->request.ids, (std::vector<TokenId>{97, 98}));
  EXPECT_EQ(generator_.started[5]->request.ids, (std::vector<TokenId>{98, 99}));
  EXPECT_EQ(generator_.started[0]->request.sampling.max_tokens, 16);
}

TEST_F(ApiTest, ToleratesWhatClientsSend) {
  const auto r = send(
      "/v1/chat/completions",
      R"({"model":null,"messages":[{"role":"user","content":[{"type":"text","text":"h"},{"type":"text","text":"i"}]}],"logprobs":null,"best_of":1,"whatever":{"a":1},"response_format":{"type":"text"}})");
  ASSERT_EQ(generator_.started.size(), 1u);
  EXPECT_EQ(tokenizer_->decode(generator_.started[0]->request.ids, false), "[user]hi");
  EXPECT_FALSE(r->complete);
}

struct BadInput {
  const char* name;
  std::string path, body;
  int status;
  const char* param;
  const char* words;
};

class ApiBadInput : public ApiTest, public testing::WithParamInterface<BadInput> {};

TEST_P(ApiBadInput, IsRefusedWithOpenAisErrorBody) {
  const BadInput& bad = GetParam();
  const auto r = send(bad.path, bad.body);
  EXPECT_EQ(r->status, bad.status) << r->body;
  const Json j = Json::parse(r->body);
  EXPECT_THAT(j["error"]["message"].get<std::string>(), HasSubstr(bad.words));
  EXPECT_EQ(j["error"]["code"], bad.status);
  if (bad.param) {
    EXPECT_EQ(j["error"]["param"], bad.param);
  }
  EXPECT_TRUE(generator_.started.empty());
}

std::string many_stops(int n) {
  Json list = Json::array();
  for (int i = 0; i < n; ++i) list.push_back("s" + std::to_string(i));
  return list.dump();
}
// A prompt of 300 tokens, then something that is no prompt.
std::string long_first() { return R"({"prompt":[")" + std::string(300, 'q') + R"(",5]})"; }
std::string nested(int levels) {
  return std::string(static_cast<std::size_t>(levels), '[') + std::string(static_cast<std::size_t>(levels), ']');
}
std::string many_fields(int n) {
  Json object = Json::object();
  for (int i = 0; i < n; ++i) object["f" + std::to_string(i)] = "{[:";
  return object.dump();
}
std::string many_messages(int n) {
  Json list = Json::array();
  for (int i = 0; i < n; ++i) list.push_back({{"role", "bad"}, {"content", ""}});
  return Json{{"messages", list}}.dump();
}
std::string many_prompts(int prompts, int n) {
  return Json{{"prompt", std::vector<std::string>(static_cast<std::size_t>(prompts), "a")}, {"n", n}}.dump();
}
std::string with(const std::string& more) { return R"({"messages":[{"role":"user","content":"hi"}],)" + more + "}"; }
const char* kChat = "/v1/chat/completions";

INSTANTIATE_TEST_SUITE_P(
    Cases, ApiBadInput,
    testing::Values(
        BadInput{"malformed", kChat, "{\"messages\":", 400, nullptr, "not valid JSON"},
        BadInput{"not_object", kChat, "[]", 400, nullptr, "object"},
        BadInput{"invalid_utf8", kChat, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}", 400, nullptr, "not valid JSON"},
        BadInput{"no_messages", kChat, "{}", 400, "messages", "required"},
        BadInput{"empty_messages", kChat, R"({"messages":[]})", 400, "messages", "empty"},
        BadInput{"messages_type", kChat, R"({"messages":"hi"})", 400, "messages", "list"},
        BadInput{"role_missing", kChat, R"({"messages":[{"content":"x"}]})", 400, "messages", "role"},
        BadInput{"content_type", kChat, R"({"messages":[{"role":"user","content":5}]})", 400, "messages", "content"},
        BadInput{"image", kChat, R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]})", 400, "messages",
                 "image_url"},
        BadInput{"template_fails", kChat, R"({"messages":[{"role":"bad","content":"x"}]})", 400, "messages", "no such role"},
        BadInput{"unknown_model", kChat, with(R"("model":"gpt-9")"), 404, "model", "tiny, alias"},
        BadInput{"model_type", kChat, with(R"("model":5)"), 400, "model", "string"},
        BadInput{"temperature_low", kChat, with(R"("temperature":-0.1)"), 400, "temperature", "between"},
        BadInput{"temperature_high", kChat, with(R"("temperature":2.5)"), 400, "temperature", "between"},
        BadInput{"temperature_type", kChat, with(R"("temperature":"hot")"), 400, "temperature", "number"},
        BadInput{"top_p", kChat, with(R"("top_p":0)"), 400, "top_p", "greater"},
        BadInput{"max_tokens_zero", kChat, with(R"("max_tokens":0)"), 400, "max_tokens", "at least 1"},
        BadInput{"max_tokens_negative", kChat, with(R"("max_tokens":-5)"), 400, "max_tokens", "at least 1"},
        BadInput{"max_tokens_huge", kChat, with(R"("max_tokens":9223372036854775807)"), 400, "input_tokens", "maximum context length"},
        BadInput{"max_tokens_huger", kChat, with(R"("max_tokens":18446744073709551615)"), 400, "max_tokens", "at most"},
        BadInput{"max_tokens_fraction", kChat, with(R"("max_tokens":1.5)"), 400, "max_tokens", "integer"},
        BadInput{"too_long", kChat, R"({"messages":[{"role":"user","content":")" + std::string(300, 'q') + R"("}]})", 400, "input_tokens",
                 "maximum context length"},
        BadInput{"far_too_long", kChat, R"({"messages":[{"role":"user","content":")" + std::string(5000, 'q') + R"("}]})", 400, "messages",
                 "maximum context length"},
        BadInput{"far_too_long_is_not_rendered", kChat, R"({"messages":[{"role":"bad","content":")" + std::string(5000, 'q') + R"("}]})",
                 400, "messages", "maximum context length"},
        BadInput{"too_many_messages_are_not_rendered", kChat, many_messages(201), 400, "messages", "your 201 messages"},
        BadInput{"long_template_arguments", kChat, with(R"("chat_template_kwargs":{"a":")" + std::string(5000, 'q') + "\"}"), 400,
                 "messages", "chat_template_kwargs"},
        BadInput{"too_many_choices", "/v1/completions", many_prompts(3, 100), 400, "n", "at most 256"},
        BadInput{"too_many_prompts", "/v1/completions", many_prompts(257, 1), 400, "prompt", "at most 256"},
        BadInput{"timeout_zero", kChat, with(R"("timeout":0)"), 400, "timeout", "between"},
        BadInput{"timeout_negative", kChat, with(R"("timeout":-3)"), 400, "timeout", "between"},
        BadInput{"timeout_type", kChat, with(R"("timeout":"soon")"), 400, "timeout", "number"},
        BadInput{"stops", kChat, with("\"stop\":" + many_stops(1000)), 400, "stop", "at most 64"},
        BadInput{"stop_empty", kChat, with(R"("stop":[""])"), 400, "stop", "empty"},
        BadInput{"stop_type", kChat, with(R"("stop":[1])"), 400, "stop", "string"},
        BadInput{"n_greedy", kChat, with(R"("n":2,"temperature":0)"), 400, "n", "greedy"},
        BadInput{"n_zero", kChat, with(R"("n":0)"), 400, "n", "at least 1"},
        BadInput{"stream_options", kChat, with(R"("stream_options":{"include_usage":true})"), 400, "stream_options", "stream"},
        BadInput{"top_logprobs", kChat, with(R"("logprobs":true,"top_logprobs":21)"), 400, "top_logprobs", "at most 20"},
        BadInput{"tools", kChat, with(R"("tools":[{"type":"function"}])"), 400, "tools", "not supported"},
        BadInput{"json_mode", kChat, with(R"("response_format":{"type":"json_object"})"), 400, "response_format", "supported"},
        BadInput{"response_format_type", kChat, with(R"("response_format":{"type":5})"), 400, "response_format", "supported"},
        BadInput{"nested", kChat, R"({"messages":[{"role":"user","content":"hi","more":)" + nested(100000) + "}]}", 400, nullptr,
                 "levels deep"},
        BadInput{"fields", kChat, with("\"more\":" + many_fields(3000)), 400, nullptr, "fields"},
        BadInput{"prompts_stop_at_the_first_that_is_too_long", "/v1/completions", long_first(), 400, "input_tokens",
                 "maximum context length"},
        BadInput{"tokenize_far_too_long", "/tokenize", R"({"prompt":")" + std::string(5000, 'q') + R"("})", 400, "prompt",
                 "maximum context length"},
        BadInput{"logit_bias", kChat, with(R"("logit_bias":{"99999":1})"), 400, "logit_bias", "vocabulary"},
        BadInput{"no_prompt", "/v1/completions", "{}", 400, "prompt", "required"},
        BadInput{"empty_prompt", "/v1/completions", R"({"prompt":""})", 400, "prompt", "no tokens"},
        BadInput{"bad_id", "/v1/completions", R"({"prompt":[5,999999]})", 400, "prompt", "999999"},
        BadInput{"no_route", "/v1/nothing", "{}", 404, nullptr, "there is no POST"}),
    [](const auto& info) { return info.param.name; });

TEST_F(ApiTest, TheRequestsOwnTimeoutIsCappedByTheServers) {
  chat(R"("timeout":2.5)");
  chat("");
  chat(R"("timeout":86400)");
  ASSERT_EQ(generator_.started.size(), 3u);
  EXPECT_EQ(generator_.started[0]->request.timeout, std::chrono::milliseconds(2500));
  EXPECT_EQ(generator_.started[1]->request.timeout, FrontEnd{}.request_timeout);
  EXPECT_EQ(generator_.started[2]->request.timeout, FrontEnd{}.request_timeout);
}

TEST_F(ApiTest, ARefusalSaysWhenToTryAgain) {
  const auto r = chat("");
  generator_.started[0]->sink->on_done(Status(Code::kResourceExhausted, "the queue is long").with_retry_after(7));
  loop_.drain();
  EXPECT_EQ(r->status, 429);
  EXPECT_EQ(r->headers.get("retry-after"), "7");
  EXPECT_EQ(Json::parse(r->body)["error"]["message"], "the queue is long; retry after 7 s");
}

class ApiKeyTest : public ApiTest {
 protected:
  std::vector<ApiKey> keys() const override { return {{"sk-one", 1}, {"sk-two", 2}}; }
  std::shared_ptr<FakeResponder> ask(const std::string& authorization, const std::string& path = "/v1/completions") {
    net::Headers headers;
    if (!authorization.empty()) headers.add("Authorization", authorization);
    return send(path, R"({"prompt":["a","b"]})", "POST", headers);
  }
};

TEST_F(ApiKeyTest, AKeySaysWhoseRequestsTheyAre) {
  ask("Bearer sk-one"), ask("sk-two");
  ASSERT_EQ(generator_.started.size(), 4u);
  for (int i : {0, 1}) EXPECT_EQ(generator_.started[static_cast<std::size_t>(i)]->request.tenant, 1);
  for (int i : {2, 3}) EXPECT_EQ(generator_.started[static_cast<std::size_t>(i)]->request.tenant, 2);
}

TEST_F(ApiKeyTest, WithoutAKnownKeyNothingIsDone) {
  for (const char* wrong : {"", "Bearer ", "Bearer sk-", "Bearer sk-one2", "Bearer sk-onE", "Basic sk-one"}) {
    const auto r = ask(wrong);
    EXPECT_EQ(r->status, 401) << wrong;
    EXPECT_THAT(r->body, Not(HasSubstr("sk-"))) << wrong;
  }
  EXPECT_TRUE(generator_.started.empty());
  EXPECT_EQ(send("/health", "", "GET")->status, 200);
}

TEST_F(ApiTest, WithoutKeysEverybodyIsTheSame) {
  chat("");
  EXPECT_EQ(generator_.started[0]->request.tenant, 0);
}

TEST_F(ApiTest, NoWorkerThatCanServeSaysWhenToTryAgainToo) {
  const auto r = chat("");
  generator_.started[0]->sink->on_done(Status(Code::kUnavailable, "no live worker can take the request"));
  loop_.drain();
  EXPECT_EQ(r->status, 503);
  EXPECT_EQ(r->headers.get("retry-after"), "1");
  not_ready_ = "d0 is loading";
  EXPECT_EQ(chat("")->headers.get("retry-after"), "1");
}

// The ids of a request's parts are no client's: whoever says "a-0" or "a/0" is another one.
TEST_F(ApiTest, PromptsOfOneRequestHaveIdsThatNoClientCanGive) {
  send("/v1/completions", R"({"prompt":["ab","c"]})");
  ASSERT_EQ(generator_.started.size(), 2u);
  EXPECT_THAT(generator_.started[1]->request.id, testing::EndsWith("/1"));
}

// What looks like structure within a string is none.
TEST_F(ApiTest, TextMayHoldAnyBrackets) {
  const std::string text = std::string(60, '[') + R"(\")" + std::string(60, '{') + R"(\\)";
  send("/v1/chat/completions", R"({"messages":[{"role":"user","content":")" + text + R"("}],"max_tokens":5})");
  EXPECT_EQ(generator_.started.size(), 1u);
}

TEST_F(ApiTest, TokenizeAndDetokenizeAreInverse) {
  const auto t = send("/tokenize", R"({"prompt":"hello 12","return_token_strs":true})");
  const Json j = Json::parse(t->body);
  EXPECT_EQ(j["count"], j["tokens"].size());
  const auto d = send("/detokenize", Json{{"tokens", j["tokens"]}}.dump());
  EXPECT_EQ(Json::parse(d->body)["prompt"], "hello 12");
}

TEST_F(ApiTest, ModelsListAndReadiness) {
  const Json j = Json::parse(send("/v1/models", "", "GET")->body);
  EXPECT_EQ(j["data"][0]["id"], "tiny");
  EXPECT_EQ(j["data"][0]["root"], "/models/tiny.gguf");
  EXPECT_EQ(j["data"][0]["max_model_len"], 200);
  EXPECT_EQ(send("/v1/models/none", "", "GET")->status, 404);
  not_ready_ = "loading";
  EXPECT_EQ(send("/health", "", "GET")->status, 200);
  EXPECT_EQ(send("/health/ready", "", "GET")->status, 503);
  EXPECT_EQ(send("/v1/models", "", "GET")->status, 503);
  EXPECT_EQ(chat("")->status, 503);
}

TEST_F(ApiTest, MetricsSayWhoHoldsKvAndWhyRequestsStalled) {
  wire::WorkerStatus d0;
  d0.name = "d0";
  d0.leases = {{"reserved", 2}, {"receiving", 0}};
  d0.handoffs = {{"streaming", 1}};
  d0.held_ms = {{"lease", 2'500}};
  d0.blocks_held = 7, d0.links_refused = 3;
  d0.balanced = false;
  workers_ = {d0};
  counters_ = {{"gateway_retries", {{"leg", "decode"}, {"cause", "failed"}}, 4}};
  histograms_ = {{"client_stall_seconds", "help", {.1, 1}, {5, 2, 1}, 12.5}};
  for (int i = 0; i < 2; ++i) {  // absolute values: looked at twice they are the same
    const std::string text = send("/metrics", "", "GET")->body;
    const std::string of = "{engine=\"d0\",model_name=\"tiny\"} ";
    EXPECT_THAT(text, HasSubstr("baton:leases{engine=\"d0\",model_name=\"tiny\",state=\"reserved\"} 2"));
    EXPECT_THAT(text, HasSubstr("baton:leases{engine=\"d0\",model_name=\"tiny\",state=\"receiving\"} 0"));
    EXPECT_THAT(text, HasSubstr("baton:handoffs{engine=\"d0\",model_name=\"tiny\",state=\"streaming\"} 1"));
    EXPECT_THAT(text, HasSubstr("baton:kv_held_without_progress_seconds{engine=\"d0\",model_name=\"tiny\",reason=\"lease\"} 2.5"));
    EXPECT_THAT(text, HasSubstr("baton:kv_blocks_held" + of + "7"));
    EXPECT_THAT(text, HasSubstr("baton:kv_books_unbalanced" + of + "1"));
    EXPECT_THAT(text, HasSubstr("baton:links_refused_total" + of + "3"));
    EXPECT_THAT(text, HasSubstr("baton:gateway_retries_total{cause=\"failed\",leg=\"decode\",model_name=\"tiny\"} 4"));
    EXPECT_THAT(text, HasSubstr("baton:client_stall_seconds_bucket{model_name=\"tiny\",le=\"0.1\"} 5"));
    EXPECT_THAT(text, HasSubstr("baton:client_stall_seconds_bucket{model_name=\"tiny\",le=\"1\"} 7"));
    EXPECT_THAT(text, HasSubstr("baton:client_stall_seconds_count{model_name=\"tiny\"} 8"));
    EXPECT_THAT(text, HasSubstr("baton:client_stall_seconds_sum{model_name=\"tiny\"} 12.5"));
  }
  workers_[0].balanced = true, workers_[0].held_ms[0].second = 0;
  const std::string text = send("/metrics", "", "GET")->body;
  EXPECT_THAT(text, HasSubstr("baton:kv_books_unbalanced{engine=\"d0\",model_name=\"tiny\"} 0"));
  EXPECT_THAT(text, HasSubstr("reason=\"lease\"} 0"));
}

TEST_F(ApiTest, DebugKvAnswersWhenTheWorkersHave) {
  const auto first = send("/debug/kv", "", "GET");
  EXPECT_FALSE(first->complete);
  ASSERT_EQ(kv_asked_.size(), 1u);
  kv_asked_[0](R"({"balanced":true,"workers":[]})");
  EXPECT_EQ(first->status, 200);
  EXPECT_EQ(Json::parse(first->body)["balanced"], true);
  const auto second = send("/debug/kv", "", "GET");
  kv_asked_[1](std::nullopt);
  EXPECT_EQ(second->status, 429);
}

TEST_F(ApiTest, AnAnswerSaysWhyOneWorkerDidBoth) {
  for (const bool stream : {false, true}) {
    const auto r = chat(stream ? R"("max_tokens":5,"stream":true)" : R"("max_tokens":5)");
    wire::Served served;
    served.prefill_worker = served.decode_worker = "p0";
    served.fallback = "no live decode worker";
    generator_.started.back()->sink->on_served(served);
    say("abc");
    finish(wire::FinishReason::kLength);
    EXPECT_EQ(r->headers.get("x-baton-fallback"), "no live decode worker");
    EXPECT_EQ(r->headers.get("x-baton-disaggregated"), "false");
  }
  const auto r = chat(R"("max_tokens":5)");
  say("abc");
  finish(wire::FinishReason::kLength);
  EXPECT_EQ(r->headers.get("x-baton-fallback"), "");
}

TEST_F(ApiTest, MetricsCountUnderVllmsNames) {
  chat(R"("max_tokens":5)");
  say("abc");
  finish(wire::FinishReason::kLength);
  const std::string text = send("/metrics", "", "GET")->body;
  EXPECT_THAT(text, HasSubstr("vllm:request_success_total{engine=\"0\",finished_reason=\"length\",model_name=\"tiny\"} 1"));
  EXPECT_THAT(text, HasSubstr("vllm:generation_tokens_total{engine=\"0\",model_name=\"tiny\"} 3"));
  EXPECT_THAT(text, HasSubstr("vllm:time_to_first_token_seconds_count"));
}

}  // namespace
}  // namespace baton::api
