#pragma once
// The text state of one streamed choice: bytes of tokens in, whole UTF-8 characters out, held back while they might still become part of a
// stop string. Lives in api, is rebuilt from nothing, and never crosses to a worker.

#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "text/tokenizer.h"

namespace baton::text {

// Ids -> text that never splits a character.
class IncrementalDetokenizer {
 public:
  IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special) : tokenizer_(tokenizer), skip_special_(skip_special) {}
  // The text that became complete with this token (often empty inside a multi-byte character).
  std::string push(TokenId id);
  // What is left at the end; an incomplete character becomes U+FFFD.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_;
  std::string pending_;  // bytes of an incomplete character, at most 3
};

// Finds the first of several stop strings in a stream of pieces: the one that ends first, and of those the longest. Time is linear in the
// text, whatever the text and the strings.
class StopStrings {
 public:
  // At most 64 strings, none empty (api refuses others). `include` keeps the stop string in the text.
  StopStrings(std::vector<std::string> stops, bool include);
  StopStrings(StopStrings&&) = default;  // a Piece points into it: moves keep that, copies would not
  StopStrings& operator=(StopStrings&&) = default;
  struct Piece {
    std::string text;                   // safe to send now
    const std::string* stop = nullptr;  // the string that matched; the stream ends here
  };
  // After a match: nothing more, and the same `stop`.
  Piece push(std::string_view text);
  // The held-back tail when the stream ends without a match.
  std::string finish();

 private:
  // Knuth, Morris and Pratt's search for one string.
  struct Stop {
    std::string text;
    std::vector<std::size_t> border;  // [i]: the longest proper prefix of text[0..i] that is also its suffix
    std::size_t matched;              // how much of `text` the stream ends with
    bool advance(char c);             // true at the end of a match, after which the search is over
  };
  std::vector<Stop> stops_;
  bool include_;
  std::string held_;  // the end of the stream that may be the start of a stop string
  const std::string* found_ = nullptr;
};

}  // namespace baton::text
