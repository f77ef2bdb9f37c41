// `baton bench serve`: the client side of vLLM's serving benchmark, against any OpenAI server.

#include <spdlog/fmt/chrono.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <limits>

#include "app/args.h"
#include "app/bench/bench.h"
#include "app/bench/dataset.h"
#include "app/bench/load.h"
#include "app/bench/report.h"
#include "app/client_flags.h"
#include "app/paths.h"
#include "model/model_files.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

struct BenchServeFlags {
  ClientFlags client;
  DatasetFlags dataset;
  LoadOptions load;
  ReportOptions report;
  std::string backend = "openai", tokenizer, rate = "inf", burstiness = "1.0", percentile_metrics = "ttft,tpot,itl",
              metric_percentiles = "99", extra_body;
  std::vector<std::string> goodput, metadata;
  std::optional<double> temperature;
  std::string result_dir, result_filename, label;
  bool save_result = false, save_detailed = false, no_progress = false, json = false;
  int num_warmups = 0;
};

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    if (comma > at) out.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return out;
}

Result<double> parse_rate(const std::string& flag, const std::string& text) {
  if (text == "inf") return std::numeric_limits<double>::infinity();
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (end == text.c_str() || *end || !(value > 0))
    return Status(Code::kInvalidArgument, fmt::format("{} {}: expected a positive number or inf", flag, text));
  return value;
}

Status interpret(BenchServeFlags& f) {
  BATON_ASSIGN_OR_RETURN(const double rate, parse_rate("--request-rate", f.rate));
  f.load.request_rate = f.report.request_rate = std::isinf(rate) ? 0 : rate;
  BATON_ASSIGN_OR_RETURN(f.load.burstiness, parse_rate("--burstiness", f.burstiness));
  f.report.max_concurrency = f.load.max_concurrency;
  f.load.seed = f.dataset.seed;
  f.report.metrics = split_commas(f.percentile_metrics);
  for (const std::string& m : f.report.metrics)
    if (m != "ttft" && m != "tpot" && m != "itl" && m != "e2el")
      return Status(Code::kInvalidArgument, fmt::format("--percentile-metrics: `{}` is not one of ttft, tpot, itl, e2el", m));
  f.report.percentiles.clear();
  for (const std::string& p : split_commas(f.metric_percentiles)) {
    const double value = std::atof(p.c_str());
    if (!(value > 0 && value <= 100))
      return Status(Code::kInvalidArgument, fmt::format("--metric-percentiles: `{}` is not in (0, 100]", p));
    f.report.percentiles.push_back(value);
  }
  for (const std::string& g : f.goodput) {
    const std::size_t colon = g.find(':');
    const std::string name = g.substr(0, colon);
    if (colon == std::string::npos || (name != "ttft" && name != "tpot" && name != "e2el") || std::atof(g.c_str() + colon + 1) <= 0)
      return Status(Code::kInvalidArgument, fmt::format("--goodput: expected e.g. ttft:300 tpot:50, got `{}`", g));
    f.report.goodput_ms[name] = std::atof(g.c_str() + colon + 1);
  }
  if (f.backend == "openai-chat" && f.load.endpoint == "/v1/completions") f.load.endpoint = "/v1/chat/completions";
  if (!f.extra_body.empty()) {
    f.load.extra_body = Json::parse(f.extra_body, nullptr, false);
    if (!f.load.extra_body.is_object()) return Status(Code::kInvalidArgument, "--extra-body: not a JSON object");
  }
  if (f.temperature) f.load.extra_body["temperature"] = *f.temperature;
  if (f.dataset.name == "random" || f.dataset.name == "lengths") f.load.ignore_eos = true;
  f.load.keep_texts = f.save_detailed;
  f.load.api_key = f.client.api_key;
  return {};
}

// The server's model, and its tokenizer where the model's files can be read here.
Result<std::unique_ptr<text::Tokenizer>> meet_server(BenchServeFlags& f) {
  BATON_ASSIGN_OR_RETURN(LocalHttp http, f.client.open());
  f.load.host = http.host();
  f.load.port = http.port();
  BATON_ASSIGN_OR_RETURN(const HttpAnswer answer, http.get("/v1/models"));
  BATON_RETURN_IF_ERROR(check_answer(answer, "/v1/models"));
  const Json models = Json::parse(answer.body, nullptr, false);
  if (!models.is_object() || !models.contains("data") || models["data"].empty())
    return Status(Code::kInternal, "/v1/models lists no model");
  f.load.model = f.client.model.empty() ? models["data"][0].value("id", "") : f.client.model;
  const std::string source = f.tokenizer.empty() ? models["data"][0].value("root", "") : f.tokenizer;
  const auto path = resolve_model(source);
  if (!path.ok()) {
    if (!f.tokenizer.empty()) return path.status();
    return std::unique_ptr<text::Tokenizer>();
  }
  BATON_ASSIGN_OR_RETURN(const auto files, model::ModelFiles::open(*path));
  BATON_ASSIGN_OR_RETURN(const model::TextFiles text, files->text());
  return text::Tokenizer::from_json(text.tokenizer_json);
}

Status save(const BenchServeFlags& f, const LoadResult& result, Json json) {
  const std::time_t now = static_cast<std::time_t>(SystemClock().unix_seconds());
  const std::string date = fmt::format("{:%Y%m%d-%H%M%S}", fmt::localtime(now));
  Json out{{"date", date},
           {"endpoint_type", f.backend},
           {"label", f.label},
           {"model_id", f.load.model},
           {"tokenizer_id", f.tokenizer.empty() ? f.load.model : f.tokenizer},
           {"num_prompts", result.outcomes.size()}};
  for (const std::string& m : f.metadata)
    if (const std::size_t eq = m.find('='); eq != std::string::npos) out[m.substr(0, eq)] = m.substr(eq + 1);
  if (f.load.request_rate > 0) {
    out["request_rate"] = f.load.request_rate;
  } else {
    out["request_rate"] = "inf";
  }
  out["burstiness"] = f.load.burstiness;
  out["max_concurrency"] = f.load.max_concurrency > 0 ? Json(f.load.max_concurrency) : Json();
  out.update(json);
  if (f.save_detailed) {
    for (const RequestOutcome& o : result.outcomes) {
      out["input_lens"].push_back(o.input_tokens);
      out["output_lens"].push_back(o.output_tokens);
      out["ttfts"].push_back(o.ttft);
      out["itls"].push_back(o.itl);
      out["start_times"].push_back(o.start);
      out["latencies"].push_back(o.latency);
      out["generated_texts"].push_back(o.text);
      out["errors"].push_back(o.error);
    }
  }
  std::string name = f.result_filename;
  if (name.empty()) {
    std::string base = f.load.model.substr(f.load.model.find_last_of('/') + 1);
    name = fmt::format("{}-{}qps{}-{}-{}.json", f.backend, f.rate,
                       f.load.max_concurrency > 0 ? fmt::format("-concurrency{}", f.load.max_concurrency) : "", base, date);
  }
  const std::string path = f.result_dir.empty() ? name : f.result_dir + "/" + name;
  BATON_RETURN_IF_ERROR(write_text_file(path.find('/') == std::string::npos ? "./" + path : path,
                                        out.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"));
  std::fprintf(stderr, "saved %s\n", path.c_str());
  return {};
}

Status run(BenchServeFlags& f) {
  BATON_RETURN_IF_ERROR(interpret(f));
  BATON_ASSIGN_OR_RETURN(const auto tokenizer, meet_server(f));
  BATON_ASSIGN_OR_RETURN(const auto requests, load_dataset(f.dataset, tokenizer.get(), f.load.endpoint.ends_with("/chat/completions")));
  if (f.num_warmups > 0) {
    const std::vector<BenchRequest> warmups(static_cast<std::size_t>(f.num_warmups), requests.front());
    LoadOptions quiet = f.load;
    quiet.request_rate = 0;
    run_load(warmups, quiet, [](std::size_t) {});
  }
  const bool terminal = isatty(2);
  std::fprintf(stderr, "Traffic request rate: %s, burstiness %s, maximum concurrency %s\n", f.rate.c_str(), f.burstiness.c_str(),
               f.load.max_concurrency > 0 ? std::to_string(f.load.max_concurrency).c_str() : "none");
  const SystemClock clock;
  const TimePoint start = clock.now();
  std::size_t tenth = 0;
  const LoadResult result = run_load(requests, f.load, [&](std::size_t done) {
    if (f.no_progress) return;
    const std::size_t now_tenth = done * 10 / requests.size();
    if (!terminal && now_tenth == tenth) return;
    tenth = now_tenth;
    const double seconds = to_seconds(clock.now() - start);
    std::fprintf(stderr, "%s%3zu %%|%-20s| %zu/%zu [%.0f s, %.2f req/s]%s", terminal ? "\r" : "", done * 100 / requests.size(),
                 std::string(done * 20 / requests.size(), '#').c_str(), done, requests.size(), seconds, static_cast<double>(done) / seconds,
                 terminal && done < requests.size() ? "" : "\n");
    std::fflush(stderr);
  });
  const Report report = summarize(result.outcomes, result.duration, f.report);
  const Json json = to_json(report, f.report);
  if (f.json) {
    fmt::print("{}\n", json.dump(2));
  } else {
    fmt::print("{}", table(report, f.report));
  }
  if (report.failed > 0) {
    for (const RequestOutcome& o : result.outcomes)
      if (!o.ok) {
        std::fprintf(stderr, "first failure: %s\n", o.error.c_str());
        break;
      }
  }
  if (f.save_result || f.save_detailed) BATON_RETURN_IF_ERROR(save(f, result, json));
  if (report.completed == 0) return Status(Code::kInternal, "no request succeeded");
  return {};
}

}  // namespace

int run_bench_serve(Args args) {
  BenchServeFlags f;
  CLI::App app("Sends requests to an OpenAI server at given arrival times and prints vLLM's table of throughput and latencies.",
               "baton bench serve");
  app.set_help_flag("-h,--help", "this text");
  f.client.add_to(app);
  app.add_option("--backend", f.backend, "openai (completions) or openai-chat")
      ->check(CLI::IsMember({"openai", "vllm", "openai-chat"}))
      ->capture_default_str();
  app.add_option("--endpoint", f.load.endpoint, "path to send to")->capture_default_str();
  app.add_option("--tokenizer", f.tokenizer, "model whose tokenizer measures prompts (default: the server's, where its files are here)");
  app.add_option("--label", f.label, "kept in the saved result");
  const char* data = "Dataset";
  app.add_option("--dataset-name", f.dataset.name,
                 "random, lengths (CSV input_len,output_len; without a path 200 ShareGPT-like pairs), sharegpt, custom (JSON lines)")
      ->check(CLI::IsMember({"random", "lengths", "sharegpt", "custom"}))
      ->capture_default_str()
      ->group(data);
  app.add_option("--dataset-path", f.dataset.path, "its file")->group(data);
  app.add_option("--num-prompts", f.dataset.num_prompts, "requests to send, at most")
      ->check(CLI::Range(1, 10000000))
      ->capture_default_str()
      ->group(data);
  app.add_option("--seed", f.dataset.seed, "of prompts and arrivals")->capture_default_str()->group(data);
  app.add_option("--random-input-len,--input-len", f.dataset.random_input_len, "mean prompt length of random")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str()
      ->group(data);
  app.add_option("--random-output-len,--output-len", f.dataset.random_output_len, "mean answer length of random")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str()
      ->group(data);
  app.add_option("--random-range-ratio", f.dataset.random_range_ratio, "lengths are uniform in mean * (1 +- this)")
      ->check(CLI::Range(0.0, 0.999))
      ->capture_default_str()
      ->group(data);
  app.add_option("--random-prefix-len", f.dataset.random_prefix_len, "tokens that all random prompts share")
      ->capture_default_str()
      ->group(data);
  app.add_option("--sharegpt-output-len", f.dataset.sharegpt_output_len, "answer length instead of the conversation's")->group(data);
  app.add_option("--custom-output-len", f.dataset.custom_output_len, "answer length of custom; -1: each row's output_tokens")
      ->capture_default_str()
      ->group(data);
  app.add_option("--vocab-size", f.dataset.vocab_size, "ids to draw from where no tokenizer is known")->capture_default_str()->group(data);
  const char* traffic = "Traffic";
  app.add_option("--request-rate", f.rate, "requests per second, or inf: all at once")->capture_default_str()->group(traffic);
  app.add_option("--burstiness", f.burstiness, "1 Poisson, below burstier, above more even, inf constant")
      ->capture_default_str()
      ->group(traffic);
  app.add_option("--max-concurrency", f.load.max_concurrency, "requests open at once")->group(traffic);
  app.add_option("--num-warmups", f.num_warmups, "requests sent before, not counted")->capture_default_str()->group(traffic);
  app.add_flag("--ignore-eos", f.load.ignore_eos, "answers run to their full length (always so for random and lengths)")->group(traffic);
  app.add_option("--temperature", f.temperature, "sampling temperature (default: the server's)")->group(traffic);
  app.add_option("--extra-body", f.extra_body, "JSON object merged into each request")->group(traffic);
  app.add_option("--request-id-prefix", f.load.request_id_prefix, "of the x-request-id header")->capture_default_str()->group(traffic);
  const char* results = "Results";
  app.add_option("--percentile-metrics", f.percentile_metrics, "which of ttft,tpot,itl,e2el to show")
      ->capture_default_str()
      ->group(results);
  app.add_option("--metric-percentiles", f.metric_percentiles, "which percentiles")->capture_default_str()->group(results);
  app.add_option("--goodput", f.goodput, "limits in ms, e.g. ttft:300 tpot:50: counts the requests that keep all")
      ->expected(1, 3)
      ->group(results);
  app.add_flag("--save-result", f.save_result, "write the figures as JSON")->group(results);
  app.add_flag("--save-detailed", f.save_detailed, "with each request's")->group(results);
  app.add_option("--metadata", f.metadata, "KEY=VALUE pairs kept in the file")->expected(1, 64)->group(results);
  app.add_option("--result-dir", f.result_dir, "where to write")->group(results);
  app.add_option("--result-filename", f.result_filename, "its name")->group(results);
  app.add_flag("--disable-tqdm", f.no_progress, "no progress bar")->group(results);
  app.add_flag("--json", f.json, "print JSON instead of the table")->group(results);
  if (const auto code = parse_args(app, std::move(args))) return *code;
  const Status status = run(f);
  return status.ok() ? 0 : fail(status);
}

}  // namespace baton::app
