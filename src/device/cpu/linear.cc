#include "device/cpu/linear.h"

#include <algorithm>
#include <string>
#include <vector>

#include "device/cpu/linear_kernels.h"
#include "device/cpu/linear_pack.h"
#include "device/cpu/weight_arena.h"
#include "device/quant_blocks.h"

namespace baton::device::cpu {
namespace {

// Tokens whose activations stay in the level 2 cache while all the weights pass.
constexpr std::int64_t kPassTokens = 96;
// From so many tokens for each member on, members take tokens and read all the weights; below, they take rows of the weights.
constexpr std::int64_t kTokensPerMember = 48;
// Up to so many tokens the caller prepares the activations alone: less work than one more region.
constexpr std::int64_t kSerialTokens = 4;
// Inputs of a panel that float kernels work on at a time, so that these weights stay in the level 1 cache while all the tiles pass.
constexpr std::int64_t kFloatInputs = 256;

// How a section wants its activations.
struct TileForm {
  TileKind kind;
  int shift, run;  // kInt8 only
  bool operator==(const TileForm&) const = default;
};

// Consecutive rows of the output whose weights are of one kind.
struct Section {
  PackKind kind;
  TileForm form;
  std::int64_t begin, rows;  // of the output
  std::int64_t panels;
  const std::byte* data = nullptr;
  std::vector<float> bias;  // padded to whole panels; empty for none
};

// The tiles of `tokens`: as few as fit, as even as can be.
struct Tiles {
  std::int64_t tokens, count;
  Tiles(std::int64_t n, int largest) : tokens(n), count((n + largest - 1) / largest) {}
  std::int64_t begin(std::int64_t i) const { return i * tokens / count; }
};

class PackedLinear : public CpuLinear {
 public:
  PackedLinear(Isa isa, std::int64_t in, std::int64_t out, std::vector<Section> sections, std::shared_ptr<WeightArena> arena)
      : kernels_(linear_kernels(isa)), in_(in), out_(out), sections_(std::move(sections)), arena_(std::move(arena)) {
    for (const Section& s : sections_) bytes_ += static_cast<std::size_t>(s.panels) * panel_bytes(s.kind, in_);
  }

  std::int64_t in_features() const override { return in_; }
  std::int64_t out_features() const override { return out_; }
  std::size_t bytes() const override { return bytes_; }

  std::size_t scratch_bytes(std::int64_t tokens) const override {
    std::size_t largest = 0;
    for (const Section& s : sections_) largest = std::max(largest, tile_token_bytes(s.form.kind, in_));
    return static_cast<std::size_t>(tokens) * largest + kAlign;
  }

  void run(Team& team, const float* x, std::int64_t x_stride, std::int64_t tokens, float* out, std::int64_t out_stride,
           std::byte* scratch) const override {
    if (tokens == 0) return;
    scratch += (kAlign - reinterpret_cast<std::uintptr_t>(scratch) % kAlign) % kAlign;
    const Io io{x, x_stride, out, out_stride, scratch};
    for (std::size_t i = 0, end; i < sections_.size(); i = end) {
      for (end = i + 1; end < sections_.size() && sections_[end].form == sections_[i].form;) ++end;
      const std::span<const Section> group(&sections_[i], end - i);
      if (team.size() == 1 || tokens >= kTokensPerMember * team.size()) {
        by_tokens(team, group, io, tokens);
      } else {
        by_rows(team, group, io, tokens);
      }
    }
  }

 private:
  static constexpr std::size_t kAlign = 64;
  struct Io {
    const float* x;
    std::int64_t x_stride;
    float* out;
    std::int64_t out_stride;
    std::byte* scratch;  // tiles: token t's pass begins at t * tile_token_bytes
  };

  int tile_tokens(const TileForm& form) const { return form.kind == TileKind::kInt8 ? kernels_.int8_tokens : kernels_.float_tokens; }

  void by_tokens(Team& team, std::span<const Section> group, const Io& io, std::int64_t tokens) const {
    const TileForm& form = group[0].form;
    team.run([&](int member) {
      const Range mine = split(tokens, tile_tokens(form), member, team.size());
      for (std::int64_t begin = mine.begin; begin < mine.end; begin += kPassTokens) {
        const std::int64_t count = std::min<std::int64_t>(kPassTokens, mine.end - begin);
        const Tiles tiles(count, tile_tokens(form));
        for (std::int64_t i = 0; i < tiles.count; ++i) prepare(form, io, begin, tiles, i);
        for (const Section& s : group) multiply(s, 0, s.panels, io, begin, tiles);
      }
    });
  }

  void by_rows(Team& team, std::span<const Section> group, const Io& io, std::int64_t tokens) const {
    const TileForm& form = group[0].form;
    std::int64_t panels = 0;
    for (const Section& s : group) panels += s.panels;
    const auto prepare_all = [&](int member, int size) {
      for (std::int64_t begin = 0; begin < tokens; begin += kPassTokens) {
        const Tiles tiles(std::min(kPassTokens, tokens - begin), tile_tokens(form));
        const Range mine = split(tiles.count, 1, member, size);
        for (std::int64_t i = mine.begin; i < mine.end; ++i) prepare(form, io, begin, tiles, i);
      }
    };
    if (tokens <= kSerialTokens) {
      prepare_all(0, 1);
    } else {
      team.run([&](int member) { prepare_all(member, team.size()); });
    }
    team.run([&](int member) {
      const Range mine = split(panels, 1, member, team.size());
      for (std::int64_t begin = 0; begin < tokens; begin += kPassTokens) {
        const Tiles tiles(std::min(kPassTokens, tokens - begin), tile_tokens(form));
        std::int64_t first = 0;
        for (const Section& s : group) {
          multiply(s, std::max<std::int64_t>(mine.begin - first, 0), std::min(mine.end - first, s.panels), io, begin, tiles);
          first += s.panels;
        }
      }
    });
  }

  // Tile i of the pass that begins at token `pass`.
  void prepare(const TileForm& form, const Io& io, std::int64_t pass, const Tiles& tiles, std::int64_t i) const {
    const std::int64_t begin = pass + tiles.begin(i);
    const int count = static_cast<int>(tiles.begin(i + 1) - tiles.begin(i));
    const float* x = io.x + begin * io.x_stride;
    std::byte* tile = io.scratch + static_cast<std::size_t>(begin) * tile_token_bytes(form.kind, in_);
    switch (form.kind) {
      case TileKind::kInt8:
        return kernels_.int8_activations(x, io.x_stride, count, in_, form.shift, form.run, tile);
      case TileKind::kF32:
        return kernels_.f32_activations(x, io.x_stride, count, in_, tile);
      case TileKind::kBF16:
        return kernels_.bf16_activations(x, io.x_stride, count, in_, tile);
    }
  }

  // Panels [first, last) of the section times a pass.
  void multiply(const Section& s, std::int64_t first, std::int64_t last, const Io& io, std::int64_t pass, const Tiles& tiles) const {
    const std::size_t bytes = panel_bytes(s.kind, in_), token_bytes = tile_token_bytes(s.form.kind, in_);
    for (std::int64_t p = first; p < last; ++p) {
      TileArgs args;
      args.weights = s.data + static_cast<std::size_t>(p) * bytes;
      args.rows = static_cast<int>(std::min<std::int64_t>(kPanelRows, s.rows - p * kPanelRows));
      args.out_stride = io.out_stride;
      const float* bias = s.bias.empty() ? nullptr : s.bias.data() + p * kPanelRows;
      if (s.form.kind == TileKind::kInt8) {
        args.k = in_;
        args.bias = bias;
        for (std::int64_t i = 0; i < tiles.count; ++i) {
          place(args, s, p, io, pass, tiles, i, token_bytes);
          args.prefetch = i == 0 ? static_cast<std::int64_t>(bytes) : 0;  // the next panel, which its first tile would wait for
          kernels_.int8_tile(s.kind, args);
        }
      } else {
        multiply_floats(s, p, args, bias, io, pass, tiles);
      }
    }
  }

  void place(TileArgs& args, const Section& s, std::int64_t p, const Io& io, std::int64_t pass, const Tiles& tiles, std::int64_t i,
             std::size_t token_bytes) const {
    const std::int64_t begin = pass + tiles.begin(i);
    args.x = io.scratch + static_cast<std::size_t>(begin) * token_bytes;
    args.tokens = static_cast<int>(tiles.begin(i + 1) - tiles.begin(i));
    args.out = io.out + begin * io.out_stride + s.begin + p * kPanelRows;
  }

  // A panel by float arithmetic, kFloatInputs at a time; sums wait in `out` between. Block formats are expanded piece by piece.
  void multiply_floats(const Section& s, std::int64_t p, TileArgs args, const float* bias, const Io& io, std::int64_t pass,
                       const Tiles& tiles) const {
    const TileKind kind = s.form.kind;
    const bool plain = traits(s.kind).plain();
    const std::size_t token_bytes = tile_token_bytes(kind, in_);
    const std::byte* const panel = args.weights;
    alignas(64) float expanded[kFloatInputs * kPanelRows];
    const std::int64_t step = plain && tiles.count == 1 ? in_ : kFloatInputs;
    for (std::int64_t k = 0; k < in_; k += step) {
      args.k = std::min(step, in_ - k);
      args.resume = k > 0;
      args.bias = k + args.k == in_ ? bias : nullptr;
      if (plain) {
        args.weights = panel + panel_bytes(s.kind, k);
      } else if (kind == TileKind::kF32) {
        kernels_.expand_f32(s.kind, panel + panel_bytes(s.kind, k), args.k / kBlock, expanded);
        args.weights = reinterpret_cast<const std::byte*>(expanded);
      } else {
        kernels_.expand_bf16(s.kind, panel + panel_bytes(s.kind, k), args.k / kBlock, reinterpret_cast<std::uint16_t*>(expanded));
        args.weights = reinterpret_cast<const std::byte*>(expanded);
      }
      for (std::int64_t i = 0; i < tiles.count; ++i) {
        place(args, s, p, io, pass, tiles, i, token_bytes);
        args.x += static_cast<std::size_t>(args.tokens) * tile_token_bytes(kind, k);
        args.prefetch = plain && i == 0 ? static_cast<std::int64_t>(panel_bytes(s.kind, args.k)) : 0;
        (kind == TileKind::kF32 ? kernels_.f32_tile : kernels_.bf16_tile)(args);
      }
    }
  }

  const LinearKernels& kernels_;
  const std::int64_t in_, out_;
  const std::vector<Section> sections_;
  const std::shared_ptr<WeightArena> arena_;
  std::size_t bytes_ = 0;
};

Status check_part(const HostWeight& w, std::size_t index, std::int64_t in) {
  const std::string name = "linear: part " + std::to_string(index) + " (" + std::string(to_string(w.format)) + " " +
                           std::to_string(w.rows) + " x " + std::to_string(w.cols) + ")";
  const auto bad = [&](const std::string& what) { return Status(Code::kInvalidArgument, name + ": " + what); };
  const int block = block_weights(w.format);
  if (w.rows <= 0 || w.cols <= 0 || w.data == nullptr) return bad("has no weights");
  if (w.cols % block != 0) return bad("the columns are no multiple of the format's blocks of " + std::to_string(block));
  if (w.col_begin < 0 || w.col_end < 0 || w.col_end > w.cols || (w.col_end != 0 && w.col_begin >= w.col_end) || w.col_begin % block != 0 ||
      w.col_end % block != 0 || (w.col_end == 0 && w.col_begin != 0)) {
    return bad("columns [" + std::to_string(w.col_begin) + ", " + std::to_string(w.col_end) + ") are not whole blocks of it");
  }
  if (w.out_cols() != in) return bad("takes " + std::to_string(w.out_cols()) + " inputs, the first part " + std::to_string(in));
  for (const std::int32_t row : w.row_map) {
    if (row < 0 || row >= w.rows) return bad("row " + std::to_string(row) + " of the row map is not in it");
  }
  return {};
}

// The arithmetic of a part: kInt8 has none for plain formats, which take the fastest float kind of the instruction set instead.
ComputeType part_compute(Isa isa, WeightFormat format, ComputeType compute) {
  if (compute != ComputeType::kInt8 || is_block_format(format)) return compute;
  return isa == Isa::kAvx512 ? ComputeType::kBF16 : ComputeType::kF32;
}

TileForm tile_form(PackKind kind, ComputeType compute) {
  if (compute == ComputeType::kF32) return {TileKind::kF32, 0, 0};
  if (compute == ComputeType::kBF16) return {TileKind::kBF16, 0, 0};
  return {TileKind::kInt8, traits(kind).shift, traits(kind).run};
}

}  // namespace

Result<std::unique_ptr<CpuLinear>> make_linear(Isa isa, std::span<const HostWeight> parts, std::span<const float> bias, ComputeType compute,
                                               std::shared_ptr<WeightArena> arena) {
  if (parts.empty()) return Status(Code::kInvalidArgument, "linear: no parts");
  const std::int64_t in = parts[0].out_cols();
  std::vector<Section> sections;
  std::vector<std::vector<RowSource>> sources;  // of each section
  std::int64_t out = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const HostWeight& part = parts[i];
    if (Status s = check_part(part, i, in); !s.ok()) return s;
    const ComputeType arithmetic = part_compute(isa, part.format, compute);
    const PackKind kind = pack_kind(part.format, arithmetic);
    const TileForm form = tile_form(kind, arithmetic);
    if (sections.empty() || sections.back().kind != kind || sections.back().form != form) {
      sections.push_back({kind, form, out, 0, 0, nullptr, {}});
      sources.emplace_back();
    }
    for (std::int64_t r = 0; r < part.out_rows(); ++r) {
      sources.back().push_back({&part, part.row_map.empty() ? r : part.row_map[static_cast<std::size_t>(r)]});
    }
    out += part.out_rows();
  }
  if (!bias.empty() && static_cast<std::int64_t>(bias.size()) != out) {
    return Status(Code::kInvalidArgument, "linear: a bias of " + std::to_string(bias.size()) + " for " + std::to_string(out) + " outputs");
  }
  if (!arena) arena = std::make_shared<WeightArena>(0);
  for (std::size_t i = 0; i < sections.size(); ++i) {
    Section& s = sections[i];
    s.rows = static_cast<std::int64_t>(sources[i].size());
    s.panels = (s.rows + kPanelRows - 1) / kPanelRows;
    const std::size_t bytes = static_cast<std::size_t>(s.panels) * panel_bytes(s.kind, in);
    std::byte* data = arena->allocate(bytes);
    if (data == nullptr) return Status(Code::kResourceExhausted, "linear: no memory for " + std::to_string(bytes) + " bytes of weights");
    pack_panels(s.kind, sources[i], data);
    s.data = data;
    if (!bias.empty()) {
      s.bias.assign(static_cast<std::size_t>(s.panels * kPanelRows), 0.0F);
      std::copy_n(bias.begin() + s.begin, s.rows, s.bias.begin());
    }
  }
  return std::unique_ptr<CpuLinear>(std::make_unique<PackedLinear>(isa, in, out, std::move(sections), std::move(arena)));
}

}  // namespace baton::device::cpu
