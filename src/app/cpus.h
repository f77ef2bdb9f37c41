#pragma once
// Which logical CPUs this process may use, and how engines share them.

#include <vector>

#include "base/status.h"

namespace baton::app {

// From the scheduler's affinity mask (cgroup cpusets included), one logical CPU per physical core.
std::vector<int> usable_cores();
// One list per engine: `cores` (or all usable ones if empty) dealt out in contiguous runs, at most `threads` each if that is > 0. With
// fewer cores than engines, engines share cores. kInvalidArgument names a core that is not usable.
Result<std::vector<std::vector<int>>> share_cores(std::vector<int> cores, int engines, int threads);

}  // namespace baton::app
