#pragma once
// Element types, weight formats and tensor views: the vocabulary of device.h and ops.h.

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace baton::device {

enum class DType : std::uint8_t { kF32, kF16, kBF16, kI32 };
std::size_t size_of(DType dtype);
std::string_view to_string(DType dtype);

// How weights lie in a file. Block formats are GGUF's: 32 (the K kinds: 256) consecutive weights along the input dimension share scales.
enum class WeightFormat : std::uint8_t { kF32, kF16, kBF16, kQ8_0, kQ5_0, kQ5_1, kQ4_0, kQ4_1, kQ4_K, kQ5_K, kQ6_K };
std::string_view to_string(WeightFormat format);
// Weights per block (1 for plain formats) and bytes per block.
int block_weights(WeightFormat format);
std::size_t block_bytes(WeightFormat format);
// Expands `count` weights (a multiple of block_weights) to float. The definition of each format; kernels are tested against it.
void dequantize(WeightFormat format, const std::byte* blocks, std::int64_t count, float* out);

// In which arithmetic linear layers multiply. kInt8 is for block formats: activations are quantised per token and block of 32.
enum class ComputeType : std::uint8_t { kF32, kBF16, kInt8 };
std::string_view to_string(ComputeType type);
std::optional<ComputeType> compute_type_from_string(std::string_view name);

// Device memory. Opaque: on an accelerator the host cannot dereference it. Freed by its destructor; the caller sees to it that no queued
// work still touches it (Context::synchronize).
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual std::size_t bytes() const = 0;
};

// A view of a Buffer: which elements, in which order. Strides are in elements; the last dimension of an op's operand is contiguous.
struct Tensor {
  Buffer* buffer = nullptr;
  std::int64_t offset = 0;  // elements from the buffer's start
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<std::int64_t, 4> shape{};
  std::array<std::int64_t, 4> stride{};

  static Tensor contiguous(Buffer* buffer, DType dtype, std::initializer_list<std::int64_t> shape, std::int64_t offset = 0);
  std::int64_t elements() const;
  bool is_contiguous() const;
  // Rows [begin, end) of the first dimension.
  Tensor rows(std::int64_t begin, std::int64_t end) const;
  // Columns [begin, end) of the last dimension (stays a strided view).
  Tensor columns(std::int64_t begin, std::int64_t end) const;
  // The last dimension split in two: [T, heads * dim] -> [T, heads, dim].
  Tensor split_last(std::int64_t heads, std::int64_t dim) const;
};

// A weight matrix in host memory (usually a mapped file), [rows, cols] = [out, in], one row after the other in `format`.
struct HostWeight {
  WeightFormat format = WeightFormat::kF32;
  std::int64_t rows = 0, cols = 0;
  const std::byte* data = nullptr;
  std::shared_ptr<const void> keep_alive;  // of the mapping
  // The stored rows to take, in this order; empty for all as they stand. Serves tensor-parallel shards and files that store the rows of Q
  // and K in interleaved RoPE order.
  std::vector<std::int32_t> row_map;
  // The stored columns to take, whole blocks; (0, 0) for all.
  std::int64_t col_begin = 0, col_end = 0;

  std::int64_t out_rows() const { return row_map.empty() ? rows : static_cast<std::int64_t>(row_map.size()); }
  std::int64_t out_cols() const { return col_end == 0 ? cols : col_end - col_begin; }
  std::size_t row_bytes() const { return static_cast<std::size_t>(cols / block_weights(format)) * block_bytes(format); }
};

}  // namespace baton::device
