// The audit sees what it must see: each violation planted, without a cluster.

#include "sim/audit.h"

#include <gtest/gtest.h>

namespace baton::sim {
namespace {

class AuditTest : public ::testing::Test {
 protected:
  AuditTest() {
    audit_.watch(pool_);
    EXPECT_TRUE(pool_.allocate(4, blocks_));
  }
  // Tokens [begin, end) of a sequence with these blocks.
  engine::StepRow row(std::uint64_t seq, std::int32_t begin, std::int32_t end, const std::vector<BlockId>& blocks) {
    engine::StepRow r;
    r.seq = SeqId(seq);
    r.begin = begin;
    r.end = end;
    r.ids = &ids_;
    r.blocks = &blocks;
    return r;
  }
  void step(std::vector<engine::StepRow> rows) {
    plan_.rows = std::move(rows);
    audit_.step_begins(plan_);
  }
  transfer::CopyPlan whole(BlockId block, int layer) const {
    const device::KvView& view = memory_->parts()[0].view;
    transfer::CopyPlan plan;
    plan.runs = {{0, view.offset(layer, block, 0, device::KvKind::kKey, 0), view.block_stride}};
    return plan;
  }
  std::string failed() const { return failures_.any() ? failures_.messages()[0].substr(0, 2) : ""; }

  static constexpr int kBlockTokens = 8;
  const ModelShape shape_{2, 1};
  const Memory memory_ = std::make_shared<Pool>(shape_, kBlockTokens, 8, 2);  // two ranks, one head: a copy each
  EventQueue queue_;
  Failures failures_;
  KnownBlocks known_;
  kv::BlockPool pool_{8};
  PoolAudit audit_{queue_, "w0", memory_, known_, failures_};
  std::vector<BlockId> blocks_;
  std::vector<TokenId> ids_ = std::vector<TokenId>(64, 7);
  engine::StepPlan plan_;
};

TEST_F(AuditTest, WhatIsAllowedPasses) {
  const std::vector<BlockId> a = {blocks_[0], blocks_[1]}, b = {blocks_[0], blocks_[2]};  // a shared first block
  pool_.share(blocks_[0]);
  step({row(1, 8, 16, a), row(2, 9, 10, b)});
  audit_.job_begins(1, whole(blocks_[3], 0), true);
  audit_.job_begins(2, whole(blocks_[3], 1), true);  // another layer of the same block
  audit_.job_begins(3, whole(blocks_[1], 0), false);
  audit_.check();
  audit_.step_ends();
  audit_.job_ends(1);
  audit_.job_begins(4, whole(blocks_[3], 0), true);  // again, once the first is over
  audit_.check();
  for (int job : {2, 3, 4}) audit_.job_ends(static_cast<std::uint64_t>(job));
  pool_.release(blocks_[3]);
  audit_.check();
  EXPECT_EQ(failed(), "") << failures_.messages()[0];
}

TEST_F(AuditTest, I1TwoSequencesOfAStepWriteOneBlock) {
  const std::vector<BlockId> a = {blocks_[0]}, b = {blocks_[0]};
  step({row(1, 0, 4, a), row(2, 4, 5, b)});
  EXPECT_EQ(failed(), "I1");
}
TEST_F(AuditTest, I1AStepWritesWhatAnotherSequenceReads) {
  const std::vector<BlockId> a = {blocks_[0]}, b = {blocks_[0], blocks_[1]};
  step({row(1, 4, 5, a), row(2, 8, 9, b)});
  EXPECT_EQ(failed(), "I1");
}
TEST_F(AuditTest, I1AStepWritesWhatIsPublished) {
  EXPECT_TRUE(pool_.publish(blocks_[0], {1, 2}));
  const std::vector<BlockId> a = {blocks_[0]};
  step({row(1, 7, 8, a)});
  EXPECT_EQ(failed(), "I1");
}
TEST_F(AuditTest, I1AStepWritesWhereAFetchDoes) {
  audit_.job_begins(1, whole(blocks_[0], 1), true);
  const std::vector<BlockId> a = {blocks_[0]};
  step({row(1, 0, 1, a)});
  EXPECT_EQ(failed(), "I1");
}
TEST_F(AuditTest, I1AFetchIntoWhatAStepUses) {
  const std::vector<BlockId> a = {blocks_[0], blocks_[1]};
  step({row(1, 8, 9, a)});
  audit_.job_begins(1, whole(blocks_[0], 1), true);
  EXPECT_EQ(failed(), "I1");
}
TEST_F(AuditTest, I1TwoFetchesWriteTheSameBytes) {
  audit_.job_begins(1, whole(blocks_[0], 1), true);
  audit_.job_begins(2, whole(blocks_[0], 1), true);
  EXPECT_EQ(failed(), "I1");
}
TEST_F(AuditTest, I1WhatAFetchWritesIsShared) {
  audit_.job_begins(1, whole(blocks_[0], 1), true);
  pool_.share(blocks_[0]);
  audit_.check();
  EXPECT_EQ(failed(), "I1");
}
TEST_F(AuditTest, I2ABlockIsFreedUnderAStep) {
  const std::vector<BlockId> a = {blocks_[0], blocks_[1]};
  step({row(1, 8, 9, a)});
  pool_.release(blocks_[0]);
  audit_.check();
  EXPECT_EQ(failed(), "I2");
}
TEST_F(AuditTest, I2ABlockIsFreedUnderAFetch) {
  audit_.job_begins(1, whole(blocks_[0], 0), true);
  pool_.release(blocks_[0]);
  audit_.check();
  EXPECT_EQ(failed(), "I2");
}
TEST_F(AuditTest, I2ABlockIsFreedUnderADigest) {
  audit_.job_begins(1, whole(blocks_[0], 0), false);
  pool_.release(blocks_[0]);
  audit_.check();
  EXPECT_EQ(failed(), "I2");
}
TEST_F(AuditTest, I5ABlockIsPublishedWhileItIsFetched) {
  audit_.job_begins(1, whole(blocks_[0], 0), true);
  EXPECT_TRUE(pool_.publish(blocks_[0], {1, 2}));
  audit_.check();
  EXPECT_EQ(failed(), "I5");
}

TEST_F(AuditTest, I5WhatIsPublishedIsWhatItsNameSays) {
  wire::GenerateRequest r;
  r.ids = ids_;
  r.n_prompt = 64;
  r.sampling.max_tokens = 1;
  const Expected expected = reference(shape_, r, 0, 512);
  known_.add(ids_, expected.rows, kBlockTokens, "");
  const wire::BlockHash name = wire::prefix_chain(ids_, kBlockTokens, "").front();
  for (int l = 0; l < shape_.layers; ++l) {
    for (auto kind : {device::KvKind::kKey, device::KvKind::kValue}) {
      std::uint64_t word = first_word(l, 0, static_cast<int>(kind));
      for (int t = 0; t < kBlockTokens; ++t) {
        word = next_word(word, ids_[static_cast<std::size_t>(t)]);
        for (int copy : {0, 1}) memory_->word(copy, l, blocks_[0], 0, kind, t) = word;
      }
    }
  }
  EXPECT_TRUE(pool_.publish(blocks_[0], name));
  audit_.check_published();
  EXPECT_EQ(failed(), "") << failures_.messages()[0];

  PoolAudit again(queue_, "w0", memory_, known_, failures_);
  again.watch(pool_);
  memory_->word(1, 1, blocks_[0], 0, device::KvKind::kValue, 5) ^= 4;  // of the second rank's copy
  again.check_published();
  EXPECT_EQ(failed(), "I5");
}
TEST_F(AuditTest, I5ANameThatNobodysTokensHave) {
  EXPECT_TRUE(pool_.publish(blocks_[0], {1, 2}));
  audit_.check_published();
  EXPECT_EQ(failed(), "I5");
}

}  // namespace
}  // namespace baton::sim
