// baton: the one program. Chooses the command; everything else is in that command's file.

#include <sys/resource.h>

#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "app/args.h"
#include "app/commands.h"

namespace {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(baton::app::Args);
};

constexpr Command kCommands[] = {
    {"serve", "serve a model: gateway and workers, with one command", baton::app::run_serve},
    {"chat", "talk to a running server", baton::app::run_chat},
    {"check", "send test requests to a running server and see that they went through the hand-off", baton::app::run_check},
    {"status", "who serves, and how full they are", baton::app::run_status},
    {"stop", "stop a running server", baton::app::run_stop},
    {"pull", "fetch a model", baton::app::run_pull},
    {"bench", "measure: bench serve (a server), bench engine (this machine)", baton::app::run_bench},
    {"chaos", "kill workers of a cluster of its own under load and see that no stream loses a token", baton::app::run_chaos},
    {"doctor", "look at this machine: CPU, memory, limits, and what to do about them", baton::app::run_doctor},
    {"simulate", "a whole cluster under injected faults, from seeds: hunts and shrinks failures", baton::app::run_simulate},
    {"gateway", "the front end alone, over workers that run elsewhere", baton::app::run_gateway},
    {"worker", "one prefill, decode or aggregated worker alone", baton::app::run_worker},
};

void print_usage(std::FILE* out) {
  std::fputs("baton: serve large language models with disaggregated prefill and decode\n\nusage: baton COMMAND [flags]\n\n", out);
  for (const Command& command : kCommands) std::fprintf(out, "  %-9s %s\n", command.name, command.summary);
  std::fputs("\n'baton COMMAND --help' tells the rest.\n", out);
}

// Thousands of streams need thousands of descriptors.
void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

int main(int argc, char** argv) {
  raise_file_limit();
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away is an error of that write, not the end of a server
  if (argc < 2) {
    print_usage(stderr);
    return baton::app::kExitUsage;
  }
  const std::string word = argv[1];
  if (word == "--help" || word == "-h" || word == "help") {
    print_usage(stdout);
    return 0;
  }
  if (word == "--version" || word == "version") {
    std::printf("baton %s\n", baton::app::kVersion);
    return 0;
  }
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (word == command.name) return command.run({argv + 2, argv + argc});
    names.push_back(command.name);
  }
  std::fprintf(stderr, "baton: error: there is no command '%s'", word.c_str());
  if (const auto near = baton::app::did_you_mean(word, names)) std::fprintf(stderr, "; did you mean '%s'?", near->c_str());
  std::fputs("\n\n", stderr);
  print_usage(stderr);
  return baton::app::kExitUsage;
}
