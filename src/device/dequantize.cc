// GGUF's weight formats and their expansion to float. Layouts as in ggml's block structs; all numbers are little-endian.

#include <bit>
#include <cstring>

#include "device/half.h"
#include "device/quant_blocks.h"
#include "device/types.h"

namespace baton::device {
namespace {

static_assert(std::endian::native == std::endian::little, "weight files are little-endian");

std::uint16_t load_u16(const std::uint8_t* p) {
  std::uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
float load_half(const std::uint8_t* p) { return half_to_float(load_u16(p)); }

// 16 bytes: codes 0-15 in the low nibbles, 16-31 in the high ones.
void nibbles(const std::uint8_t* qs, std::uint8_t* q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = qs[i] & 15;
    q[i + 16] = qs[i] >> 4;
  }
}

// The fifth bits of 32 codes, one after the other.
void fifth_bits(const std::uint8_t* qh, std::uint8_t* q) {
  for (int i = 0; i < 32; ++i) q[i] |= ((qh[i / 8] >> (i % 8)) & 1) << 4;
}

// Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minima in 12 bytes.
void k_scales(const std::uint8_t* block, BlockCodes& out) {
  out.super_d = load_half(block);
  out.super_m = -load_half(block + 2);
  const std::uint8_t* s = block + 4;
  for (int j = 0; j < 8; ++j) {
    out.scale[j] = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    out.minimum[j] = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    out.d[j] = out.super_d * out.scale[j];
    out.m[j] = out.super_m * out.minimum[j];
  }
}

// Q4_K and Q5_K: 64 codes in 32 bytes, the first 32 in the low nibbles.
void k_nibbles(const std::uint8_t* qs, std::uint8_t* q) {
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 32; ++i) {
      q[64 * j + i] = qs[32 * j + i] & 15;
      q[64 * j + 32 + i] = qs[32 * j + i] >> 4;
    }
  }
}

void decode_q6_k(const std::uint8_t* block, BlockCodes& out) {
  const std::uint8_t *ql = block, *qh = block + 128, *scales = block + 192;
  out.super_d = load_half(block + 208);
  out.super_m = 0;
  for (int half = 0; half < 2; ++half, ql += 64, qh += 32) {
    std::uint8_t* q = out.q + 128 * half;
    for (int i = 0; i < 32; ++i) {
      q[i] = (ql[i] & 15) | (qh[i] & 3) << 4;
      q[i + 32] = (ql[i + 32] & 15) | ((qh[i] >> 2) & 3) << 4;
      q[i + 64] = (ql[i] >> 4) | ((qh[i] >> 4) & 3) << 4;
      q[i + 96] = (ql[i + 32] >> 4) | (qh[i] >> 6) << 4;
    }
  }
  for (int j = 0; j < 16; ++j) {
    out.scale[j] = static_cast<std::int8_t>(scales[j]);
    out.minimum[j] = 0;
    out.d[j] = out.super_d * out.scale[j];
    out.m[j] = 0;
  }
}

}  // namespace

CodeTraits code_traits(WeightFormat format) {
  switch (format) {
    case WeightFormat::kQ8_0:
      return {.bits = 8, .run = 32, .shift = 128, .minima = false};
    case WeightFormat::kQ5_0:
      return {.bits = 5, .run = 32, .shift = 16, .minima = false};
    case WeightFormat::kQ5_1:
      return {.bits = 5, .run = 32, .shift = 0, .minima = true};
    case WeightFormat::kQ4_0:
      return {.bits = 4, .run = 32, .shift = 8, .minima = false};
    case WeightFormat::kQ4_1:
      return {.bits = 4, .run = 32, .shift = 0, .minima = true};
    case WeightFormat::kQ4_K:
      return {.bits = 4, .run = 32, .shift = 0, .minima = true};
    case WeightFormat::kQ5_K:
      return {.bits = 5, .run = 32, .shift = 0, .minima = true};
    case WeightFormat::kQ6_K:
      return {.bits = 6, .run = 16, .shift = 32, .minima = false};
    default:
      break;
  }
  BATON_CHECK_MSG(false, "code_traits of a plain format");
  return {};
}

void decode_block(WeightFormat format, const std::byte* bytes, BlockCodes& out) {
  const auto* block = reinterpret_cast<const std::uint8_t*>(bytes);
  out.m[0] = 0;
  switch (format) {
    case WeightFormat::kQ8_0:
      out.d[0] = load_half(block);
      for (int i = 0; i < 32; ++i) out.q[i] = block[2 + i] ^ 0x80;  // two's complement to offset 128
      break;
    case WeightFormat::kQ5_0:
      out.d[0] = load_half(block);
      nibbles(block + 6, out.q);
      fifth_bits(block + 2, out.q);
      break;
    case WeightFormat::kQ5_1:
      out.d[0] = load_half(block);
      out.m[0] = load_half(block + 2);
      nibbles(block + 8, out.q);
      fifth_bits(block + 4, out.q);
      break;
    case WeightFormat::kQ4_0:
      out.d[0] = load_half(block);
      nibbles(block + 2, out.q);
      break;
    case WeightFormat::kQ4_1:
      out.d[0] = load_half(block);
      out.m[0] = load_half(block + 2);
      nibbles(block + 4, out.q);
      break;
    case WeightFormat::kQ4_K:
      k_scales(block, out);
      k_nibbles(block + 16, out.q);
      break;
    case WeightFormat::kQ5_K:
      k_scales(block, out);
      k_nibbles(block + 48, out.q);
      for (int i = 0; i < 256; ++i) out.q[i] |= ((block[16 + i % 32] >> (i / 32)) & 1) << 4;
      break;
    case WeightFormat::kQ6_K:
      decode_q6_k(block, out);
      break;
    default:
      BATON_CHECK_MSG(false, "decode_block of a plain format");
  }
}

void dequantize(WeightFormat format, const std::byte* blocks, std::int64_t count, float* out) {
  BATON_CHECK_MSG(count >= 0 && count % block_weights(format) == 0, "dequantize: not whole blocks");
  if (!is_block_format(format)) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(blocks);
    if (count == 0) return;
    if (format == WeightFormat::kF32) std::memcpy(out, bytes, static_cast<std::size_t>(count) * sizeof(float));
    if (format == WeightFormat::kF16)
      for (std::int64_t i = 0; i < count; ++i) out[i] = load_half(bytes + 2 * i);
    if (format == WeightFormat::kBF16)
      for (std::int64_t i = 0; i < count; ++i) out[i] = bf16_to_float(load_u16(bytes + 2 * i));
    return;
  }
  const CodeTraits traits = code_traits(format);
  const int weights = block_weights(format);
  const std::size_t bytes = block_bytes(format);
  BlockCodes codes;
  for (std::int64_t done = 0; done < count; done += weights, blocks += bytes, out += weights) {
    decode_block(format, blocks, codes);
    for (int i = 0; i < weights; ++i) {
      const int run = i / traits.run;
      const float q = static_cast<float>(codes.q[i] - traits.shift);
      out[i] = traits.minima ? codes.d[run] * q + codes.m[run] : codes.d[run] * q;
    }
  }
}

}  // namespace baton::device
