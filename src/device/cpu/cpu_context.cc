#include "device/cpu/cpu_context.h"

#include <cstring>
#include <string>

namespace baton::device::cpu {
CpuContext::CpuContext(Isa isa, std::vector<int> cores, std::unique_ptr<CpuBuffer> arena, std::shared_ptr<Group> group, int local_rank)
    : team_(std::move(cores)),
      ops_(isa, team_),
      group_(std::move(group)),
      collective_(group_ ? group_->join(local_rank, team_) : solo_collective()),
      arena_(std::move(arena)) {}

Result<Tensor> CpuContext::scratch(DType dtype, std::initializer_list<std::int64_t> shape) {
  const std::size_t begin = (arena_used_ + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
  std::size_t bytes = size_of(dtype);
  for (std::int64_t n : shape) bytes *= static_cast<std::size_t>(n);
  if (bytes > arena_->bytes() || begin > arena_->bytes() - bytes)
    return Status(Code::kResourceExhausted,
                  "arena: " + std::to_string(begin + bytes) + " bytes wanted, it has " + std::to_string(arena_->bytes()));
  arena_used_ = begin + bytes;
  return Tensor::contiguous(arena_.get(), dtype, shape, static_cast<std::int64_t>(begin / size_of(dtype)));
}

Status CpuContext::upload_step(StepMeta& meta) {
  Twins& twins = twins_[step_++ % twins_.size()];
  std::size_t next = 0;
  auto twin = [&](std::span<const std::int32_t> host, std::int64_t rows, std::int64_t cols) {
    CpuBuffer& buffer = twins[next++];
    buffer.point_to(const_cast<std::int32_t*>(host.data()), host.size_bytes());
    return cols == 0 ? Tensor::contiguous(&buffer, DType::kI32, {rows}) : Tensor::contiguous(&buffer, DType::kI32, {rows, cols});
  };
  auto flat = [&](std::span<const std::int32_t> host) { return twin(host, static_cast<std::int64_t>(host.size()), 0); };
  BATON_CHECK(meta.block_tables.size() == meta.kv_len.size() * static_cast<std::size_t>(meta.max_blocks));
  meta.d_token_ids = flat(meta.token_ids);
  meta.d_positions = flat(meta.positions);
  meta.d_slots = flat(meta.slots);
  meta.d_q_start = flat(meta.q_start);
  meta.d_kv_len = flat(meta.kv_len);
  meta.d_block_tables = twin(meta.block_tables, meta.seqs(), meta.max_blocks);
  meta.d_logit_rows = flat(meta.logit_rows);
  return Status();
}

Status CpuContext::upload(const Tensor& target, const void* source, std::size_t bytes) {
  const std::size_t room = static_cast<std::size_t>(target.elements()) * size_of(target.dtype);
  if (bytes > room) return Status(Code::kInvalidArgument, "upload of " + std::to_string(bytes) + " bytes into " + std::to_string(room));
  if (bytes > 0) std::memcpy(bytes_of(target), source, bytes);
  return Status();
}

Result<const void*> CpuContext::download(const Tensor& source) { return static_cast<const void*>(bytes_of(source)); }

Status CpuContext::synchronize(Duration) {
  BATON_RETURN_IF_ERROR(ops_.take_error());
  return group_ && group_->failed() ? group_->status() : Status();
}

}  // namespace baton::device::cpu
