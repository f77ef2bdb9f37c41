#pragma once
// Runs a decoder on one sequence, for tests.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "device/device.h"
#include "model/decoder.h"

namespace baton {

using device::ComputeType;
using device::DType;
using model::Decoder;
using model::DecoderOptions;
using model::ModelFiles;

template <class T>
T must(Result<T> result) {
  BATON_CHECK_MSG(result.ok(), result.status().to_string());
  return std::move(result).value();
}

struct LayerLog {
  std::vector<std::uint64_t> layers;
  static void note(void* user, std::uint64_t layer) { static_cast<LayerLog*>(user)->layers.push_back(layer); }
};

// A decoder with a pool for one sequence, whose blocks lie in reverse order.
class Runner {
 public:
  Runner(device::Device& device, const ModelFiles& files, ComputeType compute, DType kv, std::int64_t positions_max, Rank rank = Rank(0),
         int ranks = 1)
      : device_(device) {
    DecoderOptions options;
    options.rank = rank;
    options.ranks = ranks;
    options.compute = compute;
    options.max_positions = positions_max;
    options.max_tokens = 128;
    options.max_logit_rows = 128;
    decoder_ = must(Decoder::load(device, files, options));
    const model::ModelConfig& c = decoder_->config();
    device::KvSpec spec;
    spec.layers = c.layers;
    spec.kv_heads = decoder_->shard().kv_heads.size();
    spec.head_dim = c.head_dim;
    spec.dtype = kv;
    block_ = device.info().kv_block_tokens;
    spec.block_tokens = block_;
    spec.blocks = static_cast<std::int32_t>((positions_max + block_ - 1) / block_);
    pool_ = must(device.create_kv_pool(spec));
    for (std::int32_t i = spec.blocks - 1; i >= 0; --i) table_.push_back(i);
    context_ = must(device.create_context({.arena_bytes = decoder_->arena_bytes()}));
  }

  const Decoder& decoder() const { return *decoder_; }
  const LayerLog& log() const { return log_; }
  const device::KvPool& pool() const { return *pool_; }
  const std::vector<std::int32_t>& table() const { return table_; }

  // Logits of positions `first` and later, `chunk` tokens a step. `visit(position, logits)`.
  template <class Visit>
  void run(const std::vector<TokenId>& ids, std::size_t first, std::size_t chunk, Visit&& visit) {
    const auto vocab = static_cast<std::size_t>(decoder_->config().vocab);
    for (std::size_t begin = 0; begin < ids.size(); begin += chunk) {
      const std::size_t end = std::min(ids.size(), begin + chunk);
      std::vector<std::int32_t> positions, slots, rows;
      for (std::size_t p = begin; p < end; ++p) {
        const auto position = static_cast<std::int32_t>(p);
        positions.push_back(position);
        slots.push_back(table_[p / static_cast<std::size_t>(block_)] * block_ + position % block_);
        if (p >= first) rows.push_back(static_cast<std::int32_t>(p - begin));
      }
      const std::vector<std::int32_t> q_start = {0, static_cast<std::int32_t>(end - begin)}, kv_len = {static_cast<std::int32_t>(end)};
      device::StepMeta meta;
      meta.token_ids = std::span(ids).subspan(begin, end - begin);
      meta.positions = positions;
      meta.slots = slots;
      meta.q_start = q_start;
      meta.kv_len = kv_len;
      meta.block_tables = table_;
      meta.max_blocks = static_cast<std::int32_t>(table_.size());
      meta.logit_rows = rows;
      context_->reset_arena();
      ASSERT_TRUE(context_->upload_step(meta).ok());
      log_.layers.clear();
      const device::Tensor logits = must(decoder_->forward(*context_, meta, *pool_, &LayerLog::note, &log_));
      ASSERT_TRUE(context_->synchronize(std::chrono::seconds(60)).ok());
      if (rows.empty() || context_->collective().rank() != Rank(0)) continue;
      const auto* values = static_cast<const float*>(must(context_->download(logits)));
      for (std::size_t r = 0; r < rows.size(); ++r) {
        visit(begin + static_cast<std::size_t>(rows[r]), std::span(values + r * vocab, vocab));
      }
    }
  }

 private:
  device::Device& device_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<device::KvPool> pool_;
  std::unique_ptr<device::Context> context_;
  std::vector<std::int32_t> table_;
  int block_ = 0;
  LayerLog log_;
};

}  // namespace baton
