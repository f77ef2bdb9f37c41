#pragma once
// The requests of a serving benchmark: what to send, how long the answer should be, and for a trace when it was sent.

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace CLI {
class App;
}

namespace baton::app {

struct BenchRequest {
  std::string prompt;             // text; or
  std::vector<TokenId> ids;       // token ids, if not empty
  std::int64_t input_tokens = 0;  // as known here; 0 if unknown
  std::int64_t output_tokens = 0;
  double arrival_s = -1;  // of a trace: when it leaves, counted from the begin of the replay; -1: has no time of its own
  std::string kind{};     // of mix: chat, long; else ""
};

struct DatasetFlags {
  std::string name = "random";  // random, lengths, mix, sharegpt, sonnet, burstgpt, custom, azure, mooncake (timed_trace)
  std::string path;             // "": the one in the program, for lengths, sonnet, azure, mooncake
  std::int64_t num_prompts = 1000;
  std::uint64_t seed = 0;
  std::int64_t random_input_len = 1024, random_output_len = 128, random_prefix_len = 0;
  double random_range_ratio = 0.0;
  std::int64_t sharegpt_output_len = 0;  // 0: the conversation's own
  std::int64_t custom_output_len = 256;  // -1: the file's output_tokens
  std::int64_t sonnet_input_len = 550, sonnet_output_len = 150, sonnet_prefix_len = 200;
  bool skip_chat_template = false;                 // custom: prompts go to the completions endpoint as they are
  double trace_scale = 1;                          // the trace's clock runs so many times as fast
  double trace_start_s = 0, trace_duration_s = 0;  // the part of it to replay, in its own time; duration 0: to its end
  std::int64_t trace_max_len = 0;                  // leaves out what has more prompt and answer tokens together; 0: nothing
  std::int64_t mix_chat_input_len = 64, mix_chat_output_len = 128, mix_long_input_len = 2000, mix_long_output_len = 16;
  double mix_long_every_s = 4;
  std::uint64_t mix_arrivals = 0;           // added to the seed of their arrival times
  double mix_rate = 0, mix_burstiness = 1;  // of mix's chats, which have times of their own: the command's rate; 0: all at once
  std::int64_t vocab_size = 20000;          // ids to draw from where no tokenizer is known

  // The group "Dataset" of a command's help. `this` must outlive the parsing.
  void add_to(CLI::App& app);
  bool is_trace() const;
  // Whether the data give only lengths, so that answers have to run to theirs (ignore_eos) for the load to be what they say.
  bool wants_full_answers() const;
};

// At most num_prompts requests; none twice, except in burstgpt when it has fewer. `tokenizer` may be null: sharegpt and sonnet need it, and
// drawn ids do where text is sent (`as_text`: the chat endpoint). With a chat template, sonnet's and custom's prompts are rendered by it,
// unless `as_text`: then the server does. An error names file, line and what was expected.
Result<std::vector<BenchRequest>> load_dataset(const DatasetFlags& flags, const text::Tokenizer* tokenizer, bool as_text,
                                               const text::ChatTemplate* chat_template = nullptr);

}  // namespace baton::app
