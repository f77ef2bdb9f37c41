#include "app/bench/compare/arms.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

namespace baton::app {
namespace {

struct Candidate {
  Arm arm;
  std::string why_not;  // "" if it is possible
};

std::vector<std::string> degree_flags(int degree) {
  if (degree == 1) return {};
  return {"--tensor-parallel-size", std::to_string(degree)};
}

std::string instance(int degree) { return degree == 1 ? "1" : fmt::format("1xTP{}", degree); }

std::vector<Candidate> candidates(int devices, const std::function<std::string(int)>& refused) {
  const std::string group = devices == 1 ? "one engine" : fmt::format("one group of {} ranks", devices);
  const std::string tp = fmt::format("tp{}", devices), whole = refused(devices);
  const int half = devices / 2;
  std::string no_halves;
  if (devices < 2) {
    no_halves = "it needs two devices";
  } else if (devices % 2 != 0) {
    no_halves = fmt::format("{} devices are not two equal halves; give an even --devices", devices);
  } else {
    no_halves = refused(half);
  }
  const std::string each = half == 1 ? "one rank" : fmt::format("{} ranks", half);

  std::vector<Candidate> out(4);
  out[0] = {{tp + "-prefill-first", group + ", whole prompts before decode", degree_flags(devices), false}, whole};
  out[0].arm.flags.push_back("--no-enable-chunked-prefill");
  out[1] = {{tp, group + ", prompts in chunks beside decode", degree_flags(devices), false}, whole};
  out[2] = {{"dp", fmt::format("two engines of {} each, prompts in chunks", each), degree_flags(half), false}, no_halves};
  out[2].arm.flags.insert(out[2].arm.flags.end(), {"--data-parallel-size", "2"});
  out[3] = {{"pd",
             fmt::format("a prefill and a decode worker of {} each", each),
             {"--prefill", instance(half), "--decode", instance(half)},
             true},
            no_halves};
  return out;
}

}  // namespace

Result<ArmPlan> plan_arms(int devices, const std::vector<std::string>& wanted, const std::function<std::string(int degree)>& refused) {
  if (devices < 1) return Status(Code::kInvalidArgument, fmt::format("--devices {}: expected 1 or more", devices));
  std::vector<Candidate> all = candidates(devices, refused);
  ArmPlan plan;
  if (wanted.empty()) {
    for (Candidate& c : all) {
      if (c.why_not.empty()) {
        plan.arms.push_back(std::move(c.arm));
      } else {
        plan.left_out.push_back({c.arm.name, c.why_not});
      }
    }
    if (plan.arms.empty())
      return Status(Code::kInvalidArgument, fmt::format("no arm is possible on {} devices: {}", devices, plan.left_out.front().why));
    return plan;
  }
  for (const std::string& name : wanted) {
    const std::string spelled = name.starts_with("tpN") ? fmt::format("tp{}{}", devices, name.substr(3)) : name;
    const auto found = std::ranges::find_if(all, [&](const Candidate& c) { return c.arm.name == spelled; });
    if (found == all.end())
      return Status(Code::kInvalidArgument,
                    fmt::format("--arms: `{}` is not an arm on {} device(s); they are tp{}-prefill-first, tp{}, dp, pd", name, devices,
                                devices, devices));
    if (!found->why_not.empty()) return Status(Code::kInvalidArgument, fmt::format("--arms {}: {}", name, found->why_not));
    if (std::ranges::any_of(plan.arms, [&](const Arm& a) { return a.name == spelled; }))
      return Status(Code::kInvalidArgument, fmt::format("--arms: `{}` is named twice", name));
    plan.arms.push_back(found->arm);
  }
  return plan;
}

std::vector<std::string> with_flags(const std::vector<std::string>& args, const std::vector<std::string>& flags) {
  const auto is_flag = [](const std::string& word) { return word.starts_with("--"); };
  std::vector<std::string> out;
  for (std::size_t i = 0; i < args.size();) {
    std::size_t next = i + 1;
    while (next < args.size() && !is_flag(args[next])) ++next;
    if (!is_flag(args[i]) || std::ranges::find(flags, args[i]) == flags.end())
      out.insert(out.end(), args.begin() + static_cast<long>(i), args.begin() + static_cast<long>(next));
    i = next;
  }
  out.insert(out.end(), flags.begin(), flags.end());
  return out;
}

}  // namespace baton::app
