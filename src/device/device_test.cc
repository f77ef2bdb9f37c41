#include "device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace baton::device {
namespace {

using testing::HasSubstr;

class Bytes final : public Buffer {
 public:
  std::size_t bytes() const override { return 4096; }
};

// The buffer's elements that a view shows, in the order of its indices.
std::vector<std::int64_t> elements_of(const Tensor& t) {
  std::vector<std::int64_t> list;
  for (std::int64_t i = 0; i < t.shape[0]; ++i)
    for (std::int64_t j = 0; j < (t.rank > 1 ? t.shape[1] : 1); ++j)
      for (std::int64_t k = 0; k < (t.rank > 2 ? t.shape[2] : 1); ++k)
        list.push_back(t.offset + i * t.stride[0] + (t.rank > 1 ? j * t.stride[1] : 0) + (t.rank > 2 ? k * t.stride[2] : 0));
  return list;
}

TEST(Tensor, ViewsShowTheElementsThatTheyName) {
  Bytes bytes;
  const Tensor t = Tensor::contiguous(&bytes, DType::kF32, {2, 6}, 100);
  EXPECT_EQ(t.elements(), 12);
  EXPECT_EQ(elements_of(t.rows(1, 2)), (std::vector<std::int64_t>{106, 107, 108, 109, 110, 111}));
  EXPECT_EQ(elements_of(t.columns(2, 4)), (std::vector<std::int64_t>{102, 103, 108, 109}));
  const Tensor heads = t.columns(2, 6).split_last(2, 2);
  EXPECT_EQ(heads.rank, 3);
  EXPECT_EQ(elements_of(heads), (std::vector<std::int64_t>{102, 103, 104, 105, 108, 109, 110, 111}));
  EXPECT_EQ(elements_of(heads.rows(1, 2)), (std::vector<std::int64_t>{108, 109, 110, 111}));
  EXPECT_EQ(t.rows(1, 1).elements(), 0);
}

TEST(TensorDeathTest, ViewsBeyondTheTensorAreMistakes) {
  Bytes bytes;
  const Tensor t = Tensor::contiguous(&bytes, DType::kF32, {2, 6});
  EXPECT_DEATH((void)t.rows(0, 3), "check failed");
  EXPECT_DEATH((void)t.columns(4, 7), "check failed");
  EXPECT_DEATH((void)t.split_last(4, 2), "check failed");
}

TEST(Types, NamesAreReadBack) {
  for (ComputeType type : {ComputeType::kF32, ComputeType::kBF16, ComputeType::kInt8})
    EXPECT_EQ(compute_type_from_string(to_string(type)), type);
  EXPECT_FALSE(compute_type_from_string("int4"));
}

// Every (layer, block, head, kind, token) has a row of its own, and together they are the pool.
TEST(KvView, DenseRowsTileThePool) {
  KvSpec spec{.layers = 2, .kv_heads = 3, .head_dim = 16, .dtype = DType::kBF16, .block_tokens = 4, .blocks = 5};
  const KvView view = KvView::dense(spec);
  std::set<std::int64_t> offsets;
  for (int layer = 0; layer < 2; ++layer)
    for (int block = 0; block < 5; ++block)
      for (int head = 0; head < 3; ++head)
        for (KvKind kind : {KvKind::kKey, KvKind::kValue})
          for (int token = 0; token < 4; ++token) offsets.insert(view.offset(layer, BlockId(block), head, kind, token));
  EXPECT_EQ(offsets.size(), 2u * 5 * 3 * 2 * 4);
  std::int64_t expected = 0;
  for (std::int64_t offset : offsets) {
    ASSERT_EQ(offset, expected);
    expected += 32;
  }
  EXPECT_EQ(static_cast<std::size_t>(expected), spec.bytes());
  EXPECT_EQ(view.token_stride, static_cast<std::int64_t>(spec.row_bytes())) << "a block's rows are one run";
}

TEST(Registry, AnUnknownKindIsAnsweredWithThoseThereAre) {
  const auto device = open_device({.kind = "gpu"});
  ASSERT_FALSE(device.ok());
  EXPECT_EQ(device.status().code(), Code::kNotFound);
  for (const std::string& kind : device_kinds()) EXPECT_THAT(device.status().message(), HasSubstr(kind));
}

TEST(Collective, OfOneGathersItself) {
  Bytes bytes;
  const auto solo = solo_collective();
  EXPECT_EQ(solo->size(), 1);
  const Tensor x = Tensor::contiguous(&bytes, DType::kF32, {2, 4});
  solo->all_reduce(x);
  solo->gather_columns(x, x);
  solo->barrier();
}

}  // namespace
}  // namespace baton::device
