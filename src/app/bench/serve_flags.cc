#include "app/bench/serve_flags.h"

#include <spdlog/fmt/fmt.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "base/rng.h"

namespace baton::app {
namespace {

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    if (comma > at) out.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return out;
}

std::optional<double> parse_number(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || std::isnan(value)) return std::nullopt;
  return value;
}

constexpr double kLeastRate = 1e-3;  // and burstiness: below, a run takes years, or all gaps are nothing

Result<double> parse_rate(const char* flag, const std::string& text) {
  const auto value = parse_number(text);
  if (!value || !(*value >= kLeastRate))
    return Status(Code::kInvalidArgument, fmt::format("{} {}: expected a number from {} on, or inf", flag, text, kLeastRate));
  return *value;
}

// Python's str(float).
std::string python_float(double value) {
  const std::string text = fmt::format("{}", value);
  return text.find_first_not_of("-0123456789") == std::string::npos ? text + ".0" : text;
}

// "KEY=VALUE" of `flag`, blanks around both dropped.
Result<std::vector<std::pair<std::string, std::string>>> parse_pairs(const char* flag, const std::vector<std::string>& texts) {
  const auto trim = [](const std::string& s) {
    const auto begin = s.find_first_not_of(' '), end = s.find_last_not_of(' ');
    return begin == std::string::npos ? "" : s.substr(begin, end - begin + 1);
  };
  std::vector<std::pair<std::string, std::string>> out;
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos || trim(text.substr(0, equals)).empty())
      return Status(Code::kInvalidArgument, fmt::format("{}: expected KEY=VALUE, got `{}`", flag, text));
    out.emplace_back(trim(text.substr(0, equals)), trim(text.substr(equals + 1)));
  }
  return out;
}

}  // namespace

Result<std::map<std::string, double>> parse_goodput(const std::vector<std::string>& limits) {
  std::map<std::string, double> out;
  for (const std::string& g : limits) {
    const std::size_t colon = g.find(':');
    const std::string name = g.substr(0, colon);
    const double limit = colon == std::string::npos ? -1 : parse_number(g.substr(colon + 1)).value_or(-1);
    if ((name != "ttft" && name != "tpot" && name != "e2el") || !(limit >= 0))
      return Status(Code::kInvalidArgument,
                    fmt::format("--goodput: expected limits in ms for ttft, tpot or e2el, e.g. ttft:300, got `{}`", g));
    out[name] = limit;
  }
  return out;
}

void BenchServeFlags::add_to(CLI::App& app) {
  load.request_id_prefix = fmt::format("bench-{:08x}-", entropy_u64() & 0xFFFF'FFFF);
  client.add_to(app);
  app.add_option("--backend", backend, "openai (completions) or openai-chat")
      ->check(CLI::IsMember({"openai", "vllm", "openai-chat"}))
      ->capture_default_str();
  app.add_option("--endpoint", load.endpoint, "path to send to (/v1/chat/completions with openai-chat)")->capture_default_str();
  app.add_option("--served-model-name", served_model_name, "name of the model in requests, where it is not --model's");
  app.add_option("--tokenizer", tokenizer, "model whose tokenizer measures prompts (default: the server's, where its files are here)");
  app.add_flag("--skip-tokenizer-init", skip_tokenizer_init, "load none");
  app.add_option("--label", label, "kept in the saved result and its file's name");
  dataset.add_to(app);
  add_traffic(app);
  add_sampling(app);
  add_results(app);
}

void BenchServeFlags::add_traffic(CLI::App& app) {
  const char* group = "Traffic";
  app.add_option("--request-rate", rate_text_, "requests per second, or inf: all at once (default: inf; of a trace: its own times)")
      ->group(group);
  app.add_option("--burstiness", burstiness_text_, "1 Poisson, below burstier, above more even, inf constant")
      ->capture_default_str()
      ->group(group);
  app.add_option("--arrival", arrival_,
                 "rescaled: the last request leaves at exactly N / rate; v0.7.3: the first at 0 and one gap after each, as that version")
      ->check(CLI::IsMember({"rescaled", "v0.7.3"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--ramp-up-strategy", ramp_up_strategy_, "instead of a rate: one that rises, linear or exponential")
      ->check(CLI::IsMember({"linear", "exponential"}))
      ->group(group);
  app.add_option("--ramp-up-start-rps", ramp_up_start_rps_, "requests per second at the begin")->check(CLI::PositiveNumber)->group(group);
  app.add_option("--ramp-up-end-rps", ramp_up_end_rps_, "and at the end")->check(CLI::PositiveNumber)->group(group);
  app.add_option("--max-concurrency", load.max_concurrency, "requests open at once")->check(CLI::Range(1, 1'000'000))->group(group);
  app.add_option("--num-warmups", num_warmups, "requests sent before, not counted")
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str()
      ->group(group);
  app.add_option("--ready-check-timeout-sec", ready_check_timeout_s,
                 "wait for so long until the server answers the first request; 0: do not")
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str()
      ->group(group);
  app.add_option("--header", headers_, "KEY=VALUE pairs sent with each request")->expected(1, 64)->group(group);
  app.add_option("--request-id-prefix", load.request_id_prefix, "of the x-request-id header (default: bench- and 8 drawn digits)")
      ->group(group);
}

void BenchServeFlags::add_sampling(CLI::App& app) {
  const char* group = "Sampling";
  app.add_flag("--ignore-eos", load.ignore_eos, "answers run to their full length (always so for random, lengths and traces)")
      ->group(group);
  app.add_option("--temperature", temperature_, "0: greedy (of this and the next six, the default is the server's)")->group(group);
  app.add_option("--top-p", top_p_, "smallest set of tokens with this probability")->group(group);
  app.add_option("--top-k", top_k_, "so many most probable tokens")->group(group);
  app.add_option("--min-p", min_p_, "tokens with this share of the highest probability")->group(group);
  app.add_option("--frequency-penalty", frequency_penalty_, "by how often a token came")->group(group);
  app.add_option("--presence-penalty", presence_penalty_, "for tokens that came")->group(group);
  app.add_option("--repetition-penalty", repetition_penalty_, "a factor for tokens that came")->group(group);
  app.add_option("--logprobs", logprobs_, "ask for so many log-probabilities a token")->check(CLI::Range(0, 1000))->group(group);
  app.add_option("--extra-body", extra_body_, "JSON object merged into each request")->group(group);
}

void BenchServeFlags::add_results(CLI::App& app) {
  const char* group = "Results";
  app.add_option("--percentile-metrics", percentile_metrics_,
                 "which to show: ttft,tpot,itl,e2el; with --max-concurrency also client_queue_time,e2el_including_client_queue")
      ->capture_default_str()
      ->group(group);
  app.add_option("--metric-percentiles", metric_percentiles_, "which percentiles")->capture_default_str()->group(group);
  app.add_option("--goodput", goodput_, "limits in ms, e.g. ttft:300 tpot:50 e2el:9000: counts the requests that keep all")
      ->expected(1, 3)
      ->group(group);
  app.add_flag("--save-result", save_result, "write the figures as JSON")->group(group);
  app.add_flag("--save-detailed", save_detailed, "with each request's")->group(group);
  app.add_flag("--append-result", append_result, "add them to the file as one more line")->group(group);
  app.add_option("--metadata", metadata_text_, "KEY=VALUE pairs kept in the file")->expected(1, 64)->group(group);
  app.add_option("--result-dir", result_dir, "where to write (default: here)")->group(group);
  app.add_option("--result-filename", result_filename, "its name (default: of backend, rate, model and time)")->group(group);
  app.add_flag("--disable-tqdm", no_progress, "no progress bar")->group(group);
  app.add_flag("--json", json, "print what would be saved instead of the table")->group(group);
}

Status BenchServeFlags::interpret() {
  if (backend == "openai-chat" && load.endpoint == "/v1/completions") load.endpoint = "/v1/chat/completions";
  load.api_key = client.key();
  load.seed = dataset.seed;
  load.keep_texts = save_detailed;
  load.stop_on_signals = true;
  if (dataset.wants_full_answers()) load.ignore_eos = true;
  BATON_ASSIGN_OR_RETURN(load.headers, parse_pairs("--header", headers_));
  BATON_ASSIGN_OR_RETURN(metadata, parse_pairs("--metadata", metadata_text_));
  BATON_RETURN_IF_ERROR(interpret_traffic());
  if (dataset.name == "mix") {  // which gives its chats their times, and its long prompts others
    if (load.ramp_up || load.arrival == ArrivalForm::kV073)
      return Status(Code::kInvalidArgument,
                    "--ramp-up-strategy and --arrival: the chats of --dataset-name mix come at one --request-rate, rescaled");
    dataset.mix_rate = load.request_rate;
    dataset.mix_burstiness = load.burstiness;
    load.request_rate = 0;
  }
  BATON_RETURN_IF_ERROR(interpret_body());
  return interpret_results();
}

Status BenchServeFlags::interpret_traffic() {
  BATON_ASSIGN_OR_RETURN(load.burstiness, parse_rate("--burstiness", burstiness_text_));
  if (arrival_ == "v0.7.3") load.arrival = ArrivalForm::kV073;
  report.max_concurrency = load.max_concurrency;
  if (ramp_up_strategy_.empty()) {
    if (ramp_up_start_rps_ || ramp_up_end_rps_)
      return Status(Code::kInvalidArgument, "--ramp-up-start-rps and --ramp-up-end-rps want --ramp-up-strategy linear or exponential");
  } else {
    if (!rate_text_.empty() && rate_text_ != "inf")
      return Status(Code::kInvalidArgument, "--request-rate and --ramp-up-strategy: give one of them");
    if (!ramp_up_start_rps_ || !ramp_up_end_rps_ || *ramp_up_start_rps_ > *ramp_up_end_rps_)
      return Status(Code::kInvalidArgument, "--ramp-up-strategy wants --ramp-up-start-rps and a --ramp-up-end-rps that is not below it");
    load.ramp_up = RampUp{ramp_up_strategy_ == "exponential", *ramp_up_start_rps_, *ramp_up_end_rps_};
    return {};
  }
  if (rate_text_.empty()) return {};
  BATON_ASSIGN_OR_RETURN(const double value, parse_rate("--request-rate", rate_text_));
  rate = python_float(value);
  // A rate that was given replaces a trace's times; one beyond every clock is all at once.
  load.request_rate = std::isinf(value) && dataset.is_trace() ? 1e12 : std::isinf(value) ? 0 : value;
  report.request_rate = std::isinf(value) ? 0 : value;
  return {};
}

Status BenchServeFlags::interpret_body() {
  nlohmann::ordered_json& body = load.extra_body;
  const auto set = [&](const char* name, const auto& value) {
    if (value) body[name] = *value;
  };
  set("temperature", temperature_);
  set("top_p", top_p_);
  set("top_k", top_k_);
  set("min_p", min_p_);
  set("frequency_penalty", frequency_penalty_);
  set("presence_penalty", presence_penalty_);
  set("repetition_penalty", repetition_penalty_);
  if (logprobs_ && is_chat()) body["logprobs"] = true;
  set(is_chat() ? "top_logprobs" : "logprobs", logprobs_);
  if (extra_body_.empty()) return {};
  const auto extra = nlohmann::ordered_json::parse(extra_body_, nullptr, false);
  if (!extra.is_object()) return Status(Code::kInvalidArgument, "--extra-body: not a JSON object");
  body.update(extra);
  return {};
}

Status BenchServeFlags::interpret_results() {
  report.metrics = split_commas(percentile_metrics_);
  for (const std::string& m : report.metrics)
    if (std::find(std::begin(kMetrics), std::end(kMetrics), m) == std::end(kMetrics))
      return Status(Code::kInvalidArgument, fmt::format("--percentile-metrics: `{}` is not one of {}", m,
                                                        fmt::join(std::begin(kMetrics), std::end(kMetrics), ", ")));
  report.percentiles.clear();
  for (const std::string& p : split_commas(metric_percentiles_)) {
    const auto value = parse_number(p);
    if (!value || *value < 0 || *value > 100)
      return Status(Code::kInvalidArgument, fmt::format("--metric-percentiles: `{}` is not a number from 0 to 100", p));
    report.percentiles.push_back(*value);
  }
  BATON_ASSIGN_OR_RETURN(report.goodput_ms, parse_goodput(goodput_));
  return {};
}

}  // namespace baton::app
