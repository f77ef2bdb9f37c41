#pragma once
// The commands of `baton`; each takes its arguments (without program and command name) and returns the exit code.

#include <string>
#include <vector>

namespace baton::app {

using Args = std::vector<std::string>;

int run_serve(Args args);
int run_gateway(Args args);
int run_worker(Args args);
int run_check(Args args);
int run_status(Args args);
int run_stop(Args args);
int run_chat(Args args);
int run_pull(Args args);
int run_bench(Args args);
int run_chaos(Args args);
int run_doctor(Args args);
int run_simulate(Args args);

}  // namespace baton::app
