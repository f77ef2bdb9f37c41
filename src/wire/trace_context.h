#pragma once
// W3C Trace Context (https://www.w3.org/TR/trace-context/, level 1): the `traceparent` with which a client says of which trace a request
// is a part. It is kept and passed on, with a new parent at each hop, so that lines and records of all processes can be found by the
// client's trace id. Nothing is exported to a tracing service, and `tracestate`, which only such services read, is dropped.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace baton::wire {

struct TraceContext {
  std::string trace_id;      // 32 lower-case hex digits, not all zero
  std::uint64_t parent = 0;  // the sender's span, never zero
  bool sampled = false;
  bool operator==(const TraceContext&) const = default;
};

// nullopt: not valid, and then to be ignored as if it had not been sent. Later versions than 00 are read as far as 00 goes, as the standard
// wants.
std::optional<TraceContext> parse_traceparent(std::string_view text);
// Version 00.
std::string to_traceparent(const TraceContext& context);

// The same trace under a parent of our own: what the receiver of hop number `hop` gets. A function of its arguments, so that a simulated
// run repeats; differs for each (parent, hop).
TraceContext next_hop(const TraceContext& context, std::uint64_t hop);

// The trace id of a traceparent, for logs and records; empty if it is not valid.
std::string trace_id_of(std::string_view traceparent);

}  // namespace baton::wire
