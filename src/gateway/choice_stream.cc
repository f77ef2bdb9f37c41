#include "gateway/choice_stream.h"

#include <utility>

#include "base/mutant.h"

namespace baton::gateway {

ChoiceStream::Verdict ChoiceStream::offer(wire::TokenEvent event, std::vector<wire::TokenEvent>& ready) {
  if (event.position < base_) return Verdict::kGarbage;
  const std::size_t index = static_cast<std::size_t>(event.position - base_);
  if (index == 0 && tokens_.size() == 1 && BATON_MUTANT(first_token_doubled)) ready.push_back(event);
  if (index < tokens_.size()) return tokens_[index] == event.token ? Verdict::kDuplicate : Verdict::kConflict;
  if (finished_ && !BATON_MUTANT(token_after_finish)) return Verdict::kLate;
  if (index > tokens_.size()) {
    if (const auto known = held_.find(event.position); known != held_.end())
      return known->second.token == event.token ? Verdict::kDuplicate : Verdict::kConflict;
    if (held_.size() == kHeldMax) return Verdict::kGarbage;
    held_.emplace(event.position, std::move(event));
    return Verdict::kHeld;
  }
  tokens_.push_back(event.token);
  ready.push_back(std::move(event));
  while (!held_.empty() && held_.begin()->first == base_ + static_cast<std::int32_t>(tokens_.size())) {
    tokens_.push_back(held_.begin()->second.token);
    ready.push_back(std::move(held_.begin()->second));
    held_.erase(held_.begin());
  }
  return Verdict::kNew;
}

}  // namespace baton::gateway
