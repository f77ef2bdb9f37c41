#pragma once
// What a client has of one streamed answer, and how it differs from the answer that it should have been. Pure.

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace baton::app {

class StreamRecord {
 public:
  // The data of one server-sent event. True if it brought tokens.
  bool on_event(std::string_view data);

  struct Choice {
    std::vector<std::int64_t> ids;
    std::string text;
    std::string logprobs;  // those of all events, as they came
    std::string finish;    // "" while it runs; with what stopped it
  };
  const std::map<int, Choice>& choices() const { return choices_; }
  std::size_t tokens() const;
  bool done() const { return done_; }                  // [DONE] came
  const std::string& error() const { return error_; }  // of an error event, or of one that is none of ours
  std::int64_t prompt_tokens = -1, completion_tokens = -1, cached_tokens = 0;

 private:
  void on_choice(const nlohmann::ordered_json& choice);

  std::map<int, Choice> choices_;
  bool done_ = false;
  std::string error_;
};

// In the order in which they are looked for: the first that is found names the stream.
enum class Difference : std::uint8_t { kMissing, kRepeated, kWrongToken, kText, kLogprobs, kFinish, kUsage };
const char* to_string(Difference difference);

struct Finding {
  Difference difference{};
  std::string what;  // where, with both sides
};
// `seen` has come to its end without an error.
std::optional<Finding> compare(const StreamRecord& expected, const StreamRecord& seen);

}  // namespace baton::app
