#pragma once
// The benchmarks behind `baton bench`.

#include "app/commands.h"

namespace baton::app {

int run_bench_serve(Args args);
int run_bench_engine(Args args);
int run_bench_compare(Args args);

}  // namespace baton::app
