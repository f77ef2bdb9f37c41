// Datasets that are text: sharegpt, sonnet, custom; chosen and measured as vLLM does.

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "app/bench/json_field.h"
#include "app/bench/rows.h"
#include "app/paths.h"

namespace baton::app {
namespace {

using Json = nlohmann::json;

bool full(const std::vector<BenchRequest>& requests, const DatasetFlags& flags) {
  return static_cast<std::int64_t>(requests.size()) >= flags.num_prompts;
}

Result<std::string> as_user(const text::ChatTemplate& chat_template, const std::string& content) {
  const Json messages = Json::array({{{"role", "user"}, {"content", content}}});
  return chat_template.render(messages.dump(-1, ' ', false, Json::error_handler_t::replace), "", "", true);
}

Status needs_tokenizer(const char* what) {
  return Status(Code::kInvalidArgument,
                fmt::format("--dataset-name {} needs the model's tokenizer to measure lengths: --tokenizer MODEL", what));
}

}  // namespace

// The first two turns of each conversation that has as many, in drawn order, under vLLM's bounds: at least 4 tokens each (an answer whose
// length is given may be shorter), at most 1,024 in the prompt and 2,048 in both.
Requests load_sharegpt(const DatasetFlags& flags, const text::Tokenizer* tokenizer) {
  if (!tokenizer) return needs_tokenizer("sharegpt");
  BATON_ASSIGN_OR_RETURN(const std::string text, read_text_file(flags.path));
  const Json data = Json::parse(text, nullptr, false);
  if (!data.is_array()) return Status(Code::kInvalidArgument, flags.path + ": expected a JSON list of conversations");
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const Json& entry : data) {
    const auto turns = entry.is_object() ? entry.find("conversations") : entry.end();
    if (!entry.is_object() || turns == entry.end() || !turns->is_array() || turns->size() < 2) continue;
    pairs.emplace_back(text_field((*turns)[0], "value"), text_field((*turns)[1], "value"));
  }
  Rng rng(flags.seed, 3);
  for (std::size_t i = pairs.size(); i > 1; --i) std::swap(pairs[i - 1], pairs[rng.below(i)]);
  std::vector<BenchRequest> out;
  for (auto& [prompt, answer] : pairs) {
    if (full(out, flags)) break;
    const auto in = tokenizer->encode(prompt, true), reply = tokenizer->encode(answer, true);
    if (!in.ok() || !reply.ok()) continue;
    const bool fixed = flags.sharegpt_output_len > 0;
    const auto n = static_cast<std::int64_t>(in->size());
    const auto m = fixed ? flags.sharegpt_output_len : static_cast<std::int64_t>(reply->size());
    if (n < 4 || (!fixed && m < 4) || n > 1024 || n + m > 2048) continue;
    out.push_back({std::move(prompt), {}, n, m});
  }
  if (out.empty()) return Status(Code::kInvalidArgument, flags.path + ": no conversation passes the length filter");
  return out;
}

// A request of poem lines: the first ones the same in all prompts, the rest drawn; as many lines as fit on average, and prompts that
// measure more than sonnet_input_len drawn again.
Requests load_sonnet(const DatasetFlags& flags, const text::Tokenizer* tokenizer, const text::ChatTemplate* chat_template, bool as_text) {
  if (!tokenizer) return needs_tokenizer("sonnet");
  BATON_ASSIGN_OR_RETURN(Lines file, Lines::open(flags.path, kSonnet));
  std::vector<std::string> lines;
  std::size_t tokens = 0;
  while (file.next()) {
    lines.push_back(file.line() + "\n");
    BATON_ASSIGN_OR_RETURN(const auto ids, tokenizer->encode(lines.back(), true));
    tokens += ids.size();
  }
  if (lines.empty()) return file.error("no lines to choose from");
  const double per_line = static_cast<double>(tokens) / static_cast<double>(lines.size());

  const std::string task = "Pick as many lines as you can from these poem lines:\n";
  // What the model will see of a prompt, and how long that is.
  struct Rendered {
    std::string text;
    std::int64_t tokens = 0;
  };
  const auto render = [&](const std::string& prompt) -> Result<Rendered> {
    Rendered out{prompt};
    if (chat_template) {
      BATON_ASSIGN_OR_RETURN(out.text, as_user(*chat_template, prompt));
    }
    BATON_ASSIGN_OR_RETURN(const auto ids, tokenizer->encode(out.text, true));
    out.tokens = static_cast<std::int64_t>(ids.size());
    return out;
  };
  BATON_ASSIGN_OR_RETURN(const Rendered empty, render(task));
  const auto lines_in = [&](std::int64_t length) {
    return static_cast<std::int64_t>(std::nearbyint(static_cast<double>(length - empty.tokens) / per_line));
  };
  const std::int64_t total = lines_in(flags.sonnet_input_len);
  const std::int64_t shared =
      std::min(std::max<std::int64_t>(0, lines_in(flags.sonnet_prefix_len)), static_cast<std::int64_t>(lines.size()));
  if (total < 1 || total < shared)
    return Status(Code::kInvalidArgument,
                  fmt::format("--sonnet-input-len {}: expected more than --sonnet-prefix-len {} and the {} tokens of the task",
                              flags.sonnet_input_len, flags.sonnet_prefix_len, empty.tokens));
  std::string head = task;
  for (std::int64_t i = 0; i < shared; ++i) head += lines[static_cast<std::size_t>(i)];

  Rng rng(flags.seed, 6);
  std::vector<BenchRequest> out;
  for (int misses = 0; !full(out, flags);) {
    std::string prompt = head;
    for (std::int64_t i = shared; i < total; ++i) prompt += lines[rng.below(lines.size())];
    BATON_ASSIGN_OR_RETURN(Rendered rendered, render(prompt));
    if (rendered.tokens <= flags.sonnet_input_len) {
      out.push_back({as_text ? std::move(prompt) : std::move(rendered.text), {}, rendered.tokens, flags.sonnet_output_len});
      misses = 0;
    } else if (++misses == 1000) {
      return Status(Code::kInvalidArgument, fmt::format("--sonnet-input-len {}: none of 1000 drawn prompts of {} lines is that short; "
                                                        "give more",
                                                        flags.sonnet_input_len, total));
    }
  }
  return out;
}

// JSON lines {"prompt": "...", "output_tokens": N}, in the file's order.
Requests load_custom(const DatasetFlags& flags, const text::Tokenizer* tokenizer, const text::ChatTemplate* chat_template, bool as_text) {
  BATON_ASSIGN_OR_RETURN(Lines lines, Lines::open(flags.path));
  std::vector<BenchRequest> out;
  while (!full(out, flags) && lines.next()) {
    const Json row = Json::parse(lines.line(), nullptr, false);
    const auto prompt = row.is_object() ? row.find("prompt") : row.end();
    if (!row.is_object() || prompt == row.end() || !prompt->is_string()) return lines.error("expected an object with a string `prompt`");
    BenchRequest request;
    request.prompt = prompt->get<std::string>();
    request.output_tokens = flags.custom_output_len;
    if (flags.custom_output_len < 1) {
      request.output_tokens = integer_field(row, "output_tokens").value_or(0);
      if (request.output_tokens < 1) return lines.error("--custom-output-len -1 wants a positive number `output_tokens` in each row");
    }
    if (chat_template && !as_text && !flags.skip_chat_template) {
      BATON_ASSIGN_OR_RETURN(request.prompt, as_user(*chat_template, request.prompt));
    }
    if (const auto ids = tokenizer ? tokenizer->encode(request.prompt, true) : Result<std::vector<TokenId>>(std::vector<TokenId>());
        ids.ok())
      request.input_tokens = static_cast<std::int64_t>(ids->size());
    out.push_back(std::move(request));
  }
  return out;
}

}  // namespace baton::app
