// mutants: production code with one planted bug at a time under swarm seeds 1, 2, ..., until a check of the simulation says so. Each runs
// in a process of its own: a bug may end it. Afterwards the same seeds without a bug, which must be clean.

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "sim/run.h"
#include "tests/mutants/table.h"

namespace baton::mutants {
namespace {

struct Mutant {
  Name id;
  const char *name, *file, *breaks;
  int seeds_max;
  const char* what;
};
constexpr Mutant kMutants[] = {
#define BATON_MUTANT_ROW(name, file, breaks, limit, what) {Name::name, #name, file, breaks, limit, what},
    BATON_MUTANT_TABLE(BATON_MUTANT_ROW)
#undef BATON_MUTANT_ROW
};
constexpr rlim_t kCpuSecondsMax = 120;  // of one mutant

Name chosen = Name::kNone;

struct Outcome {
  int seed = 0;       // the last one that ran
  std::string found;  // by a check of the simulation, or of the production code; empty: nothing
};

// In the child: seeds from 1 on, each announced before it runs.
[[noreturn]] void run_seeds(Name mutant, int seeds_max) {
  const rlimit limit{kCpuSecondsMax, kCpuSecondsMax};
  setrlimit(RLIMIT_CPU, &limit);
  chosen = mutant;
  for (int seed = 1; seed <= seeds_max; ++seed) {
    std::printf("seed %d\n", seed);
    std::fflush(stdout);
    const auto result = sim::run(sim::draw_swarm(static_cast<std::uint64_t>(seed)));
    if (result.ok()) continue;
    std::printf("found %s\n", result.failures[0].c_str());
    break;
  }
  std::fflush(stdout);
  _exit(0);
}

Outcome hunt(Name mutant, int seeds_max) {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);  // what a failed BATON_CHECK says
    close(ends[0]);
    close(ends[1]);
    run_seeds(mutant, seeds_max);
  }
  close(ends[1]);
  std::FILE* in = fdopen(ends[0], "r");
  Outcome out;
  std::string check;
  char buffer[4096];
  while (std::fgets(buffer, sizeof buffer, in) != nullptr) {
    std::string_view line(buffer);
    if (line.ends_with('\n')) line.remove_suffix(1);
    if (line.starts_with("seed ")) {
      std::from_chars(line.data() + 5, line.data() + line.size(), out.seed);
    } else if (line.starts_with("found ")) {
      out.found = line.substr(6);
    } else if (const auto at = line.find("check failed: "); at != line.npos) {
      check = line.substr(line.substr(0, at).rfind("src/") == line.npos ? 0 : line.substr(0, at).rfind("src/"));
    }
  }
  std::fclose(in);
  int status = 0;
  waitpid(child, &status, 0);
  if (!out.found.empty() || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) return out;
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU) return {out.seed, ""};  // to go on for ever is not to be caught
  out.found = !check.empty() ? "CHECK: " + check : "crash: " + std::string(WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "exit");
  return out;
}

int usage(const char* why) {
  std::fprintf(stderr,
               "mutants: %s\n"
               "usage: mutants                 every mutant, then the same seeds without one; exit 1 if one is not caught\n"
               "       mutants --part I/N      every Nth of them, from the Ith on\n"
               "       mutants NAME [SEED]     one of them; with a seed, that one with its trace\n"
               "       mutants NAME --seeds N  one of them, over so many seeds at most\n"
               "       mutants --list\n",
               why);
  return 2;
}

int list() {
  for (const Mutant& m : kMutants) std::printf("%-28s %-26s %-4s %s\n", m.name, m.file, m.breaks, m.what);
  return 0;
}

int trace(Name mutant, std::uint64_t seed) {
  log::init({.level = "info", .process = "sim"});
  chosen = mutant;
  const sim::Scenario scenario = sim::draw_swarm(seed);
  std::cout << sim::to_text(scenario);
  const auto result = sim::run(scenario, &std::cout);
  for (const auto& why : result.failures) std::cout << why << '\n';
  return result.ok() ? 0 : 1;
}

int run_part(std::size_t part, std::size_t parts, std::string_view only, int seeds_max = 0) {
  int missed = 0, count = 0, seeds = 1;
  std::printf("%-28s %-26s %-6s %s\n", "MUTANT", "FILE", "SEEDS", "CAUGHT BY");
  for (std::size_t i = part; i < std::size(kMutants); i += parts) {
    const Mutant& m = kMutants[i];
    if (!only.empty() && m.name != only) continue;
    const Outcome o = hunt(m.id, seeds_max > 0 ? seeds_max : m.seeds_max);
    ++count;
    if (o.found.empty()) ++missed;
    if (!o.found.empty()) seeds = std::max(seeds, o.seed);
    std::printf("%-28s %-26s %-6d %.150s\n", m.name, m.file, o.seed, o.found.empty() ? "NOT CAUGHT" : o.found.c_str());
    std::fflush(stdout);
  }
  const Outcome control = hunt(Name::kNone, seeds);
  std::printf("%-28s %-26s %-6d %s\n", "(none)", "", control.seed, control.found.empty() ? "-" : control.found.c_str());
  std::printf("%d of %d mutants caught; without a mutant the %d seeds are %s\n", count - missed, count, seeds,
              control.found.empty() ? "clean" : "NOT CLEAN");
  return missed == 0 && control.found.empty() && count > 0 ? 0 : 1;
}

int main(int argc, char** argv) {
  log::init({.level = "critical", .process = "sim"});
  if (argc == 1) return run_part(0, 1, "");
  const std::string_view word = argv[1];
  if (word == "--list") return list();
  if (word == "--part") {
    std::size_t part = 0, parts = 0;
    if (argc != 3 || std::sscanf(argv[2], "%zu/%zu", &part, &parts) != 2 || part < 1 || part > parts) return usage("--part wants I/N");
    return run_part(part - 1, parts, "");
  }
  for (const Mutant& m : kMutants) {
    if (word != m.name) continue;
    if (argc == 4 && std::string_view(argv[2]) == "--seeds") return run_part(0, 1, word, std::atoi(argv[3]));
    return argc > 2 ? trace(m.id, std::strtoull(argv[2], nullptr, 10)) : run_part(0, 1, word);
  }
  return usage("no such mutant");
}

}  // namespace

Name active() { return chosen; }

}  // namespace baton::mutants

int main(int argc, char** argv) { return baton::mutants::main(argc, argv); }
