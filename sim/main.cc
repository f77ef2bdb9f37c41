// baton_sim: runs scenarios over seeds, for hunting and for reproducing a failure.

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <string>
#include <string_view>

#include "base/log.h"
#include "sim/run.h"

namespace {

constexpr const char* kUsage =
    "usage: baton_sim [--scenario NAME] [--seed N | --seeds A..B] [--trace]\n"
    "  --scenario NAME  one scenario; without it, all of them (--list shows them)\n"
    "  --seed N         one seed (1)\n"
    "  --seeds A..B     the seeds from A to B, both included\n"
    "  --trace          every event, on standard output\n"
    "Exit status: 0 if everything held, 1 if not, 2 on a wrong command line.\n";

bool number(std::string_view text, std::uint64_t& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

int usage(const std::string& why) {
  std::fprintf(stderr, "baton_sim: %s\n%s", why.c_str(), kUsage);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  std::string scenario;
  std::uint64_t from = 1, to = 1;
  bool trace = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--help") return std::fputs(kUsage, stdout), 0;
    if (flag == "--list") {
      std::printf("%-14s %s\n", "swarm", "each seed draws its own cluster, load and faults");
      for (const auto& s : baton::sim::scenarios()) std::printf("%-14s %s\n", s.name.c_str(), s.about.c_str());
      return 0;
    }
    if (flag == "--trace") {
      trace = true;
      continue;
    }
    if (i + 1 == argc) return usage(std::string(flag) + ": unknown, or its value is missing");
    const std::string_view value = argv[++i];
    if (flag == "--scenario") {
      scenario = value;
    } else if (flag == "--seed") {
      if (!number(value, from)) return usage("--seed wants a number");
      to = from;
    } else if (flag == "--seeds") {
      const auto dots = value.find("..");
      if (dots == std::string_view::npos || !number(value.substr(0, dots), from) || !number(value.substr(dots + 2), to) || to < from)
        return usage("--seeds wants A..B");
    } else {
      return usage("unknown flag " + std::string(flag));
    }
  }
  if (!scenario.empty() && scenario != "swarm" && baton::sim::find_scenario(scenario) == nullptr)
    return usage("no scenario " + scenario + "; see --list");
  // What the processes would log is in the trace, as far as it matters.
  baton::log::init({.level = trace ? "info" : "critical", .process = "sim"});

  int failed = 0;
  const bool swarm = scenario == "swarm";
  auto known = baton::sim::scenarios();
  for (const auto& fixed : swarm ? known.first(1) : known) {
    if (!swarm && !scenario.empty() && fixed.name != scenario) continue;
    for (std::uint64_t seed = from; seed <= to; ++seed) {
      auto s = swarm ? baton::sim::draw_swarm(seed) : fixed;
      s.seed = seed;
      if (trace && swarm) std::cout << baton::sim::to_text(s);
      const auto result = baton::sim::run(s, trace ? &std::cout : nullptr);
      std::printf("%s\n", summary(s, result).c_str());
      for (const auto& why : result.failures) std::printf("    %s\n", why.c_str());
      if (!result.ok()) {
        std::printf("    reproduce: baton_sim --scenario %s --seed %llu --trace\n", s.name.c_str(), static_cast<unsigned long long>(seed));
        ++failed;
      }
      std::fflush(stdout);
    }
  }
  return failed == 0 ? 0 : 1;
}
