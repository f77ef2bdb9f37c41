#include "app/bench/compare/text_report.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "app/args.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

std::string percent(double ratio) { return fmt::format("{:+.2f} %", 100 * ratio); }

std::string title(const Measure& m) { return fmt::format("{}{}{}, {}", m.group, *m.group ? " " : "", m.title, m.unit); }

// Two lines of heading for a column, short enough for a terminal.
std::pair<std::string, std::string> short_title(const Measure& m) {
  const std::string group = m.group;
  if (group.empty()) return {"time", m.unit};
  if (group == "Throughput") return {m.title == std::string("requests") ? "req" : "tok", m.unit};
  return {group, fmt::format("{} {}", m.title, m.unit)};
}

std::string goodput_words(const Comparison& c) {
  std::string out;
  for (const auto& [name, ms] : c.goodput_ms) out += fmt::format("{}{}:{:g}", out.empty() ? "" : " ", name, ms);
  return out;
}

Json to_json(const ArmRun& run, const Comparison& c) {
  ReportOptions options;
  options.percentiles.assign(std::begin(kComparePercentiles), std::end(kComparePercentiles));
  options.goodput_ms = c.goodput_ms;
  constexpr const char* kNames[] = {"search", "measure", "sweep"};
  Json out{{"purpose", kNames[static_cast<int>(run.purpose)]},
           {"request_rate", run.rate > 0 ? Json(run.rate) : Json("inf")},
           {"repeat", run.repeat},
           {"sustained", run.kept_up.sustained},
           {"completed_while_offered", run.kept_up.completed},
           {"open_requests_grew_by", run.kept_up.growth},
           {"allowed", run.kept_up.allowed()}};
  out.update(to_json(run.report, options));
  for (const auto& [kind, report] : run.by_kind) out["by_kind"][kind] = to_json(report, options);
  return out;
}

Json to_json(const ArmResult& arm, const Comparison& c) {
  Json out{{"name", arm.arm.name}, {"what", arm.arm.what}, {"command", arm.command}, {"failure", arm.failure}};
  if (arm.saturation > 0)
    out["saturation"] = {
        {"requests_per_s", arm.saturation}, {"sustained", arm.sustained}, {"not_sustained", arm.beyond}, {"bracketed", arm.bracketed}};
  Json medians = Json::object(), differences = Json::object(), apart = Json::object();
  const ArmResult* first = c.first();
  for (const Measure& m : measures()) {
    if (const auto f = figure(arm, m)) medians[m.key] = {{"median", f->median}, {"low", f->low}, {"high", f->high}, {"runs", f->runs}};
    if (!first || first == &arm) continue;
    if (const auto d = difference(arm, *first, m)) {
      differences[m.key] = *d;
      apart[m.key] = judge(arm, *first, m) != 0;
    }
  }
  out["figures"] = medians;
  if (!differences.empty()) {
    out["difference_to_first"] = differences;
    out["told_apart_from_first"] = apart;
  }
  if (const auto best = best_goodput(c, arm)) {
    const auto or_none = [](double rate) { return rate > 0 ? Json(rate) : Json(); };
    out["best_goodput"] = {
        {"requests_per_s", best->goodput.median},  {"at_request_rate", best->rate}, {"next_rate_below", or_none(best->below)},
        {"next_rate_above", or_none(best->above)}, {"runs", best->goodput.runs},    {"failed", best->failed}};
  }
  out["runs"] = Json::array();
  for (const ArmRun& run : arm.runs) out["runs"].push_back(to_json(run, c));
  return out;
}

std::string rate_words(const Comparison& c) {
  if (c.rate <= 0) return "not reached";
  if (c.overload <= 0) return c.at(c.rate) + ", as given";
  return fmt::format("{}: {:.2f} times {}", c.at(c.rate), c.overload, c.rate_from);
}

}  // namespace

std::vector<TableRow> table_rows(const Comparison& c) {
  std::vector<TableRow> rows;
  const ArmResult* first = c.first();
  for (const ArmResult& arm : c.arms) {
    if (arm.measured().empty()) continue;
    TableRow figures{TableRow::kFigures, arm.arm.name, {}}, spread{TableRow::kSpread, "", {}},
        change{TableRow::kDifference, "vs " + first->arm.name, {}};
    const std::size_t runs = arm.measured().size();
    figures.failed = !arm.clean();
    spread.name = fmt::format("{}n={}", runs > 1 ? "spread, " : "", runs);
    for (const Measure& m : measures()) {
      const Figure f = *figure(arm, m);
      figures.cells.push_back(fmt::format("{:.2f}", f.median));
      spread.cells.push_back(runs > 1 ? fmt::format("{:.1f} %", 100 * f.spread()) : "-");
      const auto d = difference(arm, *first, m);
      change.cells.push_back(d ? percent(*d) : "-");
      change.judged.push_back(judge(arm, *first, m));
    }
    rows.push_back(std::move(figures));
    rows.push_back(std::move(spread));
    if (&arm != first) rows.push_back(std::move(change));
  }
  return rows;
}

std::string table_legend(const Comparison& c) {
  std::string out = "Medians over an arm's n runs; spread: (highest - lowest) / median.";
  const auto one = [](const ArmResult& arm) { return arm.measured().size() == 1; };
  if (std::ranges::any_of(c.arms, one))
    out += fmt::format(" One run has no spread: what differs by less than {:.0f} % is not told apart.", 100 * kLeastEffectOfOne);
  if (std::ranges::any_of(c.arms, [](const ArmResult& arm) { return !arm.clean(); }))
    out += fmt::format("{}: requests failed, the figures are of the others, and nothing is concluded from them.", kFailedMark);
  return out;
}

std::vector<KindRow> kind_rows(const Comparison& c) {
  std::vector<KindRow> rows;
  for (const ArmResult& arm : c.arms) {
    const auto runs = arm.measured();
    if (runs.empty()) continue;
    for (const auto& [kind, report] : runs.front()->by_kind) {
      const auto p99 = figure(arm, measure("p99_itl"), kind), median = figure(arm, measure("median_itl"), kind),
                 ttft = figure(arm, measure("mean_ttft"), kind);
      if (p99 && median && ttft) rows.push_back({arm.arm.name, kind, p99->median, median->median, ttft->median});
    }
  }
  return rows;
}

std::vector<std::string> troubles(const Comparison& c) {
  std::vector<std::string> out;
  for (const ArmResult& arm : c.arms) {
    if (!arm.failure.empty()) out.push_back(fmt::format("{}: {}", arm.arm.name, arm.failure));
    std::vector<RequestOutcome> all;  // counted together: a kind of failure is told once an arm
    for (const ArmRun& run : arm.runs) all.insert(all.end(), run.outcomes.begin(), run.outcomes.end());
    const auto errors = summarize(all, 1, {}).errors;
    constexpr std::size_t kShown = 5;
    for (std::size_t i = 0; i < errors.size() && i < kShown; ++i)
      out.push_back(fmt::format("{}: {} of {} requests failed: {}", arm.arm.name, errors[i].second, all.size(), errors[i].first));
    if (errors.size() > kShown) out.push_back(fmt::format("{}: and {} more kinds of failure", arm.arm.name, errors.size() - kShown));
  }
  return out;
}

std::vector<std::string> saturation_lines(const Comparison& c) {
  std::vector<std::string> out;
  for (const ArmResult& arm : c.arms) {
    if (arm.saturation <= 0) continue;
    std::string line = arm.arm.name + ": ";
    if (arm.sustained <= 0 && arm.beyond <= 0) {  // interrupted
      line += fmt::format("completed {} when all came at once; no rate was tried", c.at(arm.saturation));
    } else if (arm.sustained <= 0) {
      line += fmt::format("sustains less than {}, the least tried; completed {:.2f} there", c.at(arm.beyond), arm.saturation);
    } else if (arm.beyond <= 0) {
      line += fmt::format("sustains {}, the most tried", c.at(arm.sustained));
    } else {
      line += fmt::format("sustains {}, not {:.2f}", c.at(arm.sustained), arm.beyond);
    }
    out.push_back(std::move(line));
  }
  return out;
}

std::vector<std::pair<std::string, std::string>> facts(const Comparison& c) {
  std::vector<std::pair<std::string, std::string>> out = {
      {"model", c.model},
      {"requests", fmt::format("{} a run, {} repeats; {}; seed {}", c.requests_a_run(), c.repeats, c.dataset, c.seed)},
      {"rate", rate_words(c)},
      {"devices", fmt::format("{}, cores {}", c.devices, c.cores)},
      {"machine", fmt::format("{}, {} cores, kernels for {}, {}, Linux {}; load average {:.2f} before", c.machine.cpu, c.machine.cores,
                              c.machine.isa, format_bytes(c.machine.memory_bytes), c.machine.kernel, c.machine.load)},
      {"version", fmt::format("baton {}, commit {}", c.version, c.commit)},
      {"date", fmt::format("{}, {:.0f} min", c.date, c.seconds / 60)},
      {"command", c.command}};
  if (!c.goodput_ms.empty()) out.insert(out.begin() + 3, {"limits", goodput_words(c) + " (ms)"});
  for (const ArmResult& arm : c.arms) out.emplace_back(arm.arm.name, fmt::format("{}: {}", arm.arm.what, arm.command));
  for (const auto& [name, why] : c.left_out) out.emplace_back(name, "left out: " + why);
  return out;
}

std::string table(const Comparison& c) {
  std::string out;
  for (const std::string& trouble : troubles(c)) out += "ERROR  " + trouble + "\n";
  for (const std::string& note : c.notes) out += "NOTE   " + note + "\n";
  for (const auto& [name, why] : c.left_out) out += fmt::format("NOTE   {} is left out: {}\n", name, why);
  for (const std::string& line : saturation_lines(c)) out += line + "\n";
  const std::vector<TableRow> rows = table_rows(c);
  if (!rows.empty()) {
    out += fmt::format("\n{} requests at {}. {}\n\n", c.requests_a_run(), rate_words(c), table_legend(c));
    std::string line1(22, ' '), line2(22, ' ');
    for (const Measure& m : measures()) {
      const auto [upper, lower] = short_title(m);
      line1 += fmt::format("{:>12}", upper);
      line2 += fmt::format("{:>12}", lower);
    }
    out += line1 + "\n" + line2 + "\n";
    for (const TableRow& row : rows) {
      out += fmt::format("{:<22}", (row.kind == TableRow::kFigures ? "" : "  ") + row.name + (row.failed ? kFailedMark : ""));
      for (const std::string& cell : row.cells) out += fmt::format("{:>12}", cell);
      out += "\n";
    }
  }
  const std::vector<KindRow> kinds = kind_rows(c);
  if (!kinds.empty())
    out += fmt::format("\n{:<22}{:<8}{:>14}{:>14}{:>14}{:>14}\n", "", "", "P99 ITL ms", "median ITL ms", "P99/median", "mean TTFT ms");
  for (const KindRow& k : kinds)
    out += fmt::format("{:<22}{:<8}{:>14.2f}{:>14.2f}{:>14.2f}{:>14.2f}\n", k.arm, k.kind, k.p99_itl_ms, k.median_itl_ms,
                       k.median_itl_ms > 0 ? k.p99_itl_ms / k.median_itl_ms : 0.0, k.mean_ttft_ms);
  return out + "\n" + advice(c) + "\n";
}

std::string markdown(const Comparison& c) {
  // A cell must stay one: what is of outside (paths, messages) may hold anything.
  const auto cell = [](std::string text) {
    std::string out;
    for (const char ch : text) out += ch == '|' ? "\\|" : ch == '\n' ? " " : std::string(1, ch);
    return out;
  };
  std::string out = fmt::format("# {} on {} devices\n\n", cell(c.model), c.devices);
  for (const std::string& trouble : troubles(c)) out += "* **error** " + cell(trouble) + "\n";
  for (const std::string& note : c.notes) out += "* " + cell(note) + "\n";
  if (!troubles(c).empty() || !c.notes.empty()) out += "\n";
  out += advice(c) + "\n\n";
  const std::vector<TableRow> rows = table_rows(c);
  if (!rows.empty()) {
    out += "| arm |";
    for (const Measure& m : measures()) out += fmt::format(" {} |", title(m));
    out += "\n|---|";
    for (std::size_t i = 0; i < measures().size(); ++i) out += "---:|";
    out += "\n";
    for (const TableRow& row : rows) {
      out += fmt::format("| {}{}{} |", row.kind == TableRow::kFigures ? "" : "&nbsp;&nbsp;", row.name, row.failed ? " \\*" : "");
      for (const std::string& text : row.cells) out += fmt::format(" {} |", text);
      out += "\n";
    }
    out += "\n" + cell(table_legend(c)) + "\n\n";
  }
  if (const auto kinds = kind_rows(c); !kinds.empty()) {
    out += "| arm | requests | P99 ITL, ms | median ITL, ms | P99/median | mean TTFT, ms |\n|---|---|---:|---:|---:|---:|\n";
    for (const KindRow& k : kinds)
      out += fmt::format("| {} | {} | {:.2f} | {:.2f} | {:.2f} | {:.2f} |\n", k.arm, k.kind, k.p99_itl_ms, k.median_itl_ms,
                         k.median_itl_ms > 0 ? k.p99_itl_ms / k.median_itl_ms : 0.0, k.mean_ttft_ms);
    out += "\n";
  }
  for (const std::string& line : saturation_lines(c)) out += "* " + line + "\n";
  out += "\n| | |\n|---|---|\n";
  for (const auto& [name, value] : facts(c)) out += fmt::format("| {} | {} |\n", cell(name), cell(value));
  return out;
}

Json to_json(const Comparison& c) {
  Json out{{"model", c.model},
           {"command", c.command},
           {"version", c.version},
           {"commit", c.commit},
           {"date", c.date},
           {"seconds", c.seconds},
           {"finished", c.finished},
           {"dataset", c.dataset},
           {"seed", c.seed},
           {"requests", c.requests_a_run()},
           {"rates_count", c.unit},
           {"repeats", c.repeats},
           {"devices", c.devices},
           {"cores", c.cores},
           {"machine",
            {{"cpu", c.machine.cpu},
             {"isa", c.machine.isa},
             {"kernel", c.machine.kernel},
             {"cores", c.machine.cores},
             {"memory_bytes", c.machine.memory_bytes},
             {"load_average", c.machine.load}}},
           {"goodput_ms", c.goodput_ms},
           {"request_rate", c.rate > 0 ? Json(c.rate) : Json()},
           {"overload", c.overload > 0 ? Json(c.overload) : Json()},
           {"overload_of", c.rate_from},
           {"failed", c.failed()},
           {"troubles", troubles(c)},
           {"notes", c.notes},
           {"advice", advice(c)}};
  out["left_out"] = Json::array();
  for (const auto& [name, why] : c.left_out) out["left_out"].push_back({{"name", name}, {"why", why}});
  out["arms"] = Json::array();
  for (const ArmResult& arm : c.arms) out["arms"].push_back(to_json(arm, c));
  return out;
}

}  // namespace baton::app
