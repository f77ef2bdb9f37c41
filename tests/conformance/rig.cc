#include "conformance/rig.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "device/half.h"

namespace baton::device {
namespace {

constexpr Duration kDeadline = std::chrono::seconds(20);

float decode(DType dtype, const std::byte* element) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, element, 4);
    return value;
  }
  std::uint16_t half;
  std::memcpy(&half, element, 2);
  return dtype == DType::kBF16 ? bf16_to_float(half) : half_to_float(half);
}

// Calls fn(element offset in the buffer) for each element of a view, last index fastest.
template <class F>
void for_elements(const Tensor& t, F&& fn) {
  std::array<std::int64_t, 4> at{};
  for (std::int64_t left = t.elements(); left > 0; --left) {
    std::int64_t offset = t.offset;
    for (std::size_t d = 0; d < static_cast<std::size_t>(t.rank); ++d) offset += at[d] * t.stride[d];
    fn(static_cast<std::size_t>(offset));
    for (int d = t.rank - 1; d >= 0; --d) {
      const auto i = static_cast<std::size_t>(d);
      if (++at[i] < t.shape[i]) break;
      at[i] = 0;
    }
  }
}

}  // namespace

std::vector<Target> targets() {
  std::vector<Target> list;
  for (const std::string& kind : device_kinds())
    for (const char* isa : {"scalar", "avx2", "avx512-bf16-vnni", "neon"})
      for (int threads : {1, 2}) {
        DeviceOptions options;
        options.kind = kind;
        options.isa = isa;
        options.threads = threads;
        if (!open_device(options).ok()) continue;  // not on this machine
        std::string name = kind + "_" + isa + "_" + std::to_string(threads);
        for (char& c : name)
          if (c == '-') c = '_';
        list.push_back({options, name});
      }
  return list;
}

std::string target_name(const testing::TestParamInfo<Target>& info) { return info.param.name; }

Rig::Rig(const Target& target) {
  auto device = open_device(target.options);
  BATON_CHECK_MSG(device.ok(), device.status().to_string());
  device_ = std::move(device).value();
  auto context = device_->create_context({.arena_bytes = 1u << 20});
  BATON_CHECK_MSG(context.ok(), context.status().to_string());
  context_ = std::move(context).value();
}

Tensor Rig::make(DType dtype, std::initializer_list<std::int64_t> shape, const void* data, std::size_t bytes) {
  auto buffer = device_->allocate(bytes);
  BATON_CHECK_MSG(buffer.ok(), buffer.status().to_string());
  buffers_.push_back(std::move(buffer).value());
  const Tensor t = Tensor::contiguous(buffers_.back().get(), dtype, shape);
  BATON_CHECK(static_cast<std::size_t>(t.elements()) * size_of(dtype) == bytes);
  const Status status = context_->upload(t, data, bytes);
  BATON_CHECK_MSG(status.ok(), status.to_string());
  return t;
}

Tensor Rig::tensor(std::initializer_list<std::int64_t> shape, const std::vector<float>& values) {
  const DType dtype = device_->activation_dtype(ComputeType::kF32);
  const std::vector<std::byte> bytes = encode(dtype, values);
  return make(dtype, shape, bytes.data(), bytes.size());
}

Tensor Rig::f32(std::initializer_list<std::int64_t> shape, const std::vector<float>& values) {
  return make(DType::kF32, shape, values.data(), values.size() * sizeof(float));
}

Tensor Rig::ints(std::initializer_list<std::int64_t> shape, const std::vector<std::int32_t>& values) {
  return make(DType::kI32, shape, values.data(), values.size() * sizeof(std::int32_t));
}

namespace {
std::vector<float> nans(std::initializer_list<std::int64_t> shape) {
  std::size_t count = 1;
  for (std::int64_t n : shape) count *= static_cast<std::size_t>(n);
  return std::vector<float>(count, std::numeric_limits<float>::quiet_NaN());
}
}  // namespace

Tensor Rig::blank(std::initializer_list<std::int64_t> shape) { return tensor(shape, nans(shape)); }
Tensor Rig::blank_f32(std::initializer_list<std::int64_t> shape) { return f32(shape, nans(shape)); }

const std::byte* Rig::bytes_of(const Tensor& t) {
  const auto elements = static_cast<std::int64_t>(t.buffer->bytes() / size_of(t.dtype));
  auto data = context_->download(Tensor::contiguous(t.buffer, t.dtype, {elements}));
  BATON_CHECK_MSG(data.ok(), data.status().to_string());
  const Status status = context_->synchronize(kDeadline);
  BATON_CHECK_MSG(status.ok(), status.to_string());
  return static_cast<const std::byte*>(*data);
}

std::vector<float> Rig::read(const Tensor& t) {
  const std::byte* bytes = bytes_of(t);
  std::vector<float> values;
  for_elements(t, [&](std::size_t i) { values.push_back(decode(t.dtype, bytes + i * size_of(t.dtype))); });
  return values;
}

std::vector<std::int32_t> Rig::read_ints(const Tensor& t) {
  BATON_CHECK(t.dtype == DType::kI32);
  const std::byte* bytes = bytes_of(t);
  std::vector<std::int32_t> values;
  for_elements(t, [&](std::size_t i) {
    std::int32_t value;
    std::memcpy(&value, bytes + i * 4, 4);
    values.push_back(value);
  });
  return values;
}

double Rig::unit() const {
  switch (device_->activation_dtype(ComputeType::kF32)) {
    case DType::kBF16:
      return std::ldexp(1.0, -9);
    case DType::kF16:
      return std::ldexp(1.0, -12);
    default:
      return std::ldexp(1.0, -24);
  }
}

std::vector<float> Rig::rounded(std::vector<float> values) const {
  return round_to(device_->activation_dtype(ComputeType::kF32), std::move(values));
}

std::vector<float> random_values(std::uint64_t seed, std::size_t count, float scale) {
  Rng rng(seed);
  std::vector<float> values(count);
  for (float& value : values) value = scale * static_cast<float>(2 * rng.uniform() - 1);
  return values;
}

std::vector<std::byte> encode(DType dtype, const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * size_of(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      const std::uint16_t half = dtype == DType::kBF16 ? float_to_bf16(values[i]) : float_to_half(values[i]);
      std::memcpy(&bytes[2 * i], &half, 2);
    }
  }
  return bytes;
}

std::vector<float> round_to(DType dtype, std::vector<float> values) {
  const std::vector<std::byte> bytes = encode(dtype, values);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = decode(dtype, &bytes[i * size_of(dtype)]);
  return values;
}

HostWeight random_weight(std::uint64_t seed, WeightFormat format, std::int64_t rows, std::int64_t cols) {
  const auto count = static_cast<std::size_t>(rows * cols);
  auto bytes = std::make_shared<std::vector<std::byte>>();
  if (format == WeightFormat::kF32 || format == WeightFormat::kF16 || format == WeightFormat::kBF16) {
    const DType dtype = format == WeightFormat::kF32 ? DType::kF32 : format == WeightFormat::kF16 ? DType::kF16 : DType::kBF16;
    *bytes = encode(dtype, random_values(seed, count));
  } else {
    // Any bits make a block, but for the f16 scales, which must be finite: (offset in the block, how many).
    const bool two =
        format == WeightFormat::kQ5_1 || format == WeightFormat::kQ4_1 || format == WeightFormat::kQ4_K || format == WeightFormat::kQ5_K;
    const std::size_t block = block_bytes(format), scales = two ? 2 : 1, at = format == WeightFormat::kQ6_K ? block - 2 : 0;
    bytes->resize(count / static_cast<std::size_t>(block_weights(format)) * block);
    Rng rng(seed);
    for (std::byte& b : *bytes) b = static_cast<std::byte>(rng.below(256));
    for (std::size_t b = 0; b < bytes->size(); b += block)
      for (std::size_t s = 0; s < scales; ++s) {
        const float sign = rng.below(2) == 0 ? 1.0f : -1.0f;
        const std::uint16_t half = float_to_half(sign * static_cast<float>(std::exp2(-8 + 4 * rng.uniform())));
        std::memcpy(bytes->data() + b + at + 2 * s, &half, 2);
      }
  }
  HostWeight weight;
  weight.format = format;
  weight.rows = rows;
  weight.cols = cols;
  weight.data = bytes->data();
  weight.keep_alive = bytes;
  return weight;
}

void expect_near(const std::vector<float>& got, const std::vector<double>& expected, const std::function<double(std::size_t)>& bound,
                 const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  double worst = -1;
  std::size_t at = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - expected[i]);
    const double used = std::isfinite(error) ? error / bound(i) : std::numeric_limits<double>::infinity();
    if (used > worst) {
      worst = used;
      at = i;
    }
  }
  if (got.empty()) return;
  std::printf("%-40s worst element %zu: got %.9g, expected %.9g, error %.3g of the allowed %.3g (%.0f %%)\n", what.c_str(), at,
              static_cast<double>(got[at]), expected[at], std::abs(static_cast<double>(got[at]) - expected[at]), bound(at), 100 * worst);
  EXPECT_LE(worst, 1.0) << what << ", element " << at << ": got " << got[at] << ", expected " << expected[at] << ", allowed " << bound(at);
}

void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  std::size_t differ = 0, first = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && differ++ == 0) first = i;
  EXPECT_EQ(differ, 0u) << what << ": first at " << first << " of " << a.size() << ": " << a[first] << " against " << b[first];
}

}  // namespace baton::device
