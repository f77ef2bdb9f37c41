// The C border itself; what lies behind it is tested through text/ and tests/golden/.

#include "textkit/textkit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

namespace {

using ::testing::HasSubstr;

const std::uint8_t* bytes(const std::string& s) { return reinterpret_cast<const std::uint8_t*>(s.data()); }

std::string take(tk_bytes b) {
  std::string s(reinterpret_cast<const char*>(b.data), b.len);
  tk_bytes_free(b);
  return s;
}

// A file that is the header alone, as far as `data_bytes` of data that need not exist in memory.
std::string with_length(const std::string& json) {
  std::string head(8, '\0');
  for (int i = 0; i < 8; ++i) head[static_cast<std::size_t>(i)] = static_cast<char>(json.size() >> (8 * i));
  return head + json;
}

struct Answer {
  int code;
  std::string text;  // the JSON, or the error
};
Answer header(const std::string& head, std::uint64_t file_size) {
  tk_bytes out{};
  tk_bytes error{};
  int code = tk_safetensors_header(bytes(head), head.size(), file_size, &out, &error);
  return {code, take(code == TK_OK ? out : error)};
}
Answer describe(const std::string& json, std::uint64_t data_bytes) { return header(with_length(json), 8 + json.size() + data_bytes); }

TEST(Safetensors, ListsTensorsInFileOrderWithAbsoluteOffsets) {
  const std::string json =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
      R"("none":{"dtype":"F16","shape":[0,4],"data_offsets":[20,20]}})";
  Answer answer = describe(json, 20);
  ASSERT_EQ(answer.code, TK_OK) << answer.text;
  const std::size_t begin = 8 + json.size();
  auto at = [&](std::size_t offset) { return std::to_string(begin + offset); };
  EXPECT_EQ(answer.text, R"({"metadata":{"format":"pt"},"tensors":[{"name":"a","dtype":"BF16","shape":[2,3],"begin":)" + at(0) +
                             R"(,"end":)" + at(12) + R"(},{"name":"b","dtype":"F32","shape":[2],"begin":)" + at(12) + R"(,"end":)" +
                             at(20) + R"(},{"name":"none","dtype":"F16","shape":[0,4],"begin":)" + at(20) + R"(,"end":)" + at(20) + "}]}");
}

TEST(Safetensors, RefusesAHeaderThatLies) {
  auto tensor = [](const std::string& fields) { return "{\"t\":{" + fields + "}}"; };
  const std::string good = tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])");
  ASSERT_EQ(describe(good, 8).code, TK_OK);
  EXPECT_THAT(describe(good, 7).text, HasSubstr("describes 8 bytes of tensors, but the file has 7"));
  EXPECT_THAT(describe(good, 9).text, HasSubstr("but the file has 9"));
  for (const std::string& bad : {
           tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),   // the shape needs more
           tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"),   // backwards
           tensor(R"("dtype":"F32","shape":[2],"data_offsets":[4,12])"),  // a hole at the start
           tensor(R"("dtype":"Q99","shape":[2],"data_offsets":[0,8])"),   // no such type
           tensor(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"),
           tensor(R"("dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8])"),  // the product overflows
           tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615])"),
           tensor(R"("dtype":"F32","shape":[2])"),
           std::string(
               R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}})"),  // overlap
           std::string("not json"),
           std::string("[]"),
           std::string(100'000, '['),
           std::string("{\"\xFF\":1}"),
       }) {
    Answer answer = describe(bad, 8);
    EXPECT_EQ(answer.code, TK_INVALID) << bad.substr(0, 200);
    EXPECT_THAT(answer.text, HasSubstr("safetensors")) << bad.substr(0, 200);
  }
}

TEST(Safetensors, RefusesALengthBeyondTheFile) {
  EXPECT_THAT(header("", 0).text, HasSubstr("too few for a header"));
  EXPECT_THAT(header("1234567", 7).text, HasSubstr("too few for a header"));
  EXPECT_THAT(header(with_length("{}").replace(0, 1, "\x40"), 10).text,
              HasSubstr("header says it has 64 bytes, but the file ends at byte 10"));
  EXPECT_THAT(header("GGUF\x03\x01\x02\x03xxxx", 12).text, HasSubstr("not a safetensors file"));
  EXPECT_THAT(header(with_length("{}").substr(0, 9), 10).text, HasSubstr("the header needs 10"));  // the caller mapped too little
}

// No damage may crash, hang, or be accepted with offsets outside the file.
TEST(Safetensors, SurvivesDamage) {
  const std::string json =
      R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[5,13]}})";
  const std::string head = with_length(json);
  std::mt19937 random(99);
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string damaged = head;
    for (unsigned n = 1 + random() % 3; n > 0; --n)
      damaged[random() % damaged.size()] = static_cast<char>("0123456789[]{},:\"ax\0\xFF"[random() % 22]);
    Answer answer = header(damaged, head.size() + 13);
    ASSERT_TRUE(answer.code == TK_OK || answer.code == TK_INVALID) << answer.text;
    accepted += answer.code == TK_OK ? 1 : 0;
  }
  EXPECT_LT(accepted, 2'000);  // renamed tensors and the like
}

TEST(Border, NullHandlesAndBuffersAreHarmless) {
  tk_tokenizer_free(nullptr);
  tk_template_free(nullptr);
  tk_bytes_free({});
  tk_ids_free({});
  tk_tokenizer* tokenizer = nullptr;
  EXPECT_EQ(tk_tokenizer_new(nullptr, 0, &tokenizer, nullptr), TK_INVALID);
  EXPECT_EQ(tokenizer, nullptr);
  tk_ids ids{};
  tk_bytes error{};
  EXPECT_EQ(tk_tokenizer_encode(nullptr, nullptr, 0, false, &ids, &error), TK_INVALID);
  EXPECT_EQ(take(error), "no tokenizer");
  std::size_t len = 1;
  tk_tokenizer_token_bytes(nullptr, 0, &len);
  EXPECT_EQ(len, 0u);
  EXPECT_EQ(tk_tokenizer_token_to_id(nullptr, nullptr, 0), -1);
  EXPECT_EQ(tk_tokenizer_vocab_size(nullptr), 0u);
  tk_bytes out{};
  EXPECT_EQ(tk_template_render(nullptr, nullptr, &out, nullptr), TK_INVALID);
}

TEST(Border, EmptyResultsCanBeFreed) {
  tk_template* chat_template = nullptr;
  ASSERT_EQ(tk_template_new(nullptr, 0, nullptr, 0, nullptr, 0, &chat_template, nullptr), TK_OK);
  tk_template_input input{};
  tk_bytes out{};
  ASSERT_EQ(tk_template_render(chat_template, &input, &out, nullptr), TK_OK);
  EXPECT_EQ(take(out), "");
  tk_template_free(chat_template);
}

// tokenizers 0.22 panics on a pre-tokenizer that cuts into pieces of length 0; any panic would do here.
TEST(Border, APanicIsAnErrorAndTheProcessLives) {
  const std::string json =
      R"({"version":"1.0","added_tokens":[],"pre_tokenizer":{"type":"FixedLength","length":0},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}})";
  tk_tokenizer* tokenizer = nullptr;
  tk_bytes error{};
  ASSERT_EQ(tk_tokenizer_new(bytes(json), json.size(), &tokenizer, &error), TK_OK) << take(error);
  tk_ids ids{};
  EXPECT_EQ(tk_tokenizer_encode(tokenizer, bytes("aa"), 2, false, &ids, &error), TK_INTERNAL);
  EXPECT_THAT(take(error), HasSubstr("panicked"));
  EXPECT_EQ(tk_tokenizer_vocab_size(tokenizer), 1u);
  tk_tokenizer_free(tokenizer);
}

}  // namespace
