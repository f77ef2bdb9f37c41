#include "app/bench/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "app/bench/rows.h"
#include "app/bench/testing.h"

namespace baton::app {
namespace {

using Json = nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

std::vector<BenchRequest> load(const DatasetFlags& flags, const text::Tokenizer* tokenizer = nullptr, bool as_text = false,
                               const text::ChatTemplate* chat_template = nullptr) {
  auto out = load_dataset(flags, tokenizer, as_text, chat_template);
  EXPECT_TRUE(out.ok()) << out.status().to_string();
  return out.ok() ? *out : std::vector<BenchRequest>();
}

std::string error_of(const DatasetFlags& flags, const text::Tokenizer* tokenizer = nullptr) {
  const auto out = load_dataset(flags, tokenizer, false);
  return out.ok() ? "no error" : out.status().message();
}

std::vector<std::pair<std::int64_t, std::int64_t>> lengths_of(const std::vector<BenchRequest>& requests) {
  std::vector<std::pair<std::int64_t, std::int64_t>> out;
  for (const BenchRequest& r : requests) out.emplace_back(r.input_tokens, r.output_tokens);
  return out;
}

std::unique_ptr<text::ChatTemplate> bracket_template() {
  text::ChatTemplateOptions options;
  options.source = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}";
  auto out = text::ChatTemplate::create(options);
  BATON_CHECK_MSG(out.ok(), out.status().to_string());
  return std::move(out).value();
}

TEST(RandomDataset, LengthsStayInTheRangeAndThePrefixIsShared) {
  DatasetFlags flags;
  flags.num_prompts = 300;
  flags.random_input_len = 100;
  flags.random_output_len = 10;
  flags.random_range_ratio = 0.2;
  flags.random_prefix_len = 7;
  const auto requests = load(flags);
  ASSERT_EQ(requests.size(), 300u);
  std::set<std::int64_t> inputs, outputs;
  for (const BenchRequest& r : requests) {
    inputs.insert(static_cast<std::int64_t>(r.ids.size()) - 7);
    outputs.insert(r.output_tokens);
    EXPECT_EQ(r.input_tokens, static_cast<std::int64_t>(r.ids.size()));
    EXPECT_TRUE(std::equal(r.ids.begin(), r.ids.begin() + 7, requests[0].ids.begin()));
    EXPECT_EQ(r.arrival_s, -1);
  }
  EXPECT_NE(requests[0].ids[7], requests[1].ids[7]);
  EXPECT_THAT(outputs, ElementsAre(8, 9, 10, 11, 12)) << "both ends of [10 * 0.8, 10 * 1.2]";
  EXPECT_EQ(*inputs.begin(), 80);
  EXPECT_EQ(*inputs.rbegin(), 120);
  EXPECT_EQ(lengths_of(load(flags)), lengths_of(requests)) << "the same seed, the same requests";
  flags.seed = 1;
  EXPECT_NE(lengths_of(load(flags)), lengths_of(requests));
  flags.path = "x.json";
  EXPECT_THAT(error_of(flags), HasSubstr("random reads no file"));
}

TEST(RandomDataset, DrawsNoSpecialTokens) {
  const auto tokenizer = byte_tokenizer();
  DatasetFlags flags;
  flags.num_prompts = 3;
  flags.random_input_len = 5000;
  flags.random_prefix_len = 5000;
  for (const BenchRequest& r : load(flags, tokenizer.get()))
    EXPECT_TRUE(std::none_of(r.ids.begin(), r.ids.end(), [&](TokenId id) { return tokenizer->is_special(id); }));
  for (const BenchRequest& r : load(flags, tokenizer.get(), true)) EXPECT_TRUE(r.ids.empty() && !r.prompt.empty());
  const auto without = load_dataset(flags, nullptr, true);
  EXPECT_THAT(without.status().message(), HasSubstr("--tokenizer MODEL"));
}

TEST(LengthsDataset, TheBuiltInPairsHaveTheMeansOfTheReference) {
  DatasetFlags flags;
  flags.name = "lengths";
  const auto requests = load(flags);
  std::int64_t in = 0, out = 0;
  for (const BenchRequest& r : requests) {
    in += r.input_tokens;
    out += r.output_tokens;
  }
  EXPECT_EQ(requests.size(), 200u);
  EXPECT_EQ(in, 200 * 216);
  EXPECT_EQ(out, 200 * 214);
}

TEST(LengthsDataset, ColumnsGoByNameAndBadRowsAreNamed) {
  const DataFile file("idx,output_len,input_len\n1,5,20\r\n\n2,6,30\n");
  DatasetFlags flags;
  flags.name = "lengths";
  flags.path = file.path();
  EXPECT_THAT(lengths_of(load(flags)), ElementsAre(Pair(20, 5), Pair(30, 6)));
  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {"input_len,output_len\n20,5\n30,-6\n", ":3: output_len: expected a number of tokens, 1 to 10000000, got `-6`"},
           {"input_len,output_len\n20\n", ":2: `20` has no output_len"},
           {"input_len,output_len\n2x,5\n", ":2: input_len: expected a number of tokens"},
           {"20,5\n30,6\n", ":1: expected a header with the columns input_len,output_len"},
           {"", ":1: expected a header"},
           {"input_len,output_len\n", "the dataset is empty"}}) {
    const DataFile bad(text);
    flags.path = bad.path();
    EXPECT_THAT(error_of(flags), HasSubstr(message)) << text;
  }
}

std::string conversation(std::size_t prompt, std::size_t answer) {
  const Json turns = {{{"from", "human"}, {"value", std::string(prompt, 'x')}}, {{"from", "gpt"}, {"value", std::string(answer, 'y')}}};
  return Json{{"conversations", turns}}.dump();
}

// Every byte is one token, so lengths are exact: at each limit of the filter one that passes and one that does not.
TEST(ShareGptDataset, TheFilterIsVllms) {
  const auto tokenizer = byte_tokenizer();
  std::string text = "[";
  for (const auto& [prompt, answer] : std::vector<std::pair<std::size_t, std::size_t>>{
           {4, 4}, {3, 50}, {50, 3}, {1024, 1024}, {1025, 10}, {1024, 1025}, {10, 2038}, {11, 2038}})
    text += conversation(prompt, answer) + ",";
  text += R"({"conversations": [{"value": "only one turn"}]}, {"id": 1}, 7, {"conversations": [null, {"value": 3}]},)";
  text += R"({"conversations": [{"value": "first turn"}, {"value": "an answer"}, {"value": "not this"}]}])";
  const DataFile file(text);
  DatasetFlags flags;
  flags.name = "sharegpt";
  flags.path = file.path();
  EXPECT_THAT(lengths_of(load(flags, tokenizer.get())), UnorderedElementsAre(Pair(4, 4), Pair(1024, 1024), Pair(10, 2038), Pair(10, 9)));
  // A given length replaces the answer's: short answers pass, and the sum is with the given one.
  flags.sharegpt_output_len = 2;
  EXPECT_THAT(lengths_of(load(flags, tokenizer.get())),
              UnorderedElementsAre(Pair(4, 2), Pair(50, 2), Pair(1024, 2), Pair(1024, 2), Pair(10, 2), Pair(11, 2), Pair(10, 2)));
  flags.sharegpt_output_len = 1025;
  EXPECT_THAT(lengths_of(load(flags, tokenizer.get())),
              UnorderedElementsAre(Pair(4, 1025), Pair(50, 1025), Pair(10, 1025), Pair(11, 1025), Pair(10, 1025)));
  flags.num_prompts = 2;
  EXPECT_EQ(load(flags, tokenizer.get()).size(), 2u);
  EXPECT_THAT(error_of(flags), HasSubstr("needs the model's tokenizer"));
  const DataFile none("[]"), not_json("{");
  flags.path = none.path();
  EXPECT_THAT(error_of(flags, tokenizer.get()), HasSubstr("no conversation passes the length filter"));
  flags.path = not_json.path();
  EXPECT_THAT(error_of(flags, tokenizer.get()), HasSubstr("expected a JSON list"));
  flags.path = "";
  EXPECT_THAT(error_of(flags, tokenizer.get()), HasSubstr("needs --dataset-path"));
}

TEST(SonnetDataset, PromptsAreALittleShorterThanAskedAndShareTheirPrefix) {
  const auto tokenizer = byte_tokenizer();
  const auto chat_template = bracket_template();
  std::istringstream in{std::string(kSonnet)};
  std::vector<std::string> poem;
  for (std::string line; std::getline(in, line);) poem.push_back(line);
  ASSERT_EQ(poem.size(), 518u);
  DatasetFlags flags;
  flags.name = "sonnet";
  flags.num_prompts = 40;
  flags.sonnet_input_len = 2000;
  flags.sonnet_prefix_len = 500;
  flags.sonnet_output_len = 33;
  const auto requests = load(flags, tokenizer.get(), false, chat_template.get());
  ASSERT_EQ(requests.size(), 40u);
  std::set<std::string> distinct;
  for (const BenchRequest& r : requests) {
    EXPECT_EQ(r.input_tokens, static_cast<std::int64_t>(tokenizer->encode(r.prompt, true)->size()));
    EXPECT_LE(r.input_tokens, 2000);
    EXPECT_GT(r.input_tokens, 1600);
    EXPECT_EQ(r.output_tokens, 33);
    EXPECT_TRUE(r.prompt.starts_with("[user:Pick as many lines as you can from these poem lines:\n" + poem[0] + "\n" + poem[1] + "\n"));
    EXPECT_TRUE(r.prompt.ends_with("\n]>"));
    distinct.insert(r.prompt);
  }
  EXPECT_EQ(distinct.size(), 40u);
  // What all prompts share is the task and about 500 tokens; the next line is drawn.
  std::size_t common = requests[0].prompt.size();
  for (const BenchRequest& r : requests) {
    const auto end = std::mismatch(r.prompt.begin(), r.prompt.end(), requests[0].prompt.begin(), requests[0].prompt.end()).first;
    common = std::min(common, static_cast<std::size_t>(end - r.prompt.begin()));
  }
  EXPECT_NEAR(static_cast<double>(common), 500, 60) << "a line and a half";
  // The chat endpoint renders it itself.
  EXPECT_TRUE(load(flags, tokenizer.get(), true, chat_template.get())[0].prompt.starts_with("Pick as many"));
}

TEST(SonnetDataset, LengthsThatCannotBeAreRefused) {
  const auto tokenizer = byte_tokenizer();
  DatasetFlags flags;
  flags.name = "sonnet";
  EXPECT_THAT(error_of(flags), HasSubstr("needs the model's tokenizer"));
  flags.sonnet_input_len = 60;
  EXPECT_THAT(error_of(flags, tokenizer.get()), HasSubstr("--sonnet-input-len 60: expected more than --sonnet-prefix-len 200"));
  flags.sonnet_input_len = 500;
  flags.sonnet_prefix_len = 900;
  EXPECT_THAT(error_of(flags, tokenizer.get()), HasSubstr("--sonnet-input-len 500: expected more than --sonnet-prefix-len 900"));
}

TEST(BurstGptDataset, RowsOfGpt4WithAnAnswer) {
  const std::string header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n";
  const DataFile file(header +
                      "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,10,20,30,Conversation log\n118,GPT-4,30,0,30,Conversation log\n"
                      "150,GPT-4,11,21,32,API log\n151,GPT-4,12,22,34,API log\n");
  DatasetFlags flags;
  flags.name = "burstgpt";
  flags.path = file.path();
  flags.num_prompts = 3;
  flags.vocab_size = 8;
  const auto requests = load(flags);
  EXPECT_THAT(lengths_of(requests), UnorderedElementsAre(Pair(10, 20), Pair(11, 21), Pair(12, 22))) << "each once while there are enough";
  for (std::size_t i = 0; i < requests.size(); ++i)
    for (std::size_t j = 0; j < requests[i].ids.size(); ++j) EXPECT_EQ(requests[i].ids[j], static_cast<TokenId>((i + j) % 8));
  flags.num_prompts = 50;
  EXPECT_EQ(load(flags).size(), 50u) << "drawn again where there are fewer, as in vLLM";
  const DataFile bad(header + "5,GPT-4,many,18,490,API log\n");
  flags.path = bad.path();
  EXPECT_THAT(error_of(flags), HasSubstr(":2: Request tokens: expected a number of tokens"));
  const DataFile other(header + "5,ChatGPT,472,18,490,API log\n");
  flags.path = other.path();
  EXPECT_THAT(error_of(flags), HasSubstr("no row of the model GPT-4"));
}

TEST(CustomDataset, PromptsInOrderRenderedUnlessToldNotTo) {
  const auto chat_template = bracket_template();
  const DataFile file("{\"prompt\": \"Say 1.\", \"output_tokens\": 3}\n\n{\"prompt\": \"Say 2.\", \"output_tokens\": 4}\n");
  DatasetFlags flags;
  flags.name = "custom";
  flags.path = file.path();
  auto requests = load(flags, nullptr, false, chat_template.get());
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[1].prompt, "[user:Say 2.]>");
  EXPECT_EQ(requests[1].output_tokens, 256);
  flags.custom_output_len = -1;
  EXPECT_EQ(load(flags)[1].output_tokens, 4);
  EXPECT_EQ(load(flags)[1].prompt, "Say 2.");
  EXPECT_EQ(load(flags, nullptr, true, chat_template.get())[0].prompt, "Say 1.") << "the chat endpoint renders it itself";
  flags.skip_chat_template = true;
  const auto tokenizer = byte_tokenizer();
  requests = load(flags, tokenizer.get(), false, chat_template.get());
  EXPECT_EQ(requests[0].prompt, "Say 1.");
  EXPECT_EQ(requests[0].input_tokens, 6);
  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {"{\"prompt\": \"a\", \"output_tokens\": 1}\n{\"prompt\": 7}\n", ":2: expected an object with a string `prompt`"},
           {"[1]\n", ":1: expected an object"},
           {"{\"prompt\": \"a\", \"output_tokens\": \"9\"}\n", ":1: --custom-output-len -1 wants a positive number `output_tokens`"}}) {
    const DataFile bad(text);
    flags.path = bad.path();
    EXPECT_THAT(error_of(flags), HasSubstr(message));
  }
}

}  // namespace
}  // namespace baton::app
