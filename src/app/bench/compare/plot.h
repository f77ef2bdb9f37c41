#pragma once
// Line plots as SVG, for pages without outside resources: axes with round ticks, series, a legend, marked values. Colours are CSS variables
// of the page (--series0.., --ink, --grid), so that a page may be dark or light. Pure.

#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace baton::app {

struct Tick {
  double value;
  std::string label;
};

struct Axis {
  std::string title;
  bool log = false;
  // The range; NaN: from the data (of a linear axis: from 0, if all is above).
  double low = std::numeric_limits<double>::quiet_NaN(), high = std::numeric_limits<double>::quiet_NaN();
  std::vector<Tick> ticks;  // none: round ones
};

struct Series {
  std::string name;
  int colour = 0;  // 0..5
  std::vector<std::pair<double, double>> points;
  bool dots = false;  // a dot at each point, besides the line
  bool dashed = false;
};

// A vertical line.
struct Marker {
  double x = 0;
  std::string label;
  int colour = 0;
};

struct Plot {
  std::string title;
  Axis x, y;
  std::vector<Series> series;
  std::vector<Marker> markers;
};

// An <svg> element of 480 x 300 units. Points that are not finite, or not positive on a log axis, are left out.
std::string svg(const Plot& plot);

// About `about` round values in [low, high], steps of 1, 2 or 5 times a power of ten.
std::vector<Tick> round_ticks(double low, double high, int about);
// 1, 2, 5 times powers of ten in [low, high]; powers of ten alone where that would be many.
std::vector<Tick> log_ticks(double low, double high);

// Text for a document: & < > " ' as references; control characters, which XML forbids, as U+FFFD.
std::string escape_xml(const std::string& text);

}  // namespace baton::app
