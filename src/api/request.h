#pragma once
// A chat or completion request: JSON checked and turned into one or more GenerateRequests and what the front end must remember to answer
// it.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "api/fields.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "wire/generate.h"
#include "wire/trace_context.h"

namespace baton::api {

inline constexpr std::size_t kStopStringsMax = 64;
inline constexpr int kChoicesMax = 128;         // of one prompt
inline constexpr int kRequestChoicesMax = 256;  // of all prompts of a request

// Sampling values for fields that a request leaves out: the model's own recommendation, or OpenAI's defaults.
struct SamplingDefaults {
  float temperature = 1.0f, top_p = 1.0f, min_p = 0.0f, repetition_penalty = 1.0f;
  int top_k = 0;
  std::optional<int> max_tokens;
  std::vector<TokenId> eos_ids;
};

// What parsing needs of the model; all borrowed.
struct FrontEnd {
  const text::Tokenizer* tokenizer = nullptr;
  const text::ChatTemplate* chat_template = nullptr;
  SamplingDefaults defaults;
  std::int64_t max_model_len = 0;
  std::size_t longest_token_bytes = 0;  // a text longer than max_model_len of these cannot fit
  int max_logprobs = 20;
  Duration request_timeout = std::chrono::minutes(30);
  std::function<std::uint64_t()> draw;  // random numbers: seeds of requests that give none, ids of requests that have none
};

enum class Endpoint { kChat, kCompletions };

struct ParsedRequest {
  Endpoint endpoint = Endpoint::kChat;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool echo = false;
  bool skip_special = true;
  bool include_stop = false;
  bool return_token_ids = false;
  bool tokens_as_ids = false;  // logprobs name tokens as "token_id:N"
  std::vector<std::string> stops;
  std::vector<wire::GenerateRequest> prompts;  // one per prompt, ids and seeds not yet numbered
  std::vector<std::string> prompt_texts;       // for echo
  std::optional<wire::TraceContext> trace;     // the client's, from its headers
};

// `body` is the parsed JSON of the request. Seeds that the client did not give are drawn here.
std::optional<ApiError> parse_request(const FrontEnd& front, Endpoint endpoint, const Json& body, ParsedRequest& out);

// Whether a text of so many bytes can fit into the context at all. Tokenising takes a second a megabyte, during which nobody else is
// served: what cannot fit is refused before. `what`: "prompt", "messages".
Status check_length(const FrontEnd& front, std::size_t bytes, std::string_view what);

// The conversation as the model sees it; shared with /tokenize.
Result<std::string> render_chat(const FrontEnd& front, const Json& body);

}  // namespace baton::api
