#include "sim/checks.h"

namespace baton::sim {
namespace {

constexpr Duration kMoment = std::chrono::seconds(1);
constexpr Duration kRoomIsMade = std::chrono::milliseconds(20);  // at once, on the next turn
constexpr Duration kLegsGo = std::chrono::milliseconds(100);     // those of a lost worker: at once, but a process may be between two turns
constexpr Duration kRestartSeen = std::chrono::seconds(10);

}  // namespace

void check_turn(TimePoint now, const WorkerBooks& b, Failures& failures) {
  const auto fail = [&](std::string_view invariant, const std::string& what) {
    failures.add(now, invariant, std::string(b.name) + ": " + what);
  };
  if (b.blocks_free + b.blocks_cached + b.blocks_held != b.blocks_total) fail("I4", "free + cached + held blocks are not the whole pool");
  if (b.engine.blocks_reserved > b.blocks_available)
    fail("I23", std::to_string(b.engine.blocks_reserved) + " blocks are promised, " + std::to_string(b.blocks_available) + " can be given");
  const std::size_t owners = b.legs + b.handoffs + b.leases;
  if (static_cast<std::size_t>(b.engine.requests) > owners)
    fail("I9",
         std::to_string(b.engine.requests) + " requests in the engine, but " + std::to_string(owners) + " legs, hand-offs and leases");
  if (b.handoff_legs > b.prefill_legs)
    fail("I9", std::to_string(b.handoff_legs) + " hand-offs are for legs, of which " + std::to_string(b.prefill_legs) + " are open");
}

bool Watch::longer(std::string_view who, std::string_view what, bool holds, TimePoint now, Duration limit) {
  const std::string key = std::string(who) + " " + std::string(what);
  if (!holds) return since_.erase(key), false;
  return now - since_.try_emplace(key, now).first->second > limit;
}

void Watch::look(TimePoint now, const WorkerBooks& b) {
  const auto lasts = [&](const char* what, bool holds, Duration limit = kMoment) {
    return longer(b.name, what, holds && !b.frozen, now, limit);
  };
  const std::string name(b.name);
  if (lasts("late", b.next_deadline < b.clock)) failures_.add(now, "I3", name + " has a hold past its deadline");
  const engine::EngineStatus& e = b.engine;
  const bool only_waiting = e.running == 0 && e.waiting > 0 && e.waiting == e.requests && e.blocks_reserved == 0;
  if (lasts("idle", (e.running > 0 || only_waiting) && !b.stepping)) failures_.add(now, "I24", name + " has work and makes no step");
  const bool room_comes = b.handoffs > b.handoff_legs;  // some that are given up are still being read
  if (lasts("kept", e.running == 0 && e.waiting > 0 && b.retained > 0 && !room_comes && !b.stepping, kRoomIsMade))
    failures_.add(now, "I24", name + " keeps KV that nobody claims while a prompt waits");
}

void Watch::look(TimePoint now, const Belief& b, bool gateway_frozen) {
  const std::string worker(b.worker);
  if (longer(b.worker, "old", b.alive && !gateway_frozen && b.believed != b.living, now, kRestartSeen))
    failures_.add(now, "I21", "the gateway believes an earlier incarnation of " + worker);
  if (longer(b.worker, "lost", b.lost && b.legs > 0 && !gateway_frozen, now, kLegsGo))
    failures_.add(now, "I31", worker + " makes no progress, and keeps " + std::to_string(b.legs) + " legs");
}

}  // namespace baton::sim
