#include "app/options.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cstdlib>

#include "app/args.h"
#include "base/log.h"

namespace baton::app {
namespace {

constexpr const char* kKeyVariables[] = {"BATON_API_KEY", "VLLM_API_KEY"};

}  // namespace

void LogFlags::add_to(CLI::App& app) {
  app.add_option("--log-level", level, "debug (with every event of every request), info, warn, error")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_option("--log-format", format, "text, or json: one object a line, with request_id and trace_id where it is about a request")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
}

std::vector<std::string> LogFlags::args() const { return {"--log-level", level, "--log-format", format}; }

void LogFlags::init(const std::string& process) const {
  log::init({level, process, format == "json" ? log::Format::kJson : log::Format::kText});
}

int LogFlags::end(const Status& status) const {
  if (status.ok()) return 0;
  if (format != "json") return fail(status);
  log::error("{}", status.message());
  return kExitFailed;
}

void EngineFlags::add_to(CLI::App& app) {
  const char* group = "Engine";
  app.add_option("--dtype", dtype, "element type of the KV cache: auto (bfloat16), bfloat16, float16, float32")
      ->check(CLI::IsMember({"auto", "bfloat16", "float16", "half", "float", "float32"}))
      ->group(group);
  app.add_option("--compute-type", compute_type, "arithmetic of linear layers: auto (int8 for quantised files, else bf16), int8, bf16, f32")
      ->check(CLI::IsMember({"auto", "int8", "bf16", "f32"}))
      ->group(group);
  app.add_option("--max-model-len", max_model_len, "longest prompt + output in tokens, e.g. 4096 or 32k (default: the model's)")
      ->group(group);
  app.add_option("--max-num-seqs", max_num_seqs, "sequences that run at once in one engine")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-num-batched-tokens", max_num_batched_tokens, "tokens of one step: the chunk of a long prompt")
      ->capture_default_str()
      ->group(group);
  app.add_option("--kv-cache-memory-bytes", kv_cache_memory_bytes, "size of each engine's KV cache, e.g. 2GiB (default: from what is free)")
      ->group(group);
  app.add_option("--block-size", block_size, "tokens in a KV block (default: the device's)")->check(CLI::Range(0, 1024))->group(group);
  app.add_option("--threads", threads, "CPU threads of each engine (default: its share of the cores)")
      ->check(CLI::Range(0, 1024))
      ->group(group);
  app.add_option("--tensor-parallel-size", tensor_parallel_size,
                 "ranks of each engine, which hold and compute a part of the model each, on a device of its own (-tp)")
      ->check(CLI::Range(1, 999))
      ->capture_default_str()
      ->group(group);
  app.add_option("--cores", cores,
                 "logical CPUs to use, e.g. 0-3,6, dealt out among the ranks of all engines; or those of each rank: 0-3:4-7")
      ->group(group);
  app.add_flag("--cores-shared", cores_shared, "devices may have the same cores")->group("");  // from the supervisor, which has warned
  app.add_option("--isa", isa, "instruction set to restrict kernels to: avx512-bf16-vnni, avx2, scalar (default: the best there is)")
      ->group(group);
  app.add_option("--max-step-ms", max_step_ms, "time budget of a step that computes prompts")
      ->check(CLI::Range(1, 60000))
      ->capture_default_str()
      ->group(group);
  app.add_flag("--no-enable-prefix-caching", no_prefix_caching, "do not keep the KV of finished prompts for reuse")->group(group);
  app.add_flag(
         "--enable-chunked-prefill,!--no-enable-chunked-prefill", chunked_prefill,
         "compute prompts in chunks, in steps shared with decode (the default); with --no-enable-chunked-prefill whole prompts run before "
         "any decode step: what engines did before, for comparison, as it delays every running stream by each new prompt")
      ->group(group);
  log.add_to(app);
}

std::vector<std::string> EngineFlags::args() const {
  std::vector<std::string> out = {"--dtype",
                                  dtype,
                                  "--compute-type",
                                  compute_type,
                                  "--max-num-seqs",
                                  std::to_string(max_num_seqs),
                                  "--max-num-batched-tokens",
                                  max_num_batched_tokens,
                                  "--block-size",
                                  std::to_string(block_size),
                                  "--threads",
                                  std::to_string(threads),
                                  "--tensor-parallel-size",
                                  std::to_string(tensor_parallel_size),
                                  "--max-step-ms",
                                  std::to_string(max_step_ms)};
  const auto logs = log.args();
  out.insert(out.end(), logs.begin(), logs.end());
  const auto add = [&](const char* flag, const std::string& value) {
    if (!value.empty()) out.insert(out.end(), {flag, value});
  };
  add("--max-model-len", max_model_len);
  add("--kv-cache-memory-bytes", kv_cache_memory_bytes);
  add("--cores", cores);
  add("--isa", isa);
  if (no_prefix_caching) out.push_back("--no-enable-prefix-caching");
  const auto several = nodes.args();
  out.insert(out.end(), several.begin(), several.end());
  if (cores_shared) out.push_back("--cores-shared");
  if (!chunked_prefill) out.push_back("--no-enable-chunked-prefill");
  return out;
}

void FrontFlags::add_to(CLI::App& app) {
  const char* group = "Front end";
  app.add_option("--host", host, "address to listen on")->capture_default_str()->group(group);
  app.add_option("--port", port, "port to listen on")->check(CLI::Range(0, 65535))->capture_default_str()->group(group);
  app.add_option("--served-model-name", served_model_name, "names that requests may use; replies carry the first (default: MODEL)")
      ->expected(1, 16)
      ->group(group);
  app.add_option("--api-key", api_key, "keys that clients must send; also from BATON_API_KEY or VLLM_API_KEY")
      ->expected(1, 64)
      ->group(group);
  app.add_option("--api-key-file", api_key_file,
                 "JSON Lines file of keys with names, and optionally weights and limits: {\"key\", \"name\", \"weight\", "
                 "\"max_requests\", \"max_tokens_per_minute\"}")
      ->group(group);
  app.add_option("--chat-template", chat_template, "file with a Jinja chat template (default: the model's own)")->group(group);
  app.add_option("--generation-config", generation_config, "where sampling defaults come from: auto (the model), vllm (none), or a folder")
      ->capture_default_str()
      ->group(group);
  app.add_option("--seed", seed, "makes the seeds of requests that give none repeatable (default: drawn from the system)")->group(group);
  app.add_option("--fallback", fallback, "when a role has no live worker: local (the other role serves requests alone) or fail")
      ->check(CLI::IsMember({"local", "fail"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-logprobs", max_logprobs, "most log-probabilities a request may ask for")
      ->check(CLI::Range(0, 100))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-requests", max_requests, "requests in flight before 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-queue-wait", max_queue_wait_s,
                 "seconds; a request that would wait longer for room on a worker is refused with 429 when it comes, 0 for no limit")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--request-timeout", request_timeout_s, "longest life of a request in seconds")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--shutdown-timeout", shutdown_timeout_s, "seconds that running requests get to finish after SIGTERM")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--progress-timeout", progress_timeout_s,
                 "seconds after which a worker that is silent, or whose step does not end, loses its requests to others")
      ->check(CLI::Range(0.5, 3600.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--stats-interval", stats_interval_s, "seconds between statistics lines, 0 for none")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str()
      ->group(group);
}

std::vector<std::string> FrontFlags::args() const {
  std::vector<std::string> out = {"--generation-config", generation_config,
                                  "--fallback",          fallback,
                                  "--max-logprobs",      std::to_string(max_logprobs),
                                  "--max-requests",      std::to_string(max_requests),
                                  "--max-queue-wait",    fmt::format("{}", max_queue_wait_s),
                                  "--request-timeout",   fmt::format("{}", request_timeout_s),
                                  "--shutdown-timeout",  fmt::format("{}", shutdown_timeout_s),
                                  "--progress-timeout",  fmt::format("{}", progress_timeout_s),
                                  "--stats-interval",    std::to_string(stats_interval_s)};
  const auto add_list = [&](const char* flag, const std::vector<std::string>& values) {
    if (values.empty()) return;
    out.push_back(flag);
    out.insert(out.end(), values.begin(), values.end());
  };
  if (seed) out.insert(out.end(), {"--seed", std::to_string(*seed)});
  if (!chat_template.empty()) out.insert(out.end(), {"--chat-template", chat_template});
  if (!api_key_file.empty()) out.insert(out.end(), {"--api-key-file", api_key_file});
  add_list("--served-model-name", served_model_name);
  return out;  // keys travel by environment: arguments can be read by every user of the machine
}

std::vector<std::string> FrontFlags::api_keys() const {
  std::vector<std::string> keys = api_key;
  for (const char* name : kKeyVariables) {
    const char* value = std::getenv(name);
    for (std::string rest = value ? value : ""; !rest.empty();) {
      const std::size_t comma = std::min(rest.find(','), rest.size());
      if (comma > 0) keys.push_back(rest.substr(0, comma));
      rest.erase(0, comma + 1);
    }
  }
  return keys;
}

void forget_api_keys() {
  for (const char* name : kKeyVariables) unsetenv(name);
}

Result<std::int64_t> effective_max_model_len(const std::string& flag, std::int64_t model_positions) {
  if (flag.empty() || flag == "auto" || flag == "-1") return model_positions;
  BATON_ASSIGN_OR_RETURN(const std::int64_t wanted, parse_size(flag));
  if (wanted < 1 || wanted > model_positions)
    return Status(Code::kInvalidArgument, fmt::format("--max-model-len {}: the model was made for at most {} positions; give 1 to {}", flag,
                                                      model_positions, model_positions));
  return wanted;
}

}  // namespace baton::app
