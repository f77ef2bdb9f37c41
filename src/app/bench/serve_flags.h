#pragma once
// The flags of `baton bench serve`, and what they mean for dataset, load, report and saved result.

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "app/bench/dataset.h"
#include "app/bench/load.h"
#include "app/bench/report.h"
#include "app/client_flags.h"

namespace baton::app {

// Limits of --goodput, "ttft:300" -> ms by name.
Result<std::map<std::string, double>> parse_goodput(const std::vector<std::string>& limits);

struct BenchServeFlags {
  ClientFlags client;
  DatasetFlags dataset;
  LoadOptions load;      // complete after interpret(), but for what the server says: host, port, model
  ReportOptions report;  // complete after interpret()

  std::string backend = "openai", tokenizer, served_model_name, label;
  bool skip_tokenizer_init = false;
  int num_warmups = 0, ready_check_timeout_s = 0;
  bool save_result = false, save_detailed = false, append_result = false, no_progress = false, json = false;
  std::string result_dir, result_filename;
  std::vector<std::pair<std::string, std::string>> metadata;  // after interpret()
  std::string rate = "inf";                                   // as vLLM writes it in file names: 2.0, inf; after interpret()

  // `this` must outlive the parsing.
  void add_to(CLI::App& app);
  // Checks what flags say together. An error names the flag and what it wants.
  Status interpret();
  bool is_chat() const { return load.endpoint.ends_with("/chat/completions"); }
  bool saves() const { return save_result || save_detailed || append_result; }

 private:
  void add_traffic(CLI::App& app);
  void add_sampling(CLI::App& app);
  void add_results(CLI::App& app);
  Status interpret_traffic();
  Status interpret_body();
  Status interpret_results();

  std::string rate_text_, burstiness_text_ = "1.0", arrival_ = "rescaled", ramp_up_strategy_, extra_body_;
  std::optional<double> ramp_up_start_rps_, ramp_up_end_rps_;
  std::optional<double> temperature_, top_p_, min_p_, frequency_penalty_, presence_penalty_, repetition_penalty_;
  std::optional<int> top_k_, logprobs_;
  std::vector<std::string> headers_, goodput_, metadata_text_;
  std::string percentile_metrics_ = "ttft,tpot,itl", metric_percentiles_ = "99";
};

}  // namespace baton::app
