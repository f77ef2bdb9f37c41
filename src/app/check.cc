// `baton check`: plain and streamed chat against a running server, and that the KV really was handed over where it should be.

#include <spdlog/fmt/fmt.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "app/args.h"
#include "app/client_flags.h"
#include "app/commands.h"
#include "app/topology.h"
#include "base/rng.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

struct StreamResult {
  std::string text;
  double ttft_ms = 0, tpot_ms = 0;
  int chunks = 0;
  int prompt_tokens = 0, completion_tokens = 0;
};

class Check {
 public:
  // `expected`: the workers that must be there; none: whichever are.
  Check(LocalHttp http, std::string prompt, int max_tokens, std::vector<WorkerPlan> expected)
      : http_(std::move(http)), prompt_(std::move(prompt)), max_tokens_(max_tokens), expected_(std::move(expected)) {}

  Status run(double wait_s) {
    BATON_RETURN_IF_ERROR(wait_ready(wait_s));
    BATON_RETURN_IF_ERROR(find_topology());
    BATON_RETURN_IF_ERROR(plain());
    BATON_RETURN_IF_ERROR(streamed());
    return how_served();
  }
  Json result = Json::object();

 private:
  Status wait_ready(double wait_s) {
    const Clock& clock = http_.loop().clock();
    const TimePoint deadline = clock.now() + Duration(static_cast<std::int64_t>(wait_s * 1e6));
    for (;;) {
      const auto answer = http_.get("/health/ready", std::chrono::seconds(2));
      if (answer.ok() && answer->status == 200) return {};
      if (!answer.ok()) return answer.status().with_context("no server");
      if (clock.now() > deadline) return Status(Code::kUnavailable, fmt::format("the server is not ready: {}", answer->body));
      http_.loop().after(std::chrono::milliseconds(100), [this] { http_.loop().stop(); });
      http_.loop().run();
    }
  }

  Status find_topology() {
    BATON_ASSIGN_OR_RETURN(const HttpAnswer answer, http_.get("/debug/workers"));
    std::vector<std::string> found, expected;
    for (const Json& worker : Json::parse(answer.body, nullptr, false)) {
      const std::string role = worker.value("role", "");
      prefill_ += role == "prefill";
      decode_ += role == "decode";
      found.push_back(in_words(worker.value("name", "?"), role, worker.value("tensor_parallel_size", 1)));
    }
    for (const WorkerPlan& worker : expected_) expected.push_back(in_words(worker.name, worker.role, worker.ranks));
    result["workers"] = found;
    if (!expected.empty() && std::set(found.begin(), found.end()) != std::set(expected.begin(), expected.end()))
      return Status(Code::kInternal,
                    fmt::format("the server's workers are {}; expected: {}", fmt::join(found, ", "), fmt::join(expected, ", ")));
    return {};
  }

  static std::string in_words(const std::string& name, const std::string& role, int ranks) {
    return fmt::format("{} ({}{})", name, role, ranks > 1 ? fmt::format(", TP={}", ranks) : "");
  }

  // A prompt that no cache holds, so that its KV has to be computed and handed over.
  Json request(bool stream) {
    return Json{
        {"messages",
         Json::array({{{"role", "system"},
                       {"content", fmt::format("You are a helpful assistant. Session {:08x}.", static_cast<std::uint32_t>(entropy_u64()))}},
                      {{"role", "user"}, {"content", prompt_}}})},
        {"temperature", 0},
        {"max_tokens", max_tokens_},
        {"stream", stream}};
  }

  Status plain() {
    body_ = request(false);
    BATON_ASSIGN_OR_RETURN(const HttpAnswer answer, http_.post("/v1/chat/completions", body_.dump()));
    BATON_RETURN_IF_ERROR(check_answer(answer, "plain chat"));
    const Json reply = Json::parse(answer.body, nullptr, false);
    if (!reply.is_object() || !reply.contains("choices"))
      return Status(Code::kInternal, "plain chat: the answer is not a chat completion: " + answer.body.substr(0, 200));
    plain_text_ = reply["choices"][0]["message"].value("content", "");
    if (plain_text_.empty()) return Status(Code::kInternal, "plain chat: the answer is empty");
    id_ = answer.headers.get("x-request-id");
    disaggregated_ = answer.headers.get("x-baton-disaggregated") == "true";
    return {};
  }

  // The same request, streamed: greedy, so it must say the same.
  Status streamed() {
    body_["stream"] = true;
    body_["stream_options"] = {{"include_usage", true}};
    const Clock& clock = http_.loop().clock();
    const TimePoint start = clock.now();
    TimePoint first{}, last{};
    bool done = false;
    StreamResult out;
    Status error;
    BATON_ASSIGN_OR_RETURN(const HttpAnswer answer, http_.post_events("/v1/chat/completions", body_.dump(), [&](std::string_view data) {
      if (data == "[DONE]") {
        done = true;
        return true;
      }
      const Json chunk = Json::parse(data, nullptr, false);
      if (!chunk.is_object() || chunk.contains("error")) {
        error = Status(Code::kInternal, fmt::format("streamed chat: {}", data));
        return true;
      }
      if (chunk.contains("usage") && chunk["usage"].is_object()) {
        out.prompt_tokens = chunk["usage"].value("prompt_tokens", 0);
        out.completion_tokens = chunk["usage"].value("completion_tokens", 0);
      }
      const auto text = delta_text(chunk);
      if (!text) return true;
      last = clock.now();
      if (out.chunks++ == 0) first = last;
      out.text += *text;
      return true;
    }));
    BATON_RETURN_IF_ERROR(check_answer(answer, "streamed chat"));
    BATON_RETURN_IF_ERROR(error);
    if (!done) return Status(Code::kInternal, "streamed chat: the stream ended without [DONE]");
    if (out.text != plain_text_)
      return Status(Code::kInternal,
                    fmt::format("streamed and plain chat differ at temperature 0:\n  plain    {}\n  streamed {}", plain_text_, out.text));
    result["answer"] = out.text;
    result["prompt_tokens"] = out.prompt_tokens;
    result["completion_tokens"] = out.completion_tokens;
    result["stream_ttft_ms"] = to_ms(first - start);
    result["tpot_ms"] = out.completion_tokens > 1 ? to_ms(last - first) / (out.completion_tokens - 1) : 0.0;
    return {};
  }

  // What the server recorded of the plain request, whose prompt was new.
  Status how_served() {
    // The record is complete when the request's legs have reported their last events.
    Json record;
    for (int tries = 0; tries < 50; ++tries) {
      BATON_ASSIGN_OR_RETURN(const HttpAnswer answer, http_.get("/debug/requests/" + id_));
      BATON_RETURN_IF_ERROR(check_answer(answer, "/debug/requests/" + id_));
      record = Json::parse(answer.body, nullptr, false);
      if (record.value("state", "") == "finished") break;
      http_.loop().after(std::chrono::milliseconds(20), [this] { http_.loop().stop(); });
      http_.loop().run();
    }
    result["id"] = id_;
    result["served"] = record;
    if (prefill_ == 0 || decode_ == 0) return {};
    const std::int64_t bytes = record.value("kv_bytes", std::int64_t{0});
    if (!disaggregated_ || !record.value("disaggregated", false) || bytes <= 0)
      return Status(Code::kInternal, fmt::format("the cluster has {} prefill and {} decode workers, but no KV was handed over: {}",
                                                 prefill_, decode_, record.dump()));
    return {};
  }

  LocalHttp http_;
  const std::string prompt_;
  const int max_tokens_;
  const std::vector<WorkerPlan> expected_;
  int prefill_ = 0, decode_ = 0;
  Json body_;
  std::string plain_text_, id_;
  bool disaggregated_ = false;
};

}  // namespace

int run_check(Args args) {
  ClientFlags client;
  std::string prompt = "hello";
  int max_tokens = 48;
  double wait_s = 60;
  bool json = false;
  TopologyFlags topology;
  int tensor_parallel_size = 1;
  CLI::App app(
      "Sends a plain and a streamed chat request (greedy, so both must say the same) and sees in the server's record that the KV cache was "
      "handed\n"
      "from a prefill to a decode worker. With flags of a topology, as of `baton serve`: also that these workers serve, and no others.\n"
      "Exit code 1 if anything is not as it should be.",
      "baton check");
  app.set_help_flag("-h,--help", "this text");
  client.add_to(app);
  app.add_option("--prompt", prompt, "what to say")->capture_default_str();
  app.add_option("--max-tokens", max_tokens, "length of the answers")->check(CLI::Range(2, 100000))->capture_default_str();
  app.add_option("--wait", wait_s, "seconds to wait until the server is ready")->capture_default_str();
  topology.add_to(app);
  app.add_option("--tensor-parallel-size", tensor_parallel_size, "the degree of workers where the flags above name none (-tp)")
      ->check(CLI::Range(1, 999))
      ->capture_default_str()
      ->group("Topology");
  app.add_flag("--json", json, "as JSON");
  if (const auto code = parse_args(app, std::move(args))) return *code;
  auto http = client.open();
  if (!http.ok()) return fail(http.status());
  std::vector<WorkerPlan> expected;
  if (app.count("--prefill") + app.count("--decode") + app.count("--data-parallel-size") + app.count("--tensor-parallel-size") > 0) {
    auto plan = plan_topology(topology, tensor_parallel_size);
    if (!plan.ok()) return fail(plan.status());
    expected = std::move(plan).value();
  }
  Check check(std::move(http).value(), prompt, max_tokens, std::move(expected));
  if (const Status status = check.run(wait_s); !status.ok()) return fail(status);
  const Json& r = check.result;
  if (json) {
    fmt::print("{}\n", r.dump(2));
    return 0;
  }
  const Json& s = r["served"];
  fmt::print("you      {}\nanswer   {}\n\nworkers  {}\n", prompt, r["answer"].get<std::string>(),
             fmt::join(r["workers"].get<std::vector<std::string>>(), ", "));
  if (s.value("disaggregated", false)) {
    const double bytes = s.value("kv_bytes", 0.0);
    fmt::print("served   prompt on {}, answer on {}; {} of KV handed over, {:.0f} % of it before the prompt was done\n",
               s.value("prefill_worker", "?"), s.value("decode_worker", "?"), format_bytes(bytes),
               bytes > 0 ? 100 * s.value("kv_bytes_early", 0.0) / bytes : 0.0);
  } else {
    fmt::print("served   prompt and answer on {}\n", s.value("decode_worker", "?"));
  }
  fmt::print("tokens   {} in, {} out\ntiming   TTFT {:.1f} ms, TPOT {:.1f} ms\ncheck    plain and streamed answers agree\n",
             r["prompt_tokens"].get<int>(), r["completion_tokens"].get<int>(), s.value("first_token_ms", -1.0), r["tpot_ms"].get<double>());
  return 0;
}

}  // namespace baton::app
