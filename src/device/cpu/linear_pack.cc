#include "device/cpu/linear_pack.h"

#include <cstring>
#include <vector>

#include "device/half.h"
#include "device/quant_blocks.h"

namespace baton::device::cpu {
namespace {

// One row's first wanted byte.
const std::byte* row_start(const RowSource& source) {
  const HostWeight& w = *source.part;
  return w.data + static_cast<std::size_t>(source.row) * w.row_bytes() +
         static_cast<std::size_t>(w.col_begin / block_weights(w.format)) * block_bytes(w.format);
}

void store_half(std::byte* at, int index, float value) {
  const std::uint16_t h = float_to_half(value);
  std::memcpy(at + 2 * index, &h, 2);
}

// Puts 32 codes of row r (of its panel) into a record.
void store_codes(const std::uint8_t* q, int bits, int r, std::uint8_t* record) {
  std::uint8_t* at = record + r / 16 * 64 + r % 16 * 4;
  if (bits == 8) {
    for (int i = 0; i < 32; ++i) at[i / 4 * 128 + i % 4] = q[i];
    return;
  }
  for (int i = 0; i < 16; ++i) at[i / 4 * 128 + i % 4] = static_cast<std::uint8_t>((q[i] & 15) | q[i + 16] << 4);
  for (int b = 4; b < bits; ++b) {
    std::uint8_t* plane = record + kPlanes + static_cast<std::size_t>(b - 4) * kPlaneBytes;
    for (int i = 0; i < 32; ++i) {
      const int bit = r % 16 * 4 + i % 4;
      plane[i / 4 * 16 + r / 16 * 8 + bit / 8] |= static_cast<std::uint8_t>((q[i] >> b & 1) << bit % 8);
    }
  }
}

void pack_block_row(PackKind kind, const RowSource& source, int r, std::byte* panel) {
  const PackTraits t = traits(kind);
  const WeightFormat format = source.part->format;
  BATON_CHECK(code_traits(format).shift == t.shift && code_traits(format).run == t.run && code_traits(format).bits == t.bits);
  const int weights = block_weights(format), runs = kBlock / t.run;
  const std::byte* block = row_start(source);
  BlockCodes codes;
  for (std::int64_t k = 0; k < source.part->out_cols(); k += weights, block += block_bytes(format)) {
    decode_block(format, block, codes);
    if (t.super) {
      store_half(panel, r, codes.super_d);
      if (t.minima) store_half(panel, kPanelRows + r, codes.super_m);
      panel += t.super_bytes();
    }
    for (int sub = 0; sub < weights / kBlock; ++sub, panel += t.record_bytes()) {
      store_codes(codes.q + sub * kBlock, t.bits, r, reinterpret_cast<std::uint8_t*>(panel));
      std::byte *scales = panel + t.code_bytes(), *minima = scales + t.scale_bytes();
      for (int h = 0; h < runs; ++h) {
        const int run = sub * runs + h, at = h * kPanelRows + r;
        if (t.super) {
          scales[at] = static_cast<std::byte>(codes.scale[run]);
          if (t.minima) minima[at] = static_cast<std::byte>(codes.minimum[run]);
        } else {
          store_half(scales, at, codes.d[run]);
          if (t.minima) store_half(minima, at, codes.m[run]);
        }
      }
    }
  }
}

void pack_plain_row(PackKind kind, const RowSource& source, int r, std::vector<float>& row, std::byte* panel) {
  const std::int64_t k = source.part->out_cols();
  row.resize(static_cast<std::size_t>(k));
  dequantize(source.part->format, row_start(source), k, row.data());
  if (kind == PackKind::kF32) {
    auto* out = reinterpret_cast<float*>(panel);
    for (std::int64_t i = 0; i < k; ++i) out[i * kPanelRows + r] = row[static_cast<std::size_t>(i)];
  } else {
    auto* out = reinterpret_cast<std::uint16_t*>(panel);
    for (std::int64_t i = 0; i < k; ++i) out[(i / 2 * kPanelRows + r) * 2 + i % 2] = float_to_bf16(row[static_cast<std::size_t>(i)]);
  }
}

}  // namespace

PackKind pack_kind(WeightFormat format, ComputeType compute) {
  switch (format) {
    case WeightFormat::kF32:
    case WeightFormat::kF16:
    case WeightFormat::kBF16:
      return compute == ComputeType::kBF16 ? PackKind::kBF16 : PackKind::kF32;
    case WeightFormat::kQ4_0:
      return PackKind::kU4Half;
    case WeightFormat::kQ4_1:
      return PackKind::kU4HalfMin;
    case WeightFormat::kQ5_0:
      return PackKind::kU5Half;
    case WeightFormat::kQ8_0:
      return PackKind::kU8Half;
    case WeightFormat::kQ5_1:
      return PackKind::kU5HalfMin;
    case WeightFormat::kQ4_K:
      return PackKind::kU4Super;
    case WeightFormat::kQ5_K:
      return PackKind::kU5Super;
    case WeightFormat::kQ6_K:
      return PackKind::kU6Super;
  }
  check_failed(__FILE__, __LINE__, "a known WeightFormat", {});
}

void pack_panels(PackKind kind, std::span<const RowSource> rows, std::byte* out) {
  const std::size_t bytes = panel_bytes(kind, rows[0].part->out_cols());
  std::vector<float> row;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::byte* panel = out + i / kPanelRows * bytes;
    const int r = static_cast<int>(i % kPanelRows);
    if (traits(kind).plain()) {
      pack_plain_row(kind, rows[i], r, row, panel);
    } else {
      pack_block_row(kind, rows[i], r, panel);
    }
  }
}

}  // namespace baton::device::cpu
