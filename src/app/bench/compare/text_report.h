#pragma once
// A comparison for the terminal, as markdown and as JSON. Every figure is one of the runs', or computed from them here.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/bench/compare/result.h"

namespace baton::app {

std::string table(const Comparison& comparison);     // errors first, then the arms with a difference row each, then the advice
std::string markdown(const Comparison& comparison);  // the same, and what was run on what
nlohmann::ordered_json to_json(const Comparison& comparison);

// The table's rows as text, for all that print it.
struct TableRow {
  enum Kind { kFigures, kSpread, kDifference } kind = kFigures;
  std::string name;                // "tp2", "spread, n=3", "vs tp2"
  std::vector<std::string> cells;  // one a measure
  std::vector<int> judged{};       // of kDifference: judge(), one a measure
  bool failed = false;             // of kFigures: requests failed in these runs
};
std::vector<TableRow> table_rows(const Comparison& comparison);
// What the rows are, and what their marks mean.
std::string table_legend(const Comparison& comparison);
inline constexpr const char* kFailedMark = " *";  // behind the name of a row that is `failed`
// Requests of each kind apart, where there are several.
struct KindRow {
  std::string arm, kind;
  double p99_itl_ms = 0, median_itl_ms = 0, mean_ttft_ms = 0;
};
std::vector<KindRow> kind_rows(const Comparison& comparison);
// "tp2: 3 of 600 requests failed: HTTP 503: ..." one an arm and message; arms that did not start.
std::vector<std::string> troubles(const Comparison& comparison);
// "tp2: sustains 1.62 requests/s, not 1.81".
std::vector<std::string> saturation_lines(const Comparison& comparison);
// Name and value of what was run on what.
std::vector<std::pair<std::string, std::string>> facts(const Comparison& comparison);

}  // namespace baton::app
