#pragma once
// The saved result of `baton bench serve`: vLLM's keys, its file's name and its way of adding to a file.

#include <ctime>
#include <nlohmann/json.hpp>
#include <string>

#include "app/bench/load.h"
#include "app/bench/report.h"
#include "app/bench/serve_flags.h"

namespace baton::app {

// What the run was, as far as flags do not say it.
struct RunFacts {
  std::time_t begun = 0;      // wall-clock seconds
  std::string tokenizer_id;   // "": none was loaded
  std::vector<double> times;  // when the requests were to leave
};

// --result-dir and --result-filename, or vLLM's name: backend or label, rate, concurrency, model, date.
std::string result_path(const BenchServeFlags& flags, std::time_t begun);

// Each request's figures only with --save-detailed.
nlohmann::ordered_json result_json(const BenchServeFlags& flags, const RunFacts& facts, const LoadResult& result, const Report& report);

// Whether save_result will be able to: makes the folder, and leaves no other trace. For before the run.
Status check_result_path(const std::string& path, bool append);
// One line of JSON, which replaces the file whole or not at all, or is added to it as a line of its own.
Status save_result(const std::string& path, bool append, const nlohmann::ordered_json& result);

}  // namespace baton::app
