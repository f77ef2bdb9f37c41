// What is particular to the CPU device: refusals, shared memory, contexts, and steps that allocate nothing.

#include "device/cpu/cpu_device.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>

#include "device/cpu/cores.h"
#include "device/cpu/memory.h"

// Counts every allocation of this test program by operator new. (Not inlined: g++ would take the pairs apart and warn.)
static std::atomic<long> allocations{0};
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes == 0 ? 1 : bytes)) return p;
  std::abort();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace baton::device::cpu {
namespace {

using testing::HasSubstr;
constexpr Duration kDeadline = std::chrono::seconds(10);

std::unique_ptr<Device> open(DeviceOptions options = {}) {
  auto device = open_device(options);
  BATON_CHECK_MSG(device.ok(), device.status().to_string());
  return std::move(device).value();
}

TEST(CpuDevice, RefusesMoreThreadsThanCores) {
  const int cores = static_cast<int>(ids_of(allowed_cpus()).size());
  const auto device = open_device({.threads = cores + 1});
  ASSERT_FALSE(device.ok());
  EXPECT_EQ(device.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(device.status().message(), HasSubstr("may use only " + std::to_string(cores)));
}

TEST(CpuDevice, RefusesCoresThatItMayNotUseOrHasTwice) {
  const int core = ids_of(allowed_cpus())[0];
  EXPECT_EQ(open_device({.cores = {100000}}).status().code(), Code::kInvalidArgument);
  EXPECT_THAT(open_device({.cores = {core, core}}).status().message(), HasSubstr("twice"));
  EXPECT_THAT(open_device({.cores = {core}, .threads = 2}).status().message(), HasSubstr("2 threads but 1 cores"));
  EXPECT_TRUE(open_device({.cores = {core}}).ok());
}

TEST(CpuDevice, RefusesAnInstructionSetThatItDoesNotKnowOrHave) {
  EXPECT_THAT(open_device({.isa = "mmx"}).status().message(), HasSubstr("unknown ISA 'mmx'"));
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    const auto device = open_device({.threads = 1, .isa = std::string(to_string(isa))});
    EXPECT_EQ(device.ok(), isa <= best_isa());
    if (!device.ok()) continue;
    EXPECT_EQ((*device)->info().isa, to_string(isa));
  }
}

TEST(CpuDevice, NumericsIdTellsApartWhatComputesDifferently) {
  const auto best = open({.threads = 1}), scalar = open({.threads = 1, .isa = "scalar"}),
             two = open({.cores = {ids_of(allowed_cpus()).back()}});
  EXPECT_EQ(best->numerics_id(ComputeType::kInt8, DType::kBF16), two->numerics_id(ComputeType::kInt8, DType::kBF16));
  EXPECT_NE(best->numerics_id(ComputeType::kInt8, DType::kBF16), best->numerics_id(ComputeType::kF32, DType::kBF16));
  EXPECT_NE(best->numerics_id(ComputeType::kInt8, DType::kBF16), best->numerics_id(ComputeType::kInt8, DType::kF16));
  if (best_isa() != Isa::kScalar) {
    EXPECT_NE(best->numerics_id(ComputeType::kInt8, DType::kBF16), scalar->numerics_id(ComputeType::kInt8, DType::kBF16));
  }
}

TEST(CpuDevice, AllocationsBeyondTheMachineAreRefusedWithBothFigures) {
  const auto device = open({.threads = 1});
  const auto buffer = device->allocate(std::size_t{1} << 50);
  ASSERT_FALSE(buffer.ok());
  EXPECT_EQ(buffer.status().code(), Code::kResourceExhausted);
  EXPECT_THAT(buffer.status().message(), HasSubstr("1125899906842624 bytes"));
  EXPECT_THAT(buffer.status().message(), HasSubstr("available"));
  EXPECT_EQ(device->create_context({.arena_bytes = std::size_t{1} << 50}).status().code(), Code::kResourceExhausted);
}

TEST(CpuKvPool, ARefusalNamesASizeThatFits) {
  const auto device = open({.threads = 1});
  KvSpec spec{.layers = 30, .kv_heads = 3, .head_dim = 64, .blocks = 1};
  spec.block_tokens = device->info().kv_block_tokens;
  const std::size_t block = spec.bytes();
  spec.blocks = static_cast<std::int32_t>(available_memory() / block * 4 + 1);
  const auto pool = device->create_kv_pool(spec);
  ASSERT_FALSE(pool.ok());
  EXPECT_EQ(pool.status().code(), Code::kResourceExhausted);
  const std::string& message = pool.status().message();
  const std::string flag = "--kv-cache-memory-bytes ";
  ASSERT_THAT(message, HasSubstr(flag));
  const std::size_t fits = std::strtoull(message.c_str() + message.find(flag) + flag.size(), nullptr, 10);
  EXPECT_GT(fits, 0u);
  EXPECT_EQ(fits % block, 0u);
  spec.blocks = static_cast<std::int32_t>(fits / block);
  EXPECT_TRUE(device->create_kv_pool(spec).ok()) << "pages appear when they are written, so this takes no memory";
}

TEST(CpuKvPool, RefusesShapesThatTheKernelsCannotServe) {
  const auto device = open({.threads = 1});
  const KvSpec good{.layers = 1, .kv_heads = 1, .head_dim = 64, .blocks = 1};
  KvSpec bad = good;
  bad.head_dim = 72;
  EXPECT_EQ(device->create_kv_pool(bad).status().code(), Code::kInvalidArgument);
  bad = good;
  bad.block_tokens = 24;
  EXPECT_EQ(device->create_kv_pool(bad).status().code(), Code::kInvalidArgument);
  bad = good;
  bad.blocks = 0;
  EXPECT_EQ(device->create_kv_pool(bad).status().code(), Code::kInvalidArgument);
  EXPECT_TRUE(device->create_kv_pool(good).ok());
}

// Whoever has mapped it cannot lose a page under its feet.
TEST(CpuKvPool, KeepsItsSize) {
  const auto device = open({.threads = 1});
  auto pool = device->create_kv_pool({.layers = 1, .kv_heads = 1, .head_dim = 64, .blocks = 4});
  ASSERT_TRUE(pool.ok()) << pool.status().to_string();
  const SharedRegion& region = *(*pool)->shared_region();
  EXPECT_NE(::ftruncate(region.fd, 0), 0);
  EXPECT_NE(::ftruncate(region.fd, static_cast<off_t>(region.bytes * 2)), 0);
  EXPECT_EQ(::fcntl(region.fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW), F_SEAL_SHRINK | F_SEAL_GROW);
}

// As the hand-off does it from another process: read-only, by the path of the descriptor.
TEST(CpuKvPool, CanBeMappedByItsDescriptorsPath) {
  const auto device = open({.threads = 1});
  auto pool = device->create_kv_pool({.layers = 1, .kv_heads = 1, .head_dim = 64, .blocks = 4});
  ASSERT_TRUE(pool.ok());
  const SharedRegion region = *(*pool)->shared_region();
  const std::string path = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(region.fd);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0) << std::strerror(errno);
  void* view = mmap(nullptr, region.bytes, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(view, MAP_FAILED);
  close(fd);
  for (std::size_t i = 0; i < region.bytes; ++i) region.base[i] = static_cast<std::byte>(i * 7);
  EXPECT_EQ(std::memcmp(view, region.base, region.bytes), 0);
  munmap(view, region.bytes);
}

TEST(CpuContext, ArenaHandsOutAlignedMemoryUntilItIsFull) {
  const auto device = open({.threads = 1});
  auto context = device->create_context({.arena_bytes = 3 * kScratchAlignment});
  ASSERT_TRUE(context.ok());
  const auto a = (*context)->scratch(DType::kF32, {1}),
             b = (*context)->scratch(DType::kI32, {static_cast<std::int64_t>(kScratchAlignment / 2)});
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(*(*context)->download(*a)) % kScratchAlignment, 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(*(*context)->download(*b)) % kScratchAlignment, 0u);
  const auto c = (*context)->scratch(DType::kF32, {1});
  ASSERT_FALSE(c.ok());
  EXPECT_EQ(c.status().code(), Code::kResourceExhausted);
  (*context)->reset_arena();
  EXPECT_TRUE((*context)->scratch(DType::kF32, {static_cast<std::int64_t>(3 * kScratchAlignment / 4)}).ok());
  EXPECT_FALSE((*context)->scratch(DType::kF32, {1}).ok());
}

TEST(CpuContext, NotifyRunsInlineAndUploadsAreChecked) {
  const auto device = open({.threads = 1});
  auto context = device->create_context({.arena_bytes = 4096});
  ASSERT_TRUE(context.ok());
  std::uint64_t seen = 0;
  (*context)->notify([](void* user, std::uint64_t tag) { *static_cast<std::uint64_t*>(user) = tag; }, &seen, 42);
  EXPECT_EQ(seen, 42u);
  const Tensor t = (*context)->scratch(DType::kI32, {2}).value();
  const std::int32_t values[3] = {1, 2, 3};
  EXPECT_TRUE((*context)->upload(t, values, 8).ok());
  EXPECT_FALSE((*context)->upload(t, values, 12).ok());
  EXPECT_EQ(std::memcmp(*(*context)->download(t), values, 8), 0);
  EXPECT_TRUE((*context)->synchronize(kDeadline).ok());
}

// One decoder layer with everything that a step calls, on every team size there is.
TEST(CpuContext, AStepInSteadyStateAllocatesNothing) {
  for (int threads : {1, 2}) {
    if (threads > static_cast<int>(ids_of(allowed_cpus()).size())) continue;
    const auto device = open({.threads = threads});
    auto context = device->create_context({.arena_bytes = 8u << 20}).value();
    constexpr std::int64_t kTokens = 40, kHeads = 9, kKvHeads = 3, kDim = 64, kHidden = 576, kVocabulary = 1000;
    std::vector<float> values(static_cast<std::size_t>(kVocabulary * kHidden));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 17) / 17 - 0.5f;
    auto weight = [&](std::int64_t rows) {
      HostWeight w;
      w.rows = rows;
      w.cols = kHidden;
      w.data = reinterpret_cast<const std::byte*>(values.data());
      return w;
    };
    const HostWeight qkv_weight = weight((kHeads + 2 * kKvHeads) * kDim), table = weight(kVocabulary);
    auto qkv = device->prepare_linear(std::span(&qkv_weight, 1), {}, ComputeType::kF32).value();
    auto head = device->prepare_linear(std::span(&table, 1), {}, ComputeType::kBF16).value();
    auto embedding = device->prepare_embedding(table).value();
    const std::vector<double> frequencies(kDim / 2, 0.1);
    auto rope = device->prepare_rope(frequencies, 2048, 1).value();
    auto pool = device->create_kv_pool({.layers = 1, .kv_heads = kKvHeads, .head_dim = kDim, .blocks = 64}).value();
    auto norm_buffer = device->allocate(kHidden * sizeof(float)).value();
    const Tensor norm = Tensor::contiguous(norm_buffer.get(), DType::kF32, {kHidden});

    std::vector<std::int32_t> ids(kTokens, 5), positions(kTokens), slots(kTokens), q_start = {0, kTokens}, kv_len = {kTokens + 1000},
                                                                                   blocks(64), rows = {0, 39};
    std::iota(positions.begin(), positions.end(), 1000);
    std::iota(slots.begin(), slots.end(), 1000);
    std::iota(blocks.begin(), blocks.end(), 0);
    auto step = [&] {
      StepMeta meta;
      meta.token_ids = ids;
      meta.positions = positions;
      meta.slots = slots;
      meta.q_start = q_start;
      meta.kv_len = kv_len;
      meta.block_tables = blocks;
      meta.max_blocks = 64;
      meta.logit_rows = rows;
      context->reset_arena();
      BATON_CHECK(context->upload_step(meta).ok());
      Ops& ops = context->ops();
      const Tensor x = context->scratch(DType::kF32, {kTokens, kHidden}).value(),
                   n = context->scratch(DType::kF32, {kTokens, kHidden}).value();
      const Tensor fused = context->scratch(DType::kF32, {kTokens, (kHeads + 2 * kKvHeads) * kDim}).value();
      const Tensor q = fused.columns(0, kHeads * kDim).split_last(kHeads, kDim);
      const Tensor k = fused.columns(kHeads * kDim, (kHeads + kKvHeads) * kDim).split_last(kKvHeads, kDim);
      const Tensor v = fused.columns((kHeads + kKvHeads) * kDim, (kHeads + 2 * kKvHeads) * kDim).split_last(kKvHeads, kDim);
      ops.embedding(*embedding, meta.d_token_ids, x);
      ops.rms_norm(x, norm, 1e-5f, n);
      ops.linear(*qkv, n, fused);
      ops.rope(*rope, meta.d_positions, q);
      ops.rope(*rope, meta.d_positions, k);
      ops.kv_write(meta, *pool, 0, k, v);
      ops.attention(meta, *pool, 0, q, 0.125f, n.split_last(kHeads, kDim));
      ops.add_rms_norm(x, n, norm, 1e-5f, n);
      ops.swiglu(fused, fused.columns(0, (kHeads + 2 * kKvHeads) * kDim / 2));
      const Tensor last = context->scratch(DType::kF32, {2, kHidden}).value(),
                   logits = context->scratch(DType::kF32, {2, kVocabulary}).value();
      ops.gather_rows(n, meta.d_logit_rows, last);
      ops.linear(*head, last, logits);
      ops.argmax(logits, context->scratch(DType::kI32, {2}).value());
      ops.top_k(logits, 20, context->scratch(DType::kF32, {2, 20}).value(), context->scratch(DType::kI32, {2, 20}).value());
      BATON_CHECK(context->synchronize(kDeadline).ok());
    };
    for (int i = 0; i < 3; ++i) step();
    const long before = allocations;
    for (int i = 0; i < 10; ++i) step();
    EXPECT_EQ(allocations - before, 0) << "with " << threads << " threads";
  }
}

}  // namespace
}  // namespace baton::device::cpu
