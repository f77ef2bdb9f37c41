#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "text/test_vocab.h"

namespace baton::text {
namespace {

std::unique_ptr<Tokenizer> byte_tokenizer() {
  auto tokenizer = Tokenizer::from_json(*tokenizer_json_from_gguf(test_vocab("smollm")));
  BATON_CHECK(tokenizer.ok());
  return std::move(tokenizer).value();
}

bool is_utf8(std::string_view s) {
  static const std::unique_ptr<Tokenizer> tokenizer = byte_tokenizer();
  return tokenizer->encode(s, false).ok();
}

TEST(IncrementalDetokenizer, HoldsACharacterUntilItIsComplete) {
  auto t = byte_tokenizer();
  IncrementalDetokenizer d(*t, true);
  EXPECT_EQ(d.push(0xF0), "");  // U+1F600
  EXPECT_EQ(d.push(0x9F), "");
  EXPECT_EQ(d.push(0x98), "");
  EXPECT_EQ(d.push(0x80), "\xF0\x9F\x98\x80");
  EXPECT_EQ(d.push(kHell), "hell");
  EXPECT_EQ(d.push(0xC3), "");
  EXPECT_EQ(d.push('x'), "\xEF\xBF\xBDx");  // the character never completed
  EXPECT_EQ(d.push(0xE4), "");
  EXPECT_EQ(d.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(d.finish(), "");
}

TEST(IncrementalDetokenizer, SpecialTokensAreSkippedOrShown) {
  auto t = byte_tokenizer();
  IncrementalDetokenizer skip(*t, true);
  EXPECT_EQ(skip.push(kEos), "");
  EXPECT_EQ(skip.push(kUser), "<tool_call>");
  IncrementalDetokenizer show(*t, false);
  EXPECT_EQ(show.push(kEos), "<|eos|>");
}

// Whatever the tokens, even nonsense: every piece is UTF-8, at most three bytes wait, and the pieces add up to what the library decodes.
TEST(IncrementalDetokenizer, PiecesAddUpToTheWholeDecode) {
  auto t = byte_tokenizer();
  std::mt19937 random(20240611);
  const int interesting[] = {'a',  0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF,
                             0xE0, 0xE4, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF, kHe,  kEos};
  for (int round = 0; round < 3000; ++round) {
    std::vector<TokenId> ids;
    for (unsigned n = random() % 12; n > 0; --n) ids.push_back(interesting[random() % std::size(interesting)]);
    for (bool skip : {false, true}) {
      IncrementalDetokenizer d(*t, skip);
      std::string all;
      for (TokenId id : ids) {
        std::string piece = d.push(id);
        ASSERT_TRUE(is_utf8(piece)) << "round " << round;
        all += piece;
      }
      all += d.finish();
      ASSERT_EQ(all, t->decode(ids, skip)) << "round " << round;
    }
  }
}

TEST(StopStrings, SpansPieces) {
  StopStrings s({"<|end|>", "STOP"}, false);
  EXPECT_EQ(s.push("hello <|e").text, "hello ");
  EXPECT_EQ(s.push("x<|").text, "<|ex");  // it was not the stop string after all
  EXPECT_EQ(s.push("end").text, "");
  auto last = s.push("|> more");
  EXPECT_EQ(last.text, "");
  ASSERT_NE(last.stop, nullptr);
  EXPECT_EQ(*last.stop, "<|end|>");
  EXPECT_EQ(s.push("more").text, "");
  EXPECT_EQ(s.finish(), "");
}

TEST(StopStrings, KeepsTheStopStringWhereAsked) {
  StopStrings s({"\n\n"}, true);
  EXPECT_EQ(s.push("a\n").text, "a");
  auto piece = s.push("\nb");
  EXPECT_EQ(piece.text, "\n\n");
  EXPECT_NE(piece.stop, nullptr);
}

TEST(StopStrings, TheTailComesOutAtTheEnd) {
  StopStrings s({"abc"}, false);
  EXPECT_EQ(s.push("xxab").text, "xx");
  EXPECT_EQ(s.finish(), "ab");
  StopStrings none({}, false);
  EXPECT_EQ(none.push("text").text, "text");
}

// The definition, slowly: the first end of any match; of the matches that end there, the longest.
struct Expected {
  std::string text;
  std::string stop;
};
Expected search(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 0; end <= text.size(); ++end) {
    std::string best;
    for (const std::string& stop : stops)
      if (end >= stop.size() && text.compare(end - stop.size(), stop.size(), stop) == 0 && stop.size() > best.size()) best = stop;
    if (!best.empty()) return {text.substr(0, end - best.size()), best};
  }
  return {text, ""};
}

TEST(StopStrings, AgreesWithTheDefinitionHoweverTheTextIsCut) {
  std::mt19937 random(7);
  for (int round = 0; round < 20'000; ++round) {
    auto word = [&](std::size_t longest) {
      std::string w;
      for (std::size_t n = 1 + random() % longest; n > 0; --n) w += static_cast<char>('a' + random() % 2);
      return w;
    };
    std::vector<std::string> stops;
    for (unsigned n = random() % 4; n > 0; --n) stops.push_back(word(7));
    std::string text = word(30);
    Expected expected = search(text, stops);
    StopStrings s(stops, false);
    std::string out;
    const std::string* stop = nullptr;
    std::size_t longest_hold = 0;
    std::size_t fed = 0;
    while (fed < text.size() && stop == nullptr) {
      std::size_t n = std::min<std::size_t>(1 + random() % 4, text.size() - fed);
      auto piece = s.push(std::string_view(text).substr(fed, n));
      fed += n;
      out += piece.text;
      stop = piece.stop;
      if (stop == nullptr) longest_hold = std::max(longest_hold, fed - out.size());
    }
    if (stop == nullptr) out += s.finish();
    ASSERT_EQ(out, expected.text) << "round " << round << " text " << text;
    ASSERT_EQ(stop == nullptr ? "" : *stop, expected.stop) << "round " << round;
    std::size_t longest_stop = 1;
    for (const std::string& x : stops) longest_stop = std::max(longest_stop, x.size());
    ASSERT_LT(longest_hold, longest_stop);
  }
}

TEST(StopStrings, SixtyFourHostileStringsOverALongTextAreQuick) {
  std::vector<std::string> stops;
  for (int i = 0; i < 64; ++i) stops.push_back(std::string(1000 + static_cast<std::size_t>(i), 'a') + "b");
  StopStrings s(stops, false);
  std::size_t out = 0;
  for (int i = 0; i < 20'000; ++i) out += s.push("aaaaaaaaac").text.size();  // quadratic search would take minutes
  EXPECT_EQ(out + s.finish().size(), 200'000u);
}

}  // namespace
}  // namespace baton::text
