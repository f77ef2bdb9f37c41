#include "sim/scenario.h"

#include <algorithm>

namespace baton::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using wire::Role;

std::vector<Scenario> make() {
  std::vector<Scenario> all;
  const auto add = [&](const char* name, const char* about) -> Scenario& {
    Scenario s;
    s.name = name;
    s.about = about;
    s.workers = {{.count = 2, .role = Role::kPrefill, .block_tokens = {8, 16, 32}},
                 {.count = 2, .role = Role::kDecode, .block_tokens = {8, 16, 32}}};
    all.push_back(std::move(s));
    return all.back();
  };

  add("steady", "2P + 2D well below their limits: every request completes");
  return all;
}

}  // namespace

std::span<const Scenario> scenarios() {
  static const std::vector<Scenario> all = make();
  return all;
}

const Scenario* find_scenario(std::string_view name) {
  const auto all = scenarios();
  const auto found = std::find_if(all.begin(), all.end(), [&](const Scenario& s) { return s.name == name; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace baton::sim
