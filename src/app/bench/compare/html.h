#pragma once
// A comparison as one page that needs nothing else: table, plots, what was run on what. Pure.

#include <string>
#include <vector>

#include "app/bench/compare/plot.h"
#include "app/bench/compare/result.h"

namespace baton::app {

std::string html(const Comparison& comparison);

// The plots of the page, in its order; those without data are absent.
std::vector<Plot> plots(const Comparison& comparison);

}  // namespace baton::app
