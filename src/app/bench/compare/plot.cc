#include "app/bench/compare/plot.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

namespace baton::app {
namespace {

constexpr double kWidth = 480, kHeight = 300;
constexpr double kLeft = 58, kRight = 14, kBottom = 46, kTitle = 24, kLegendLine = 18;
constexpr double kLetter = 6.7;  // of the legend's font, on average

std::string number(double value) {
  const double size = std::abs(value);
  if (size >= 1e4) return size >= 1e6 ? fmt::format("{:g}M", value / 1e6) : fmt::format("{:g}k", value / 1e3);
  return fmt::format("{:g}", std::round(value * 1e9) / 1e9);
}

// Maps values of an axis to units of the drawing.
class Scale {
 public:
  Scale(const Axis& axis, double begin, double end, std::vector<double> values) : log_(axis.log), begin_(begin), end_(end) {
    std::erase_if(values, [&](double v) { return !std::isfinite(v) || (log_ && v <= 0); });
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    low_ = values.empty() ? (log_ ? 1 : 0) : *least;
    high_ = values.empty() ? (log_ ? 10 : 1) : *most;
    if (!log_ && low_ > 0) low_ = 0;
    if (std::isfinite(axis.low)) low_ = axis.low;
    if (std::isfinite(axis.high)) high_ = axis.high;
    if (log_ && low_ <= 0) low_ = high_ > 0 ? high_ / 10 : 1;
    if (high_ <= low_) high_ = log_ ? low_ * 10 : low_ + 1;
    if (!std::isfinite(axis.high) && !log_) high_ += 0.04 * (high_ - low_);
    if (log_ && !std::isfinite(axis.low)) low_ /= 1.1;
    if (log_ && !std::isfinite(axis.high)) high_ *= 1.1;
  }
  bool holds(double v) const { return std::isfinite(v) && (!log_ || v > 0) && v >= low_ * (1 - 1e-9) - 1e-12 && v <= high_ * (1 + 1e-9); }
  bool drawable(double v) const { return std::isfinite(v) && (!log_ || v > 0); }
  double at(double v) const {
    const double share = log_ ? std::log(v / low_) / std::log(high_ / low_) : (v - low_) / (high_ - low_);
    return begin_ + std::clamp(share, 0.0, 1.0) * (end_ - begin_);
  }
  double low() const { return low_; }
  double high() const { return high_; }
  std::vector<Tick> ticks(const Axis& axis, int about) const {
    if (!axis.ticks.empty()) return axis.ticks;
    return log_ ? log_ticks(low_, high_) : round_ticks(low_, high_, about);
  }

 private:
  const bool log_;
  const double begin_, end_;
  double low_ = 0, high_ = 1;
};

std::vector<double> values_of(const Plot& plot, bool x) {
  std::vector<double> out;
  for (const Series& s : plot.series)
    for (const auto& point : s.points) out.push_back(x ? point.first : point.second);
  if (x)
    for (const Marker& m : plot.markers) out.push_back(m.x);
  return out;
}

struct Legend {
  struct Entry {
    const Series* series;
    double x, y;
  };
  std::vector<Entry> entries;
  double bottom = kTitle;
};

// One entry a name, in as many lines as it takes.
Legend lay_out_legend(const Plot& plot) {
  Legend legend;
  double x = kLeft, y = kTitle + kLegendLine - 6;
  for (const Series& s : plot.series) {
    if (s.name.empty() || std::ranges::any_of(legend.entries, [&](const auto& e) { return e.series->name == s.name; })) continue;
    const double width = 26 + kLetter * static_cast<double>(s.name.size());
    if (x > kLeft && x + width > kWidth - kRight) {
      x = kLeft;
      y += kLegendLine;
    }
    legend.entries.push_back({&s, x, y});
    x += width + 8;
  }
  if (!legend.entries.empty()) legend.bottom = y + 8;
  return legend;
}

std::string stroke(int colour) { return fmt::format("style=\"stroke:var(--series{})\"", colour); }

void draw_axes(const Plot& plot, const Scale& x, const Scale& y, double top, std::string& out) {
  const double bottom = kHeight - kBottom, right = kWidth - kRight;
  for (const Tick& t : y.ticks(plot.y, 5)) {
    if (!y.holds(t.value)) continue;
    out += fmt::format("<line class=\"grid\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>", kLeft, y.at(t.value), right,
                       y.at(t.value));
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>", kLeft - 6, y.at(t.value) + 4,
                       escape_xml(t.label));
  }
  for (const Tick& t : x.ticks(plot.x, 6)) {
    if (!x.holds(t.value)) continue;
    out += fmt::format("<line class=\"grid\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>", x.at(t.value), top, x.at(t.value),
                       bottom);
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>", x.at(t.value), bottom + 16,
                       escape_xml(t.label));
  }
  out += fmt::format("<path class=\"frame\" d=\"M{:.1f} {:.1f}V{:.1f}H{:.1f}\"/>", kLeft, top, bottom, right);
  out += fmt::format("<text class=\"axis\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>", (kLeft + right) / 2, kHeight - 8,
                     escape_xml(plot.x.title));
  out += fmt::format("<text class=\"axis\" transform=\"translate(14 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
                     (top + bottom) / 2, escape_xml(plot.y.title));
}

void draw_series(const Series& s, const Scale& x, const Scale& y, std::string& out) {
  std::string path, dots;
  bool pen_down = false;
  for (const auto& [px, py] : s.points) {
    if (!x.drawable(px) || !y.drawable(py)) {  // a gap
      pen_down = false;
      continue;
    }
    path += fmt::format("{}{:.1f} {:.1f}", pen_down ? "L" : "M", x.at(px), y.at(py));
    pen_down = true;
    if (s.dots)
      dots += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.2\" style=\"fill:var(--series{})\"><title>{}: {:.4g}, {:.4g}</title></circle>",
          x.at(px), y.at(py), s.colour, escape_xml(s.name), px, py);
  }
  if (!path.empty())
    out += fmt::format("<path class=\"series{}\" data-name=\"{}\" {} d=\"{}\"/>", s.dashed ? " dashed" : "", escape_xml(s.name),
                       stroke(s.colour), path);
  out += dots;
}

void draw_markers(const Plot& plot, const Scale& x, double top, std::string& out) {
  double down = 0;
  for (const Marker& m : plot.markers) {
    if (!x.holds(m.x)) continue;
    const bool left = x.at(m.x) > (kLeft + kWidth - kRight) / 2;
    out += fmt::format("<line class=\"marker\" {} x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>", stroke(m.colour), x.at(m.x),
                       top, x.at(m.x), kHeight - kBottom);
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" style=\"fill:var(--series{})\">{}</text>",
                       x.at(m.x) + (left ? -4 : 4), kHeight - kBottom - 6 - down, left ? "end" : "start", m.colour, escape_xml(m.label));
    down += 14;
  }
}

}  // namespace

std::vector<Tick> round_ticks(double low, double high, int about) {
  std::vector<Tick> out;
  if (!(high > low) || about < 1) return out;
  const double raw = (high - low) / about, power = std::pow(10, std::floor(std::log10(raw)));
  const double lead = raw / power - 1e-9;
  const double step = lead <= 1 ? power : lead <= 2 ? 2 * power : lead <= 5 ? 5 * power : 10 * power;
  for (auto i = static_cast<long>(std::ceil(low / step - 1e-9)); static_cast<double>(i) * step <= high + step * 1e-9; ++i)
    out.push_back({static_cast<double>(i) * step, number(static_cast<double>(i) * step)});
  return out;
}

std::vector<Tick> log_ticks(double low, double high) {
  std::vector<Tick> out;
  if (!(low > 0) || !(high > low)) return out;
  const double decades = std::log10(high / low);
  for (int e = static_cast<int>(std::floor(std::log10(low))); e <= static_cast<int>(std::ceil(std::log10(high))); ++e) {
    for (const double m : {1.0, 2.0, 5.0}) {
      if (m > 1 && decades > 3) continue;
      const double value = m * std::pow(10, e);
      if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) out.push_back({value, number(value)});
    }
  }
  return out;
}

std::string escape_xml(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') {
          out += "\xEF\xBF\xBD";
        } else {
          out += c;
        }
    }
  }
  return out;
}

std::string svg(const Plot& plot) {
  const Legend legend = lay_out_legend(plot);
  const double top = legend.bottom + 6;
  const Scale x(plot.x, kLeft, kWidth - kRight, values_of(plot, true));
  const Scale y(plot.y, kHeight - kBottom, top, values_of(plot, false));
  std::string out = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">", kWidth, kHeight, escape_xml(plot.title));
  out += fmt::format("<text class=\"title\" x=\"{:.1f}\" y=\"16\">{}</text>", kLeft, escape_xml(plot.title));
  for (const auto& [series, lx, ly] : legend.entries) {
    out += fmt::format("<line class=\"series{}\" {} x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>",
                       series->dashed ? " dashed" : "", stroke(series->colour), lx, ly - 4, lx + 18, ly - 4);
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", lx + 23, ly, escape_xml(series->name));
  }
  draw_axes(plot, x, y, top, out);
  for (const Series& s : plot.series) draw_series(s, x, y, out);
  draw_markers(plot, x, top, out);
  return out + "</svg>";
}

}  // namespace baton::app
