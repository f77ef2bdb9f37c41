// Token ids and decoded text, equal to those of PyPI's tokenizers (which splits with Oniguruma; textkit splits with fancy-regex).

#include <gtest/gtest.h>

#include "tests/golden/golden.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace baton {
namespace {

using nlohmann::json;
using text::GgufVocab;
using text::IncrementalDetokenizer;
using text::Tokenizer;

std::unique_ptr<Tokenizer> load(const std::string& tokenizer_json) {
  auto tokenizer = Tokenizer::from_json(tokenizer_json);
  BATON_CHECK_MSG(tokenizer.ok(), tokenizer.status().to_string());
  return std::move(tokenizer).value();
}

std::string stream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool skip_special) {
  IncrementalDetokenizer detokenizer(tokenizer, skip_special);
  std::string out;
  for (TokenId id : ids) out += detokenizer.push(id);
  return out + detokenizer.finish();
}

// `strips_leading_space`: the decoder takes one space off the start of a whole text. A stream keeps it: it continues a prompt.
void check(const Tokenizer& tokenizer, const json& golden, bool strips_leading_space) {
  EXPECT_EQ(tokenizer.vocab_size(), golden["vocab_size"].get<int>());
  std::vector<TokenId> special;
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id)
    if (tokenizer.is_special(id)) special.push_back(id);
  EXPECT_EQ(special, golden["special"].get<std::vector<TokenId>>());
  ASSERT_GT(golden["cases"].size(), 40u);
  for (const json& c : golden["cases"]) {
    const auto text = c["text"].get<std::string>();
    SCOPED_TRACE(text.substr(0, 100));
    auto ids = tokenizer.encode(text, false);
    ASSERT_TRUE(ids.ok()) << ids.status().to_string();
    EXPECT_EQ(*ids, c["ids"].get<std::vector<TokenId>>());
    auto with_special = tokenizer.encode(text, true);
    ASSERT_TRUE(with_special.ok());
    EXPECT_EQ(*with_special, c["with_special"].get<std::vector<TokenId>>());
    const auto golden_ids = c["ids"].get<std::vector<TokenId>>();
    for (bool skip : {false, true}) {
      const auto decoded = c[skip ? "decoded_skipping" : "decoded"].get<std::string>();
      EXPECT_EQ(tokenizer.decode(golden_ids, skip), decoded);
      std::string streamed = stream(tokenizer, golden_ids, skip);
      if (strips_leading_space && streamed.starts_with(' ')) streamed.erase(0, 1);
      EXPECT_EQ(streamed, decoded);
    }
  }
}

// The fields that a GGUF file of this tokenizer would hold.
GgufVocab as_gguf(const json& tokenizer, std::string pre) {
  GgufVocab v;
  v.model = "gpt2";
  v.pre = std::move(pre);
  for (const auto& [token, id] : tokenizer["model"]["vocab"].items()) {
    v.tokens.resize(std::max(v.tokens.size(), id.get<std::size_t>() + 1));
    v.tokens[id.get<std::size_t>()] = token;
  }
  v.types.assign(v.tokens.size(), 1);
  for (const json& added : tokenizer["added_tokens"]) {
    auto id = added["id"].get<std::size_t>();
    v.tokens.resize(std::max(v.tokens.size(), id + 1));
    v.types.resize(v.tokens.size(), 1);
    v.tokens[id] = added["content"].get<std::string>();
    v.types[id] = added["special"].get<bool>() ? 3 : 4;
    if (v.tokens[id] == "<|begin_of_text|>") v.bos = static_cast<TokenId>(id);
  }
  for (const json& merge : tokenizer["model"]["merges"])
    v.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  return v;
}

class TokenizerJsonGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(TokenizerJsonGolden, IdsAndTextAgree) {
  const std::string name = GetParam();
  check(*load(golden::read("tokenizer_" + name + ".json")), golden::read_json("text_tokenizer_" + name + ".json"), name == "spm_like");
}
INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerJsonGolden, ::testing::Values("qwen2_like", "llama3_like", "spm_like"),
                         [](const auto& info) { return std::string(info.param); });

// The same vocabularies as a GGUF file would hold them.
class GgufTokenizerGolden : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(GgufTokenizerGolden, IdsAndTextAgree) {
  const auto [name, pre] = GetParam();
  auto converted = text::tokenizer_json_from_gguf(as_gguf(golden::read_json("tokenizer_" + std::string(name) + ".json"), pre));
  ASSERT_TRUE(converted.ok()) << converted.status().to_string();
  check(*load(*converted), golden::read_json("text_tokenizer_" + std::string(name) + ".json"), false);
}
INSTANTIATE_TEST_SUITE_P(Kinds, GgufTokenizerGolden,
                         ::testing::Values(std::pair("qwen2_like", "qwen2"), std::pair("llama3_like", "llama-bpe")),
                         [](const auto& info) { return std::string(info.param.first); });

TEST(TokenizerGoldenOfTheDefaultModel, GgufVocabulary) {
  auto file = golden::default_model();
  BATON_SKIP_WITHOUT_MODEL(file);
  GgufVocab v;
  v.model = *file->string("tokenizer.ggml.model");
  v.pre = *file->string("tokenizer.ggml.pre");
  v.tokens = file->array("tokenizer.ggml.tokens")->strings;
  const auto& types = file->array("tokenizer.ggml.token_type")->integers;
  v.types.assign(types.begin(), types.end());
  v.merges = file->array("tokenizer.ggml.merges")->strings;
  v.bos = static_cast<TokenId>(*file->integer("tokenizer.ggml.bos_token_id"));
  v.eos = static_cast<TokenId>(*file->integer("tokenizer.ggml.eos_token_id"));
  v.add_bos = std::get<bool>(*file->find("tokenizer.ggml.add_bos_token"));
  auto converted = text::tokenizer_json_from_gguf(v);
  ASSERT_TRUE(converted.ok()) << converted.status().to_string();
  check(*load(*converted), golden::read_json("text_tokenizer_smollm2.json"), false);
}

}  // namespace
}  // namespace baton
