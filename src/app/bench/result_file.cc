#include "app/bench/result_file.h"

#include <spdlog/fmt/chrono.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "app/paths.h"

namespace baton::app {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

Status cannot_write(const std::string& path, const std::string& why) {
  return Status(Code::kInvalidArgument,
                fmt::format("cannot write the result to {}: {}; choose another place with --result-dir or --result-filename", path, why));
}

// A device or a pipe is written to, never replaced.
bool is_special(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored) && !fs::is_regular_file(path, ignored);
}

Status append_text(const std::string& path, const std::string& text) {
  std::FILE* file = std::fopen(path.c_str(), "ab");
  if (!file) return cannot_write(path, std::strerror(errno));
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size() && std::fflush(file) == 0;
  const std::string why = std::strerror(errno);
  std::fclose(file);
  return written ? Status() : cannot_write(path, why);
}

bool ends_inside_a_line(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in || in.tellg() <= 0) return false;
  in.seekg(-1, std::ios::end);
  return in.get() != '\n';
}

void add_details(const LoadResult& result, Json& out) {
  for (const char* key :
       {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "generated_texts", "errors"})
    out[key] = Json::array();
  for (const RequestOutcome& o : result.outcomes) {
    out["input_lens"].push_back(o.input_tokens);
    out["output_lens"].push_back(o.ok ? o.output_tokens : 0);
    out["ttfts"].push_back(o.ttft);
    out["itls"].push_back(o.itl);
    out["latencies"].push_back(o.latency);
    out["start_times"].push_back(o.start);
    out["queue_times"].push_back(o.queued);
    out["generated_texts"].push_back(o.text);
    out["errors"].push_back(o.error);
  }
}

}  // namespace

std::string result_path(const BenchServeFlags& flags, std::time_t begun) {
  std::string name = flags.result_filename;
  if (name.empty()) {
    const auto& ramp = flags.load.ramp_up;
    name = fmt::format(
        "{}-{}{}-{}-{:%Y%m%d-%H%M%S}.json", flags.label.empty() ? flags.backend : flags.label,
        ramp ? fmt::format("ramp-up-{}-{}qps-{}qps", ramp->exponential ? "exponential" : "linear", ramp->start_rps, ramp->end_rps)
             : flags.rate + "qps",
        flags.load.max_concurrency > 0 ? fmt::format("-concurrency{}", flags.load.max_concurrency) : "",
        flags.load.model.substr(flags.load.model.find_last_of('/') + 1), fmt::localtime(begun));
  }
  return (fs::path(flags.result_dir.empty() ? "." : flags.result_dir) / name).string();
}

Json result_json(const BenchServeFlags& flags, const RunFacts& facts, const LoadResult& result, const Report& report) {
  const auto or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  Json out{{"date", fmt::format("{:%Y%m%d-%H%M%S}", fmt::localtime(facts.begun))},
           {"endpoint_type", flags.backend},
           {"backend", flags.backend},
           {"label", or_null(flags.label)},
           {"model_id", flags.load.model},
           {"tokenizer_id", or_null(facts.tokenizer_id)},
           {"num_prompts", facts.times.size()},
           {"dataset_name", flags.dataset.name},
           {"seed", flags.dataset.seed}};
  for (const auto& [key, value] : flags.metadata) out[key] = value;
  out["request_rate"] = flags.report.request_rate > 0 ? Json(flags.report.request_rate) : Json("inf");
  out["burstiness"] = std::isinf(flags.load.burstiness) ? Json("inf") : Json(flags.load.burstiness);
  out["max_concurrency"] = flags.load.max_concurrency > 0 ? Json(flags.load.max_concurrency) : Json();
  if (flags.load.arrival == ArrivalForm::kV073) out["arrival"] = "v0.7.3";
  if (flags.dataset.is_trace()) out["trace_scale"] = flags.dataset.trace_scale;
  if (result.interrupted) out["interrupted"] = true;
  if (const auto& ramp = flags.load.ramp_up) {
    out["ramp_up_strategy"] = ramp->exponential ? "exponential" : "linear";
    out["ramp_up_start_rps"] = ramp->start_rps;
    out["ramp_up_end_rps"] = ramp->end_rps;
    for (const RateChange& change : rate_changes(*ramp, facts.times))
      out["rps_change_events"].push_back(
          {{"rps", change.rps},
           {"timestamp", fmt::format("{:%Y-%m-%dT%H:%M:%S}", fmt::localtime(facts.begun + static_cast<std::time_t>(change.at_s)))}});
  }
  out.update(to_json(report, flags.report));
  if (flags.save_detailed) add_details(result, out);
  return out;
}

Status check_result_path(const std::string& path, bool append) {
  std::error_code error;
  if (fs::is_directory(path, error)) return cannot_write(path, "it is a folder");
  if (is_special(path)) return append_text(path, "");
  BATON_RETURN_IF_ERROR(make_dirs(fs::path(path).parent_path()));
  const bool there = fs::exists(path, error);
  if (there && access(path.c_str(), W_OK) != 0) return cannot_write(path, std::strerror(errno));
  if (append && there) return append_text(path, "");
  const std::string probe = append ? path : fmt::format("{}.{}", path, getpid());  // as save_result makes it
  BATON_RETURN_IF_ERROR(append_text(probe, ""));
  fs::remove(probe, error);
  return {};
}

Status save_result(const std::string& path, bool append, const Json& result) {
  const std::string line = result.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (is_special(path)) return append_text(path, line);
  if (append) return append_text(path, (ends_inside_a_line(path) ? "\n" : "") + line);
  return write_text_file(path, line);
}

}  // namespace baton::app
