#include "wire/prefix_hash.h"

#include <gtest/gtest.h>

#include <numeric>

namespace baton::wire {
namespace {

std::vector<TokenId> counting(int from, int count) {
  std::vector<TokenId> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), from);
  return ids;
}

// Made with PyPI's xxhash: xxh3_128(pack('<QQ', low, high) + pack('<32i', *ids)), from xxh3_128(salt) on, over ids 100..231 in blocks
// of 32.
TEST(PrefixHash, KnownAnswers) {
  const std::vector<TokenId> ids = counting(100, 132);
  EXPECT_EQ(prefix_root(""), (BlockHash{0x99aa06d3014798d8, 0x6001c324468d497f}));
  EXPECT_EQ(prefix_chain(ids, 32, ""), (std::vector<BlockHash>{{0x9d82990d3671eaab, 0xab6c63cd93eeb8ea},
                                                               {0x1804cc4f6117d57a, 0x78b5eaf5f2b18e18},
                                                               {0x13da39bc8c491168, 0xf824711e2a9babf9},
                                                               {0x6233d54916e21fbd, 0xc22b9c8b21c8a283}}));
  EXPECT_EQ(prefix_root("tenant"), (BlockHash{0x69401cc3ff6ed500, 0x15bc5af50bdf1263}));
  EXPECT_EQ(prefix_chain(ids, 32, "tenant"), (std::vector<BlockHash>{{0x2a87cde07b3e7033, 0xd68e9124ed76603b},
                                                                     {0xf4d941d460ef1047, 0x567802a1c5fca88c},
                                                                     {0xb702ad4d57574c06, 0x297f5e89e24474d3},
                                                                     {0x7190f51cb7768258, 0xc86d93e23accc59b}}));
}

TEST(PrefixHash, OnlyFullBlocksHaveOne) {
  EXPECT_TRUE(prefix_chain(counting(0, 15), 16, "").empty());
  EXPECT_EQ(prefix_chain(counting(0, 16), 16, "").size(), 1u);
  EXPECT_EQ(prefix_chain(counting(0, 47), 16, "").size(), 2u);
}

TEST(PrefixHash, AChangedTokenChangesItsBlockAndAllAfterIt) {
  std::vector<TokenId> ids = counting(5, 64);
  const auto before = prefix_chain(ids, 16, "s");
  ids[20] += 1;
  const auto after = prefix_chain(ids, 16, "s");
  EXPECT_EQ(before[0], after[0]);
  for (int i = 1; i < 4; ++i) EXPECT_NE(before[static_cast<std::size_t>(i)], after[static_cast<std::size_t>(i)]);
}

TEST(PrefixHash, ExtendContinuesAChain) {
  const std::vector<TokenId> ids = counting(9, 32);
  const auto chain = prefix_chain(ids, 16, "");
  EXPECT_EQ(prefix_extend(chain[0], std::span(ids).subspan(16)), chain[1]);
}

}  // namespace
}  // namespace baton::wire
