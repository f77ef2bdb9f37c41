#pragma once
// The operations that a Qwen2/Llama-family decoder needs: all of the vendor-specific arithmetic.
//
// Ops are queued on their context's stream and may run later; on a CPU they run inline. No op reads host memory except through StepMeta.
// Shapes are written as [tokens, ...]; activations are of Device::activation_dtype(). Programmer errors (shapes) are CHECKs; what fails at
// run time surfaces at Context::synchronize(), named by op. Numerics: DESIGN "Numerics are a contract": the bits of a row depend on nothing
// but that row's inputs, whatever the batch, the chunk, the position in the batch or the number of threads.

#include <cstdint>
#include <span>

#include "device/kv_view.h"
#include "device/types.h"

namespace baton::device {

// Handles made once at load. Each device packs as it likes; a handle is used only with the device that made it.
class Linear {
 public:
  virtual ~Linear() = default;
  virtual std::int64_t in_features() const = 0;
  virtual std::int64_t out_features() const = 0;
  virtual std::size_t bytes() const = 0;  // read by one pass over the weights
};
class Embedding {
 public:
  virtual ~Embedding() = default;
};
class RopeTable {
 public:
  virtual ~RopeTable() = default;
};

// What a step computes. Lengths and tables are given both as host arrays and as device tensors, because accelerators' attention takes the
// lengths on the host. Sequence s owns the tokens [q_start[s], q_start[s+1]); after the step its context is kv_len[s] tokens long, so its
// queries stand at positions kv_len[s] - q_len .. kv_len[s] - 1.
struct StepMeta {
  std::span<const std::int32_t> token_ids;     // [tokens]
  std::span<const std::int32_t> positions;     // [tokens]
  std::span<const std::int32_t> slots;         // [tokens] block * block_tokens + offset: where the token's K and V go
  std::span<const std::int32_t> q_start;       // [seqs + 1]
  std::span<const std::int32_t> kv_len;        // [seqs]
  std::span<const std::int32_t> block_tables;  // [seqs, max_blocks] block ids
  std::int32_t max_blocks = 0;
  std::span<const std::int32_t> logit_rows;  // [rows] tokens whose logits are wanted
  // The same as device tensors, filled by Context::upload_step().
  Tensor d_token_ids, d_positions, d_slots, d_q_start, d_kv_len, d_block_tables, d_logit_rows;

  std::int32_t tokens() const { return static_cast<std::int32_t>(token_ids.size()); }
  std::int32_t seqs() const { return static_cast<std::int32_t>(kv_len.size()); }
};

class Ops {
 public:
  virtual ~Ops() = default;

  // out[t] = table[ids[t]]                                        ids [T] i32, out [T, H]
  virtual void embedding(const Embedding& table, const Tensor& ids, const Tensor& out) = 0;
  // out = x / sqrt(mean(x^2) + eps) * weight, over the last dimension; also per head on [T, heads, D].   weight [H] f32; out may be x
  virtual void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) = 0;
  // x += y                                                        [T, H]
  virtual void add(const Tensor& x, const Tensor& y) = 0;
  // residual += x; out = rms_norm(residual)
  virtual void add_rms_norm(const Tensor& residual, const Tensor& x, const Tensor& weight, float eps, const Tensor& out);
  // out = x * W^T (+ bias)                                        x [T, in], out [T, out]; logits: out f32
  virtual void linear(const Linear& weight, const Tensor& x, const Tensor& out) = 0;
  // Rotates halves (i, i + D/2) of each head in place.            x [T, heads, D], positions [T] i32
  virtual void rope(const RopeTable& table, const Tensor& positions, const Tensor& x) = 0;
  // pool[layer][slots[t]] = k[t], v[t]                            k, v [T, kv_heads, D]
  virtual void kv_write(const StepMeta& meta, KvPool& pool, int layer, const Tensor& k, const Tensor& v) = 0;
  // pool[.., to, ..] = pool[.., from, ..] in all layers: copy-on-write of a block that forked sequences share.
  struct BlockCopy {
    BlockId from, to;
  };
  virtual void copy_blocks(KvPool& pool, std::span<const BlockCopy> copies) = 0;
  // Causal attention of each sequence's queries over its paged context, this step's tokens included (kv_write comes first).
  // The context is read in fixed tiles from position 0, merged in index order.       q, out [T, heads, D]
  virtual void attention(const StepMeta& meta, const KvPool& pool, int layer, const Tensor& q, float scale, const Tensor& out) = 0;
  // out = silu(gate) * up                                         gate_up [T, 2F] (gate first), out [T, F]
  virtual void swiglu(const Tensor& gate_up, const Tensor& out) = 0;
  // out[r] = x[rows[r]]                                           x [T, H], rows [R] i32, out [R, H]
  virtual void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) = 0;
  // The index of the largest logit, the lowest index among equals. logits [R, V] f32, out [R] i32
  virtual void argmax(const Tensor& logits, const Tensor& out) = 0;
  // The k largest in descending order, lower index first among equals.   values [R, k] f32, indices [R, k] i32
  virtual void top_k(const Tensor& logits, int k, const Tensor& values, const Tensor& indices) = 0;
  // ids[t] = source[t] >= 0 ? last[source[t]] : ids[t]: lets a step read the tokens that the previous one sampled without the host.
  virtual void patch_tokens(const Tensor& ids, const Tensor& source, const Tensor& last) = 0;
};

}  // namespace baton::device
