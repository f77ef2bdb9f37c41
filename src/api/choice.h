#pragma once
// The text state of one choice: tokens in; text, log-probabilities and token ids to show out. Lives only here, so it survives any worker.

#include <optional>
#include <string>
#include <vector>

#include "api/request.h"
#include "text/detokenizer.h"
#include "wire/generate.h"

namespace baton::api {

// A token as log-probability lists show it.
struct ShownToken {
  std::string bytes;
  wire::TokenLogprob value;
};
struct ShownLogprob {
  ShownToken token;
  bool has_value = true;  // false for the first token of an echoed prompt
  std::vector<ShownToken> top;
};

class ChoiceState {
 public:
  ChoiceState(const text::Tokenizer& tokenizer, const ParsedRequest& request)
      : tokenizer_(tokenizer), detokenizer_(tokenizer, request.skip_special), stops_(request.stops, request.include_stop) {}

  // What one event adds to the answer.
  struct Piece {
    std::string text;
    std::optional<ShownLogprob> logprob;
    std::optional<TokenId> token;
    bool stopped = false;  // a stop string was completed by this token
  };
  // `hidden`: the token ended the choice (EOS, a stop id), so it counts but is not text.
  Piece push(const wire::TokenEvent& event, bool hidden);
  // The text held back so far, at the end of a choice that no stop string ended.
  std::string finish();

  int tokens() const { return tokens_; }
  const std::string& stop_string() const { return stop_string_; }
  bool done = false;  // its finish has been reported

 private:
  const text::Tokenizer& tokenizer_;
  text::IncrementalDetokenizer detokenizer_;
  text::StopStrings stops_;
  int tokens_ = 0;
  std::string stop_string_;
};

ShownLogprob show_logprob(const text::Tokenizer& tokenizer, const wire::TokenEvent& event);

// {"content":[...]} entries of a chat answer: {token, logprob, bytes, top_logprobs}
void append_chat_logprobs(std::string& out, const std::vector<ShownLogprob>& entries, bool tokens_as_ids);
// {"text_offset","token_logprobs","tokens","top_logprobs"} of a completion; `offset` is the text position of the first entry and is moved
// on.
void append_completion_logprobs(std::string& out, const std::vector<ShownLogprob>& entries, bool tokens_as_ids, std::size_t& offset);

}  // namespace baton::api
