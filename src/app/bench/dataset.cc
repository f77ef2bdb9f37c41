#include "app/bench/dataset.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "app/paths.h"
#include "base/rng.h"

namespace baton::app {

extern const char kLengths200[];  // bench/lengths_200.csv, generated into the build

namespace {

using Json = nlohmann::json;

// Drawn ids of a given length; as text where the endpoint takes only text.
Status draw_prompt(Rng& rng, const DatasetFlags& flags, const text::Tokenizer* tokenizer, bool as_text, const std::vector<TokenId>& prefix,
                   std::int64_t length, BenchRequest& out) {
  const std::int64_t vocab = tokenizer ? tokenizer->vocab_size() : flags.vocab_size;
  std::vector<TokenId> ids = prefix;
  while (static_cast<std::int64_t>(ids.size()) < length + static_cast<std::int64_t>(prefix.size())) {
    const auto id = static_cast<TokenId>(rng.below(static_cast<std::uint64_t>(vocab)));
    if (tokenizer && tokenizer->is_special(id)) continue;
    ids.push_back(id);
  }
  out.input_tokens = static_cast<std::int64_t>(ids.size());
  if (!as_text) {
    out.ids = std::move(ids);
    return {};
  }
  if (!tokenizer) return Status(Code::kInvalidArgument, "drawn prompts on the chat endpoint need the model's tokenizer: --tokenizer MODEL");
  out.prompt = tokenizer->decode(ids, true);
  return {};
}

Result<std::vector<BenchRequest>> load_random(const DatasetFlags& flags, const text::Tokenizer* tokenizer, bool as_text) {
  Rng rng(flags.seed, 1);
  std::vector<TokenId> prefix;
  for (std::int64_t i = 0; i < flags.random_prefix_len; ++i)
    prefix.push_back(static_cast<TokenId>(rng.below(static_cast<std::uint64_t>(tokenizer ? tokenizer->vocab_size() : flags.vocab_size))));
  const auto length = [&](std::int64_t mean) {
    const auto low = static_cast<std::int64_t>(std::floor(static_cast<double>(mean) * (1 - flags.random_range_ratio)));
    const auto high = static_cast<std::int64_t>(std::ceil(static_cast<double>(mean) * (1 + flags.random_range_ratio)));
    return std::max<std::int64_t>(1, low + static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(high - low + 1))));
  };
  std::vector<BenchRequest> out(static_cast<std::size_t>(flags.num_prompts));
  for (BenchRequest& request : out) {
    BATON_RETURN_IF_ERROR(draw_prompt(rng, flags, tokenizer, as_text, prefix, length(flags.random_input_len), request));
    request.output_tokens = length(flags.random_output_len);
  }
  return out;
}

// CSV rows input_len,output_len under a header line.
Result<std::vector<BenchRequest>> load_lengths(const DatasetFlags& flags, const text::Tokenizer* tokenizer, bool as_text) {
  std::string text = kLengths200;
  if (!flags.path.empty()) {
    BATON_ASSIGN_OR_RETURN(text, read_text_file(flags.path));
  }
  Rng rng(flags.seed, 2);
  std::istringstream in(text);
  std::string line;
  std::getline(in, line);
  std::vector<BenchRequest> out;
  for (int number = 2; std::getline(in, line) && static_cast<std::int64_t>(out.size()) < flags.num_prompts; ++number) {
    if (line.empty()) continue;
    long long input = 0, output = 0;
    if (std::sscanf(line.c_str(), "%lld,%lld", &input, &output) != 2 || input < 1 || output < 1)
      return Status(Code::kInvalidArgument, fmt::format("{}:{}: expected input_len,output_len, got `{}`", flags.path, number, line));
    BenchRequest request;
    BATON_RETURN_IF_ERROR(draw_prompt(rng, flags, tokenizer, as_text, {}, input, request));
    request.output_tokens = output;
    out.push_back(std::move(request));
  }
  return out;
}

// The first two turns of each conversation, under vLLM's filter.
Result<std::vector<BenchRequest>> load_sharegpt(const DatasetFlags& flags, const text::Tokenizer* tokenizer) {
  if (!tokenizer)
    return Status(Code::kInvalidArgument, "--dataset-name sharegpt needs the model's tokenizer to measure lengths: --tokenizer MODEL");
  BATON_ASSIGN_OR_RETURN(const std::string text, read_text_file(flags.path));
  const Json data = Json::parse(text, nullptr, false);
  if (!data.is_array()) return Status(Code::kInvalidArgument, flags.path + ": expected a JSON list of conversations");
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const Json& entry : data) {
    const auto turns = entry.is_object() ? entry.find("conversations") : entry.end();
    if (!entry.is_object() || turns == entry.end() || !turns->is_array() || turns->size() < 2) continue;
    pairs.emplace_back((*turns)[0].value("value", ""), (*turns)[1].value("value", ""));
  }
  Rng rng(flags.seed, 3);
  for (std::size_t i = pairs.size(); i > 1; --i) std::swap(pairs[i - 1], pairs[rng.below(i)]);
  std::vector<BenchRequest> out;
  for (auto& [prompt, answer] : pairs) {
    if (static_cast<std::int64_t>(out.size()) >= flags.num_prompts) break;
    const auto in = tokenizer->encode(prompt, true), reply = tokenizer->encode(answer, false);
    if (!in.ok() || !reply.ok()) continue;
    const auto n = static_cast<std::int64_t>(in->size());
    const auto m = flags.sharegpt_output_len > 0 ? flags.sharegpt_output_len : static_cast<std::int64_t>(reply->size());
    if (n < 4 || m < 4 || n > 1024 || n + m > 2048) continue;
    out.push_back({prompt, {}, n, m});
  }
  if (out.empty()) return Status(Code::kInvalidArgument, flags.path + ": no conversation passes the length filter");
  return out;
}

// JSON lines {"prompt": "...", "output_tokens": N}.
Result<std::vector<BenchRequest>> load_custom(const DatasetFlags& flags) {
  BATON_ASSIGN_OR_RETURN(const std::string text, read_text_file(flags.path));
  std::istringstream in(text);
  std::string line;
  std::vector<BenchRequest> out;
  for (int number = 1; std::getline(in, line) && static_cast<std::int64_t>(out.size()) < flags.num_prompts; ++number) {
    if (line.empty()) continue;
    const Json row = Json::parse(line, nullptr, false);
    if (!row.is_object() || !row.contains("prompt") || !row["prompt"].is_string())
      return Status(Code::kInvalidArgument, fmt::format("{}:{}: expected an object with a string `prompt`", flags.path, number));
    std::int64_t output = flags.custom_output_len;
    if (output < 0) {
      output = row.value("output_tokens", std::int64_t{0});
      if (output < 1)
        return Status(Code::kInvalidArgument,
                      fmt::format("{}:{}: --custom-output-len -1 wants `output_tokens` in each row", flags.path, number));
    }
    out.push_back({row["prompt"].get<std::string>(), {}, 0, output});
  }
  return out;
}

}  // namespace

Result<std::vector<BenchRequest>> load_dataset(const DatasetFlags& flags, const text::Tokenizer* tokenizer, bool as_text) {
  if ((flags.name == "sharegpt" || flags.name == "custom") && flags.path.empty())
    return Status(Code::kInvalidArgument, fmt::format("--dataset-name {} needs --dataset-path", flags.name));
  Result<std::vector<BenchRequest>> out = flags.name == "random"     ? load_random(flags, tokenizer, as_text)
                                          : flags.name == "lengths"  ? load_lengths(flags, tokenizer, as_text)
                                          : flags.name == "sharegpt" ? load_sharegpt(flags, tokenizer)
                                                                     : load_custom(flags);
  if (out.ok() && out->empty()) return Status(Code::kInvalidArgument, "the dataset is empty");
  return out;
}

}  // namespace baton::app
