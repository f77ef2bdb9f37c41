#pragma once
// Logging for shells; cores return values and never log. One line an event, written to stderr.

#include <spdlog/spdlog.h>

#include <string>

namespace baton::log {

using spdlog::debug;
using spdlog::error;
using spdlog::info;
using spdlog::warn;

struct Options {
  std::string level = "info";  // debug, info, warn, error
  std::string process;         // shown in every line, e.g. "gateway", "p0"
};
// Called once by app before threads start.
void init(const Options& options);

}  // namespace baton::log
