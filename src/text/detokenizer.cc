#include "text/detokenizer.h"

#include <algorithm>
#include <utility>

namespace baton::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Sequence {
  std::size_t len;  // bytes that belong together, at least 1
  enum { kComplete, kIncomplete, kInvalid } state;
};

// The UTF-8 sequence at the start of `s` (not empty). An invalid one has the length of its maximal subpart, which is what one U+FFFD stands
// for (Unicode 15, section 3.9, and every decoder that follows it, the tokenizer library's too). kIncomplete: the end came too early.
Sequence next_sequence(std::string_view s) {
  auto at = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
  unsigned char lead = at(0);
  if (lead < 0x80) return {1, Sequence::kComplete};
  std::size_t len = lead >= 0xC2 && lead <= 0xDF ? 2 : lead >= 0xE0 && lead <= 0xEF ? 3 : lead >= 0xF0 && lead <= 0xF4 ? 4 : 0;
  if (len == 0) return {1, Sequence::kInvalid};
  // The second byte excludes overlong forms, surrogates, and what is above U+10FFFF.
  unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (std::size_t i = 1; i < len; ++i) {
    if (i >= s.size()) return {i, Sequence::kIncomplete};
    if (at(i) < low || at(i) > high) return {i, Sequence::kInvalid};
    low = 0x80;
    high = 0xBF;
  }
  return {len, Sequence::kComplete};
}

}  // namespace

std::string IncrementalDetokenizer::push(TokenId id) {
  if (skip_special_ && tokenizer_.is_special(id)) return {};
  pending_ += tokenizer_.token_bytes(id);
  std::string out;
  std::size_t pos = 0;
  while (pos < pending_.size()) {
    std::string_view rest = std::string_view(pending_).substr(pos);
    Sequence seq = next_sequence(rest);
    if (seq.state == Sequence::kIncomplete) break;
    out += seq.state == Sequence::kComplete ? rest.substr(0, seq.len) : kReplacement;
    pos += seq.len;
  }
  pending_.erase(0, pos);
  return out;
}

std::string IncrementalDetokenizer::finish() {
  if (pending_.empty()) return {};
  pending_.clear();
  return std::string(kReplacement);
}

StopStrings::StopStrings(std::vector<std::string> stops, bool include) : include_(include) {
  for (std::string& text : stops) {
    BATON_CHECK(!text.empty());
    Stop stop{std::move(text), {}, 0};
    stop.border.assign(stop.text.size(), 0);
    for (std::size_t i = 1, k = 0; i < stop.text.size(); ++i) {
      while (k > 0 && stop.text[i] != stop.text[k]) k = stop.border[k - 1];
      if (stop.text[i] == stop.text[k]) ++k;
      stop.border[i] = k;
    }
    stops_.push_back(std::move(stop));
  }
}

bool StopStrings::Stop::advance(char c) {
  while (matched > 0 && text[matched] != c) matched = border[matched - 1];
  if (text[matched] == c) ++matched;
  return matched == text.size();
}

StopStrings::Piece StopStrings::push(std::string_view text) {
  if (found_ != nullptr) return {{}, found_};
  std::size_t end = held_.size();
  held_ += text;
  for (char c : text) {
    ++end;
    const Stop* longest = nullptr;
    for (Stop& stop : stops_)
      if (stop.advance(c) && (longest == nullptr || stop.text.size() > longest->text.size())) longest = &stop;
    if (longest == nullptr) continue;
    found_ = &longest->text;
    held_.resize(include_ ? end : end - found_->size());
    return {std::exchange(held_, {}), found_};
  }
  std::size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.matched);
  Piece piece{held_.substr(0, held_.size() - keep), nullptr};
  held_.erase(0, held_.size() - keep);
  return piece;
}

std::string StopStrings::finish() { return std::exchange(held_, {}); }

}  // namespace baton::text
