#pragma once
// The flags that serve, gateway, worker and bench engine share, each declared once, and turned back into arguments for child processes.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/nodes.h"
#include "base/status.h"

namespace baton::app {

// What is logged, and how; of a server and all its children.
struct LogFlags {
  std::string level = "info", format = "text";

  void add_to(CLI::App& app);
  std::vector<std::string> args() const;
  void init(const std::string& process) const;  // before any line
  // The exit code of a process that ends so; its error is a line of the log where a machine reads it.
  int end(const Status& status) const;
};

// What a worker computes with.
struct EngineFlags {
  std::string model;
  std::string dtype = "auto";         // of the KV cache and of plain weights' arithmetic: auto, bfloat16, float16, float32
  std::string compute_type = "auto";  // auto, int8, bf16, f32
  std::string max_model_len;          // a size; "" or "auto": what the model says
  int max_num_seqs = 64;
  std::string max_num_batched_tokens = "512";
  std::string kv_cache_memory_bytes;  // a size; "": chosen from what is free
  int block_size = 0;
  int threads = 0;
  std::string cores;          // a list to plan devices with, or the devices' own, one a rank: "0-3:4-7"; "": all physical ones
  bool cores_shared = false;  // devices may have the same cores
  int tensor_parallel_size = 1;
  std::string isa;
  int max_step_ms = 100;
  bool no_prefix_caching = false;
  bool chunked_prefill = true;
  NodeFlags nodes;  // declared by the commands that start an instance over several hosts
  LogFlags log;

  void add_to(CLI::App& app);  // without `nodes`
  std::vector<std::string> args() const;
  int local_ranks() const { return tensor_parallel_size / nodes.nnodes; }  // on this host
};

// What the HTTP front shows.
struct FrontFlags {
  std::vector<std::string> served_model_name;
  std::string host = "0.0.0.0";
  int port = 8000;
  std::vector<std::string> api_key;
  std::string api_key_file;
  std::string chat_template;
  std::string generation_config = "auto";
  std::string fallback = "local";
  std::optional<std::uint64_t> seed;
  int max_logprobs = 20;
  int max_requests = 4096;
  double max_queue_wait_s = 600;
  double request_timeout_s = 1800;
  double shutdown_timeout_s = 30;
  double progress_timeout_s = 1;
  int stats_interval_s = 10;

  void add_to(CLI::App& app);
  std::vector<std::string> args() const;  // without host and port: the socket is handed over
  // Those given, and those of the environment.
  std::vector<std::string> api_keys() const;
};

// For commands with a cluster of their own, which nobody else is to use: its keys, if any, are not those that the environment has for
// another. Before any thread is started.
void forget_api_keys();

// --max-model-len against what the model was made for; an error says the largest that is possible.
Result<std::int64_t> effective_max_model_len(const std::string& flag, std::int64_t model_positions);

}  // namespace baton::app
