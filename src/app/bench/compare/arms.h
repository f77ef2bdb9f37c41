#pragma once
// The arms of a comparison: ways to run one model on the same N devices. Pure.
//
//   tpN-prefill-first  one group of N ranks whose scheduler runs whole prompts before it decodes
//   tpN                one group of N ranks, prompts in chunks beside decode
//   dp                 two engines of N/2 ranks each behind the gateway, prompts in chunks
//   pd                 a prefill worker and a decode worker of N/2 ranks each

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace baton::app {

struct Arm {
  std::string name;                // "tp2-prefill-first"
  std::string what;                // for a reader
  std::vector<std::string> flags;  // of `baton serve`, beside those that all arms share
  bool disaggregated = false;
};

struct ArmPlan {
  struct LeftOut {
    std::string name, why;
  };
  std::vector<Arm> arms;  // in the order wanted; differences are taken against the first
  std::vector<LeftOut> left_out;
};

// `wanted`: names, with N as a number or as the letter; none for all that are possible, the others being left out. kInvalidArgument for one
// that is unknown, named twice, or named and not possible. `refused(degree)` says why the model cannot be split over so many ranks; "" if
// it can.
Result<ArmPlan> plan_arms(int devices, const std::vector<std::string>& wanted, const std::function<std::string(int degree)>& refused);

// `args` of `baton serve` with the arm's flags instead of those of the same names.
std::vector<std::string> with_flags(const std::vector<std::string>& args, const std::vector<std::string>& flags);

}  // namespace baton::app
