#include "app/bench/compare/html.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <regex>

namespace baton::app {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::vector<std::string> labels(const std::vector<Tick>& ticks) {
  std::vector<std::string> out;
  for (const Tick& t : ticks) out.push_back(t.label);
  return out;
}

TEST(Ticks, AreRound) {
  EXPECT_THAT(labels(round_ticks(0, 1, 5)), ElementsAre("0", "0.2", "0.4", "0.6", "0.8", "1"));
  EXPECT_THAT(labels(round_ticks(0, 123, 5)), ElementsAre("0", "50", "100"));
  EXPECT_THAT(labels(round_ticks(0.0003, 0.0011, 4)), ElementsAre("0.0004", "0.0006", "0.0008", "0.001"));
  EXPECT_THAT(labels(round_ticks(0, 30000, 3)), ElementsAre("0", "10k", "20k", "30k"));
  EXPECT_TRUE(round_ticks(1, 1, 5).empty());
  EXPECT_THAT(labels(log_ticks(3, 120)), ElementsAre("5", "10", "20", "50", "100"));
  EXPECT_THAT(labels(log_ticks(0.5, 30000)), ElementsAre("1", "10", "100", "1000", "10k"));
  EXPECT_TRUE(log_ticks(0, 10).empty());
}

// An attribute of the first element that `element` finds.
double number_of(const std::string& svg, const std::string& pattern) {
  std::smatch match;
  if (!std::regex_search(svg, match, std::regex(pattern))) {
    ADD_FAILURE() << pattern << " is not in " << svg;
    return NAN;
  }
  return std::stod(match[1]);
}

// Where the drawing puts a tick of that label.
double x_of_tick(const std::string& svg, const std::string& label) {
  return number_of(svg, "<text class=\"tick\" x=\"([0-9.]+)\" y=\"[0-9.]+\" text-anchor=\"middle\">" + label + "</text>");
}
double y_of_tick(const std::string& svg, const std::string& label) {
  return number_of(svg, "<text class=\"tick\" x=\"[0-9.]+\" y=\"([0-9.]+)\" text-anchor=\"end\">" + label + "</text>") - 4;
}

std::vector<std::pair<double, double>> path_of(const std::string& svg, const std::string& name) {
  std::smatch match;
  std::vector<std::pair<double, double>> out;
  if (!std::regex_search(svg, match, std::regex("data-name=\"" + name + "\"[^>]* d=\"([^\"]*)\""))) return out;
  const std::string path = match[1];
  const std::regex point("[ML]([0-9.]+) ([0-9.]+)");
  for (auto it = std::sregex_iterator(path.begin(), path.end(), point); it != std::sregex_iterator(); ++it)
    out.emplace_back(std::stod((*it)[1]), std::stod((*it)[2]));
  return out;
}

TEST(Svg, PointsLieWhereTheTicksSayOnLinearAxes) {
  Plot plot;
  plot.title = "t";
  plot.series = {{"a", 0, {{0, 0}, {5, 50}, {10, 100}}, false, false}};
  const std::string text = svg(plot);
  const auto path = path_of(text, "a");
  ASSERT_EQ(path.size(), 3U);
  EXPECT_NEAR(path[0].first, x_of_tick(text, "0"), 0.11);
  EXPECT_NEAR(path[2].first, x_of_tick(text, "10"), 0.11);
  EXPECT_NEAR(path[1].first, (path[0].first + path[2].first) / 2, 0.11);
  EXPECT_NEAR(path[1].second, (y_of_tick(text, "0") + y_of_tick(text, "100")) / 2, 0.11);
  EXPECT_GT(path[0].second, path[2].second) << "upwards";
}

TEST(Svg, PointsLieWhereTheTicksSayOnLogAxes) {
  Plot plot;
  plot.x = {"p", true, 1, 100, {{1, "P0"}, {10, "P90"}, {100, "P99"}}};
  plot.y = {"ms", true, 1, 1000, {}};
  plot.series = {{"a", 1, {{1, 1}, {10, 100}, {100, 1000}, {0, 5}, {5, 0}}, false, false}};
  const std::string text = svg(plot);
  const auto path = path_of(text, "a");
  ASSERT_EQ(path.size(), 3U) << "what a log axis cannot show is left out";
  EXPECT_NEAR(path[1].first, x_of_tick(text, "P90"), 0.11);
  EXPECT_NEAR(path[1].first, (path[0].first + path[2].first) / 2, 0.11);
  EXPECT_NEAR(path[1].second, y_of_tick(text, "100"), 0.11);
  EXPECT_NEAR(path[1].second, path[0].second + (path[2].second - path[0].second) * 2 / 3, 0.2);
}

TEST(Svg, GapsPartALineAndMarkersAndLegendAreThere) {
  Plot plot;
  plot.series = {{"a", 0, {{0, 1}, {1, NAN}, {2, 1}}, true, false}, {"a", 0, {{0, 2}}, false, true}, {"b", 1, {{2, 2}}, false, false}};
  plot.markers = {{1, "here", 1}};
  const std::string text = svg(plot);
  std::smatch match;
  ASSERT_TRUE(std::regex_search(text, match, std::regex(" d=\"(M[^\"]*)\"/>")));
  EXPECT_THAT(text, HasSubstr("<circle"));
  EXPECT_NE(path_of(text, "a").size(), 0U);
  EXPECT_TRUE(std::regex_search(text, std::regex("data-name=\"a\"[^>]* d=\"M[0-9.]+ [0-9.]+M")));
  const std::regex entry("<text class=\"tick\" x=\"[0-9.]+\" y=\"[0-9.]+\">a</text>");
  EXPECT_EQ(std::distance(std::sregex_iterator(text.begin(), text.end(), entry), std::sregex_iterator()), 1) << "one entry a name";
  const double line = number_of(text, "<line class=\"marker\"[^>]*x1=\"([0-9.]+)\"");
  EXPECT_NEAR(line, x_of_tick(text, "1"), 0.11);
}

TEST(Svg, NothingToDrawIsDrawnToo) {
  EXPECT_THAT(svg(Plot{}), HasSubstr("</svg>"));
  Plot plot;
  plot.x.log = plot.y.log = true;
  plot.series = {{"a", 0, {{-1, -1}}, true, false}};
  EXPECT_THAT(svg(plot), Not(HasSubstr("nan")));
  plot.series = {{"a", 0, {{5, 5}}, true, false}};  // one point alone
  EXPECT_THAT(svg(plot), Not(HasSubstr("nan")));
}

Comparison comparison() {
  Comparison c;
  c.model = "<model> & \"co\"";
  c.command = "baton bench compare '<script>alert(1)</script>'";
  c.machine.cpu = "CPU <x>";
  c.version = "1.2.3";
  c.seed = 4711;
  c.rate = 2;
  c.repeats = 1;
  c.devices = 2;
  for (const char* name : {"tp2", "pd"}) {
    ArmResult arm;
    arm.arm = {name, "what", {}, name == std::string("pd")};
    arm.sustained = arm.saturation = 3;
    for (const double rate : {2.0, 4.0}) {
      std::vector<RequestOutcome> outcomes(50);
      for (std::size_t i = 0; i < outcomes.size(); ++i) {
        RequestOutcome& o = outcomes[i];
        o.ok = true;
        o.start = static_cast<double>(i + 1) / rate;
        o.ttft = 0.01 * static_cast<double>(i + 1);
        o.itl.assign(9, rate / 100);
        o.latency = o.ttft + 0.09 * rate;
        o.output_tokens = 10;
      }
      Step step;
      step.purpose = rate == 2 ? Purpose::kMeasure : Purpose::kSweep;
      step.rate = rate;
      arm.runs.push_back(make_run(step, outcomes, 30, {}));
    }
    c.arms.push_back(std::move(arm));
  }
  return c;
}

TEST(Html, IsOnePageThatNeedsNothingElseAndEscapesWhatItIsGiven) {
  auto c = comparison();
  c.arms[0].failure = "said <b>no</b>";
  const std::string page = html(c);
  EXPECT_THAT(page, HasSubstr("&lt;script&gt;alert(1)&lt;/script&gt;"));
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  EXPECT_THAT(page, HasSubstr("said &lt;b&gt;no&lt;/b&gt;"));
  EXPECT_THAT(page, HasSubstr("CPU &lt;x&gt;"));
  EXPECT_THAT(page, Not(testing::ContainsRegex("(src|href|url)[=(]")));
  EXPECT_THAT(page, Not(HasSubstr("nan")));
  EXPECT_THAT(page, HasSubstr("seed 4711"));
  EXPECT_THAT(page, HasSubstr("baton 1.2.3"));
  EXPECT_LT(page.find("Errors"), page.find("<table"));
}

TEST(Html, ColoursOnlyWhatIsToldApart) {
  auto c = comparison();
  EXPECT_THAT(html(c), Not(HasSubstr("class=\"good\"")));
  for (auto& summary : c.arms[1].runs[0].report.ms) summary.second.mean /= 2;
  EXPECT_THAT(html(c), HasSubstr("class=\"good\">-50.00 %"));
  EXPECT_THAT(html(c), Not(HasSubstr("class=\"bad\"")));
  c.arms[1].runs[0].report.failed = 1;
  EXPECT_THAT(html(c), Not(HasSubstr("class=\"good\"")));
  EXPECT_THAT(html(c), HasSubstr("pd *</td>"));
}

TEST(Html, PlotsHoldTheRunsFigures) {
  const auto all = plots(comparison());
  std::vector<std::string> titles;
  for (const Plot& p : all) titles.push_back(p.title);
  EXPECT_THAT(titles,
              ElementsAre("Time to first token", "Time per output token", "Inter-token latency", "ITL over time: tp2", "ITL over time: pd",
                          "Requests completed (dotted: sustained)", "Mean time per output token (dotted: sustained)"));
  // TTFTs are 10, 20, ... 500 ms: P50 is 255.
  const auto& ttft = all[0].series[0].points;
  const auto at_half = std::ranges::min_element(ttft, {}, [](const auto& p) { return std::abs(p.first - 2); });
  EXPECT_NEAR(at_half->second, 255, 15);
  EXPECT_NEAR(ttft.front().second, 10, 1e-6);
  EXPECT_LE(ttft.back().second, 500 + 1e-6);
  for (const auto& [x, y] : all[3].series[0].points)
    if (!std::isnan(y)) {
      EXPECT_NEAR(y, 20, 1e-9);
    }
  EXPECT_THAT(all[5].series[0].points, ElementsAre(std::pair(2.0, 50 / 30.0), std::pair(4.0, 50 / 30.0)));
  EXPECT_EQ(all[5].markers[0].x, 3);
  // Tokens that came together do not stretch the axis.
  auto c = comparison();
  for (auto& o : c.arms[0].runs[0].outcomes) o.itl.assign(60, 0.02);
  c.arms[0].runs[0].outcomes[0].itl[0] = 1e-7;
  EXPECT_NEAR(plots(c)[2].y.low, 20, 1e-6);
}

}  // namespace
}  // namespace baton::app
