#include "kv/block_pool.h"

#include <gtest/gtest.h>

#include <list>
#include <map>
#include <optional>
#include <set>

#include "base/rng.h"

namespace baton::kv {
namespace {

wire::BlockHash hash(std::uint64_t n) {
  return wire::prefix_extend(wire::prefix_root("test"), std::vector<TokenId>{static_cast<TokenId>(n)});
}

TEST(BlockPool, AllocatesAllOrNothing) {
  BlockPool pool(4);
  std::vector<BlockId> blocks;
  EXPECT_FALSE(pool.allocate(5, blocks));
  EXPECT_TRUE(blocks.empty());
  EXPECT_TRUE(pool.allocate(3, blocks));
  EXPECT_FALSE(pool.allocate(2, blocks));
  EXPECT_EQ(blocks.size(), 3u);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_EQ(pool.held(), 3);
  EXPECT_TRUE(pool.check().ok());
}

TEST(BlockPool, UnpublishedBlocksBecomeFreeAndPublishedOnesCached) {
  BlockPool pool(2);
  std::vector<BlockId> blocks;
  ASSERT_TRUE(pool.allocate(2, blocks));
  EXPECT_TRUE(pool.publish(blocks[0], hash(1)));
  pool.release(blocks);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_EQ(pool.cached(), 1);
  EXPECT_TRUE(pool.check().ok());
}

TEST(BlockPool, MatchPinsTheLongestPrefix) {
  BlockPool pool(8);
  std::vector<BlockId> blocks;
  ASSERT_TRUE(pool.allocate(3, blocks));
  for (std::uint64_t i = 0; i < 3; ++i) pool.publish(blocks[i], hash(i));
  pool.release(blocks);
  const std::vector<wire::BlockHash> chain = {hash(0), hash(1), hash(7), hash(2)};
  std::int32_t unheld = 0;
  EXPECT_EQ(pool.find(chain, &unheld), 2);
  EXPECT_EQ(unheld, 2);
  std::vector<BlockId> pinned;
  EXPECT_EQ(pool.match(chain, pinned), 2);
  EXPECT_EQ(pinned, (std::vector<BlockId>{blocks[0], blocks[1]}));
  EXPECT_EQ(pool.find(chain, &unheld), 2);
  EXPECT_EQ(unheld, 0);
  // Pinned blocks survive any demand.
  std::vector<BlockId> rest;
  EXPECT_FALSE(pool.allocate(7, rest));
  EXPECT_TRUE(pool.allocate(6, rest));
  EXPECT_EQ(pool.find(chain), 2);
  EXPECT_TRUE(pool.check().ok());
}

TEST(BlockPool, EvictsTheTailOfTheLeastRecentlyReleasedPrefix) {
  BlockPool pool(4);
  std::vector<BlockId> old_prefix, new_prefix, taken;
  ASSERT_TRUE(pool.allocate(2, old_prefix));
  ASSERT_TRUE(pool.allocate(2, new_prefix));
  for (std::uint64_t i = 0; i < 2; ++i) {
    pool.publish(old_prefix[i], hash(i));
    pool.publish(new_prefix[i], hash(10 + i));
  }
  pool.release(old_prefix);
  pool.release(new_prefix);
  ASSERT_TRUE(pool.allocate(1, taken));
  EXPECT_EQ(pool.find(std::vector{hash(0), hash(1)}), 1);
  EXPECT_EQ(pool.find(std::vector{hash(10), hash(11)}), 2);
  ASSERT_TRUE(pool.allocate(2, taken));
  EXPECT_EQ(pool.find(std::vector{hash(0), hash(1)}), 0);
  EXPECT_EQ(pool.find(std::vector{hash(10), hash(11)}), 1);
  EXPECT_TRUE(pool.check().ok());
}

TEST(BlockPool, TheFirstBlockWithAHashKeepsIt) {
  BlockPool pool(2);
  std::vector<BlockId> blocks;
  ASSERT_TRUE(pool.allocate(2, blocks));
  EXPECT_TRUE(pool.publish(blocks[0], hash(1)));
  EXPECT_FALSE(pool.publish(blocks[1], hash(1)));
  EXPECT_FALSE(pool.publish(blocks[0], hash(2)));
  pool.release(blocks);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_EQ(pool.cached(), 1);
  EXPECT_TRUE(pool.check().ok());
}

// The pool against a model written in the plainest way: sets and a list.
struct Model {
  explicit Model(int total) {
    for (int i = 0; i < total; ++i) free.insert(i);
  }
  std::set<int> free;
  std::map<int, int> references;      // held
  std::list<int> lru;                 // cached, oldest first
  std::map<int, std::uint64_t> name;  // published
  std::optional<int> find(std::uint64_t n) const {
    for (const auto& [block, other] : name) {
      if (other == n) return block;
    }
    return std::nullopt;
  }
};

TEST(BlockPool, AgreesWithAModelUnderRandomOperations) {
  constexpr int kTotal = 13;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    BlockPool pool(kTotal);
    Model model(kTotal);
    std::vector<int> owned;  // one entry a reference
    for (int step = 0; step < 1500; ++step) {
      switch (rng.below(6)) {
        case 0: {  // allocate
          const int count = static_cast<int>(rng.below(5));
          const bool fits = count <= static_cast<int>(model.free.size() + model.lru.size());
          std::vector<BlockId> out;
          ASSERT_EQ(pool.allocate(count, out), fits);
          if (!fits) break;
          ASSERT_EQ(out.size(), static_cast<std::size_t>(count));
          for (const BlockId b : out) {
            if (!model.free.empty()) {
              ASSERT_EQ(model.free.erase(b.value), 1u) << "not a free block, though there are some";
            } else {
              ASSERT_EQ(model.lru.front(), b.value) << "not the least recently released";
              model.lru.pop_front();
              model.name.erase(b.value);
            }
            model.references[b.value] = 1;
            owned.push_back(b.value);
          }
          break;
        }
        case 1: {  // share
          if (owned.empty()) break;
          const int block = owned[rng.below(owned.size())];
          pool.share(BlockId(block));
          ++model.references[block];
          owned.push_back(block);
          break;
        }
        case 2:
        case 3: {  // release
          if (owned.empty()) break;
          const std::size_t at = rng.below(owned.size());
          const int block = owned[at];
          owned.erase(owned.begin() + static_cast<std::ptrdiff_t>(at));
          pool.release(BlockId(block));
          if (--model.references[block] > 0) break;
          model.references.erase(block);
          if (model.name.contains(block)) {
            model.lru.push_back(block);
          } else {
            model.free.insert(block);
          }
          break;
        }
        case 4: {  // publish
          if (owned.empty()) break;
          const int block = owned[rng.below(owned.size())];
          const std::uint64_t n = rng.below(20);
          const bool fresh = !model.name.contains(block) && !model.find(n);
          ASSERT_EQ(pool.publish(BlockId(block), hash(n)), fresh);
          if (fresh) model.name[block] = n;
          break;
        }
        case 5: {  // match
          std::vector<std::uint64_t> names(rng.below(4));
          std::vector<wire::BlockHash> chain;
          for (auto& n : names) chain.push_back(hash(n = rng.below(20)));
          std::vector<BlockId> expected, out;
          for (const std::uint64_t n : names) {
            const auto block = model.find(n);
            if (!block) break;
            expected.push_back(BlockId(*block));
          }
          ASSERT_EQ(pool.find(chain), static_cast<std::int32_t>(expected.size()));
          ASSERT_EQ(pool.match(chain, out), static_cast<std::int32_t>(expected.size()));
          ASSERT_EQ(out, expected);
          for (const BlockId b : out) {
            if (++model.references[b.value] == 1) model.lru.remove(b.value);
            owned.push_back(b.value);
          }
          break;
        }
      }
      const Status status = pool.check();
      ASSERT_TRUE(status.ok()) << status.to_string() << " at step " << step;
      ASSERT_EQ(pool.free(), static_cast<std::int32_t>(model.free.size()));
      ASSERT_EQ(pool.cached(), static_cast<std::int32_t>(model.lru.size()));
      ASSERT_EQ(pool.held(), static_cast<std::int32_t>(model.references.size()));
      for (const auto& [block, references] : model.references) ASSERT_EQ(pool.references(BlockId(block)), references);
    }
  }
}

}  // namespace
}  // namespace baton::kv
