#include "sim/audit.h"

#include <algorithm>

namespace baton::sim {

void Failures::add(TimePoint now, std::string_view invariant, const std::string& what) {
  if (messages_.size() >= kMax) return;
  messages_.push_back(std::string(invariant) + " at " + std::to_string(now.time_since_epoch().count()) + " us: " + what);
}

void KnownBlocks::add(std::span<const TokenId> ids, const std::vector<std::uint64_t>& rows, int block_tokens, std::string_view salt) {
  const auto size = static_cast<std::size_t>(block_tokens);
  wire::BlockHash hash = wire::prefix_root(salt);
  for (std::size_t begin = 0; begin + size <= ids.size(); begin += size) {
    hash = wire::prefix_extend(hash, ids.subspan(begin, size));
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < size; ++i) sum += rows[begin + i] * (2 * i + 1);
    blocks_.emplace(hash, sum);
  }
}

const std::uint64_t* KnownBlocks::find(const wire::BlockHash& hash) const {
  const auto found = blocks_.find(hash);
  return found == blocks_.end() ? nullptr : &found->second;
}

PoolAudit::PoolAudit(const EventQueue& queue, std::string worker, Memory memory, const KnownBlocks& known, Failures& failures)
    : queue_(queue),
      worker_(std::move(worker)),
      memory_(std::move(memory)),
      known_(known),
      failures_(failures),
      uses_(static_cast<std::size_t>(memory_->spec().blocks)),
      seen_(static_cast<std::size_t>(memory_->spec().blocks)) {}

void PoolAudit::fail(std::string_view invariant, const std::string& what) { failures_.add(queue_.now(), invariant, worker_ + ": " + what); }

// ---------------------------------------------------------------------------------------------------------------- steps

void PoolAudit::reads(BlockId block) {
  ++use(block).readers;
  step_.push_back(block);
}

void PoolAudit::writes(BlockId block, std::uint64_t seq) {
  Use& u = use(block);
  const std::string what = "a step writes block " + std::to_string(block.value) + " of sequence " + std::to_string(seq);
  if (++u.writers > 1) fail("I1", what + ", which another sequence of the step writes");
  if (u.readers > 1) fail("I1", what + ", which another sequence of the step reads");
  if (u.fetches > 0) fail("I1", what + ", into which KV is being fetched");
  if (pool_->published(block)) fail("I1", what + ", which is published");
}

void PoolAudit::step_begins(const engine::StepPlan& plan) {
  const std::int32_t size = memory_->spec().block_tokens;
  for (const auto& row : plan.rows) {
    const auto used = static_cast<std::size_t>((row.end + size - 1) / size);
    if (row.blocks->size() < used) {
      fail("I1", "a step's sequence " + std::to_string(row.seq.value) + " has fewer blocks than it writes");
      continue;
    }
    for (std::size_t i = 0; i < used; ++i) reads((*row.blocks)[i]);
  }
  for (const auto& row : plan.rows) {
    for (std::int32_t i = row.begin / size; i * size < row.end && static_cast<std::size_t>(i) < row.blocks->size(); ++i)
      writes((*row.blocks)[static_cast<std::size_t>(i)], row.seq.value);
  }
  // A copy's source may be written by its own sequence, behind what is copied.
  for (const auto& copy : plan.copies) reads(copy.from);
  check();
}

void PoolAudit::step_ends() {
  check();
  for (const BlockId block : step_) use(block).readers = use(block).writers = 0;
  step_.clear();
}

void PoolAudit::computes_on_wrong_kv(const engine::StepRow& row, int layer, std::int32_t token) {
  fail("I6", "sequence " + std::to_string(row.seq.value) + " computes tokens from " + std::to_string(row.begin) +
                 " on, but the KV of layer " + std::to_string(layer) + ", token " + std::to_string(token) + " is not that of its ids");
}

// ---------------------------------------------------------------------------------------------------------------- jobs

void PoolAudit::job_begins(transfer::Fabric::JobId id, const transfer::CopyPlan& plan, bool writes) {
  Job job{{}, {}, writes};
  std::vector<transfer::ByteRun> runs = plan.runs;
  runs.insert(runs.end(), plan.replicas.begin(), plan.replicas.end());
  for (const auto& run : runs) {
    const std::int32_t first = memory_->block_at(run.target_part, run.target).value;
    const std::int32_t last = memory_->block_at(run.target_part, run.target + run.bytes - 1).value;
    for (std::int32_t b = first; b <= last; ++b) job.blocks.push_back(b);
  }
  std::sort(job.blocks.begin(), job.blocks.end());
  job.blocks.erase(std::unique(job.blocks.begin(), job.blocks.end()), job.blocks.end());
  const auto overlaps = [](const transfer::ByteRun& a, const transfer::ByteRun& b) {
    return a.target_part == b.target_part && a.target < b.target + b.bytes && b.target < a.target + a.bytes;
  };
  for (const std::int32_t b : job.blocks) {
    Use& u = use(BlockId(b));
    const std::string what = "a fetch into block " + std::to_string(b) + " begins";
    if (writes && u.readers + u.writers > 0) fail("I1", what + ", which a running step uses");
    if (writes && u.fetches > 0) {
      for (const auto& [other, o] : jobs_) {
        if (!o.writes || !std::binary_search(o.blocks.begin(), o.blocks.end(), b)) continue;
        for (const auto& run : runs) {
          if (std::any_of(o.runs.begin(), o.runs.end(), [&](const auto& r) { return overlaps(run, r); }))
            return fail("I1", what + ", whose same bytes another fetch writes");
        }
      }
    }
    ++(writes ? u.fetches : u.digests);
  }
  if (writes) job.runs = std::move(runs);
  jobs_.emplace(id, std::move(job));
}

void PoolAudit::job_ends(transfer::Fabric::JobId id) {
  const auto node = jobs_.extract(id);
  if (node.empty()) return;
  for (const std::int32_t b : node.mapped().blocks) --(node.mapped().writes ? use(BlockId(b)).fetches : use(BlockId(b)).digests);
}

void PoolAudit::read_by_peer(const std::vector<transfer::ByteRun>& runs) {
  for (const auto& run : runs) {
    const BlockId block = memory_->block_at(run.source_part, run.source);
    if (pool_->references(block) < 1)
      return fail("I2", "block " + std::to_string(block.value) + " is free or only cached while a peer fetches it");
  }
}

// ---------------------------------------------------------------------------------------------------------------- checks

void PoolAudit::check() {
  if (failures_.any()) return;
  for (const BlockId block : step_) {
    if (pool_->references(block) < 1)
      return fail("I2", "block " + std::to_string(block.value) + " is free or only cached while a step uses it");
  }
  for (const auto& [id, job] : jobs_) {
    for (const std::int32_t b : job.blocks) {
      const std::int32_t references = pool_->references(BlockId(b));
      const std::string_view by = job.writes ? "a fetch writes it" : "a digest reads it";
      if (references < 1) return fail("I2", "block " + std::to_string(b) + " is free or only cached while " + std::string(by));
      if (!job.writes) continue;
      if (references > 1) return fail("I1", "block " + std::to_string(b) + " has several owners while a fetch writes it");
      if (pool_->published(BlockId(b))) return fail("I5", "block " + std::to_string(b) + " is published while a fetch writes it");
    }
  }
}

void PoolAudit::check_published() {
  const auto& spec = memory_->spec();
  for (std::int32_t b = 0; b < spec.blocks; ++b) {
    const BlockId block(b);
    const wire::BlockHash* name = pool_->name(block);
    if (name == nullptr || seen_[static_cast<std::size_t>(b)] == *name) continue;
    seen_[static_cast<std::size_t>(b)] = *name;
    const std::uint64_t* expected = known_.find(*name);
    if (expected == nullptr) fail("I5", "block " + std::to_string(b) + " is published under a name that no request's tokens have");
    for (int copy = 0; expected != nullptr && copy < memory_->copies_max(); ++copy) {
      if (sum_of(block, copy) != *expected) fail("I5", "block " + std::to_string(b) + " is published, but its KV is not that of its name");
    }
  }
}

// Of a block's words, each from the given copy of its head, or the last one.
std::uint64_t PoolAudit::sum_of(BlockId block, int copy) const {
  const auto& spec = memory_->spec();
  std::uint64_t sum = 0;
  int slot = 0;
  for (int l = 0; l < spec.layers; ++l) {
    for (int h = 0; h < spec.kv_heads; ++h) {
      for (auto kind : {device::KvKind::kKey, device::KvKind::kValue}) {
        const std::uint64_t* row = &memory_->word(std::min(copy, memory_->copies(h) - 1), l, block, h, kind, 0);  // one word a token
        for (int t = 0; t < spec.block_tokens; ++t) sum += row_term(slot, row[t]) * (2 * static_cast<std::uint64_t>(t) + 1);
        ++slot;
      }
    }
  }
  return sum;
}

}  // namespace baton::sim
