// `baton bench serve`: the client side of vLLM's serving benchmark, against any OpenAI server.

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cstdio>
#include <thread>

#include "app/args.h"
#include "app/bench/bench.h"
#include "app/bench/json_field.h"
#include "app/bench/result_file.h"
#include "app/bench/serve_flags.h"
#include "app/bench/text_side.h"
#include "app/paths.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

// The model's text side, where its files can be read here; `source` gets the model whose it is, "" for none.
Result<TextSide> load_text(const BenchServeFlags& f, const std::string& root, std::string& source) {
  source.clear();
  if (f.skip_tokenizer_init) return TextSide();
  const std::string model = f.tokenizer.empty() ? root : f.tokenizer;
  const auto path = resolve_model(model);
  if (!path.ok()) {
    if (!f.tokenizer.empty()) return path.status();
    return TextSide();
  }
  BATON_ASSIGN_OR_RETURN(const auto files, model::ModelFiles::open(*path));
  source = model;
  return load_text_side(*files);
}

// Where the server is and what it serves go to f.load; the model's root is returned.
Result<std::string> meet_server(BenchServeFlags& f) {
  BATON_ASSIGN_OR_RETURN(LocalHttp http, f.client.open());
  for (const auto& [name, value] : f.load.headers) http.add_header(name, value);
  f.load.host = http.host();
  f.load.port = http.port();
  BATON_ASSIGN_OR_RETURN(const HttpAnswer answer, http.get("/v1/models"));
  BATON_RETURN_IF_ERROR(check_answer(answer, "/v1/models"));
  const Json body = Json::parse(answer.body, nullptr, false);
  const Json models = body.is_object() ? body.value("data", Json()) : Json();
  if (!models.is_array() || models.empty()) return Status(Code::kInternal, "/v1/models lists no model");
  Json model = models.front();
  for (const Json& entry : models)
    if (text_field(entry, "id") == f.client.model) model = entry;
  f.load.model = !f.served_model_name.empty() ? f.served_model_name : !f.client.model.empty() ? f.client.model : text_field(model, "id");
  return text_field(model, "root");
}

// Sends the first request until it succeeds. An answer that will not change is not asked for again.
Status wait_until_answered(const BenchServeFlags& f, const BenchRequest& request, const Clock& clock, TimePoint deadline) {
  LoadOptions options = f.load;
  options.request_id_prefix += "ready-";
  for (;;) {
    const LoadResult result = run_load({request}, options, [](std::size_t) {});
    if (result.interrupted) return Status(Code::kCancelled, "interrupted before the server was ready");
    const RequestOutcome& outcome = result.outcomes.front();
    if (outcome.ok) return {};
    const bool refused = outcome.error.starts_with("HTTP 4") && !outcome.error.starts_with("HTTP 429");
    if (refused || clock.now() + std::chrono::seconds(1) > deadline)
      return Status(
          refused ? Code::kInvalidArgument : Code::kDeadlineExceeded,
          "the first request did not succeed within --ready-check-timeout-sec; check model, endpoint and flags: " + outcome.error);
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
}

Status warm_up(const BenchServeFlags& f, const BenchRequest& request) {
  LoadOptions options = f.load;
  options.request_id_prefix += "warmup-";
  const std::vector<BenchRequest> requests(static_cast<std::size_t>(f.num_warmups), request);
  const LoadResult result = run_load(requests, options, [](std::size_t) {});
  if (result.interrupted) return Status(Code::kCancelled, "interrupted in the warm-up");
  for (const RequestOutcome& outcome : result.outcomes)
    if (!outcome.ok) return Status(Code::kInternal, "a warm-up request failed: " + outcome.error);
  return {};
}

// On a terminal a line that changes, elsewhere one for each tenth.
class Progress {
 public:
  Progress(const Clock& clock, std::size_t total) : clock_(clock), start_(clock.now()), total_(total), terminal_(isatty(2)) {}
  void show(std::size_t done) {
    const std::size_t tenth = done * 10 / total_;
    if (!terminal_ && tenth == tenth_) return;
    tenth_ = tenth;
    const double seconds = to_seconds(clock_.now() - start_);
    std::fprintf(stderr, "%s%3zu %%|%-20s| %zu/%zu [%.0f s, %.2f req/s]%s", terminal_ ? "\r" : "", done * 100 / total_,
                 std::string(done * 20 / total_, '#').c_str(), done, total_, seconds, static_cast<double>(done) / seconds,
                 terminal_ && done < total_ ? "" : "\n");
    std::fflush(stderr);
  }

 private:
  const Clock& clock_;
  const TimePoint start_;
  const std::size_t total_;
  const bool terminal_;
  std::size_t tenth_ = 0;
};

void announce(const BenchServeFlags& f, std::size_t n) {
  std::string how;
  if (f.load.ramp_up) {
    how = fmt::format("from {} to {} requests/s, burstiness {}", f.load.ramp_up->start_rps, f.load.ramp_up->end_rps, f.load.burstiness);
  } else if (f.report.request_rate > 0) {
    how = fmt::format("{} requests/s, burstiness {}", f.rate, f.load.burstiness);
  } else if (f.dataset.is_trace() && f.load.request_rate == 0) {
    how =
        f.dataset.trace_scale == 1 ? "at the trace's times" : fmt::format("at the trace's times, {} times as fast", f.dataset.trace_scale);
  } else {
    how = "all at once";
  }
  if (f.load.max_concurrency > 0) how += fmt::format(", at most {} open", f.load.max_concurrency);
  std::fprintf(stderr, "Traffic: %zu requests, %s\n", n, how.c_str());
}

// Prints, and saves where that is asked for.
Status show(const BenchServeFlags& f, const RunFacts& facts, const LoadResult& result, const std::string& path) {
  const Report report = summarize(result.outcomes, result.duration, f.report);
  const auto by_kind = summarize_by_kind(result.outcomes, result.duration, f.report);
  Json json = result_json(f, facts, result, report);
  for (const auto& [kind, part] : by_kind) json["by_kind"][kind] = to_json(part, f.report);
  const std::string line = json.dump(2, ' ', false, Json::error_handler_t::replace);
  std::fputs(error_summary(report).c_str(), f.json ? stderr : stdout);
  std::fputs(f.json ? (line + "\n").c_str() : (table(report, f.report) + kinds_table(by_kind, f.report)).c_str(), stdout);
  std::fflush(stdout);
  if (!path.empty()) {
    const Status saved = save_result(path, f.append_result, json);
    if (!saved.ok() && !f.json) std::fprintf(stderr, "%s\n", line.c_str());  // not to be lost
    BATON_RETURN_IF_ERROR(saved);
    std::fprintf(stderr, "saved %s\n", path.c_str());
  }
  if (result.interrupted)
    return Status(Code::kCancelled,
                  fmt::format("interrupted when {} of {} requests had ended", result.outcomes.size(), facts.times.size()));
  if (report.completed == 0) return Status(Code::kInternal, "no request succeeded");
  return {};
}

Status run(BenchServeFlags& f) {
  BATON_RETURN_IF_ERROR(f.interpret());
  const SystemClock clock;
  const TimePoint deadline = clock.now() + std::chrono::seconds(f.ready_check_timeout_s);
  Result<std::string> root = meet_server(f);
  while (!root.ok() && root.status().code() == Code::kUnavailable && clock.now() + std::chrono::seconds(1) <= deadline) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    root = meet_server(f);
  }
  if (!root.ok()) return root.status();
  RunFacts facts;
  BATON_ASSIGN_OR_RETURN(const TextSide text, load_text(f, *root, facts.tokenizer_id));
  if (f.dataset.name == "custom" && !f.is_chat() && !f.dataset.skip_chat_template && !text.chat_template)
    std::fprintf(stderr, "baton: notice: the model's chat template is not readable here; prompts are sent as they are\n");
  BATON_ASSIGN_OR_RETURN(const auto requests, load_dataset(f.dataset, text.tokenizer.get(), f.is_chat(), text.chat_template.get()));

  facts.times = planned_times(requests, f.load);
  facts.begun = static_cast<std::time_t>(clock.unix_seconds());
  const std::string path = f.saves() ? result_path(f, facts.begun) : "";
  if (!path.empty()) BATON_RETURN_IF_ERROR(check_result_path(path, f.append_result));

  // Their first request on its own: at once, not at the time that it has in the run.
  BenchRequest first = requests.front();
  first.arrival_s = -1;
  BenchServeFlags alone = f;
  alone.load.request_rate = 0;
  alone.load.ramp_up.reset();
  if (f.ready_check_timeout_s > 0) BATON_RETURN_IF_ERROR(wait_until_answered(alone, first, clock, deadline));
  if (f.num_warmups > 0) BATON_RETURN_IF_ERROR(warm_up(alone, first));

  announce(f, requests.size());
  facts.begun = static_cast<std::time_t>(clock.unix_seconds());
  Progress progress(clock, requests.size());
  const LoadResult result = run_load(requests, f.load, [&](std::size_t done) {
    if (!f.no_progress) progress.show(done);
  });
  return show(f, facts, result, path);
}

}  // namespace

int run_bench_serve(Args args) {
  BenchServeFlags flags;
  CLI::App app("Sends requests to an OpenAI server at given arrival times and prints vLLM's table of throughput and latencies.",
               "baton bench serve");
  app.set_help_flag("-h,--help", "this text");
  flags.add_to(app);
  if (const auto code = parse_args(app, std::move(args))) return *code;
  const Status status = run(flags);
  return status.ok() ? 0 : fail(status);
}

}  // namespace baton::app
