#pragma once
// Who touches which KV block of one worker's pool, seen from below: from the steps and copies that read and write memory. It knows nothing
// of leases, epochs or sequences, and believes nobody's books.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "engine/step.h"
#include "kv/block_pool.h"
#include "sim/event_queue.h"
#include "sim/pool.h"
#include "transfer/fabric.h"
#include "wire/prefix_hash.h"

namespace baton::sim {

// Everything that must never be. A run ends at the first.
class Failures {
 public:
  // `invariant`: its number in README.md's table.
  void add(TimePoint now, std::string_view invariant, const std::string& what);
  const std::vector<std::string>& messages() const { return messages_; }
  bool any() const { return !messages_.empty(); }

 private:
  static constexpr std::size_t kMax = 20;
  std::vector<std::string> messages_;
};

// What the KV of every block that anybody may publish must be: by its hash, the sum of its words.
class KnownBlocks {
 public:
  // A sequence of a request: prompt and output, and the row sums of its tokens.
  void add(std::span<const TokenId> ids, const std::vector<std::uint64_t>& rows, int block_tokens, std::string_view salt);
  const std::uint64_t* find(const wire::BlockHash& hash) const;

 private:
  std::unordered_map<wire::BlockHash, std::uint64_t> blocks_;
};

class PoolAudit {
 public:
  PoolAudit(const EventQueue& queue, std::string worker, Memory memory, const KnownBlocks& known, Failures& failures);
  void watch(const kv::BlockPool& pool) { pool_ = &pool; }

  // --- from the device
  void step_begins(const engine::StepPlan& plan);
  void step_ends();
  void computes_on_wrong_kv(const engine::StepRow& row, int layer, std::int32_t token);
  // --- from the fabric: a fetch writes its runs' targets, a digest reads them
  void job_begins(transfer::Fabric::JobId job, const transfer::CopyPlan& plan, bool writes);
  void job_ends(transfer::Fabric::JobId job);
  // A peer has read these runs' sources here, of an attempt that is under way.
  void read_by_peer(const std::vector<transfer::ByteRun>& runs);

  // After every event of the process, O(blocks in use): what is read or written is held, and what a fetch writes is nobody else's.
  void check();
  // Now and then, O(blocks): what is published is what its name says.
  void check_published();

 private:
  struct Use {
    int readers = 0, writers = 0;  // rows and copies of the running step
    int fetches = 0, digests = 0;
  };
  struct Job {
    std::vector<std::int32_t> blocks;
    std::vector<transfer::ByteRun> runs;
    bool writes = false;
  };
  Use& use(BlockId block) { return uses_[static_cast<std::size_t>(block.value)]; }
  void reads(BlockId block);
  void writes(BlockId block, std::uint64_t seq);
  std::uint64_t sum_of(BlockId block, int copy) const;
  void fail(std::string_view invariant, const std::string& what);

  const EventQueue& queue_;
  const std::string worker_;
  const Memory memory_;
  const KnownBlocks& known_;
  Failures& failures_;
  const kv::BlockPool* pool_ = nullptr;
  std::vector<Use> uses_;              // by block
  std::vector<wire::BlockHash> seen_;  // by block: the name under which its contents were last looked at
  std::vector<BlockId> step_;          // blocks of the running step
  std::map<transfer::Fabric::JobId, Job> jobs_;
};

}  // namespace baton::sim
