#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "device/half.h"
#include "device/quant_blocks.h"
#include "device/types.h"

namespace baton::device {
namespace {

#include "device/testdata/golden_quants.inc"

template <std::size_t B, std::size_t F>
void check(WeightFormat format, const std::uint8_t (&blocks)[B], const std::uint32_t (&golden)[F]) {
  SCOPED_TRACE(to_string(format));
  ASSERT_EQ(B / block_bytes(format) * static_cast<std::size_t>(block_weights(format)), F);
  std::vector<float> out(F);
  dequantize(format, reinterpret_cast<const std::byte*>(blocks), F, out.data());
  for (std::size_t i = 0; i < F; ++i) {
    // Equal values: zeros may differ in sign, as gguf multiplies in another order.
    EXPECT_EQ(out[i], std::bit_cast<float>(golden[i])) << "weight " << i;
  }
}

TEST(Dequantize, AgreesWithGguf) {
  check(WeightFormat::kF32, kF32Blocks, kF32Floats);
  check(WeightFormat::kF16, kF16Blocks, kF16Floats);
  check(WeightFormat::kBF16, kBF16Blocks, kBF16Floats);
  check(WeightFormat::kQ8_0, kQ8_0Blocks, kQ8_0Floats);
  check(WeightFormat::kQ5_0, kQ5_0Blocks, kQ5_0Floats);
  check(WeightFormat::kQ5_1, kQ5_1Blocks, kQ5_1Floats);
  check(WeightFormat::kQ4_0, kQ4_0Blocks, kQ4_0Floats);
  check(WeightFormat::kQ4_1, kQ4_1Blocks, kQ4_1Floats);
  check(WeightFormat::kQ4_K, kQ4_KBlocks, kQ4_KFloats);
  check(WeightFormat::kQ5_K, kQ5_KBlocks, kQ5_KFloats);
  check(WeightFormat::kQ6_K, kQ6_KBlocks, kQ6_KFloats);
}

TEST(Half, RoundTripsAllAndRoundsToNearestEven) {
  for (std::uint32_t h = 0; h < 0x10000; ++h) {
    const float f = half_to_float(static_cast<std::uint16_t>(h));
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(f)))) << h;
      continue;
    }
    EXPECT_EQ(float_to_half(f), h);
    if ((h & 0x7fff) >= 0x7bff) continue;
    // Halfway to the next number goes to the even one; a hair beside it to the nearer one.
    const float next = half_to_float(static_cast<std::uint16_t>(h + 1)), middle = f + (next - f) / 2;
    EXPECT_EQ(float_to_half(middle), h + (h & 1)) << h;
    EXPECT_EQ(float_to_half(std::nextafter(middle, f)), h) << h;
    EXPECT_EQ(float_to_half(std::nextafter(middle, next)), h + 1) << h;
  }
  EXPECT_EQ(float_to_half(65520.0F), 0x7c00);
  EXPECT_EQ(float_to_half(-1e9F), 0xfc00);
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(float_to_bf16(1.0F), 0x3f80);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f808000U)), 0x3f80);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f818000U)), 0x3f82);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f808001U)), 0x3f81);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::nanf("")))));
}

}  // namespace
}  // namespace baton::device
