#include "model/decoder.h"

#include <algorithm>
#include <chrono>
#include <cmath>

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
  Tensor logits;    // [R, vocab] f32
};

// The one list of what the arena holds: walked with Context::scratch by a step, and with arithmetic when the arena is sized.
template <class Allocate>
Status lay_out(const ModelConfig& c, DType dtype, std::int64_t tokens, std::int64_t rows, Activations& a, Allocate&& allocate) {
  const std::int64_t q = std::int64_t{c.heads} * c.head_dim, kv = std::int64_t{c.kv_heads} * c.head_dim;
  const struct {
    Tensor& tensor;
    DType dtype;
    std::int64_t rows, cols;
  } wanted[] = {
      {a.residual, dtype, tokens, c.hidden}, {a.normed, dtype, tokens, c.hidden}, {a.delta, dtype, tokens, c.hidden},
      {a.qkv, dtype, tokens, q + 2 * kv},    {a.attended, dtype, tokens, q},      {a.gate_up, dtype, tokens, 2 * std::int64_t{c.ffn}},
      {a.gated, dtype, tokens, c.ffn},       {a.last, dtype, rows, c.hidden},     {a.logits, DType::kF32, rows, c.vocab},
  };
  for (const auto& w : wanted) {
    if (w.rows > 0) BATON_RETURN_IF_ERROR(allocate(w.tensor, w.dtype, w.rows, w.cols));
  }
  return {};
}

std::size_t arena_size(const ModelConfig& config, DType dtype, const DecoderOptions& options) {
  std::size_t bytes = 0;
  Activations unused;
  const Status status = lay_out(config, dtype, options.max_tokens, options.max_logit_rows, unused,
                                [&](Tensor&, DType type, std::int64_t rows, std::int64_t cols) -> Status {
                                  const std::size_t wanted = static_cast<std::size_t>(rows * cols) * device::size_of(type);
                                  bytes += (wanted + device::kScratchAlignment - 1) / device::kScratchAlignment * device::kScratchAlignment;
                                  return {};
                                });
  BATON_CHECK(status.ok());
  return bytes;
}

// Reads a model's tensors into device handles, reporting progress by the bytes of the files' matrices.
class Loader {
 public:
  Loader(device::Device& device, const ModelFiles& files, const DecoderOptions& options)
      : device_(device), files_(files), options_(options) {}

  // The matrices `names`, stacked along their rows, with the biases of the same names if `biased`.
  Result<std::unique_ptr<Linear>> linear(const std::string& prefix, std::initializer_list<const char*> names, bool biased = false) {
    std::vector<HostWeight> parts;
    std::vector<float> bias;
    for (const char* name : names) {
      BATON_ASSIGN_OR_RETURN(HostWeight part, files_.weight(prefix + name));
      done_ += part.row_bytes() * static_cast<std::size_t>(part.rows);
      parts.push_back(std::move(part));
      if (!biased) continue;
      BATON_ASSIGN_OR_RETURN(const std::vector<float> values, files_.vector(prefix + name + ".bias"));
      bias.insert(bias.end(), values.begin(), values.end());
    }
    auto linear = device_.prepare_linear(parts, bias, options_.compute);
    if (!linear.ok()) return linear.status().with_context(files_.path() + ": " + prefix + *names.begin());
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

Result<std::unique_ptr<Decoder>> Decoder::load(device::Device& device, const ModelFiles& files, const DecoderOptions& options) {
  std::unique_ptr<Decoder> decoder(new Decoder());
  decoder->config_ = files.config();
  decoder->options_ = options;
  decoder->activation_ = device.activation_dtype(options.compute);
  const ModelConfig& c = decoder->config_;
  BATON_RETURN_IF_ERROR(c.validate().with_context(files.path()));
  decoder->arena_bytes_ = arena_size(c, decoder->activation_, options);
  const std::int64_t positions = options.max_positions == 0 ? c.max_positions : std::min(options.max_positions, c.max_positions);
  BATON_ASSIGN_OR_RETURN(decoder->rope_, device.prepare_rope(c.inverse_frequencies(), positions, c.rope_attention_factor()));

  Loader loader(device, files, options);
  BATON_ASSIGN_OR_RETURN(const HostWeight embedding, files.weight("embed"));
  BATON_ASSIGN_OR_RETURN(decoder->embed_, device.prepare_embedding(embedding));

  struct NormOffsets {
    std::int64_t attn, ffn, q, k;
  };
  std::vector<NormOffsets> offsets;
  for (int i = 0; i < c.layers; ++i) {
    const std::string name = "layer." + std::to_string(i) + ".";
    auto layer = std::make_unique<Layer>();
    BATON_ASSIGN_OR_RETURN(layer->qkv, loader.linear(name, {"q", "k", "v"}, c.qkv_bias));
    BATON_ASSIGN_OR_RETURN(layer->o, loader.linear(name, {"o"}));
    BATON_ASSIGN_OR_RETURN(layer->gate_up, loader.linear(name, {"gate", "up"}));
    BATON_ASSIGN_OR_RETURN(layer->down, loader.linear(name, {"down"}));
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
  BATON_ASSIGN_OR_RETURN(decoder->head_, loader.linear("", {"head"}));

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
  BATON_RETURN_IF_ERROR(
      lay_out(config_, activation_, tokens, rows, a, [&](Tensor& tensor, DType dtype, std::int64_t m, std::int64_t n) -> Status {
        BATON_ASSIGN_OR_RETURN(tensor, context.scratch(dtype, {m, n}));
        return {};
      }));

  const ModelConfig& c = config_;
  const std::int64_t q_end = std::int64_t{c.heads} * c.head_dim, k_end = q_end + std::int64_t{c.kv_heads} * c.head_dim;
  const Tensor q = a.qkv.columns(0, q_end).split_last(c.heads, c.head_dim);                  // [T, heads, head_dim]
  const Tensor k = a.qkv.columns(q_end, k_end).split_last(c.kv_heads, c.head_dim);           // [T, kv_heads, head_dim]
  const Tensor v = a.qkv.columns(k_end, a.qkv.shape[1]).split_last(c.kv_heads, c.head_dim);  // [T, kv_heads, head_dim]
  const Tensor attended = a.attended.split_last(c.heads, c.head_dim);                        // [T, heads, head_dim]
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));

  Ops& ops = context.ops();
  ops.embedding(*embed_, meta.d_token_ids, a.residual);
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
    if (layer_done != nullptr) context.notify(layer_done, user, static_cast<std::uint64_t>(i));  // may travel while the rest computes
    if (last_layer && rows == 0) break;  // a chunk of a prompt whose only product is its KV

    ops.attention(meta, pool, i, q, scale, attended);
    ops.linear(*layer.o, a.attended, a.delta);
    ops.add_rms_norm(a.residual, a.delta, layer.ffn_norm, c.norm_eps, a.normed);

    ops.linear(*layer.gate_up, a.normed, a.gate_up);
    ops.swiglu(a.gate_up, a.gated);
    ops.linear(*layer.down, a.gated, a.delta);
    const Tensor& next_norm = last_layer ? final_norm_ : layers_[static_cast<std::size_t>(i) + 1]->attn_norm;
    ops.add_rms_norm(a.residual, a.delta, next_norm, c.norm_eps, a.normed);
  }
  if (rows == 0) return Tensor::contiguous(nullptr, DType::kF32, {0, c.vocab});
  ops.gather_rows(a.normed, meta.d_logit_rows, a.last);
  ops.linear(*head_, a.last, a.logits);
  return a.logits;
}

}  // namespace baton::model
