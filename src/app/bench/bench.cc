#include "app/bench/bench.h"

#include <cstdio>

#include "app/args.h"

namespace baton::app {

int run_bench(Args args) {
  constexpr const char* kUsage =
      "usage: baton bench serve|engine|compare [flags]\n\n  serve    a running server, as its clients see it\n  engine   this machine: "
      "prompt and "
      "generation speed of a model, beside what the machine allows\n  compare  ways to run a model on the same devices, under the same "
      "load\n";
  if (!args.empty()) {
    const std::string what = args.front();
    args.erase(args.begin());
    if (what == "serve") return run_bench_serve(std::move(args));
    if (what == "engine") return run_bench_engine(std::move(args));
    if (what == "compare") return run_bench_compare(std::move(args));
    if (what == "-h" || what == "--help") {
      std::fputs(kUsage, stdout);
      return 0;
    }
    std::fprintf(stderr, "baton bench: error: there is no benchmark '%s'\n", what.c_str());
  }
  std::fputs(kUsage, stderr);
  return kExitUsage;
}

}  // namespace baton::app
