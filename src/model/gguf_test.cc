#include "model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "model/gguf_bytes.h"

namespace baton::model {
namespace {

using ::testing::AllOf;
using testing::Bytes;
using ::testing::ElementsAre;
using testing::GgufBytes;
using ::testing::HasSubstr;

class GgufTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/gguf_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::string path(const std::string& name = "m.gguf") const { return dir_ + "/" + name; }
  Result<std::shared_ptr<GgufFile>> open(std::string_view bytes) {
    testing::write_file(path(), bytes);
    return GgufFile::open(path());
  }
  // The file must be refused, in words that name the file and say `what`.
  void expect_refused(const GgufBytes& gguf, const std::string& what) { expect_refused(gguf.bytes(), what); }
  void expect_refused(std::string_view bytes, const std::string& what) {
    const auto result = open(bytes);
    ASSERT_FALSE(result.ok()) << what;
    EXPECT_EQ(result.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(result.status().message(), AllOf(HasSubstr(path()), HasSubstr(what)));
  }

  std::string dir_;
};

GgufBytes small() {
  GgufBytes g;
  g.str("general.architecture", "llama").u32("llama.block_count", 2).f32("llama.rope.freq_base", 1e5f).flag("yes", true);
  g.strs("tokens", {"a", "", "\xc3\xa9"}).i32s("types", {1, -2, 3});
  g.f32s("norm", {3}, {1, 2, 3}).f32s("w", {2, 3}, {1, 2, 3, 4, 5, 6});
  return g;
}

TEST_F(GgufTest, ReadsKeysAndTensors) {
  for (const std::uint32_t version : {2u, 3u}) {
    GgufBytes g = small();
    g.version = version;
    const auto opened = open(g.bytes());
    ASSERT_TRUE(opened.ok()) << opened.status().to_string();
    const GgufFile& file = **opened;
    EXPECT_EQ(file.string("general.architecture").value(), "llama");
    EXPECT_EQ(file.integer("llama.block_count").value(), 2);
    EXPECT_EQ(file.number("llama.rope.freq_base").value(), 1e5);
    EXPECT_EQ(file.number("llama.block_count").value(), 2.0);
    EXPECT_TRUE(std::get<bool>(*file.find("yes")));
    EXPECT_THAT(file.array("tokens")->strings, ElementsAre("a", "", "\xc3\xa9"));
    EXPECT_THAT(file.array("types")->integers, ElementsAre(1, -2, 3));
    EXPECT_EQ(file.tensors().size(), 2u);
    const GgufTensor* w = file.tensor("w");
    ASSERT_NE(w, nullptr);
    EXPECT_THAT(w->shape, ElementsAre(2, 3));
    EXPECT_EQ(w->bytes, 24u);
    float values[6];
    std::memcpy(values, w->data, sizeof values);
    EXPECT_THAT(values, ElementsAre(1, 2, 3, 4, 5, 6));
    EXPECT_EQ(file.tensor("nope"), nullptr);
    EXPECT_EQ(file.array("yes"), nullptr);
  }
}

TEST_F(GgufTest, EveryScalarType) {
  GgufBytes g;
  g.key("u8", 0, Bytes().put<std::uint8_t>(200).text).key("i8", 1, Bytes().put<std::int8_t>(-5).text);
  g.key("u16", 2, Bytes().put<std::uint16_t>(65535).text).key("i16", 3, Bytes().put<std::int16_t>(-300).text);
  g.key("i32", 5, Bytes().put<std::int32_t>(-70000).text).key("u64", 10, Bytes().put<std::uint64_t>(~0ull).text);
  g.key("i64", 11, Bytes().put<std::int64_t>(-1ll << 40).text).key("f64", 12, Bytes().put<double>(0.1).text);
  const auto file = open(g.bytes());
  ASSERT_TRUE(file.ok()) << file.status().to_string();
  EXPECT_EQ((*file)->integer("u8").value(), 200);
  EXPECT_EQ((*file)->integer("i8").value(), -5);
  EXPECT_EQ((*file)->integer("u16").value(), 65535);
  EXPECT_EQ((*file)->integer("i16").value(), -300);
  EXPECT_EQ((*file)->integer("i32").value(), -70000);
  EXPECT_EQ((*file)->integer("i64").value(), -1ll << 40);
  EXPECT_EQ((*file)->number("f64").value(), 0.1);
  EXPECT_THAT((*file)->integer("u64").status().message(), HasSubstr("an integer below 2^63 is wanted"));
}

TEST_F(GgufTest, LookUpErrorsNameFileKeyAndType) {
  const auto file = open(small().bytes());
  ASSERT_TRUE(file.ok());
  EXPECT_THAT((*file)->string("gone").status().message(), AllOf(HasSubstr(path()), HasSubstr("\"gone\" is missing")));
  EXPECT_THAT((*file)->integer("tokens").status().message(), HasSubstr("key \"tokens\" is an array; an integer"));
  EXPECT_THAT((*file)->string("llama.block_count").status().message(), HasSubstr("is an integer; a string is wanted"));
  EXPECT_THAT((*file)->number("yes").status().message(), HasSubstr("is a bool; a number is wanted"));
}

// Wherever the file is cut off, opening it fails, and never reads beyond the end (which the sanitizers' build would see).
TEST_F(GgufTest, EveryTruncationIsRefused) {
  const std::string whole = small().bytes();
  ASSERT_TRUE(open(whole).ok());
  for (std::size_t length = 0; length < whole.size(); ++length) {
    const auto result = open(std::string_view(whole).substr(0, length));
    ASSERT_FALSE(result.ok()) << length;
    EXPECT_THAT(result.status().message(), HasSubstr(path())) << length;
  }
}

// One flipped byte may go unnoticed (it may be data), but must never crash or read outside the file.
TEST_F(GgufTest, FlippedBytesAreSurvived) {
  const std::string whole = small().bytes();
  for (std::size_t i = 0; i < whole.size(); ++i) {
    std::string bad = whole;
    bad[i] = static_cast<char>(bad[i] ^ "\x01\x80\xff"[i % 3]);
    const auto result = open(bad);
    if (!result.ok()) continue;
    for (const auto& [name, tensor] : (*result)->tensors()) {
      volatile std::byte last = tensor.data[tensor.bytes - 1];
      (void)last;
    }
  }
}

TEST_F(GgufTest, WrongHeaders) {
  EXPECT_EQ(GgufFile::open(path("absent.gguf")).status().code(), Code::kNotFound);
  EXPECT_FALSE(GgufFile::open(dir_).ok());
  GgufBytes g = small();
  g.magic = "GGML";
  expect_refused(g, "not a GGUF file");
  g = small();
  g.version = 1;
  expect_refused(g, "GGUF version 1; versions 2 and 3 are supported");
  g.version = 0x03000000;
  expect_refused(g, "big-endian");
}

TEST_F(GgufTest, AbsurdCounts) {
  for (const std::uint64_t n : {std::uint64_t{1} << 20, std::uint64_t{1} << 62, ~std::uint64_t{0}}) {
    std::string bytes = small().bytes();
    std::memcpy(bytes.data() + 8, &n, 8);
    expect_refused(bytes, "it says that it has " + std::to_string(n) + " tensors");
    bytes = small().bytes();
    std::memcpy(bytes.data() + 16, &n, 8);
    expect_refused(bytes, "metadata keys");
    expect_refused(GgufBytes().key("a", 9, Bytes().put<std::uint32_t>(0).put(n).text), "elements of key \"a\"");
    expect_refused(GgufBytes().key("a", 9, Bytes().put<std::uint32_t>(8).put(n).text), "elements of key \"a\"");
    expect_refused(GgufBytes().key("a", 8, Bytes().put(n).text), "key \"a\" needs");
  }
}

TEST_F(GgufTest, WrongValues) {
  expect_refused(GgufBytes().key("a", 13, "xxxxxxxx"), "key \"a\" has the unknown value type 13");
  expect_refused(GgufBytes().key("a", 9, Bytes().put<std::uint32_t>(9).put<std::uint64_t>(0).text), "an array of arrays");
  expect_refused(GgufBytes().key("a", 9, Bytes().put<std::uint32_t>(77).put<std::uint64_t>(0).text), "unknown element type 77");
  expect_refused(GgufBytes().key("a", 7, "\x02"), "only 0 and 1 are bools");
  expect_refused(small().u32("llama.block_count", 3), "key \"llama.block_count\" occurs twice");
  for (const std::uint32_t alignment : {0u, 4u, 48u, 1u << 31}) {
    expect_refused(small().u32("general.alignment", alignment), "key \"general.alignment\" must be a power of two");
  }
  expect_refused(small().str("general.alignment", "32"), "\"general.alignment\" must be");
}

TEST_F(GgufTest, WrongTensors) {
  expect_refused(small().f32s("w", {1}, {1}), "tensor \"w\" occurs twice");
  expect_refused(GgufBytes().info("t", {}, 0, 0), "tensor \"t\" has 0 dimensions");
  expect_refused(GgufBytes().info("t", {1, 1, 1, 1, 1}, 0, 0), "tensor \"t\" has 5 dimensions");
  expect_refused(GgufBytes().info("t", {4, 0}, 0, 0), "impossible extent of 0");
  expect_refused(GgufBytes().info("t", {1ull << 40, 1ull << 40}, 0, 0), "impossible extent");
  expect_refused(GgufBytes().info("t", {1ull << 62, 1}, 0, 0), "impossibly large");
  expect_refused(GgufBytes().info("t", {~0ull}, 0, 0), "impossible extent");
  expect_refused(GgufBytes().info("t", {256, 4}, 10, 0), "tensor \"t\" is of ggml type Q2_K; supported are F32, F16, BF16, Q8_0");
  expect_refused(GgufBytes().info("t", {256, 4}, 4242, 0), "tensor \"t\" is of ggml type 4242; supported");
  expect_refused(GgufBytes().info("t", {48, 2}, 3, 0), "rows of 48 weights, not a multiple of the block size of Q4_1, 32");
  GgufBytes beyond = small();
  beyond.info("far", {4}, 0, 32 * 1000);
  expect_refused(beyond, "the data of tensor \"far\"");
  beyond = small();
  beyond.info("wrap", {4}, 0, ~0ull - 31);
  expect_refused(beyond, "the data of tensor \"wrap\"");
  beyond = small();
  beyond.info("odd", {1}, 0, 4);
  expect_refused(beyond, "tensor \"odd\" lies at offset 4, which is not aligned");
}

TEST_F(GgufTest, Alignment) {
  GgufBytes g;
  g.alignment = 256;
  g.u32("general.alignment", 256).f32s("a", {1}, {7}).f32s("b", {1}, {8});
  const auto file = open(g.bytes());
  ASSERT_TRUE(file.ok()) << file.status().to_string();
  float b = 0;
  std::memcpy(&b, (*file)->tensor("b")->data, 4);
  EXPECT_EQ(b, 8);
}

// The first part has the model's metadata; each part has its own tensors.
std::vector<GgufBytes> three_parts() {
  std::vector<GgufBytes> parts(3);
  parts[0] = small();
  for (std::uint32_t i = 0; i < 3; ++i) {
    parts[i].key("split.no", 2, Bytes().put<std::uint16_t>(static_cast<std::uint16_t>(i)).text);
    parts[i].key("split.count", 2, Bytes().put<std::uint16_t>(3).text);
    parts[i].key("split.tensors.count", 5, Bytes().put<std::int32_t>(4).text);
  }
  parts[1].f32s("second", {1}, {2});
  parts[2].f32s("third", {1}, {3});
  return parts;
}

TEST_F(GgufTest, SplitSet) {
  auto parts = three_parts();
  for (int i = 0; i < 3; ++i) testing::write_file(path("m-0000" + std::to_string(i + 1) + "-of-00003.gguf"), parts[i].bytes());
  const auto file = GgufFile::open(path("m-00001-of-00003.gguf"));
  ASSERT_TRUE(file.ok()) << file.status().to_string();
  EXPECT_EQ((*file)->tensors().size(), 4u);
  float third = 0;
  std::memcpy(&third, (*file)->tensor("third")->data, 4);
  EXPECT_EQ(third, 3);

  EXPECT_THAT(GgufFile::open(path("m-00002-of-00003.gguf")).status().message(), HasSubstr("part 2 of 3; open the first part"));
  expect_refused(parts[0], "must end in -00001-of-");  // a split file under another name

  testing::write_file(path("m-00003-of-00003.gguf"), GgufBytes().bytes());
  EXPECT_THAT(GgufFile::open(path("m-00001-of-00003.gguf")).status().message(), HasSubstr("says 4 tensors, the parts hold 3"));
  testing::write_file(path("m-00003-of-00003.gguf"), parts[1].bytes());
  EXPECT_THAT(GgufFile::open(path("m-00001-of-00003.gguf")).status().message(), HasSubstr("tensor \"second\" occurs twice"));
  std::filesystem::remove(path("m-00003-of-00003.gguf"));
  const auto gone = GgufFile::open(path("m-00001-of-00003.gguf"));
  EXPECT_EQ(gone.status().code(), Code::kNotFound);
  EXPECT_THAT(gone.status().message(), HasSubstr("m-00003-of-00003.gguf"));
}

}  // namespace
}  // namespace baton::model
