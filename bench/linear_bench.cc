// Speed of the CPU's linear layers on the shapes of SmolLM2-135M, each beside the machine's limit, measured in the same run.
//
//   linear_bench [--threads N] [--isa NAME] [--format NAME]... [--compute NAME]... [--seconds S] [--tokens 1,8,32,512]
//
// At 1 token the figure is GB/s of packed weights, and layers are run one after the other over more memory than the caches hold; at more
// tokens GOP/s. The best of several runs is shown: what disturbs a machine only ever slows it down.

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/rng.h"
#include "device/cpu/linear.h"
#include "device/half.h"

namespace {

using namespace baton;
using namespace baton::device;
using namespace baton::device::cpu;

struct Shape {
  const char* name;
  std::int64_t out, in;
};
constexpr Shape kShapes[] = {{"qkv", 960, 576},      {"o", 576, 576},     {"gate or up", 1536, 576},
                             {"gate_up", 3072, 576}, {"down", 576, 1536}, {"head", 49152, 576}};

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Valid blocks: random codes, scales of about a hundredth.
std::vector<std::byte> weights(WeightFormat format, std::int64_t count) {
  Rng rng(1);
  const std::size_t size = block_bytes(format);
  std::vector<std::byte> bytes(static_cast<std::size_t>(count / block_weights(format)) * size);
  for (std::size_t at = 0; at < bytes.size(); at += size) {
    for (std::size_t i = 0; i < size; ++i) bytes[at + i] = static_cast<std::byte>(rng.below(256));
    const float d = 0.01F;
    const std::uint16_t half = format == WeightFormat::kBF16 ? float_to_bf16(d) : float_to_half(d);
    const std::size_t scale = format == WeightFormat::kQ6_K ? 208 : 0;
    if (format == WeightFormat::kF32) {
      std::memcpy(bytes.data() + at, &d, 4);
    } else {
      std::memcpy(bytes.data() + at + scale, &half, 2);
      if (size > 18 && scale == 0) std::memcpy(bytes.data() + at + 2, &half, 2);
    }
  }
  return bytes;
}

struct Options {
  int threads = 1;
  Isa isa = best_isa();
  std::vector<WeightFormat> formats;
  std::vector<ComputeType> computes;
  std::vector<std::int64_t> tokens = {1, 8, 32, 512};
  double seconds = 0.25;
};

[[noreturn]] void usage(const std::string& what) {
  std::fprintf(stderr, "linear_bench: %s\n", what.c_str());
  std::exit(2);
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--threads") {
      o.threads = std::atoi(value.c_str());
    } else if (flag == "--seconds") {
      o.seconds = std::atof(value.c_str());
    } else if (flag == "--isa") {
      const auto isa = isa_from_string(value);
      if (!isa) usage("unknown instruction set " + value);
      o.isa = *isa;
    } else if (flag == "--compute") {
      const auto compute = compute_type_from_string(value);
      if (!compute) usage("unknown compute type " + value);
      o.computes.push_back(*compute);
    } else if (flag == "--format") {
      for (int f = 0; f <= static_cast<int>(WeightFormat::kQ6_K); ++f) {
        if (to_string(static_cast<WeightFormat>(f)) == value) o.formats.push_back(static_cast<WeightFormat>(f));
      }
    } else if (flag == "--tokens") {
      o.tokens.clear();
      for (const char* p = value.c_str(); *p != 0; p += *p == ',') o.tokens.push_back(std::strtol(p, const_cast<char**>(&p), 10));
    } else {
      usage("unknown flag " + flag);
    }
  }
  if (o.formats.empty()) o.formats = {WeightFormat::kQ4_1, WeightFormat::kQ8_0};
  if (o.computes.empty()) o.computes = {ComputeType::kInt8};
  return o;
}

std::vector<int> cores(int count) {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  std::vector<int> out;
  for (int i = 0; i < CPU_SETSIZE && static_cast<int>(out.size()) < count; ++i) {
    if (CPU_ISSET(static_cast<unsigned>(i), &set)) out.push_back(i);
  }
  if (static_cast<int>(out.size()) < count) usage("not so many cores");
  return out;
}

struct Limits {
  double read, f32, bf16, int8;
};

void bench(const Options& o, Team& team, const Limits& limits, const Shape& shape, WeightFormat format, ComputeType compute) {
  if (shape.in % block_weights(format) != 0) return;
  HostWeight w;
  w.format = format;
  w.rows = shape.out;
  w.cols = shape.in;
  const std::vector<std::byte> bytes = weights(format, shape.out * shape.in);
  w.data = bytes.data();
  const auto arena = std::make_shared<WeightArena>();
  std::vector<std::unique_ptr<CpuLinear>> layers;
  do {  // 256 MB of them
    auto layer = make_linear(o.isa, std::span(&w, 1), {}, compute, arena);
    if (!layer.ok()) usage(layer.status().to_string());
    layers.push_back(std::move(layer).value());
  } while (layers.size() * layers[0]->bytes() < (std::size_t{256} << 20));
  std::printf("%-5s %-5s %-11s %6ld x %-5ld %6.2f bits/weight ", std::string(to_string(format)).c_str(),
              std::string(to_string(compute)).c_str(), shape.name, shape.out, shape.in,
              8.0 * static_cast<double>(layers[0]->bytes()) / static_cast<double>(shape.out * shape.in));
  const double peak = compute == ComputeType::kInt8 ? limits.int8 : compute == ComputeType::kBF16 ? limits.bf16 : limits.f32;
  for (const std::int64_t tokens : o.tokens) {
    const std::vector<float> x(static_cast<std::size_t>(tokens * shape.in), 0.37F);
    std::vector<float> out(static_cast<std::size_t>(tokens * shape.out));
    std::vector<std::byte> scratch(layers[0]->scratch_bytes(tokens));
    double best = 0;
    // One slice: about 10 ms of layers.
    std::size_t slice = 1, next = 0;
    for (const double start = seconds_now(); seconds_now() - start < o.seconds;) {
      const double begin = seconds_now();
      for (std::size_t i = 0; i < slice; ++i, next = (next + 1) % layers.size()) {
        layers[next]->run(team, x.data(), shape.in, tokens, out.data(), shape.out, scratch.data());
      }
      const double took = seconds_now() - begin;
      best = std::max(best, static_cast<double>(slice) / took);
      if (took < 0.008) slice *= 2;
    }
    if (tokens == 1) {
      const double speed = best * static_cast<double>(layers[0]->bytes());
      std::printf("| M=1 %6.1f GB/s %3.0f %% ", speed / 1e9, 100 * speed / limits.read);
    } else {
      const double speed = best * 2.0 * static_cast<double>(tokens * shape.out * shape.in);
      std::printf("| M=%ld %6.0f GOP/s %3.0f %% ", tokens, speed / 1e9, 100 * speed / peak);
    }
    std::fflush(stdout);
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = parse(argc, argv);
  Team team(cores(o.threads));
  const Limits limits{measure_read_bandwidth(team), measure_f32_flops(o.isa, team), measure_bf16_flops(o.isa, team),
                      measure_int8_ops(o.isa, team)};
  std::printf("%s, %d thread%s: read %.1f GB/s, f32 %.0f, bf16 %.0f GFLOP/s, int8 %.0f GOP/s\n", std::string(to_string(o.isa)).c_str(),
              o.threads, o.threads == 1 ? "" : "s", limits.read / 1e9, limits.f32 / 1e9, limits.bf16 / 1e9, limits.int8 / 1e9);
  for (const ComputeType compute : o.computes) {
    for (const WeightFormat format : o.formats) {
      for (const Shape& shape : kShapes) bench(o, team, limits, shape, format, compute);
    }
  }
}
