#include "api/choice.h"

#include <algorithm>

#include "api/json_text.h"

namespace baton::api {
namespace {

void append_token_name(std::string& out, const ShownToken& token, bool as_id) {
  append_json_string(out, as_id ? "token_id:" + std::to_string(token.value.token) : valid_utf8(token.bytes));
}

// {"token":..,"logprob":..,"bytes":[..]  without the closing brace
void append_token_object(std::string& out, const ShownToken& token, bool as_id) {
  out += "{\"token\":";
  append_token_name(out, token, as_id);
  out += ",\"logprob\":";
  append_json_number(out, token.value.logprob);
  out += ",\"bytes\":[";
  for (std::size_t i = 0; i < token.bytes.size(); ++i) {
    if (i) out += ',';
    out += std::to_string(static_cast<unsigned char>(token.bytes[i]));
  }
  out += ']';
}

// Appends `each(entry)` for all entries, with commas between.
template <class Entries, class Each>
void append_list(std::string& out, const Entries& entries, Each each) {
  out += '[';
  bool first = true;
  for (const auto& entry : entries) {
    if (!first) out += ',';
    first = false;
    each(entry);
  }
  out += ']';
}

}  // namespace

ShownLogprob show_logprob(const text::Tokenizer& tokenizer, const wire::TokenEvent& event) {
  ShownLogprob shown;
  shown.has_value = event.logprob.has_value();
  shown.token = {std::string(tokenizer.token_bytes(event.token)), {event.token, event.logprob.value_or(0.0f)}};
  for (const wire::TokenLogprob& top : event.top) shown.top.push_back({std::string(tokenizer.token_bytes(top.token)), top});
  return shown;
}

ChoiceState::Piece ChoiceState::push(const wire::TokenEvent& event, bool hidden) {
  Piece piece;
  ++tokens_;
  piece.token = event.token;
  if (event.logprob) piece.logprob = show_logprob(tokenizer_, event);
  if (hidden) return piece;
  text::StopStrings::Piece found = stops_.push(detokenizer_.push(event.token));
  piece.text = std::move(found.text);
  if (found.stop) {
    stop_string_ = *found.stop;
    piece.stopped = true;
  }
  return piece;
}

std::string ChoiceState::finish() {
  text::StopStrings::Piece last = stops_.push(detokenizer_.finish());
  if (last.stop) {
    stop_string_ = *last.stop;
    return std::move(last.text);
  }
  return last.text + stops_.finish();
}

void append_chat_logprobs(std::string& out, const std::vector<ShownLogprob>& entries, bool tokens_as_ids) {
  out += "{\"content\":";
  append_list(out, entries, [&](const ShownLogprob& entry) {
    append_token_object(out, entry.token, tokens_as_ids);
    out += ",\"top_logprobs\":";
    append_list(out, entry.top, [&](const ShownToken& top) {
      append_token_object(out, top, tokens_as_ids);
      out += '}';
    });
    out += '}';
  });
  out += '}';
}

void append_completion_logprobs(std::string& out, const std::vector<ShownLogprob>& entries, bool tokens_as_ids, std::size_t& offset) {
  out += "{\"text_offset\":";
  append_list(out, entries, [&](const ShownLogprob& entry) {
    out += std::to_string(offset);
    offset += static_cast<std::size_t>(std::count_if(entry.token.bytes.begin(), entry.token.bytes.end(),
                                                     [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
  });
  out += ",\"token_logprobs\":";
  append_list(out, entries, [&](const ShownLogprob& entry) {
    if (entry.has_value) {
      append_json_number(out, entry.token.value.logprob);
    } else {
      out += "null";
    }
  });
  out += ",\"tokens\":";
  append_list(out, entries, [&](const ShownLogprob& entry) { append_token_name(out, entry.token, tokens_as_ids); });
  out += ",\"top_logprobs\":";
  append_list(out, entries, [&](const ShownLogprob& entry) {
    if (!entry.has_value) {
      out += "null";
      return;
    }
    out += '{';
    bool first = true;
    for (const ShownToken& top : entry.top) {
      if (!first) out += ',';
      first = false;
      append_token_name(out, top, tokens_as_ids);
      out += ':';
      append_json_number(out, top.value.logprob);
    }
    out += '}';
  });
  out += '}';
}

}  // namespace baton::api
