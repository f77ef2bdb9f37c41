#include "app/chaos/requests.h"

#include <spdlog/fmt/fmt.h>

#include <span>

#include "base/rng.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kAdjectives[] = {"old",    "quiet", "bright", "narrow", "patient", "hungry", "distant", "green",
                                       "broken", "wide",  "early",  "heavy",  "curious", "cold",   "golden",  "small"};
constexpr const char* kNouns[] = {"river",   "captain", "harbour", "engine", "teacher",  "forest", "letter",  "bridge",
                                  "market",  "clock",   "farmer",  "island", "window",   "garden", "winter",  "train",
                                  "painter", "village", "lamp",    "horse",  "mountain", "map",    "kitchen", "storm"};
constexpr const char* kVerbs[] = {"follows", "remembers", "repairs", "watches", "crosses", "answers", "carries",
                                  "paints",  "counts",    "leaves",  "opens",   "builds",  "borrows", "forgets"};
constexpr int kPrefixes = 4;  // shared by a third of the prompts

class Writer {
 public:
  explicit Writer(Rng rng) : rng_(rng) {}

  int between(int low, int high) { return low + static_cast<int>(rng_.below(static_cast<std::uint64_t>(high - low + 1))); }
  bool one_in(int n) { return rng_.below(static_cast<std::uint64_t>(n)) == 0; }
  std::uint64_t number() { return rng_.next_u64() >> 1; }

  // About eleven tokens each.
  std::string sentences(int count) {
    std::string out;
    for (int i = 0; i < count; ++i)
      out += fmt::format("{}The {} {} {} the {} near the {} {}.", i > 0 ? " " : "", word(kAdjectives), word(kNouns), word(kVerbs),
                         word(kNouns), word(kAdjectives), word(kNouns));
    return out;
  }

 private:
  const char* word(std::span<const char* const> words) { return words[rng_.below(words.size())]; }

  Rng rng_;
};

void choose_sampling(Writer& w, Json& body) {
  if (w.one_in(3)) {
    body["temperature"] = 0;
  } else {
    body["temperature"] = 0.5 + 0.1 * w.between(0, 7);
    body["seed"] = w.number();
    if (w.one_in(3)) body["top_p"] = 0.9;
    if (w.one_in(4)) body["top_k"] = 40;
    if (w.one_in(5)) body["min_p"] = 0.05;
    if (w.one_in(5)) body["n"] = w.between(2, 3);
  }
  if (w.one_in(3)) body["repetition_penalty"] = 1.1;
  if (w.one_in(4)) {
    body["presence_penalty"] = 0.4;
    body["frequency_penalty"] = 0.3;
  }
  if (w.one_in(8)) body["logit_bias"] = {{std::to_string(w.between(100, 4000)), 2.5}, {std::to_string(w.between(100, 4000)), -50}};
}

}  // namespace

std::vector<ChaosRequest> make_requests(std::size_t count, std::uint64_t seed) {
  std::vector<std::string> prefixes;
  Writer shared{Rng(seed, 1)};
  for (int i = 0; i < kPrefixes; ++i) prefixes.push_back(shared.sentences(8));
  std::vector<ChaosRequest> requests;
  for (std::size_t i = 0; i < count; ++i) {
    Writer w{Rng(seed, 2 + i)};
    std::string text = w.one_in(3) ? prefixes[static_cast<std::size_t>(w.between(0, kPrefixes - 1))] + " " : "";
    text += w.sentences(w.between(1, 16));
    const bool chat = w.one_in(2);
    Json body{{"stream", true}, {"stream_options", {{"include_usage", true}}}, {"return_token_ids", true}};
    if (chat) {
      body["messages"] = Json::array({{{"role", "user"}, {"content", text + " Go on with the story."}}});
    } else {
      body["prompt"] = text;
    }
    body["max_tokens"] = w.between(48, 320);
    if (!w.one_in(4)) body["ignore_eos"] = true;
    choose_sampling(w, body);
    if (body.contains("n")) body["max_tokens"] = body["max_tokens"].get<int>() / body["n"].get<int>();
    if (w.one_in(4)) body["stop"] = w.one_in(2) ? Json::array({"\n\n", "?"}) : Json::array({" storm", " and then", "bridge."});
    if (w.one_in(4)) {
      body["logprobs"] = chat ? Json(true) : Json(w.between(0, 3));
      if (chat) body["top_logprobs"] = w.between(0, 3);
    }
    requests.push_back({chat ? "/v1/chat/completions" : "/v1/completions", std::move(body)});
  }
  return requests;
}

}  // namespace baton::app
