#include "engine/device_step.h"

#include <algorithm>
#include <array>
#include <string>

namespace baton::engine {
namespace {

// Before a step's words: the widths of block tables, then how many words each array has.
constexpr std::size_t kArrays = 8;
constexpr std::size_t kHeadWords = 1 + kArrays;

bool within(std::span<const std::int32_t> values, std::int64_t limit) {
  return std::ranges::all_of(values, [limit](std::int32_t v) { return v >= 0 && v < limit; });
}

}  // namespace

std::size_t DeviceStepLimits::words() const {
  const auto of_seqs = static_cast<std::size_t>(seqs) * (4 + static_cast<std::size_t>(blocks_per_seq())) + 1;  // copies: two words each
  return kHeadWords + 3 * static_cast<std::size_t>(tokens) + of_seqs + static_cast<std::size_t>(logit_rows);
}

DeviceStep::DeviceStep(const DeviceStepLimits& limits) : limits_(limits) {
  const auto tokens = static_cast<std::size_t>(limits.tokens), seqs = static_cast<std::size_t>(limits.seqs);
  token_ids_.reserve(tokens);
  positions_.reserve(tokens);
  slots_.reserve(tokens);
  q_start_.reserve(seqs + 1);
  kv_len_.reserve(seqs);
  block_tables_.reserve(seqs * static_cast<std::size_t>(std::min<std::int64_t>(limits.blocks_per_seq(), limits.blocks)));
  logit_rows_.reserve(static_cast<std::size_t>(limits.logit_rows));
  first_logit_.reserve(seqs);
  copies_.reserve(seqs);
}

void DeviceStep::clear() {
  for (auto* array : {&token_ids_, &positions_, &slots_, &q_start_, &kv_len_, &block_tables_, &logit_rows_, &first_logit_}) array->clear();
  copies_.clear();
}

void DeviceStep::fill(const StepPlan& part) {
  clear();
  for (const auto& copy : part.copies) copies_.push_back({.from = copy.from, .to = copy.to});
  std::int32_t max_blocks = 0;
  for (const StepRow& row : part.rows) {
    max_blocks = std::max(max_blocks, (row.end + limits_.block_tokens - 1) / limits_.block_tokens);
    fill_row(row);
  }
  q_start_.push_back(static_cast<std::int32_t>(token_ids_.size()));
  block_tables_.assign(part.rows.size() * static_cast<std::size_t>(max_blocks), 0);
  for (std::size_t r = 0; r < part.rows.size(); ++r) {
    const std::vector<BlockId>& blocks = *part.rows[r].blocks;
    const auto used = std::min(static_cast<std::size_t>(max_blocks), blocks.size());
    for (std::size_t b = 0; b < used; ++b) block_tables_[r * static_cast<std::size_t>(max_blocks) + b] = blocks[b].value;
  }
  meta_.max_blocks = max_blocks;
  point();
}

void DeviceStep::fill_row(const StepRow& row) {
  const int size = limits_.block_tokens;
  const auto first_token = static_cast<std::int32_t>(token_ids_.size());
  q_start_.push_back(first_token);
  kv_len_.push_back(row.end);
  for (std::int32_t t = row.begin; t < row.end; ++t) {
    token_ids_.push_back((*row.ids)[static_cast<std::size_t>(t)]);
    positions_.push_back(t);
    slots_.push_back((*row.blocks)[static_cast<std::size_t>(t / size)].value * size + t % size);
  }
  first_logit_.push_back(static_cast<std::int32_t>(logit_rows_.size()));
  const auto end_token = static_cast<std::int32_t>(token_ids_.size());
  if (row.prompt_logprobs >= 0) {
    for (std::int32_t t = first_token; t < end_token; ++t) logit_rows_.push_back(t);
  } else if (row.sample) {
    logit_rows_.push_back(end_token - 1);
  }
}

void DeviceStep::point() {
  meta_.token_ids = token_ids_;
  meta_.positions = positions_;
  meta_.slots = slots_;
  meta_.q_start = q_start_;
  meta_.kv_len = kv_len_;
  meta_.block_tables = block_tables_;
  meta_.logit_rows = logit_rows_;
}

void DeviceStep::write(std::vector<std::int32_t>& words) const {
  const std::array arrays = {&token_ids_, &positions_, &slots_, &q_start_, &kv_len_, &block_tables_, &logit_rows_};
  words.push_back(meta_.max_blocks);
  for (const auto* array : arrays) words.push_back(static_cast<std::int32_t>(array->size()));
  words.push_back(static_cast<std::int32_t>(2 * copies_.size()));
  for (const auto* array : arrays) words.insert(words.end(), array->begin(), array->end());
  for (const auto& copy : copies_) words.insert(words.end(), {copy.from.value, copy.to.value});
}

Status DeviceStep::read(std::span<const std::int32_t> words) {
  clear();
  const Status bad(Code::kDataLoss, "node 0 sent " + std::to_string(words.size()) + " words that are no step");
  if (words.size() < kHeadWords || words.size() > limits_.words()) return bad;
  const std::span<const std::int32_t> sizes = words.subspan(1, kArrays);
  std::int64_t total = kHeadWords;
  for (const std::int32_t size : sizes) {
    if (size < 0) return bad;
    total += size;
  }
  if (total != std::ssize(words) || sizes[kArrays - 1] % 2 != 0) return bad;
  meta_.max_blocks = words[0];
  words = words.subspan(kHeadWords);
  std::size_t next = 0;
  for (auto* array : {&token_ids_, &positions_, &slots_, &q_start_, &kv_len_, &block_tables_, &logit_rows_}) {
    const auto size = static_cast<std::size_t>(sizes[next++]);
    array->assign(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(size));
    words = words.subspan(size);
  }
  for (; !words.empty(); words = words.subspan(2)) copies_.push_back({.from = BlockId(words[0]), .to = BlockId(words[1])});
  point();
  return check().ok() ? Status() : bad;
}

// Whether everything that ops index with lies where it may.
Status DeviceStep::check() const {
  const Status bad(Code::kDataLoss, "out of range");
  const std::size_t tokens = token_ids_.size(), seqs = kv_len_.size();
  if (tokens == 0 || std::cmp_greater(tokens, limits_.tokens) || positions_.size() != tokens || slots_.size() != tokens) return bad;
  if (std::cmp_greater(seqs, limits_.seqs) || q_start_.size() != seqs + 1 || meta_.max_blocks < 0) return bad;
  if (block_tables_.size() != seqs * static_cast<std::size_t>(meta_.max_blocks)) return bad;
  if (std::cmp_greater(logit_rows_.size(), limits_.logit_rows) || !within(logit_rows_, static_cast<std::int64_t>(tokens))) return bad;
  if (q_start_.front() != 0 || std::cmp_not_equal(q_start_.back(), tokens) || !std::ranges::is_sorted(q_start_)) return bad;
  for (std::size_t s = 0; s < seqs; ++s)
    if (kv_len_[s] < q_start_[s + 1] - q_start_[s]) return bad;
  const std::int64_t reach = std::int64_t{meta_.max_blocks} * limits_.block_tokens;
  if (!within(positions_, limits_.positions) || !within(kv_len_, std::min(limits_.positions, reach) + 1)) return bad;
  if (!within(slots_, std::int64_t{limits_.blocks} * limits_.block_tokens) || !within(block_tables_, limits_.blocks)) return bad;
  const auto inside = [&](BlockId b) { return b.value >= 0 && b.value < limits_.blocks; };
  if (!std::ranges::all_of(copies_, [&](const auto& c) { return inside(c.from) && inside(c.to); })) return bad;
  return {};
}

}  // namespace baton::engine
