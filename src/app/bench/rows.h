#pragma once
// What the readers of benchmark data share: lines and columns that know where they stand, and prompts drawn to a length.

#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "app/bench/dataset.h"
#include "base/rng.h"

namespace baton::app {

// bench/data/, generated into the build.
extern const char kLengths200[], kSonnet[], kAzureSample[], kMooncakeSample[];

// A data file, line by line.
class Lines {
 public:
  // `path`, or `built_in` where it is empty.
  static Result<Lines> open(const std::string& path, const char* built_in = nullptr);
  // The next line that is not empty, without its end; false after the last.
  bool next();
  const std::string& line() const { return line_; }
  // "FILE:LINE: what"
  Status error(const std::string& what) const;
  // A count of tokens from that line: 1 to 10,000,000.
  Result<std::int64_t> tokens(std::string_view cell, const std::string& name) const;

 private:
  std::string name_, line_;
  std::istringstream in_;
  int number_ = 0;
};

// The columns of a CSV file (no quotes) by the names in its first line.
class Columns {
 public:
  // Reads the header line; an error if a name is not there.
  static Result<Columns> read(Lines& lines, const std::vector<std::string>& names);
  // The cells of the line, in the order of the names.
  Result<std::vector<std::string>> cells(const Lines& lines) const;

 private:
  std::vector<std::string> names_;
  std::vector<std::size_t> at_;
};

// Prompts whose content does not matter: ids drawn from the vocabulary without special tokens, sent as ids, or as text where the endpoint
// takes only text (which may then measure a little more or less).
class PromptMaker {
 public:
  PromptMaker(const DatasetFlags& flags, const text::Tokenizer* tokenizer, bool as_text)
      : tokenizer_(tokenizer), vocab_(tokenizer ? tokenizer->vocab_size() : flags.vocab_size), as_text_(as_text) {}
  std::int64_t vocab_size() const { return vocab_; }
  void draw(Rng& rng, std::int64_t count, std::vector<TokenId>& ids) const;
  Result<BenchRequest> request(std::vector<TokenId> ids, std::int64_t output_tokens) const;

 private:
  const text::Tokenizer* tokenizer_;
  std::int64_t vocab_;
  bool as_text_;
};

using Requests = Result<std::vector<BenchRequest>>;
// dataset_text.cc
Requests load_sharegpt(const DatasetFlags& flags, const text::Tokenizer* tokenizer);
Requests load_sonnet(const DatasetFlags& flags, const text::Tokenizer* tokenizer, const text::ChatTemplate* chat_template, bool as_text);
Requests load_custom(const DatasetFlags& flags, const text::Tokenizer* tokenizer, const text::ChatTemplate* chat_template, bool as_text);
Requests load_mix(const DatasetFlags& flags, const PromptMaker& maker);  // mix.cc
// trace.cc
Requests load_azure(const DatasetFlags& flags, const PromptMaker& maker);
Requests load_mooncake(const DatasetFlags& flags, const PromptMaker& maker);

}  // namespace baton::app
