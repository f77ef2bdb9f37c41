#include "device/cpu/kv_pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "device/cpu/attention_kernel.h"
#include "device/cpu/cores.h"
#include "device/cpu/memory.h"

namespace baton::device::cpu {
namespace {

Status check(const KvSpec& spec) {
  auto wrong = [](const std::string& what) { return Status(Code::kInvalidArgument, "KV pool: " + what); };
  if (spec.layers <= 0 || spec.kv_heads <= 0 || spec.blocks <= 0) return wrong("layers, KV heads and blocks must be positive");
  if (spec.head_dim <= 0 || spec.head_dim % 16 != 0 || spec.head_dim > kMaxHeadDim)
    return wrong("head dimension " + std::to_string(spec.head_dim) + " is not a multiple of 16 up to " + std::to_string(kMaxHeadDim));
  if (spec.dtype == DType::kI32) return wrong("element type i32 is not one of bf16, f16, f32");
  if (spec.block_tokens <= 0 || spec.block_tokens % 16 != 0)
    return wrong("block of " + std::to_string(spec.block_tokens) + " tokens is not a multiple of 16");
  return Status();
}

}  // namespace

Result<std::unique_ptr<CpuKvPool>> CpuKvPool::create(KvSpec spec, int node) {
  if (spec.block_tokens == 0) spec.block_tokens = kBlockTokens;
  BATON_RETURN_IF_ERROR(check(spec));
  const std::size_t bytes = spec.bytes(), available = available_memory();
  auto refuse = [&](const std::string& why) {
    // Leave a tenth for everything else, and offer whole blocks.
    const std::size_t block = bytes / static_cast<std::size_t>(spec.blocks);
    const std::size_t fits = available / 10 * 9 / block * block;
    return Status(Code::kResourceExhausted, "the KV pool of " + std::to_string(bytes) + " bytes (" + human_bytes(bytes) + ") " + why +
                                                ": " + human_bytes(available) + " available; --kv-cache-memory-bytes " +
                                                std::to_string(fits) + " would fit");
  };
  if (bytes > available) return refuse("does not fit in memory");

  std::unique_ptr<CpuKvPool> pool(new CpuKvPool());
  pool->view_ = KvView::dense(spec);
  const int fd = memfd_create("baton-kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return Status(Code::kInternal, std::string("memfd_create for the KV pool: ") + std::strerror(errno));
  pool->region_.fd = fd;
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) return refuse(std::string("cannot be made (") + std::strerror(errno) + ")");
  // Whoever maps it can rely on its size: a page that is cut off would kill the process that reads it.
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return Status(Code::kInternal, std::string("sealing the KV pool: ") + std::strerror(errno));
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return refuse(std::string("cannot be mapped (") + std::strerror(errno) + ")");
  madvise(base, bytes, MADV_HUGEPAGE);  // a wish: honoured where shmem_enabled says "advise"
  place_on_node(base, bytes, node);
  pool->region_.base = static_cast<std::byte*>(base);
  pool->region_.bytes = bytes;
  return pool;
}

CpuKvPool::~CpuKvPool() {
  if (region_.base != nullptr) munmap(region_.base, region_.bytes);
  if (region_.fd >= 0) close(region_.fd);
}

}  // namespace baton::device::cpu
