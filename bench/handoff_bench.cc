// How fast a hand-off's bytes move: two processes, one core each, the KV of a SmolLM2-135M prompt of 1,000 tokens (30 layers, 3 KV heads of
// 64, bf16: 23 MB) through the shm fabric, with digests on both sides. Prints GB/s of fetch (copy and digest in one pass) and of the
// source's digest; the first round pays for page faults, and on a shared machine the median says more than the mean.
//   handoff_bench [rounds]

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "net/event_loop.h"
#include "transfer/relayout.h"
#include "transfer/shm/copy_digest.h"
#include "transfer/shm/shm_fabric.h"
#include "transfer/test_pool.h"

namespace {

using namespace baton;
using namespace baton::transfer;

constexpr Range kHeads{0, 3};
constexpr std::int32_t kTokens = 1000;

struct Bench {
  net::EventLoop loop;
  transfer::testing::TestPool pool;
  std::unique_ptr<Fabric> fabric;
  std::vector<BlockId> blocks;

  Bench(const device::KvSpec& spec, int cpu) : pool(device::KvView::dense(spec), spec.bytes()) {
    ::madvise(pool.shared_region()->base, pool.shared_region()->bytes, MADV_HUGEPAGE);
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    ::sched_setaffinity(0, sizeof set, &set);  // the copier's too: it starts here
    const RankPool rank{&pool, kHeads};
    fabric = std::move(create_shm_fabric(loop, {&rank, 1})).value();
    for (std::int32_t i = 0; i < (kTokens + spec.block_tokens - 1) / spec.block_tokens; ++i)
      blocks.push_back(BlockId((i * 7 + 3) % spec.blocks));
  }
  // All layers at once; returns seconds from the first submit to the last completion.
  template <class Submit>
  double run(int layers, Submit submit, std::vector<Digest>* out) {
    int left = layers;
    out->assign(static_cast<std::size_t>(layers), Digest{});
    const auto start = loop.clock().now();
    for (int layer = 0; layer < layers; ++layer) {
      submit(layer, [&, layer](Result<Digest> d) {
        (*out)[static_cast<std::size_t>(layer)] = d.value();
        if (--left == 0) loop.stop();
      });
    }
    loop.run();
    return to_seconds(loop.clock().now() - start);
  }
};

void report(const char* what, int block_tokens, double bytes, std::vector<double> seconds) {
  const double first = seconds.front();
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  std::printf("block %3d  %-14s median %5.1f  best %5.1f GB/s  (median %.2f ms for %.1f MB; first round %.2f ms)\n", block_tokens, what,
              bytes / median / 1e9, bytes / seconds.front() / 1e9, median * 1e3, bytes / 1e6, first * 1e3);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  const int cpus = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  for (const int block_tokens : {16, 32, 64, 128}) {
    device::KvSpec spec{30, 3, 64, device::DType::kBF16, block_tokens, 4096 / block_tokens};
    const double bytes = static_cast<double>(spec.bytes_per_token()) * kTokens;
    int to_parent[2], to_child[2];
    if (pipe(to_parent) != 0 || pipe(to_child) != 0) return 1;
    const pid_t child = fork();
    if (child == 0) {  // P: writes and digests, on the last core
      Bench p(spec, cpus - 1);
      std::vector<double> seconds;
      std::vector<Digest> digests;
      for (int r = 0; r < rounds; ++r) {
        auto* words = reinterpret_cast<std::uint32_t*>(p.pool.shared_region()->base);
        std::iota(words, words + p.pool.shared_region()->bytes / 4, static_cast<std::uint32_t>(r));
        const double s = p.run(
            spec.layers,
            [&](int layer, Fabric::Done done) {
              p.fabric->digest(plan_local({p.fabric->export_pool().parts, p.blocks, 0}, layer, kHeads, {0, kTokens}).value(),
                               std::move(done));
            },
            &digests);
        seconds.push_back(s);
        const SourceRegion exported = p.fabric->export_pool();
        const RegionPart& region = exported.parts[0];
        char go;
        if (write(to_parent[1], &region, sizeof region) < 0 || write(to_parent[1], digests.data(), digests.size() * sizeof(Digest)) < 0 ||
            read(to_child[0], &go, 1) != 1) {
          _exit(1);
        }
      }
      report("P digest", block_tokens, bytes, seconds);
      _exit(0);
    }
    Bench d(spec, 0);
    std::vector<double> seconds;
    std::shared_ptr<PeerRegion> peer;
    for (int r = 0; r < rounds; ++r) {
      RegionPart region;
      std::vector<Digest> expected(static_cast<std::size_t>(spec.layers)), got;
      if (read(to_parent[0], &region, sizeof region) != sizeof region ||
          read(to_parent[0], expected.data(), expected.size() * sizeof(Digest)) != static_cast<ssize_t>(expected.size() * sizeof(Digest))) {
        return 1;
      }
      if (!peer) peer = d.fabric->open({child, {region}}).value();
      const auto own = d.fabric->export_pool();
      const auto plan = [&](int layer) {
        return plan_copy({{&region, 1}, d.blocks, 0}, {own.parts, d.blocks, 0}, layer, kHeads, {0, kTokens}).value();
      };
      const double s = d.run(spec.layers, [&](int layer, Fabric::Done done) { d.fabric->fetch(peer, plan(layer), std::move(done)); }, &got);
      if (got != expected) {
        std::printf("digest mismatch\n");
        return 1;
      }
      seconds.push_back(s);
      if (write(to_child[1], "x", 1) != 1) return 1;
    }
    waitpid(child, nullptr, 0);
    report("D copy+digest", block_tokens, bytes, seconds);
  }
  return 0;
}
