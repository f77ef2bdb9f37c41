#include "sim/device.h"

#include <algorithm>
#include <span>
#include <utility>

namespace baton::sim {

Device::Device(Host& host, Trace& trace, PoolAudit& audit, DeviceModel model, Memory memory)
    : host_(host), trace_(trace), audit_(audit), model_(model), memory_(std::move(memory)), spec_(memory_->spec()) {}

Device::~Device() {
  for (const auto timer : timers_) host_.cancel(timer);
}

std::uint64_t& Device::word(int copy, const engine::StepRow& row, int layer, int head, int kind, std::int32_t token) const {
  const int bt = spec_.block_tokens;
  const BlockId block = (*row.blocks)[static_cast<std::size_t>(token / bt)];
  return memory_->word(copy, layer, block, head, static_cast<device::KvKind>(kind), token % bt);
}

void Device::submit(const engine::StepPlan& plan) {
  plan_ = &plan;
  audit_.step_begins(plan);
  std::int64_t ns = model_.step;
  for (const auto& row : plan.rows) {
    // A row that is not the end of its sequence, or computes several tokens, is part of a prompt.
    const bool decodes = row.end - row.begin == 1 && row.sample;
    ns += decodes ? model_.decode_row : model_.prefill_token * (row.end - row.begin);
    ns += model_.context_token * row.end;
  }
  ns += ns / 100 * slower_percent_;
  const Duration total(std::max<std::int64_t>(1, ns / 1000));
  result_.elapsed = total;
  const int layers = spec_.layers;
  timers_.clear();
  for (int layer = 0; layer < layers; ++layer) {
    timers_.push_back(host_.after(total * (layer + 1) / (layers + 1), [this, layer] { layer_due(layer); }));
  }
  timers_.push_back(host_.after(total, [this] { finish(); }));
  std::uint64_t content = 0;
  for (const auto& row : plan.rows) {
    content = mix(mix(mix(content, row.seq.value), static_cast<std::uint64_t>(row.begin)), static_cast<std::uint64_t>(row.end));
    for (const BlockId block : *row.blocks) content = mix(content, static_cast<std::uint64_t>(block.value));
  }
  trace_(host_.real_now(), host_.name(), "step", plan.step, plan.rows.size(), total.count(), content);
}

void Device::copy_blocks() {
  for (const auto& block : plan_->copies) {
    for (int l = 0; l < spec_.layers; ++l) {
      for (int h = 0; h < spec_.kv_heads; ++h) {
        for (int copy = 0; copy < memory_->copies(h); ++copy) {
          for (auto kind : {device::KvKind::kKey, device::KvKind::kValue}) {
            for (int t = 0; t < spec_.block_tokens; ++t)
              memory_->word(copy, l, block.to, h, kind, t) = memory_->word(copy, l, block.from, h, kind, t);
          }
        }
      }
    }
  }
}

void Device::layer_due(int layer) {
  if (layer == 0) {
    copy_blocks();
    for (const auto& row : plan_->rows) verify(row);
  }
  for (const auto& row : plan_->rows) write(row, layer);
  callbacks_.on_layer(plan_->step, layer);
}

// What a row finds in the pool, computed here before, shared or handed over, is that of its tokens, word by word. A token sampled from
// anything else would tell too, but only if a client gets to see it.
void Device::verify(const engine::StepRow& row) {
  const std::int32_t known = std::exchange(verified_[row.seq.value], row.end);
  if (row.begin == 0 || row.begin == known) return;
  for (int l = 0; l < spec_.layers; ++l) {
    for (int h = 0; h < spec_.kv_heads; ++h) {
      for (int kind : {0, 1}) {
        std::uint64_t expected = first_word(l, h, kind);
        for (std::int32_t t = 0; t < row.begin; ++t) {
          expected = next_word(expected, (*row.ids)[static_cast<std::size_t>(t)]);
          for (int copy = 0; copy < memory_->copies(h); ++copy) {
            if (word(copy, row, l, h, kind, t) != expected) return audit_.computes_on_wrong_kv(row, l, t);
          }
        }
      }
    }
  }
}

void Device::write(const engine::StepRow& row, int layer) {
  for (int h = 0; h < spec_.kv_heads; ++h) {
    for (int copy = 0; copy < memory_->copies(h); ++copy) {
      for (int kind : {0, 1}) {
        std::uint64_t before = row.begin > 0 ? word(copy, row, layer, h, kind, row.begin - 1) : first_word(layer, h, kind);
        for (std::int32_t t = row.begin; t < row.end; ++t) {
          before = word(copy, row, layer, h, kind, t) = next_word(before, (*row.ids)[static_cast<std::size_t>(t)]);
        }
      }
    }
  }
}

engine::StepResult::Row Device::sample(const engine::StepRow& row) const {
  engine::StepResult::Row out;
  out.seq = row.seq;
  if (row.sample) {
    Context context;
    const std::span<const TokenId> ids(row.ids->data(), static_cast<std::size_t>(row.end));
    int slot = 0;
    for (int l = 0; l < spec_.layers; ++l) {
      for (int h = 0; h < spec_.kv_heads; ++h) {
        const int copy = memory_->copies(h) - 1;  // the one that a hand-off writes last
        for (int kind : {0, 1}) {
          for (std::int32_t t = 0; t < row.end; ++t) context.add(t, slot, word(copy, row, l, h, kind, t));
          ++slot;
        }
      }
    }
    for (int i = 0; i < row.sample->choices; ++i) {
      out.sampled.push_back(context.sample(*row.sample->params, row.sample->seed, row.sample->n_prompt, ids, row.sample->first_choice + i));
    }
  }
  if (row.prompt_logprobs >= 0) {
    for (std::int32_t t = row.begin + 1; t <= row.end && t < static_cast<std::int32_t>(row.ids->size()); ++t) {
      const TokenId token = (*row.ids)[static_cast<std::size_t>(t)];
      out.prompt.push_back({.token = token, .logprob = prompt_logprob(t, token), .top = {}});
    }
  }
  return out;
}

void Device::finish() {
  timers_.clear();
  audit_.step_ends();
  result_.step = plan_->step;
  result_.rows.clear();
  std::uint64_t tokens = 0;
  for (const auto& row : plan_->rows) {
    result_.rows.push_back(sample(row));
    for (const auto& s : result_.rows.back().sampled) tokens = mix(tokens, static_cast<std::uint64_t>(s.token));
  }
  trace_(host_.real_now(), host_.name(), "sampled", result_.step, tokens);
  callbacks_.on_result(result_);
}

}  // namespace baton::sim
