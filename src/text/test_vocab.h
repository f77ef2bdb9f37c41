#pragma once
// A small byte-level vocabulary for tests: ids 0..255 are the bytes, then a few merges, then special tokens.

#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace baton::text {

inline std::string utf8_of(unsigned code_point) {
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

// The printable character that stands for byte `b` in GPT-2's alphabet.
inline std::string byte_level_char(unsigned b) {
  auto is_itself = [](unsigned x) { return (x >= '!' && x <= '~') || (x >= 0xA1 && x <= 0xAC) || (x >= 0xAE && x <= 0xFF); };
  if (is_itself(b)) return utf8_of(b);
  unsigned nth = 0;
  for (unsigned x = 0; x < b; ++x) nth += is_itself(x) ? 0 : 1;
  return utf8_of(0x100 + nth);
}

constexpr TokenId kHe = 256, kLl = 257, kHell = 258, kSpaceH = 259, k12 = 260, kBos = 261, kEos = 262, kUser = 263;

inline GgufVocab test_vocab(std::string pre) {
  GgufVocab v;
  v.model = "gpt2";
  v.pre = std::move(pre);
  for (unsigned b = 0; b < 256; ++b) v.tokens.push_back(byte_level_char(b));
  const std::string space = byte_level_char(' ');
  v.merges = {"h e", "l l", "he ll", space + " h", "1 2"};
  for (const char* merged : {"he", "ll", "hell"}) v.tokens.push_back(merged);
  v.tokens.push_back(space + "h");
  v.tokens.push_back("12");
  v.types.assign(v.tokens.size(), 1);
  v.tokens.insert(v.tokens.end(), {"<|bos|>", "<|eos|>", "<tool_call>"});
  v.types.insert(v.types.end(), {3, 3, 4});
  v.bos = kBos;
  v.eos = kEos;
  return v;
}

}  // namespace baton::text
