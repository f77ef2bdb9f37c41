#include "model/decoder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <span>

namespace baton::model {

using device::Context;
using device::DType;
using device::HostWeight;
using device::Linear;
using device::Ops;
using device::StepMeta;
using device::Tensor;

struct Decoder::Layer {
  Tensor attn_norm, ffn_norm;             // [hidden]
  Tensor q_norm, k_norm;                  // [head_dim], only with qk_norm
  std::unique_ptr<Linear> qkv, o;         // [(heads + 2 kv_heads) * head_dim, hidden], [hidden, heads * head_dim]
  std::unique_ptr<Linear> gate_up, down;  // [2 ffn, hidden] gate first, [hidden, ffn]
};

Decoder::~Decoder() = default;

namespace {

// The activations of one step. Dimensions that are not fixed by the model: tokens and logit rows.
struct Activations {
  Tensor residual;  // [T, hidden]
  Tensor normed;    // [T, hidden] what a block reads
  Tensor delta;     // [T, hidden] what a block adds to the residual
  Tensor qkv;       // [T, (heads + 2 kv_heads) * head_dim]
  Tensor attended;  // [T, heads * head_dim]
  Tensor gate_up;   // [T, 2 ffn]
  Tensor gated;     // [T, ffn]
  Tensor last;      // [R, hidden]
  Tensor logits;    // [R, vocab] f32, of this rank's part of the vocabulary
  Tensor gathered;  // [R, vocab] f32, of all of it; on rank 0 of several
};

// The sizes of one rank's part.
struct Sizes {
  std::int64_t hidden, q, kv, ffn, vocab, gathered;
};
Sizes sizes_of(const ModelConfig& c, const Shard& shard, const DecoderOptions& options) {
  const std::int64_t dim = c.head_dim;
  return {c.hidden,         shard.heads.size() * dim, shard.kv_heads.size() * dim,
          shard.ffn.size(), shard.vocab.size(),       options.ranks > 1 && options.rank == Rank(0) ? c.vocab : 0};
}

// The one list of what the arena holds: walked with Context::scratch by a step, and with arithmetic when the arena is sized.
template <class Allocate>
Status lay_out(const Sizes& s, DType dtype, std::int64_t tokens, std::int64_t rows, Activations& a, Allocate&& allocate) {
  const struct {
    Tensor& tensor;
    DType dtype;
    std::int64_t rows, cols;
  } wanted[] = {
      {a.residual, dtype, tokens, s.hidden},  {a.normed, dtype, tokens, s.hidden},
      {a.delta, dtype, tokens, s.hidden},     {a.qkv, dtype, tokens, s.q + 2 * s.kv},
      {a.attended, dtype, tokens, s.q},       {a.gate_up, dtype, tokens, 2 * s.ffn},
      {a.gated, dtype, tokens, s.ffn},        {a.last, dtype, rows, s.hidden},
      {a.logits, DType::kF32, rows, s.vocab}, {a.gathered, DType::kF32, rows, s.gathered},
  };
  for (const auto& w : wanted) {
    if (w.rows > 0 && w.cols > 0) BATON_RETURN_IF_ERROR(allocate(w.tensor, w.dtype, w.rows, w.cols));
  }
  return {};
}

std::size_t arena_size(const Sizes& sizes, DType dtype, const DecoderOptions& options) {
  std::size_t bytes = 0;
  Activations unused;
  const Status status = lay_out(sizes, dtype, options.max_tokens, options.max_logit_rows, unused,
                                [&](Tensor&, DType type, std::int64_t rows, std::int64_t cols) -> Status {
                                  const std::size_t wanted = static_cast<std::size_t>(rows * cols) * device::size_of(type);
                                  bytes += (wanted + device::kScratchAlignment - 1) / device::kScratchAlignment * device::kScratchAlignment;
                                  return {};
                                });
  BATON_CHECK(status.ok());
  return bytes;
}

// The rows [part.begin, part.end) of a matrix, each `times` of the stored ones.
HostWeight rows_of(HostWeight w, Extent part, std::int64_t times) {
  const std::int64_t begin = part.begin * times, end = part.end * times;
  if (begin == 0 && end == w.out_rows()) return w;
  std::vector<std::int32_t> rows;
  for (std::int64_t r = begin; r < end; ++r)
    rows.push_back(w.row_map.empty() ? static_cast<std::int32_t>(r) : w.row_map[static_cast<std::size_t>(r)]);
  w.row_map = std::move(rows);
  return w;
}

HostWeight columns_of(HostWeight w, Extent part, std::int64_t times) {
  const std::int64_t begin = part.begin * times, end = part.end * times;
  if (begin != 0 || end != w.cols) w.col_begin = begin, w.col_end = end;
  return w;
}

// Reads a model's tensors into device handles, reporting progress by the bytes of the files' matrices.
class Loader {
 public:
  Loader(device::Device& device, const ModelFiles& files, const DecoderOptions& options)
      : device_(device), files_(files), options_(options) {}

  // Which part of a matrix this rank holds: rows where each rank makes a part of the outputs, columns where each makes a part of the sums.
  struct Part {
    const char* name;
    Extent extent;
    std::int64_t times = 1;
  };
  // Matrices stacked along their rows, with the biases of the same names if `biased`.
  Result<std::unique_ptr<Linear>> by_rows(const std::string& prefix, std::initializer_list<Part> matrices, bool biased = false) {
    std::vector<HostWeight> parts;
    std::vector<float> bias;
    for (const Part& m : matrices) {
      BATON_ASSIGN_OR_RETURN(HostWeight whole, files_.weight(prefix + m.name));
      parts.push_back(rows_of(std::move(whole), m.extent, m.times));
      if (!biased) continue;
      BATON_ASSIGN_OR_RETURN(const std::vector<float> values, files_.vector(prefix + m.name + ".bias"));
      bias.insert(bias.end(), values.begin() + m.extent.begin * m.times, values.begin() + m.extent.end * m.times);
    }
    return prepare(prefix + matrices.begin()->name, parts, bias);
  }
  Result<std::unique_ptr<Linear>> by_columns(const std::string& prefix, const Part& m) {
    BATON_ASSIGN_OR_RETURN(HostWeight whole, files_.weight(prefix + m.name));
    const HostWeight part = columns_of(std::move(whole), m.extent, m.times);
    return prepare(prefix + m.name, {&part, 1}, {});
  }
  Result<std::unique_ptr<Linear>> prepare(const std::string& name, std::span<const HostWeight> parts, std::span<const float> bias) {
    for (const HostWeight& part : parts) done_ += part.row_bytes() * static_cast<std::size_t>(part.rows);
    auto linear = device_.prepare_linear(parts, bias, options_.compute);
    if (!linear.ok()) return linear.status().with_context(files_.path() + ": " + name);
    if (options_.on_progress) options_.on_progress(static_cast<std::int64_t>(done_), std::max<std::int64_t>(files_.weight_bytes(), 1));
    return linear;
  }

  // Adds a norm's weights to the one buffer that holds them all, and says where in it they are.
  Result<std::int64_t> norm(const std::string& name) {
    BATON_ASSIGN_OR_RETURN(const std::vector<float> values, files_.vector(name));
    const auto offset = static_cast<std::int64_t>(norms_.size());
    norms_.insert(norms_.end(), values.begin(), values.end());
    norms_.resize((norms_.size() + 15) / 16 * 16);  // each starts on a cache line
    return offset;
  }

  const std::vector<float>& norms() const { return norms_; }

 private:
  device::Device& device_;
  const ModelFiles& files_;
  const DecoderOptions& options_;
  std::size_t done_ = 0;
  std::vector<float> norms_;
};

}  // namespace

Result<ShardPlan> shard_plan(const ModelFiles& files, int ranks) {
  const ModelConfig& c = files.config();
  std::int64_t o_unit = 1, ffn_unit = 1;  // columns
  for (int i = 0; i < c.layers && ranks > 1; ++i) {
    const std::string name = "layer." + std::to_string(i) + ".";
    BATON_ASSIGN_OR_RETURN(const HostWeight o, files.weight(name + "o"));
    BATON_ASSIGN_OR_RETURN(const HostWeight down, files.weight(name + "down"));
    o_unit = std::lcm(o_unit, std::int64_t{device::block_weights(o.format)});
    ffn_unit = std::lcm(ffn_unit, std::int64_t{device::block_weights(down.format)});
  }
  const ShardShape shape{.heads = c.heads,
                         .kv_heads = c.kv_heads,
                         .ffn = c.ffn,
                         .vocab = c.vocab,
                         .head_unit = static_cast<std::int32_t>(std::lcm(o_unit, std::int64_t{c.head_dim}) / c.head_dim),
                         .ffn_unit = static_cast<std::int32_t>(ffn_unit)};
  auto plan = ShardPlan::make(shape, ranks);
  if (!plan.ok()) return plan.status().with_context(files.path());
  return plan;
}

Result<std::unique_ptr<Decoder>> Decoder::load(device::Device& device, const ModelFiles& files, const DecoderOptions& options) {
  std::unique_ptr<Decoder> decoder(new Decoder());
  decoder->config_ = files.config();
  decoder->options_ = options;
  decoder->activation_ = device.activation_dtype(options.compute);
  const ModelConfig& c = decoder->config_;
  BATON_RETURN_IF_ERROR(c.validate().with_context(files.path()));
  BATON_ASSIGN_OR_RETURN(const ShardPlan plan, shard_plan(files, options.ranks));
  const Shard& shard = decoder->shard_ = plan.of(options.rank);
  decoder->arena_bytes_ = arena_size(sizes_of(c, shard, options), decoder->activation_, options);
  const std::int64_t positions = options.max_positions == 0 ? c.max_positions : std::min(options.max_positions, c.max_positions);
  BATON_ASSIGN_OR_RETURN(decoder->rope_, device.prepare_rope(c.inverse_frequencies(), positions, c.rope_attention_factor()));

  Loader loader(device, files, options);
  BATON_ASSIGN_OR_RETURN(const HostWeight embedding, files.weight("embed"));
  BATON_ASSIGN_OR_RETURN(decoder->embed_, device.prepare_embedding(rows_of(embedding, shard.vocab, 1), shard.vocab.begin));

  struct NormOffsets {
    std::int64_t attn, ffn, q, k;
  };
  std::vector<NormOffsets> offsets;
  for (int i = 0; i < c.layers; ++i) {
    const std::string name = "layer." + std::to_string(i) + ".";
    auto layer = std::make_unique<Layer>();
    const std::int64_t dim = c.head_dim;
    BATON_ASSIGN_OR_RETURN(
        layer->qkv, loader.by_rows(name, {{"q", shard.heads, dim}, {"k", shard.kv_heads, dim}, {"v", shard.kv_heads, dim}}, c.qkv_bias));
    BATON_ASSIGN_OR_RETURN(layer->o, loader.by_columns(name, {"o", shard.heads, dim}));
    BATON_ASSIGN_OR_RETURN(layer->gate_up, loader.by_rows(name, {{"gate", shard.ffn}, {"up", shard.ffn}}));
    BATON_ASSIGN_OR_RETURN(layer->down, loader.by_columns(name, {"down", shard.ffn}));
    NormOffsets at{};
    BATON_ASSIGN_OR_RETURN(at.attn, loader.norm(name + "attn_norm"));
    BATON_ASSIGN_OR_RETURN(at.ffn, loader.norm(name + "ffn_norm"));
    if (c.qk_norm) {
      BATON_ASSIGN_OR_RETURN(at.q, loader.norm(name + "q_norm"));
      BATON_ASSIGN_OR_RETURN(at.k, loader.norm(name + "k_norm"));
    }
    offsets.push_back(at);
    decoder->layers_.push_back(std::move(layer));
  }
  BATON_ASSIGN_OR_RETURN(const std::int64_t final_norm, loader.norm("norm"));
  BATON_ASSIGN_OR_RETURN(decoder->head_, loader.by_rows("", {{"head", shard.vocab}}));

  const std::vector<float>& norms = loader.norms();
  BATON_ASSIGN_OR_RETURN(decoder->norms_, device.allocate(norms.size() * sizeof(float)));
  const auto view = [&](std::int64_t offset, std::int64_t size) {
    return Tensor::contiguous(decoder->norms_.get(), DType::kF32, {size}, offset);
  };
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    Layer& layer = *decoder->layers_[i];
    layer.attn_norm = view(offsets[i].attn, c.hidden);
    layer.ffn_norm = view(offsets[i].ffn, c.hidden);
    if (!c.qk_norm) continue;
    layer.q_norm = view(offsets[i].q, c.head_dim);
    layer.k_norm = view(offsets[i].k, c.head_dim);
  }
  decoder->final_norm_ = view(final_norm, c.hidden);
  BATON_ASSIGN_OR_RETURN(const auto context, device.create_context({}));
  BATON_RETURN_IF_ERROR(context->upload(view(0, static_cast<std::int64_t>(norms.size())), norms.data(), norms.size() * sizeof(float)));
  BATON_RETURN_IF_ERROR(context->synchronize(std::chrono::seconds(60)));
  return decoder;
}

std::size_t Decoder::weight_bytes() const {
  std::size_t bytes = head_->bytes();
  for (const auto& layer : layers_) bytes += layer->qkv->bytes() + layer->o->bytes() + layer->gate_up->bytes() + layer->down->bytes();
  return bytes;
}

Result<Tensor> Decoder::forward(Context& context, const StepMeta& meta, device::KvPool& pool,
                                void (*layer_done)(void* user, std::uint64_t layer), void* user) const {
  const std::int64_t tokens = meta.tokens(), rows = static_cast<std::int64_t>(meta.logit_rows.size());
  BATON_CHECK(tokens > 0 && tokens <= options_.max_tokens && rows <= options_.max_logit_rows);
  Activations a;
  BATON_RETURN_IF_ERROR(lay_out(sizes_of(config_, shard_, options_), activation_, tokens, rows, a,
                                [&](Tensor& tensor, DType dtype, std::int64_t m, std::int64_t n) -> Status {
                                  BATON_ASSIGN_OR_RETURN(tensor, context.scratch(dtype, {m, n}));
                                  return {};
                                }));

  const ModelConfig& c = config_;
  const std::int64_t heads = shard_.heads.size(), kv_heads = shard_.kv_heads.size();
  const std::int64_t q_end = heads * c.head_dim, k_end = q_end + kv_heads * c.head_dim;
  const Tensor q = a.qkv.columns(0, q_end).split_last(heads, c.head_dim);                  // [T, heads, head_dim]
  const Tensor k = a.qkv.columns(q_end, k_end).split_last(kv_heads, c.head_dim);           // [T, kv_heads, head_dim]
  const Tensor v = a.qkv.columns(k_end, a.qkv.shape[1]).split_last(kv_heads, c.head_dim);  // [T, kv_heads, head_dim]
  const Tensor attended = a.attended.split_last(heads, c.head_dim);                        // [T, heads, head_dim]
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));

  Ops& ops = context.ops();
  device::Collective& group = context.collective();
  BATON_CHECK(group.size() == options_.ranks && group.rank() == options_.rank);
  const auto written = [&](int layer) {  // it may travel while the rest computes
    if (layer_done != nullptr) context.notify(layer_done, user, static_cast<std::uint64_t>(layer));
  };
  ops.embedding(*embed_, meta.d_token_ids, a.residual);
  group.all_reduce(a.residual);
  ops.rms_norm(a.residual, layers_[0]->attn_norm, c.norm_eps, a.normed);
  for (int i = 0; i < c.layers; ++i) {
    const Layer& layer = *layers_[static_cast<std::size_t>(i)];
    const bool last_layer = i + 1 == c.layers;

    ops.linear(*layer.qkv, a.normed, a.qkv);
    if (c.qk_norm) {
      ops.rms_norm(q, layer.q_norm, c.norm_eps, q);
      ops.rms_norm(k, layer.k_norm, c.norm_eps, k);
    }
    ops.rope(*rope_, meta.d_positions, q);
    ops.rope(*rope_, meta.d_positions, k);
    ops.kv_write(meta, pool, i, k, v);
    if (group.size() == 1) written(i);
    if (last_layer && rows == 0) {  // a chunk of a prompt whose only product is its KV
      group.barrier();
      if (group.size() > 1) written(i);
      break;
    }

    ops.attention(meta, pool, i, q, scale, attended);
    ops.linear(*layer.o, a.attended, a.delta);
    group.all_reduce(a.delta);
    if (group.size() > 1) written(i);  // every rank has come this far
    ops.add_rms_norm(a.residual, a.delta, layer.ffn_norm, c.norm_eps, a.normed);

    ops.linear(*layer.gate_up, a.normed, a.gate_up);
    ops.swiglu(a.gate_up, a.gated);
    ops.linear(*layer.down, a.gated, a.delta);
    group.all_reduce(a.delta);
    const Tensor& next_norm = last_layer ? final_norm_ : layers_[static_cast<std::size_t>(i) + 1]->attn_norm;
    ops.add_rms_norm(a.residual, a.delta, next_norm, c.norm_eps, a.normed);
  }
  if (rows == 0) return Tensor::contiguous(nullptr, DType::kF32, {0, c.vocab});
  ops.gather_rows(a.normed, meta.d_logit_rows, a.last);
  ops.linear(*head_, a.last, a.logits);
  if (group.size() == 1) return a.logits;
  group.gather_columns(a.logits, a.gathered);
  return group.rank() == Rank(0) ? a.gathered : a.logits;
}

}  // namespace baton::model
