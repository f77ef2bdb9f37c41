#pragma once
// Which logical CPUs this process may use.

#include <string>
#include <vector>

#include "base/status.h"

namespace baton::device::cpu {

std::vector<int> allowed_cores();
// One logical CPU of each physical core among the allowed ones; the siblings (SMT) share its vector units and would only take turns.
std::vector<int> physical_cores();
// The cores of a team: `cores` themselves if given (`threads` then must be 0 or their number), else the first `threads` allowed ones,
// physical cores first; threads 0: every physical core. kInvalidArgument says which cores there are.
Result<std::vector<int>> choose_cores(const std::vector<int>& cores, int threads);
std::string cpu_name();  // "AMD EPYC 9654"

}  // namespace baton::device::cpu
