#pragma once
// Command-line manners that all commands share: --flag_name for --flag-name, --config FILE, did-you-mean, sizes like 4GiB, and one-line
// notices for vLLM's flags that mean nothing here.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace baton::app {

inline constexpr const char* kVersion = BATON_VERSION;

// Exit codes: 0 done, 1 it failed, 2 the command line is wrong.
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

// Parses `args` (without the program and command names). On --help or an error prints what is due and returns the exit code; nullopt: go
// on. Flags that vLLM has and that change nothing here are dropped with a notice.
std::optional<int> parse_args(CLI::App& app, std::vector<std::string> args);

// "262144", "256KiB", "4GiB", "1.5GB", "32k" -> a number (k, M, G are 1000s for tokens, KiB.. are 1024s).
Result<std::int64_t> parse_size(const std::string& text);
// The cores of devices, one after the other.
using CoreSets = std::vector<std::vector<int>>;
// "0-3,6" -> {{0,1,2,3,6}}, "0,1:2,3" -> {{0,1},{2,3}}, "" -> {}; and back.
Result<CoreSets> parse_core_sets(const std::string& text);
std::string format_core_sets(const CoreSets& sets);
std::string format_cores(const std::vector<int>& cores);
// "1.5 GiB"
std::string format_bytes(double bytes);

// The candidate nearest to `word` by edit distance, if one is near enough to be meant.
std::optional<std::string> did_you_mean(const std::string& word, const std::vector<std::string>& candidates);

// Prints "baton: error: message" to stderr and returns kExitFailed.
int fail(const Status& status);

}  // namespace baton::app
