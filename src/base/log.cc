#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <memory>

namespace baton::log {
namespace {

// A marked payload begins with kMark; request id, trace id and text are separated by kField. No line of ours begins so by itself.
constexpr char kMark = '\x1e', kField = '\x1f';

struct Payload {
  About about;
  std::string_view text;
};

Payload take_apart(std::string_view payload) {
  if (payload.empty() || payload.front() != kMark) return {{}, payload};
  payload.remove_prefix(1);
  const auto field = [&payload] {
    const auto end = std::min(payload.find(kField), payload.size());
    const std::string_view out = payload.substr(0, end);
    payload.remove_prefix(std::min(end + 1, payload.size()));
    return out;
  };
  Payload out;
  out.about.request_id = field();
  out.about.trace_id = field();
  out.text = payload;
  return out;
}

void append(spdlog::memory_buf_t& out, std::string_view text) { out.append(text.data(), text.data() + text.size()); }

// The length of the UTF-8 sequence that `text` begins with; 0 if it is none (RFC 3629, table 3-7 of Unicode).
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto tail = [&](std::size_t i) { return (byte(i) & 0xc0) == 0x80; };
  const unsigned a = byte(0), b = byte(1);
  if (a < 0x80) return 1;
  if (a >= 0xc2 && a <= 0xdf && tail(1)) return 2;
  if (a >= 0xe0 && a <= 0xef && tail(1) && tail(2) && (a != 0xe0 || b >= 0xa0) && (a != 0xed || b < 0xa0)) return 3;
  if (a >= 0xf0 && a <= 0xf4 && tail(1) && tail(2) && tail(3) && (a != 0xf0 || b >= 0x90) && (a != 0xf4 || b < 0x90)) return 4;
  return 0;
}

// What peers and files say ends up in messages: whatever it is, the line stays one line of valid JSON.
void append_json_string(spdlog::memory_buf_t& out, std::string_view text) {
  out.push_back('"');
  for (std::size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const std::size_t length = utf8_length(text.substr(i));
    if (length == 0) {
      append(out, "\\ufffd");
    } else if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(text[i]);
    } else if (c < 0x20 || c == 0x7f) {
      append(out, fmt::format("\\u{:04x}", c));
    } else {
      append(out, text.substr(i, length));
    }
    i += std::max<std::size_t>(length, 1);
  }
  out.push_back('"');
}

// RFC 3339 in UTC, with microseconds.
void append_time(spdlog::memory_buf_t& out, spdlog::log_clock::time_point at) {
  const auto micros = std::chrono::time_point_cast<std::chrono::microseconds>(at).time_since_epoch().count();
  const std::chrono::sys_seconds second{std::chrono::seconds(micros / 1'000'000)};
  const auto day = std::chrono::floor<std::chrono::days>(second);
  const std::chrono::year_month_day date(day);
  const std::chrono::hh_mm_ss time(second - day);
  append(out, fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", static_cast<int>(date.year()), static_cast<unsigned>(date.month()),
                          static_cast<unsigned>(date.day()), time.hours().count(), time.minutes().count(), time.seconds().count(),
                          micros % 1'000'000));
}

std::string_view level_name(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::trace:
    case spdlog::level::debug:
      return "debug";
    case spdlog::level::info:
      return "info";
    case spdlog::level::warn:
      return "warn";
    default:
      return "error";
  }
}

// The pattern's %*: the text, and the ids behind it.
class TextFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& msg, const std::tm&, spdlog::memory_buf_t& out) override {
    const Payload p = take_apart({msg.payload.data(), msg.payload.size()});
    append(out, p.text);
    if (p.about.request_id.empty()) return;
    append(out, " [request ");
    append(out, p.about.request_id);
    if (!p.about.trace_id.empty()) {
      append(out, ", trace ");
      append(out, p.about.trace_id);
    }
    append(out, "]");
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<TextFlag>(); }
};

// The pattern's %*: the whole line.
class JsonFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& msg, const std::tm&, spdlog::memory_buf_t& out) override {
    const Payload p = take_apart({msg.payload.data(), msg.payload.size()});
    const auto field = [&out](std::string_view name, std::string_view value) {
      append(out, name);
      append_json_string(out, value);
    };
    append(out, "{\"ts\":\"");
    append_time(out, msg.time);
    append(out, "\"");
    field(",\"level\":", level_name(msg.level));
    field(",\"component\":", {msg.logger_name.data(), msg.logger_name.size()});
    field(",\"msg\":", p.text);
    if (!p.about.request_id.empty()) field(",\"request_id\":", p.about.request_id);
    if (!p.about.trace_id.empty()) field(",\"trace_id\":", p.about.trace_id);
    append(out, "}");
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<JsonFlag>(); }
};

}  // namespace

std::string marked(const About& about, std::string_view text) {
  std::string out(1, kMark);
  const auto id = [&out](std::string_view value) {
    for (const char c : value) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    out += kField;
  };
  id(about.request_id);
  id(about.trace_id);
  out += text;
  return out;
}

void init(const Options& options) {
  auto logger = std::make_shared<spdlog::logger>(options.process, std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  if (options.format == Format::kJson) {
    formatter->add_flag<JsonFlag>('*').set_pattern("%*");
  } else {
    formatter->add_flag<TextFlag>('*').set_pattern(options.process.empty() ? "%m-%d %H:%M:%S.%e %^%L%$ %*"
                                                                           : "%m-%d %H:%M:%S.%e %^%L%$ [%n] %*");
  }
  logger->set_formatter(std::move(formatter));
  logger->set_level(spdlog::level::from_str(options.level));
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace baton::log
