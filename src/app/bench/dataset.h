#pragma once
// The requests of a serving benchmark: what to send and how long the answer should be.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "text/tokenizer.h"

namespace baton::app {

struct BenchRequest {
  std::string prompt;             // text; or
  std::vector<TokenId> ids;       // token ids, if not empty
  std::int64_t input_tokens = 0;  // as known here; 0 if unknown
  std::int64_t output_tokens = 0;
};

struct DatasetFlags {
  std::string name = "random";  // random, lengths, sharegpt, custom
  std::string path;
  std::int64_t num_prompts = 1000;
  std::uint64_t seed = 0;
  std::int64_t random_input_len = 1024, random_output_len = 128, random_prefix_len = 0;
  double random_range_ratio = 0.0;
  std::int64_t sharegpt_output_len = 0;  // 0: the conversation's own
  std::int64_t custom_output_len = 256;  // -1: the file's output_tokens
  std::int64_t vocab_size = 20000;       // ids to draw from where no tokenizer is known
};

// `tokenizer` may be null: sharegpt needs it, chat with drawn ids needs it (`as_text`).
Result<std::vector<BenchRequest>> load_dataset(const DatasetFlags& flags, const text::Tokenizer* tokenizer, bool as_text);

}  // namespace baton::app
