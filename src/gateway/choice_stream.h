#pragma once
// The tokens of one choice, from however many legs and attempts they come: emitted once each, in order of position. Pure.

#include <cstdint>
#include <map>
#include <vector>

#include "base/ids.h"
#include "wire/generate.h"

namespace baton::gateway {

class ChoiceStream {
 public:
  // `base`: the position of the first token to come.
  explicit ChoiceStream(std::int32_t base) : base_(base) {}

  enum class Verdict : std::uint8_t {
    kNew,        // taken; `ready` got it and what had waited for it
    kHeld,       // ahead of its turn
    kDuplicate,  // equal to what is known: dropped
    kConflict,   // unlike what is known at that position
    kGarbage,    // at a position where no token can be
    kLate,       // behind the end of a finished choice: dropped
  };
  // Appends to `ready` what can now be emitted.
  Verdict offer(wire::TokenEvent event, std::vector<wire::TokenEvent>& ready);

  void finish() { finished_ = true; }
  bool finished() const { return finished_; }
  // A token is missing below one that came.
  bool has_gap() const { return !held_.empty(); }
  // Forgets tokens ahead of their turn: the leg that sent them is gone.
  void drop_held() { held_.clear(); }
  const std::vector<TokenId>& tokens() const { return tokens_; }

 private:
  static constexpr std::size_t kHeldMax = 64;

  std::int32_t base_;
  std::vector<TokenId> tokens_;  // emitted
  std::map<std::int32_t, wire::TokenEvent> held_;
  bool finished_ = false;
};

}  // namespace baton::gateway
