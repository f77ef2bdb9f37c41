#include "wire/trace_context.h"

#include <algorithm>
#include <charconv>

#include "base/rng.h"

namespace baton::wire {
namespace {

// 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
constexpr std::size_t kLength = 55, kTraceAt = 3, kTraceDigits = 32, kParentAt = 36, kParentDigits = 16, kFlagsAt = 53;

bool lower_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::uint64_t hex(std::string_view text) {
  std::uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value, 16);
  return value;
}

}  // namespace

std::optional<TraceContext> parse_traceparent(std::string_view text) {
  if (text.size() < kLength || text[2] != '-' || text[kParentAt - 1] != '-' || text[kFlagsAt - 1] != '-') return std::nullopt;
  const std::string_view version = text.substr(0, 2), trace = text.substr(kTraceAt, kTraceDigits),
                         parent = text.substr(kParentAt, kParentDigits), flags = text.substr(kFlagsAt, 2);
  if (!lower_hex(version) || !lower_hex(trace) || !lower_hex(parent) || !lower_hex(flags) || version == "ff") return std::nullopt;
  if (version == "00" ? text.size() != kLength : text.size() > kLength && text[kLength] != '-') return std::nullopt;
  if (trace.find_first_not_of('0') == std::string_view::npos || hex(parent) == 0) return std::nullopt;
  return TraceContext{std::string(trace), hex(parent), (hex(flags) & 1) != 0};
}

std::string to_traceparent(const TraceContext& context) {
  char parent[kParentDigits];
  const auto end = std::to_chars(parent, parent + sizeof parent, context.parent, 16).ptr;
  const auto digits = static_cast<std::size_t>(end - parent);
  return "00-" + context.trace_id + '-' + std::string(kParentDigits - digits, '0') + std::string(parent, digits) +
         (context.sampled ? "-01" : "-00");
}

TraceContext next_hop(const TraceContext& context, std::uint64_t hop) {
  TraceContext out = context;
  // The trace id takes part: equal parents of different traces do not lead to equal spans.
  Rng rng(context.parent ^ hex(std::string_view(context.trace_id).substr(0, 16)), hop);
  do out.parent = rng.next_u64();
  while (out.parent == 0);
  return out;
}

std::string trace_id_of(std::string_view traceparent) {
  const auto context = parse_traceparent(traceparent);
  return context ? context->trace_id : std::string();
}

}  // namespace baton::wire
