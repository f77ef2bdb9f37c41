#include "device/types.h"

#include <string>

namespace baton::device {
namespace {

struct FormatRow {
  WeightFormat format;
  std::string_view name;
  int weights;        // per block
  std::size_t bytes;  // per block
};
// Block layouts: GGUF. Scales are f16; the K kinds have 256 weights with 6-bit (kQ6_K: 8-bit) sub-block scales.
constexpr FormatRow kFormats[] = {
    {WeightFormat::kF32, "F32", 1, 4},
    {WeightFormat::kF16, "F16", 1, 2},
    {WeightFormat::kBF16, "BF16", 1, 2},
    {WeightFormat::kQ8_0, "Q8_0", 32, 2 + 32},
    {WeightFormat::kQ5_0, "Q5_0", 32, 2 + 4 + 16},
    {WeightFormat::kQ5_1, "Q5_1", 32, 4 + 4 + 16},
    {WeightFormat::kQ4_0, "Q4_0", 32, 2 + 16},
    {WeightFormat::kQ4_1, "Q4_1", 32, 4 + 16},
    {WeightFormat::kQ4_K, "Q4_K", 256, 4 + 12 + 128},
    {WeightFormat::kQ5_K, "Q5_K", 256, 4 + 12 + 32 + 128},
    {WeightFormat::kQ6_K, "Q6_K", 256, 128 + 64 + 16 + 2},
};

const FormatRow& row(WeightFormat format) {
  for (const FormatRow& r : kFormats)
    if (r.format == format) return r;
  check_failed(__FILE__, __LINE__, "a known WeightFormat", std::to_string(static_cast<int>(format)));
}

}  // namespace

std::size_t size_of(DType dtype) { return dtype == DType::kF32 || dtype == DType::kI32 ? 4 : 2; }

std::string_view to_string(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI32:
      return "i32";
  }
  return "?";
}

std::string_view to_string(WeightFormat format) { return row(format).name; }
int block_weights(WeightFormat format) { return row(format).weights; }
std::size_t block_bytes(WeightFormat format) { return row(format).bytes; }

std::string_view to_string(ComputeType type) {
  switch (type) {
    case ComputeType::kF32:
      return "f32";
    case ComputeType::kBF16:
      return "bf16";
    case ComputeType::kInt8:
      return "int8";
  }
  return "?";
}

std::optional<ComputeType> compute_type_from_string(std::string_view name) {
  for (ComputeType type : {ComputeType::kF32, ComputeType::kBF16, ComputeType::kInt8})
    if (name == to_string(type)) return type;
  return std::nullopt;
}

Tensor Tensor::contiguous(Buffer* buffer, DType dtype, std::initializer_list<std::int64_t> shape, std::int64_t offset) {
  Tensor t;
  BATON_CHECK(shape.size() <= t.shape.size());
  t.buffer = buffer;
  t.offset = offset;
  t.dtype = dtype;
  for (std::int64_t n : shape) t.shape[static_cast<std::size_t>(t.rank++)] = n;
  std::int64_t stride = 1;
  for (int d = t.rank - 1; d >= 0; --d) {
    t.stride[static_cast<std::size_t>(d)] = stride;
    stride *= t.shape[static_cast<std::size_t>(d)];
  }
  return t;
}

bool Tensor::is_contiguous() const {
  std::int64_t wanted = 1;
  for (int d = rank - 1; d >= 0; --d) {
    const auto i = static_cast<std::size_t>(d);
    if (shape[i] != 1 && stride[i] != wanted) return false;
    wanted *= shape[i];
  }
  return true;
}

std::int64_t Tensor::elements() const {
  std::int64_t n = 1;
  for (int d = 0; d < rank; ++d) n *= shape[static_cast<std::size_t>(d)];
  return n;
}

Tensor Tensor::rows(std::int64_t begin, std::int64_t end) const {
  BATON_CHECK(rank >= 1 && 0 <= begin && begin <= end && end <= shape[0]);
  Tensor t = *this;
  t.offset += begin * stride[0];
  t.shape[0] = end - begin;
  return t;
}

Tensor Tensor::columns(std::int64_t begin, std::int64_t end) const {
  BATON_CHECK(rank >= 1);
  const auto last = static_cast<std::size_t>(rank - 1);
  BATON_CHECK(0 <= begin && begin <= end && end <= shape[last]);
  Tensor t = *this;
  t.offset += begin * stride[last];
  t.shape[last] = end - begin;
  return t;
}

Tensor Tensor::split_last(std::int64_t heads, std::int64_t dim) const {
  BATON_CHECK(rank >= 1 && rank < static_cast<int>(shape.size()));
  const auto last = static_cast<std::size_t>(rank - 1);
  BATON_CHECK(shape[last] == heads * dim);
  Tensor t = *this;
  t.rank = rank + 1;
  t.shape[last] = heads;
  t.shape[last + 1] = dim;
  t.stride[last + 1] = stride[last];
  t.stride[last] = dim * stride[last];
  return t;
}

}  // namespace baton::device
