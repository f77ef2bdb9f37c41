#pragma once
// What the op conformance suite runs on: one device with one context, tensors made from and read back as float, and checks whose tolerances
// are computed from the arithmetic and printed with the worst element. Knows nothing of any one device.

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "device/device.h"

namespace baton::device {

struct Target {
  DeviceOptions options;
  std::string name;  // "cpu_avx2_2": kind, ISA, threads
};
// Every registered device, in every ISA that it will open with on this machine, with one and two threads.
std::vector<Target> targets();
std::string target_name(const testing::TestParamInfo<Target>& info);

class Rig {
 public:
  explicit Rig(const Target& target);

  Device& device() { return *device_; }
  Context& context() { return *context_; }
  Ops& ops() { return context_->ops(); }

  // In the activation type of `compute`; values are rounded to it.
  Tensor tensor(std::initializer_list<std::int64_t> shape, const std::vector<float>& values);
  Tensor f32(std::initializer_list<std::int64_t> shape, const std::vector<float>& values);
  Tensor ints(std::initializer_list<std::int64_t> shape, const std::vector<std::int32_t>& values);
  // Filled with a NaN, so that what an op forgets to write is seen.
  Tensor blank(std::initializer_list<std::int64_t> shape);
  Tensor blank_f32(std::initializer_list<std::int64_t> shape);
  // Frees all tensors made so far.
  void release_tensors() { buffers_.clear(); }
  // Elements of a view in the order of its indices; synchronizes first.
  std::vector<float> read(const Tensor& t);
  std::vector<std::int32_t> read_ints(const Tensor& t);
  // The rounding error of one operation on activations, relative: 2^-24 for f32.
  double unit() const;
  // `values` as the activation type holds them.
  std::vector<float> rounded(std::vector<float> values) const;

 private:
  Tensor make(DType dtype, std::initializer_list<std::int64_t> shape, const void* data, std::size_t bytes);
  const std::byte* bytes_of(const Tensor& t);  // of the whole buffer
  std::unique_ptr<Device> device_;
  std::unique_ptr<Context> context_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

// Values in (-scale, scale), the same for a seed everywhere.
std::vector<float> random_values(std::uint64_t seed, std::size_t count, float scale = 1.0f);
// Values as a type holds them, rounded to nearest even: as bytes, and as numbers.
std::vector<std::byte> encode(DType dtype, const std::vector<float>& values);
std::vector<float> round_to(DType dtype, std::vector<float> values);

// Random blocks with scales between 2^-8 and 2^-4.
HostWeight random_weight(std::uint64_t seed, WeightFormat format, std::int64_t rows, std::int64_t cols);

// Each got[i] is within bound(i) of expected[i]; prints the element that uses most of its bound.
void expect_near(const std::vector<float>& got, const std::vector<double>& expected, const std::function<double(std::size_t)>& bound,
                 const std::string& what);
// The same bits, NaN included; prints the first that differ.
void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b, const std::string& what);

// A test case for each target.
class Conformance : public testing::TestWithParam<Target> {
 protected:
  void SetUp() override { rig_ = std::make_unique<Rig>(GetParam()); }
  Rig& rig() { return *rig_; }
  Ops& ops() { return rig_->ops(); }

 private:
  std::unique_ptr<Rig> rig_;
};

}  // namespace baton::device
