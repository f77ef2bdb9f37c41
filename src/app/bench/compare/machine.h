#pragma once
// The machine that a comparison ran on, for its reader.

#include "app/bench/compare/result.h"

namespace baton::app {

// `isa`: the one asked for, "" for the best that there is.
Machine look_at_machine(const std::string& isa);

}  // namespace baton::app
