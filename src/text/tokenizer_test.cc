#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "text/test_vocab.h"

namespace baton::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<Tokenizer> make(const GgufVocab& vocab) {
  auto json = tokenizer_json_from_gguf(vocab);
  BATON_CHECK_MSG(json.ok(), json.status().to_string());
  auto tokenizer = Tokenizer::from_json(*json);
  BATON_CHECK_MSG(tokenizer.ok(), tokenizer.status().to_string());
  return std::move(tokenizer).value();
}

std::vector<TokenId> encode(const Tokenizer& t, std::string_view text, bool add_special = false) {
  auto ids = t.encode(text, add_special);
  BATON_CHECK_MSG(ids.ok(), ids.status().to_string());
  return *ids;
}

TEST(GgufTokenizer, MergesByRankAndSplitsAsThePreTokenizerSays) {
  auto smollm = make(test_vocab("smollm"));
  EXPECT_THAT(encode(*smollm, "hello"), ElementsAre(kHell, 'o'));
  EXPECT_THAT(encode(*smollm, " h12"), ElementsAre(kSpaceH, '1', '2'));  // digits stand alone, so "12" never merges
  auto gpt2 = make(test_vocab("gpt-2"));
  EXPECT_THAT(encode(*gpt2, " h12"), ElementsAre(kSpaceH, k12));
  auto llama = make(test_vocab("llama-bpe"));
  EXPECT_THAT(encode(*llama, "h1212"), ElementsAre('h', k12, '1', '2'));  // three digits at most in one piece
  auto qwen = make(test_vocab("qwen2"));
  EXPECT_THAT(encode(*qwen, "h12"), ElementsAre('h', '1', '2'));
}

TEST(GgufTokenizer, QwenComposesCharactersAndSmollmDoesNot) {
  EXPECT_THAT(encode(*make(test_vocab("qwen2")), "e\xCC\x81"), ElementsAre(0xC3, 0xA9));  // e + combining acute -> U+00E9
  EXPECT_THAT(encode(*make(test_vocab("smollm")), "e\xCC\x81"), ElementsAre('e', 0xCC, 0x81));
}

TEST(GgufTokenizer, ControlTokensAreSpecialAndUserDefinedOnesAreNot) {
  auto t = make(test_vocab("smollm"));
  EXPECT_THAT(encode(*t, "<|bos|>he<tool_call><|eos|>"), ElementsAre(kBos, kHe, kUser, kEos));
  EXPECT_TRUE(t->is_special(kBos));
  EXPECT_TRUE(t->is_special(kEos));
  EXPECT_FALSE(t->is_special(kUser));
  EXPECT_FALSE(t->is_special(kHe));
  EXPECT_FALSE(t->is_special(-1));
  EXPECT_FALSE(t->is_special(100'000));
  std::vector<TokenId> ids = {kBos, kHe, kUser, kEos};
  EXPECT_EQ(t->decode(ids, true), "he<tool_call>");
  EXPECT_EQ(t->decode(ids, false), "<|bos|>he<tool_call><|eos|>");
}

TEST(GgufTokenizer, AddsBosAndEosAsTheFileOrTheFamilySays) {
  GgufVocab v = test_vocab("smollm");
  EXPECT_THAT(encode(*make(v), "he", true), ElementsAre(kHe));
  v.add_bos = true;
  EXPECT_THAT(encode(*make(v), "he", true), ElementsAre(kBos, kHe));
  EXPECT_THAT(encode(*make(v), "he", false), ElementsAre(kHe));
  EXPECT_THAT(encode(*make(v), "", true), ElementsAre(kBos));
  v.add_eos = true;
  EXPECT_THAT(encode(*make(v), "he", true), ElementsAre(kBos, kHe, kEos));
  v.add_bos = false;
  EXPECT_THAT(encode(*make(v), "he", true), ElementsAre(kHe, kEos));
  v.add_bos = true;
  v.eos = v.bos;
  EXPECT_THAT(encode(*make(v), "he", true), ElementsAre(kBos, kHe, kBos));
  v = test_vocab("llama-bpe");  // Llama 3 files often carry no add_bos_token
  EXPECT_THAT(encode(*make(v), "he", true), ElementsAre(kBos, kHe));
  v.add_bos = false;
  EXPECT_THAT(encode(*make(v), "he", true), ElementsAre(kHe));
}

TEST(GgufTokenizer, WholeVocabularyEntriesWinInLlama3) {
  GgufVocab v = test_vocab("llama-bpe");
  v.tokens[kUser] = "abc";  // no merge leads here
  v.types[kUser] = 1;
  EXPECT_THAT(encode(*make(v), "abc"), ElementsAre(kUser));
  v.pre = "qwen2";
  EXPECT_THAT(encode(*make(v), "abc"), ElementsAre('a', 'b', 'c'));
}

TEST(GgufTokenizer, ErrorsNameTheFieldAndWhatIsSupported) {
  auto message = [](const GgufVocab& v) {
    auto json = tokenizer_json_from_gguf(v);
    EXPECT_FALSE(json.ok());
    EXPECT_EQ(json.status().code(), Code::kInvalidArgument);
    return json.status().message();
  };
  GgufVocab v = test_vocab("tekken");
  EXPECT_THAT(message(v), AllOf(HasSubstr("tokenizer.ggml.pre is 'tekken'"), HasSubstr("smollm"), HasSubstr("deepseek-r1-qwen")));
  v.pre = "";
  EXPECT_THAT(message(v), HasSubstr("tokenizer.ggml.pre is missing"));
  v = test_vocab("smollm");
  v.model = "llama";
  EXPECT_THAT(message(v), AllOf(HasSubstr("tokenizer.ggml.model is 'llama'"), HasSubstr("gpt2")));
  v = test_vocab("smollm");
  v.bos = 9999;
  EXPECT_THAT(message(v), HasSubstr("tokenizer.ggml.bos_token_id is 9999"));
  v = test_vocab("smollm");
  v.add_eos = true;
  v.eos.reset();
  EXPECT_THAT(message(v), HasSubstr("tokenizer.ggml.eos_token_id is missing"));
  v = test_vocab("smollm");
  v.types.pop_back();
  EXPECT_THAT(message(v), HasSubstr("tokenizer.ggml.token_type has 263"));
  v = test_vocab("smollm");
  v.merges.push_back("nospace");
  EXPECT_THAT(message(v), HasSubstr("tokenizer.ggml.merges: entry 5"));
  v = test_vocab("smollm");
  v.tokens[kUser] = "he";
  EXPECT_THAT(message(v), HasSubstr("tokenizer.ggml.tokens: entry 263 is the same as entry 256"));
  v = test_vocab("smollm");
  v.tokens.clear();
  v.types.clear();
  EXPECT_THAT(message(v), HasSubstr("tokenizer.ggml.tokens is missing"));
}

TEST(GgufTokenizer, HostileTokenTextSurvivesTheTripThroughJson) {
  GgufVocab v = test_vocab("smollm");
  v.tokens[kUser] = "\"\\\n\x01\x7f</x>";
  auto t = make(v);
  EXPECT_EQ(t->token_to_id(v.tokens[kUser]), kUser);
  EXPECT_EQ(t->token_bytes(kUser), v.tokens[kUser]);
  v.tokens[kUser] = "\xFF";  // not UTF-8: refused when the JSON is parsed, never a crash
  auto json = tokenizer_json_from_gguf(v);
  ASSERT_TRUE(json.ok());
  EXPECT_FALSE(Tokenizer::from_json(*json).ok());
}

TEST(Tokenizer, TokenBytesAreRawBytes) {
  auto t = make(test_vocab("smollm"));
  for (int b = 0; b < 256; ++b) EXPECT_EQ(t->token_bytes(b), std::string(1, static_cast<char>(b))) << b;
  EXPECT_EQ(t->token_bytes(kSpaceH), " h");
  EXPECT_EQ(t->token_bytes(kBos), "<|bos|>");
  EXPECT_EQ(t->token_bytes(264), "");
  EXPECT_EQ(t->token_bytes(-1), "");
  EXPECT_EQ(t->vocab_size(), 264);
  EXPECT_EQ(t->token_to_id("<|eos|>"), kEos);
  EXPECT_EQ(t->token_to_id("no such token"), std::nullopt);
}

TEST(Tokenizer, RefusesBadInput) {
  auto t = make(test_vocab("smollm"));
  auto bad = t->encode("ab\xFF", false);
  EXPECT_EQ(bad.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(bad.status().message(), HasSubstr("byte 2"));
  for (const char* json : {"", "{", "[]", "{}", R"({"model":{"type":"Nonsense"}})"}) {
    auto broken = Tokenizer::from_json(json);
    EXPECT_EQ(broken.status().code(), Code::kInvalidArgument) << json;
    EXPECT_THAT(broken.status().message(), HasSubstr("tokenizer.json"));
  }
}

TEST(Tokenizer, DecodesUnknownIdsAsNothingAndBrokenBytesAsReplacement) {
  auto t = make(test_vocab("smollm"));
  EXPECT_EQ(t->decode({kHe, 100'000, -5, 'o'}, true), "heo");
  EXPECT_EQ(t->decode({0xC3, 'x'}, true), "\xEF\xBF\xBDx");
  EXPECT_EQ(t->decode({}, true), "");
}

TEST(Tokenizer, TruncationAndPaddingOfTheFileAreIgnored) {
  std::string json = *tokenizer_json_from_gguf(test_vocab("smollm"));
  const std::string none = R"("truncation":null,"padding":null)";
  json.replace(
      json.find(none), none.size(),
      R"("truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0},)"
      R"("padding":{"strategy":{"Fixed":8},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"!"})");
  auto t = Tokenizer::from_json(json);
  ASSERT_TRUE(t.ok()) << t.status().to_string();
  EXPECT_THAT(encode(**t, "xyz"), ElementsAre('x', 'y', 'z'));
}

TEST(Tokenizer, VeryLongWordsAndInputsWork) {
  auto t = make(test_vocab("smollm"));
  std::string word(200'000, 'z');
  EXPECT_EQ(encode(*t, word).size(), word.size());
  std::string hell;
  for (int i = 0; i < 50'000; ++i) hell += "hell";
  EXPECT_EQ(t->decode(encode(*t, hell), false), hell);
}

}  // namespace
}  // namespace baton::text
