#pragma once
// Logging for shells; cores return values and never log. One line an event, written to stderr: text for eyes, or one JSON object
//   {"ts":"2026-01-31T12:00:00.000001Z","level":"info","component":"p0","msg":"...","request_id":"...","trace_id":"..."}
// A line about one request says so: its first argument is an About, and the ids become fields (of text: they follow in brackets).

#include <spdlog/spdlog.h>

#include <string>
#include <string_view>
#include <utility>

namespace baton::log {

enum class Format : unsigned char { kText, kJson };

struct Options {
  std::string level = "info";  // debug, info, warn, error
  std::string process;         // shown in every line, e.g. "gateway", "p0"
  Format format = Format::kText;
};
// Called once by app before threads start.
void init(const Options& options);

// The request that a line is about.
struct About {
  std::string_view request_id;
  std::string_view trace_id;  // empty: the client gave none
};

// The payload that both formats take apart again.
std::string marked(const About& about, std::string_view text);

template <class... Args>
void write(spdlog::level::level_enum level, const About& about, fmt::format_string<Args...> format, Args&&... args) {
  spdlog::logger* logger = spdlog::default_logger_raw();
  if (!logger->should_log(level)) return;
  logger->log(level, spdlog::string_view_t(marked(about, fmt::format(format, std::forward<Args>(args)...))));
}

using spdlog::debug;
using spdlog::error;
using spdlog::info;
using spdlog::warn;

template <class... Args>
void debug(const About& about, fmt::format_string<Args...> format, Args&&... args) {
  write(spdlog::level::debug, about, format, std::forward<Args>(args)...);
}
template <class... Args>
void info(const About& about, fmt::format_string<Args...> format, Args&&... args) {
  write(spdlog::level::info, about, format, std::forward<Args>(args)...);
}
template <class... Args>
void warn(const About& about, fmt::format_string<Args...> format, Args&&... args) {
  write(spdlog::level::warn, about, format, std::forward<Args>(args)...);
}

}  // namespace baton::log
