#include "wire/kv_report.h"

#include <algorithm>

#include "wire/json_fields.h"

namespace baton::wire {
namespace json {

template <class V, Is<KvHold> T>
void fields(V& v, T& h) {
  v("owner", h.owner);
  v("state", h.state);
  v("request", h.request);
  v("attempt", h.attempt);
  v("epoch", h.epoch);
  v("peer", h.peer);
  v("blocks", h.blocks, kFromZero);
  v("since_ms", h.since_ms);
  v("idle_ms", h.idle_ms);
  v("deadline_ms", h.deadline_ms);
}

template <class V, Is<KvReport> T>
void fields(V& v, T& r) {
  v("name", r.name);
  v("incarnation", r.incarnation);
  v("block_tokens", r.block_tokens, kFromZero);
  v("total", r.total, kFromZero);
  v("free", r.free, kFromZero);
  v("cached", r.cached, kFromZero);
  v("held", r.held, kFromZero);
  v("promised", r.promised, kFromZero);
  v("balanced", r.balanced);
  v("problem", r.problem);
  v("holds", r.holds);
  v("more", r.more, kFromZero);
  v("more_blocks", r.more_blocks, kFromZero);
}

}  // namespace json

void KvReport::trim() {
  std::stable_sort(holds.begin(), holds.end(), [](const KvHold& a, const KvHold& b) { return a.idle_ms > b.idle_ms; });
  for (std::size_t i = kHoldsMax; i < holds.size(); ++i) {
    ++more;
    more_blocks += holds[i].blocks;
  }
  if (holds.size() > kHoldsMax) holds.resize(kHoldsMax);
}

std::string to_json(const KvReport& report) { return json::Writer::dump(json::Writer::encode(report)); }

Result<KvReport> kv_report_from_json(std::string_view text) {
  const auto parsed = json::Reader::parse(text);
  if (!parsed.ok()) return parsed.status().with_context("KV report");
  auto report = json::Reader::read<KvReport>(*parsed);
  if (!report.ok()) return report.status().with_context("KV report");
  if (report->holds.size() > KvReport::kHoldsMax) return {Code::kInvalidArgument, "KV report: more holds than are ever sent"};
  return report;
}

}  // namespace baton::wire
