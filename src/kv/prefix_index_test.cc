#include "kv/prefix_index.h"

#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"

namespace baton::kv {
namespace {

// Hashes are drawn from few homes, so that runs collide, wrap around and are closed up.
TEST(PrefixIndex, AgreesWithAMap) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    PrefixIndex index(20);
    std::map<wire::BlockHash, std::int32_t> model;
    for (int i = 0; i < 2000; ++i) {
      const wire::BlockHash hash{.high = rng.below(6), .low = 58 + rng.below(9)};
      if (model.contains(hash) && rng.below(2) == 0) {
        index.erase(hash);
        model.erase(hash);
      } else if (!model.contains(hash) && model.size() < 20) {
        index.insert(hash, i);
        model[hash] = i;
      }
      ASSERT_EQ(index.size(), static_cast<std::int32_t>(model.size()));
      for (std::uint64_t high = 0; high < 6; ++high) {
        for (std::uint64_t low = 58; low < 67; ++low) {
          const auto it = model.find({high, low});
          ASSERT_EQ(index.find({high, low}), it == model.end() ? -1 : it->second);
        }
      }
    }
  }
}

}  // namespace
}  // namespace baton::kv
