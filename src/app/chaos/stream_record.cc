#include "app/chaos/stream_record.h"

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;
using Ids = std::vector<std::int64_t>;

std::string around(const Ids& ids, std::size_t at) {
  const std::size_t begin = at > 3 ? at - 3 : 0, end = std::min(ids.size(), at + 4);
  return fmt::format("[{}]", fmt::join(ids.begin() + static_cast<std::ptrdiff_t>(std::min(begin, end)),
                                       ids.begin() + static_cast<std::ptrdiff_t>(end), " "));
}

std::string around(const std::string& text, std::size_t at) {
  const std::size_t begin = at > 20 ? at - 20 : 0;
  return begin < text.size() ? text.substr(begin, 40) : "";
}

template <class T>
std::size_t common_prefix(const T& a, const T& b) {
  return static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

// One sequence may be the other with a run of tokens cut out: where a gap or a repetition is all that is wrong, it is called so.
std::optional<Finding> compare_ids(int index, const Ids& expected, const Ids& seen) {
  if (expected == seen) return std::nullopt;
  const std::size_t prefix = common_prefix(expected, seen);
  const std::size_t suffix = common_prefix(Ids(expected.rbegin(), expected.rend()), Ids(seen.rbegin(), seen.rend()));
  const Difference difference = seen.size() < expected.size() && prefix + suffix >= seen.size()       ? Difference::kMissing
                                : seen.size() > expected.size() && prefix + suffix >= expected.size() ? Difference::kRepeated
                                                                                                      : Difference::kWrongToken;
  return Finding{difference, fmt::format("choice {}, token {}: {} instead of {}; {} tokens instead of {}", index, prefix,
                                         around(seen, prefix), around(expected, prefix), seen.size(), expected.size())};
}

std::optional<Finding> compare_texts(Difference difference, int index, const std::string& expected, const std::string& seen) {
  if (expected == seen) return std::nullopt;
  const std::size_t at = common_prefix(expected, seen);
  return Finding{difference,
                 fmt::format("choice {}, character {}: `{}` instead of `{}`", index, at, around(seen, at), around(expected, at))};
}

}  // namespace

bool StreamRecord::on_event(std::string_view data) {
  if (data == "[DONE]") {
    done_ = true;
    return false;
  }
  const std::size_t before = tokens();
  const Json event = Json::parse(data, nullptr, false);
  if (!event.is_object() || event.contains("error") || done_) {
    if (error_.empty()) error_ = (done_ ? "an event behind [DONE]: " : "") + std::string(data.substr(0, 300));
    return false;
  }
  if (const auto usage = event.find("usage"); usage != event.end() && usage->is_object()) {
    prompt_tokens = usage->value("prompt_tokens", std::int64_t{-1});
    completion_tokens = usage->value("completion_tokens", std::int64_t{-1});
    if (const auto details = usage->find("prompt_tokens_details"); details != usage->end() && details->is_object())
      cached_tokens = details->value("cached_tokens", std::int64_t{0});
  }
  if (const auto choices = event.find("choices"); choices != event.end() && choices->is_array())
    for (const Json& choice : *choices) on_choice(choice);
  return tokens() > before;
}

void StreamRecord::on_choice(const Json& choice) {
  if (!choice.is_object()) return;
  Choice& c = choices_[choice.value("index", -1)];
  if (!c.finish.empty() && error_.empty()) error_ = "an event of a choice that had finished: " + choice.dump();
  if (const auto text = choice.find("text"); text != choice.end() && text->is_string()) c.text += text->get<std::string>();
  if (const auto delta = choice.find("delta"); delta != choice.end() && delta->is_object())
    if (const auto text = delta->find("content"); text != delta->end() && text->is_string()) c.text += text->get<std::string>();
  if (const auto ids = choice.find("token_ids"); ids != choice.end() && ids->is_array())
    for (const Json& id : *ids) c.ids.push_back(id.is_number_integer() ? id.get<std::int64_t>() : -1);
  if (const auto logprobs = choice.find("logprobs"); logprobs != choice.end() && !logprobs->is_null())
    c.logprobs += logprobs->dump(-1, ' ', false, Json::error_handler_t::replace);
  if (const auto finish = choice.find("finish_reason"); finish != choice.end() && finish->is_string()) {
    c.finish = finish->get<std::string>();
    if (const auto stop = choice.find("stop_reason"); stop != choice.end() && !stop->is_null()) c.finish += " at " + stop->dump();
  }
}

std::size_t StreamRecord::tokens() const {
  std::size_t sum = 0;
  for (const auto& [index, choice] : choices_) sum += choice.ids.size();
  return sum;
}

const char* to_string(Difference difference) {
  switch (difference) {
    case Difference::kMissing:
      return "missing tokens";
    case Difference::kRepeated:
      return "repeated tokens";
    case Difference::kWrongToken:
      return "wrong tokens";
    case Difference::kText:
      return "wrong text";
    case Difference::kLogprobs:
      return "wrong logprobs";
    case Difference::kFinish:
      return "wrong finish";
    case Difference::kUsage:
      return "wrong usage";
  }
  return "";
}

std::optional<Finding> compare(const StreamRecord& expected, const StreamRecord& seen) {
  static const StreamRecord::Choice kNone;
  const auto choice = [](const StreamRecord& record, int index) -> const StreamRecord::Choice& {
    const auto found = record.choices().find(index);
    return found == record.choices().end() ? kNone : found->second;
  };
  for (const auto& [index, unused] : seen.choices())
    if (!expected.choices().contains(index)) return Finding{Difference::kRepeated, fmt::format("a choice {} that nobody asked for", index)};
  for (const auto& [index, right] : expected.choices())
    if (auto finding = compare_ids(index, right.ids, choice(seen, index).ids)) return finding;
  for (const auto& [index, right] : expected.choices())
    if (auto finding = compare_texts(Difference::kText, index, right.text, choice(seen, index).text)) return finding;
  for (const auto& [index, right] : expected.choices())
    if (auto finding = compare_texts(Difference::kLogprobs, index, right.logprobs, choice(seen, index).logprobs)) return finding;
  for (const auto& [index, right] : expected.choices())
    if (auto finding = compare_texts(Difference::kFinish, index, right.finish, choice(seen, index).finish)) return finding;
  if (expected.prompt_tokens != seen.prompt_tokens || expected.completion_tokens != seen.completion_tokens ||
      seen.cached_tokens > seen.prompt_tokens)
    return Finding{Difference::kUsage,
                   fmt::format("{} prompt ({} of them cached) and {} completion tokens instead of {} and {}", seen.prompt_tokens,
                               seen.cached_tokens, seen.completion_tokens, expected.prompt_tokens, expected.completion_tokens)};
  return std::nullopt;
}

}  // namespace baton::app
