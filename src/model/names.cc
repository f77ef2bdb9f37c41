// The names of tensors, and which ones a model has.

#include <array>
#include <string_view>

#include "model/contents.h"

namespace baton::model {
namespace {

struct Row {
  std::string_view canonical, gguf, hugging_face;
};

constexpr std::array kGlobal = {
    Row{"embed", "token_embd.weight", "model.embed_tokens.weight"},
    Row{"head", "output.weight", "lm_head.weight"},
    Row{"norm", "output_norm.weight", "model.norm.weight"},
};

// Behind "layer.N.", "blk.N." and "model.layers.N.".
constexpr std::array kLayer = {
    Row{"attn_norm", "attn_norm.weight", "input_layernorm.weight"}, Row{"ffn_norm", "ffn_norm.weight", "post_attention_layernorm.weight"},
    Row{"q", "attn_q.weight", "self_attn.q_proj.weight"},           Row{"k", "attn_k.weight", "self_attn.k_proj.weight"},
    Row{"v", "attn_v.weight", "self_attn.v_proj.weight"},           Row{"o", "attn_output.weight", "self_attn.o_proj.weight"},
    Row{"gate", "ffn_gate.weight", "mlp.gate_proj.weight"},         Row{"up", "ffn_up.weight", "mlp.up_proj.weight"},
    Row{"down", "ffn_down.weight", "mlp.down_proj.weight"},         Row{"q_norm", "attn_q_norm.weight", "self_attn.q_norm.weight"},
    Row{"k_norm", "attn_k_norm.weight", "self_attn.k_norm.weight"}, Row{"q.bias", "attn_q.bias", "self_attn.q_proj.bias"},
    Row{"k.bias", "attn_k.bias", "self_attn.k_proj.bias"},          Row{"v.bias", "attn_v.bias", "self_attn.v_proj.bias"},
};

std::string pick(Naming naming, const Row& row) { return std::string(naming == Naming::kGguf ? row.gguf : row.hugging_face); }

}  // namespace

std::string stored_name(Naming naming, const std::string& canonical) {
  for (const Row& row : kGlobal) {
    if (row.canonical == canonical) return pick(naming, row);
  }
  constexpr std::string_view kPrefix = "layer.";
  if (!canonical.starts_with(kPrefix)) return {};
  const std::size_t dot = canonical.find('.', kPrefix.size());
  if (dot == std::string::npos) return {};
  const std::string number = canonical.substr(kPrefix.size(), dot - kPrefix.size());
  for (const Row& row : kLayer) {
    if (row.canonical == std::string_view(canonical).substr(dot + 1)) {
      return (naming == Naming::kGguf ? "blk." : "model.layers.") + number + "." + pick(naming, row);
    }
  }
  return {};
}

std::vector<WantedTensor> wanted_tensors(const ModelConfig& c) {
  const std::int64_t q = std::int64_t{c.heads} * c.head_dim, kv = std::int64_t{c.kv_heads} * c.head_dim;
  std::vector<WantedTensor> wanted = {{"embed", c.vocab, c.hidden}, {"norm", c.hidden}};
  if (!c.tied_embeddings) wanted.push_back({"head", c.vocab, c.hidden});
  for (int i = 0; i < c.layers; ++i) {
    const std::string layer = "layer." + std::to_string(i) + ".";
    wanted.insert(wanted.end(), {{layer + "attn_norm", c.hidden},
                                 {layer + "q", q, c.hidden},
                                 {layer + "k", kv, c.hidden},
                                 {layer + "v", kv, c.hidden},
                                 {layer + "o", c.hidden, q},
                                 {layer + "ffn_norm", c.hidden},
                                 {layer + "gate", c.ffn, c.hidden},
                                 {layer + "up", c.ffn, c.hidden},
                                 {layer + "down", c.hidden, c.ffn}});
    if (c.qkv_bias) wanted.insert(wanted.end(), {{layer + "q.bias", q}, {layer + "k.bias", kv}, {layer + "v.bias", kv}});
    if (c.qk_norm) wanted.insert(wanted.end(), {{layer + "q_norm", c.head_dim}, {layer + "k_norm", c.head_dim}});
  }
  return wanted;
}

}  // namespace baton::model
