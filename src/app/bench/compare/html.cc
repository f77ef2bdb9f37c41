#include "app/bench/compare/html.h"

#include <spdlog/fmt/fmt.h>

#include "app/bench/compare/text_report.h"

namespace baton::app {
namespace {

constexpr const char* kStyle = R"css(
:root{--paper:#fff;--ink:#1c2024;--soft:#5c6670;--grid:#e3e7eb;--card:#f6f8fa;--good:#0a7a42;--bad:#b3261e;
--series0:#0b62c4;--series1:#c2570c;--series2:#0a8754;--series3:#a8327f;--series4:#8a6d00;--series5:#5b5fc7;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--ink:#e6e9ec;--soft:#9aa4ae;--grid:#2c3238;--card:#1d2226;--good:#58c78b;--bad:#ff8a80;
--series0:#6cb0ff;--series1:#ff9a52;--series2:#4fd39b;--series3:#f08ccb;--series4:#e2c04a;--series5:#a5a8ff}}
*{box-sizing:border-box}
body{margin:0 auto;padding:24px 16px 64px;max-width:1180px;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 4px}h2{font-size:1.15rem;margin:36px 0 8px}p{margin:8px 0;max-width:78ch}
.sub{color:var(--soft);margin:0 0 16px}
.advice{background:var(--card);border-left:4px solid var(--series0);padding:12px 16px;border-radius:4px;max-width:none}
.errors{background:var(--card);border-left:4px solid var(--bad);padding:12px 16px;border-radius:4px;margin:12px 0}.errors strong{color:var(--bad)}
.errors ul,.notes{margin:4px 0;padding-left:20px;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:5px 10px;text-align:right;white-space:nowrap}th:first-child,td:first-child{text-align:left}
thead th{vertical-align:bottom;font-weight:600}thead tr:last-child th{border-bottom:2px solid var(--grid)}th[colspan]{text-align:center}
.wide th:first-child,.wide td:first-child{position:sticky;left:0;background:var(--paper)}tbody tr.figures td{border-top:1px solid var(--grid);padding-top:8px}
tr.spread td,tr.difference td{font-size:.82rem;color:var(--soft);padding-top:0}tr.spread td:first-child,tr.difference td:first-child{padding-left:24px}
td.good{color:var(--good)!important}td.bad{color:var(--bad)!important}
.swatch{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:7px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:18px}
figure{margin:0;padding:8px;background:var(--card);border-radius:6px}svg{display:block;width:100%;height:auto;font:12.5px system-ui,sans-serif}
svg text{fill:var(--ink)}svg .title{font-weight:600;font-size:14px}svg .tick{fill:var(--soft)}svg .axis{fill:var(--soft)}
svg .grid{stroke:var(--grid);stroke-width:1}svg .frame{fill:none;stroke:var(--soft);stroke-width:1}
svg .series{fill:none;stroke-width:1.9;stroke-linejoin:round}svg .dashed{stroke-dasharray:5 4;stroke-width:1.4}svg .marker{stroke-width:1.2;stroke-dasharray:2 3}
.facts th,.facts td{text-align:left;white-space:normal;vertical-align:top;overflow-wrap:anywhere}.facts th{color:var(--soft);font-weight:500;white-space:nowrap}
.facts{table-layout:auto;width:100%}
)css";

std::string h(const std::string& text) { return escape_xml(text); }

int colour_of(const Comparison& c, const std::string& arm) {
  for (std::size_t i = 0; i < c.arms.size(); ++i)
    if (c.arms[i].arm.name == arm) return static_cast<int>(i % 6);
  return 0;
}

std::string swatch(int colour) { return fmt::format("<span class=\"swatch\" style=\"background:var(--series{})\"></span>", colour); }

// Two rows of heading: what belongs together under one.
std::string heading() {
  std::string groups, titles;
  const std::vector<Measure>& all = measures();
  for (std::size_t i = 0; i < all.size();) {
    std::size_t end = i + 1;
    while (end < all.size() && std::string(all[end].group) == all[i].group) ++end;
    groups += fmt::format("<th colspan=\"{}\">{}</th>", end - i, h(all[i].group));
    i = end;
  }
  for (const Measure& m : all) titles += fmt::format("<th>{}, {}</th>", h(m.title), h(m.unit));
  return fmt::format("<thead><tr><th></th>{}</tr><tr><th>arm</th>{}</tr></thead>", groups, titles);
}

std::string arms_table(const Comparison& c) {
  std::string out = "<div class=\"wide\"><table>" + heading() + "<tbody>";
  for (const TableRow& row : table_rows(c)) {
    constexpr const char* kClasses[] = {"figures", "spread", "difference"};
    out += fmt::format("<tr class=\"{}\"><td>{}{}</td>", kClasses[row.kind],
                       row.kind == TableRow::kFigures ? swatch(colour_of(c, row.name)) : "", h(row.name + (row.failed ? kFailedMark : "")));
    for (std::size_t i = 0; i < row.cells.size(); ++i) {
      const int judgement = row.judged.empty() ? 0 : row.judged[i];
      const char* judged = judgement > 0 ? " class=\"good\"" : judgement < 0 ? " class=\"bad\"" : "";
      out += fmt::format("<td{}>{}</td>", judged, h(row.cells[i]));
    }
    out += "</tr>";
  }
  return out + "</tbody></table></div>";
}

std::string kinds_table(const Comparison& c) {
  const auto rows = kind_rows(c);
  if (rows.empty()) return "";
  std::string out =
      "<h2>Requests of each kind apart</h2><div class=\"wide\"><table><thead><tr><th>arm</th><th>requests</th><th>P99 ITL, "
      "ms</th><th>median ITL, "
      "ms</th><th>P99/median</th><th>mean TTFT, ms</th></tr></thead><tbody>";
  for (const KindRow& k : rows)
    out += fmt::format("<tr><td>{}{}</td><td>{}</td><td>{:.2f}</td><td>{:.2f}</td><td>{:.2f}</td><td>{:.2f}</td></tr>",
                       swatch(colour_of(c, k.arm)), h(k.arm), h(k.kind), k.p99_itl_ms, k.median_itl_ms,
                       k.median_itl_ms > 0 ? k.p99_itl_ms / k.median_itl_ms : 0.0, k.mean_ttft_ms);
  return out + "</tbody></table></div>";
}

std::string list(const std::vector<std::string>& items) {
  std::string out;
  for (const std::string& item : items) out += "<li>" + h(item) + "</li>";
  return out;
}

}  // namespace

std::string html(const Comparison& c) {
  std::string out = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\">"
      "<title>{} on {} devices: {}</title><style>{}</style></head><body>\n",
      h(c.model), c.devices, h(c.date), kStyle);
  out += fmt::format("<h1>{} on {} device{}</h1><p class=\"sub\">baton bench compare, {}</p>\n", h(c.model), c.devices,
                     c.devices == 1 ? "" : "s", h(c.date));
  if (const auto errors = troubles(c); !errors.empty())
    out += "<div class=\"errors\"><strong>Errors</strong><ul>" + list(errors) + "</ul></div>\n";
  if (!c.notes.empty()) out += "<ul class=\"notes\">" + list(c.notes) + "</ul>\n";
  out += "<p class=\"advice\">" + h(advice(c)) + "</p>\n";
  if (c.first()) {
    out += fmt::format("<h2>At {}</h2>", c.at(c.rate)) + arms_table(c);
    out += fmt::format("<p class=\"sub\">{} requests a run. {} Coloured is what the runs tell apart.</p>\n", c.requests_a_run(),
                       h(table_legend(c)));
  }
  out += kinds_table(c);
  if (const auto lines = saturation_lines(c); !lines.empty()) out += "<h2>Saturation</h2><ul class=\"notes\">" + list(lines) + "</ul>\n";
  out += "<h2>Distributions, time and rate</h2><div class=\"plots\">\n";
  for (const Plot& plot : plots(c)) out += "<figure>" + svg(plot) + "</figure>\n";
  out += "</div>\n<h2>What was run on what</h2><table class=\"facts\"><tbody>";
  for (const auto& [name, value] : facts(c)) out += "<tr><th>" + h(name) + "</th><td>" + h(value) + "</td></tr>";
  return out + "</tbody></table>\n</body></html>\n";
}

}  // namespace baton::app
