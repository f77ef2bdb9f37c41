#include "app/bench/dataset.h"

#include <spdlog/fmt/fmt.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>

#include "app/bench/rows.h"

namespace baton::app {
namespace {

Requests load_random(const DatasetFlags& flags, const PromptMaker& maker) {
  Rng rng(flags.seed, 1);
  std::vector<TokenId> prefix;
  maker.draw(rng, flags.random_prefix_len, prefix);
  const auto length = [&](std::int64_t mean) {
    const auto low = static_cast<std::int64_t>(std::floor(static_cast<double>(mean) * (1 - flags.random_range_ratio)));
    const auto high = static_cast<std::int64_t>(std::ceil(static_cast<double>(mean) * (1 + flags.random_range_ratio)));
    return std::max<std::int64_t>(1, low + static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(high - low + 1))));
  };
  std::vector<BenchRequest> out;
  for (std::int64_t i = 0; i < flags.num_prompts; ++i) {
    std::vector<TokenId> ids = prefix;
    maker.draw(rng, length(flags.random_input_len), ids);
    BATON_ASSIGN_OR_RETURN(BenchRequest request, maker.request(std::move(ids), length(flags.random_output_len)));
    out.push_back(std::move(request));
  }
  return out;
}

Requests load_lengths(const DatasetFlags& flags, const PromptMaker& maker) {
  BATON_ASSIGN_OR_RETURN(Lines lines, Lines::open(flags.path, kLengths200));
  BATON_ASSIGN_OR_RETURN(const Columns columns, Columns::read(lines, {"input_len", "output_len"}));
  Rng rng(flags.seed, 2);
  std::vector<BenchRequest> out;
  while (static_cast<std::int64_t>(out.size()) < flags.num_prompts && lines.next()) {
    BATON_ASSIGN_OR_RETURN(const auto cells, columns.cells(lines));
    BATON_ASSIGN_OR_RETURN(const std::int64_t input, lines.tokens(cells[0], "input_len"));
    BATON_ASSIGN_OR_RETURN(const std::int64_t output, lines.tokens(cells[1], "output_len"));
    std::vector<TokenId> ids;
    maker.draw(rng, input, ids);
    BATON_ASSIGN_OR_RETURN(BenchRequest request, maker.request(std::move(ids), output));
    out.push_back(std::move(request));
  }
  return out;
}

// vLLM's choice: rows of GPT-4 that have an answer, in drawn order; request i is the ids i, i+1, ... A row may be drawn again only where
// there are fewer than asked for.
Requests load_burstgpt(const DatasetFlags& flags, const PromptMaker& maker) {
  BATON_ASSIGN_OR_RETURN(Lines lines, Lines::open(flags.path));
  BATON_ASSIGN_OR_RETURN(const Columns columns, Columns::read(lines, {"Model", "Request tokens", "Response tokens"}));
  std::vector<std::pair<std::int64_t, std::int64_t>> rows;
  while (lines.next()) {
    BATON_ASSIGN_OR_RETURN(const auto cells, columns.cells(lines));
    if (cells[0] != "GPT-4" || cells[1] == "0" || cells[2] == "0") continue;
    BATON_ASSIGN_OR_RETURN(const std::int64_t input, lines.tokens(cells[1], "Request tokens"));
    BATON_ASSIGN_OR_RETURN(const std::int64_t output, lines.tokens(cells[2], "Response tokens"));
    rows.emplace_back(input, output);
  }
  if (rows.empty()) return Status(Code::kInvalidArgument, flags.path + ": no row of the model GPT-4 has an answer");
  Rng rng(flags.seed, 5);
  const auto wanted = static_cast<std::size_t>(flags.num_prompts);
  std::vector<BenchRequest> out;
  for (std::size_t i = 0; i < wanted; ++i) {
    std::size_t row = rng.below(rows.size());
    if (wanted <= rows.size()) {  // without replacement: the first `i` are taken
      row = i + rng.below(rows.size() - i);
      std::swap(rows[i], rows[row]);
      row = i;
    }
    std::vector<TokenId> ids(static_cast<std::size_t>(rows[row].first));
    for (std::size_t j = 0; j < ids.size(); ++j) ids[j] = static_cast<TokenId>((i + j) % static_cast<std::size_t>(maker.vocab_size()));
    BATON_ASSIGN_OR_RETURN(BenchRequest request, maker.request(std::move(ids), rows[row].second));
    out.push_back(std::move(request));
  }
  return out;
}

}  // namespace

bool DatasetFlags::is_trace() const { return name == "azure" || name == "mooncake" || name == "timed_trace"; }

bool DatasetFlags::wants_full_answers() const { return name == "random" || name == "lengths" || name == "mix" || is_trace(); }

void DatasetFlags::add_to(CLI::App& app) {
  const auto add = [&](const char* names, auto& field, const char* text) {
    return app.add_option(names, field, text)->capture_default_str()->group("Dataset");
  };
  const CLI::Range length(1, 1'000'000), length_or_none(0, 1'000'000);
  add("--dataset-name", name,
      "random; lengths (CSV input_len,output_len; without a path 200 ShareGPT-like pairs); mix (short chats and, beside them, long "
      "prompts); sharegpt; sonnet; burstgpt; custom (JSON lines); "
      "traces with their own times: azure, mooncake (or timed_trace), without a path the first minutes of each")
      ->check(CLI::IsMember({"random", "lengths", "mix", "sharegpt", "sonnet", "burstgpt", "custom", "azure", "mooncake", "timed_trace"}));
  app.add_option("--dataset-path", path, "its file")->group("Dataset");
  add("--num-prompts", num_prompts, "requests to send, at most")->check(CLI::Range(1, 10'000'000));
  add("--seed", seed, "of prompts and arrivals");
  add("--random-input-len", random_input_len, "mean prompt length of random")->check(length);
  add("--random-output-len", random_output_len, "mean answer length of random")->check(length);
  add("--random-range-ratio", random_range_ratio, "lengths are uniform in mean * (1 +- this)")->check(CLI::Range(0.0, 0.999));
  add("--random-prefix-len", random_prefix_len, "tokens that all random prompts share, before the rest")->check(length_or_none);
  app.add_option("--sharegpt-output-len", sharegpt_output_len, "answer length instead of the conversation's")
      ->check(length)
      ->group("Dataset");
  add("--sonnet-input-len", sonnet_input_len, "prompt length of sonnet, at most")->check(length);
  add("--sonnet-output-len", sonnet_output_len, "its answer length")->check(length);
  add("--sonnet-prefix-len", sonnet_prefix_len, "about so many of its tokens are the same lines in all prompts")->check(length_or_none);
  add("--mix-chat-input-len", mix_chat_input_len, "mean prompt length of mix's chats, which are uniform in half to one and a half of it")
      ->check(length);
  add("--mix-chat-output-len", mix_chat_output_len, "mean answer length of them, likewise")->check(length);
  add("--mix-long-input-len", mix_long_input_len, "length of mix's long prompts")->check(length);
  add("--mix-long-output-len", mix_long_output_len, "length of their answers")->check(length);
  add("--mix-long-every", mix_long_every_s, "seconds from one long prompt to the next, whatever the rate of the chats")
      ->check(CLI::Range(0.01, 1e6));
  add("--custom-output-len", custom_output_len, "answer length of custom; -1: each row's output_tokens")->check(CLI::Range(-1, 1'000'000));
  app.add_flag("--skip-chat-template,--custom-skip-chat-template", skip_chat_template, "custom prompts go to /v1/completions as they are")
      ->group("Dataset");
  app.add_option_function<std::int64_t>(
         "--input-len", [this](std::int64_t n) { random_input_len = n; }, "the same as --random-input-len")
      ->check(length)
      ->group("Dataset");
  app.add_option_function<std::int64_t>(
         "--output-len", [this](std::int64_t n) { random_output_len = sharegpt_output_len = custom_output_len = n; },
         "answer length of random, sharegpt and custom")
      ->check(length)
      ->group("Dataset");
  add("--trace-scale", trace_scale, "a trace's clock runs so many times as fast")->check(CLI::Range(1e-6, 1e6));
  add("--trace-start", trace_start_s, "seconds of the trace to skip")->check(CLI::NonNegativeNumber);
  app.add_option("--trace-duration", trace_duration_s, "seconds of the trace to replay (default: to its end)")
      ->check(CLI::PositiveNumber)
      ->group("Dataset");
  app.add_option("--trace-max-len", trace_max_len, "leave out requests of a trace with more prompt and answer tokens together")
      ->check(length)
      ->group("Dataset");
  add("--vocab-size", vocab_size, "ids to draw from where no tokenizer is known")->check(CLI::Range(1, 10'000'000));
}

Result<std::vector<BenchRequest>> load_dataset(const DatasetFlags& flags, const text::Tokenizer* tokenizer, bool as_text,
                                               const text::ChatTemplate* chat_template) {
  if (flags.path.empty() && (flags.name == "sharegpt" || flags.name == "custom" || flags.name == "burstgpt"))
    return Status(Code::kInvalidArgument, fmt::format("--dataset-name {} needs --dataset-path", flags.name));
  if (!flags.path.empty() && (flags.name == "random" || flags.name == "mix"))
    return Status(Code::kInvalidArgument,
                  "--dataset-path: " + flags.name + " reads no file; say what the file is with --dataset-name (sharegpt, custom, ...)");
  const PromptMaker maker(flags, tokenizer, as_text);
  Requests out = flags.name == "random"     ? load_random(flags, maker)
                 : flags.name == "lengths"  ? load_lengths(flags, maker)
                 : flags.name == "mix"      ? load_mix(flags, maker)
                 : flags.name == "burstgpt" ? load_burstgpt(flags, maker)
                 : flags.name == "sharegpt" ? load_sharegpt(flags, tokenizer)
                 : flags.name == "sonnet"   ? load_sonnet(flags, tokenizer, chat_template, as_text)
                 : flags.name == "azure"    ? load_azure(flags, maker)
                 : flags.is_trace()         ? load_mooncake(flags, maker)
                                            : load_custom(flags, tokenizer, chat_template, as_text);
  if (out.ok() && out->empty()) return Status(Code::kInvalidArgument, "the dataset is empty");
  return out;
}

}  // namespace baton::app
