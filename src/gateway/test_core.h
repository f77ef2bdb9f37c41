#pragma once
// For tests of the core: a core that is driven by hand.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>

#include "gateway/core.h"

namespace baton::gateway::testing {

using wire::Role;

inline constexpr Duration kMs = std::chrono::milliseconds(1);

inline wire::WorkerStatus healthy(const std::string& name, Role role) {
  wire::WorkerStatus s;
  s.name = name;
  s.role = role;
  s.incarnation = Incarnation(1);
  s.model_digest = "m1", s.numerics_id = "avx512-bf16";
  s.kv = {30, 3, 64, "bf16"};
  s.link_port = 7000;
  s.ready = true;
  s.block_tokens = 4, s.blocks_total = s.blocks_free = 1000;
  s.max_num_seqs = 16, s.max_model_len = 2048;
  s.prefill_tokens_per_s = 1000;
  return s;
}

inline wire::GenerateRequest request_of(std::vector<TokenId> ids, int n = 1) {
  wire::GenerateRequest r;
  r.id = "req-1";
  r.n_prompt = static_cast<std::int32_t>(ids.size());
  r.ids = std::move(ids);
  r.n = n;
  r.sampling.max_tokens = 8;
  r.timeout = std::chrono::seconds(60);
  return r;
}

// Drives a core by hand, keeps what it asks for, and what it told the client.
class CoreTest : public ::testing::Test {
 protected:
  void start(std::vector<std::pair<std::string, Role>> workers, CoreOptions options = {}) {
    std::vector<WorkerConfig> configs;
    int port = 9000;
    for (const auto& [name, role] : workers) configs.push_back({name, "10.0.0." + std::to_string(port - 8999), port, role}), ++port;
    core_ = std::make_unique<Core>(options, configs);
    for (std::size_t i = 0; i < workers.size(); ++i)
      core_->on_status(now_, WorkerId(static_cast<int>(i)), healthy(workers[i].first, workers[i].second));
    pump();
  }
  void pump() {
    for (Action& action : core_->take_actions()) {
      if (auto* d = std::get_if<StartDecode>(&action)) decodes_.push_back(*d);
      if (auto* p = std::get_if<StartPrefill>(&action)) prefills_.push_back(*p);
      if (auto* c = std::get_if<CancelLeg>(&action)) cancelled_.push_back(c->leg);
      if (auto* f = std::get_if<FinishChoice>(&action)) finish_choices_.push_back(*f);
      if (auto* p = std::get_if<PollNow>(&action)) polls_.push_back(p->worker);
      if (auto* r = std::get_if<Remark>(&action)) remarks_.push_back(*r);
      if (auto* d = std::get_if<Deliver>(&action)) {
        if (auto* t = std::get_if<wire::TokenEvent>(&d->event))
          tokens_[t->choice].push_back(t->token), positions_[t->choice].push_back(t->position);
        if (auto* f = std::get_if<wire::FinishEvent>(&d->event)) finishes_.push_back(*f);
        if (auto* s = std::get_if<wire::Served>(&d->event)) served_ = *s;
        if (auto* s = std::get_if<Status>(&d->event)) done_.push_back(*s);
        if (std::get_if<wire::PromptLogprobs>(&d->event)) ++prompt_logprobs_;
      }
    }
  }
  RequestKey submit(wire::GenerateRequest r) {
    const RequestKey key = core_->submit(now_, std::move(r));
    pump();
    return key;
  }
  void event(LegId leg, wire::LegEvent e) { core_->on_leg_event(now_, leg, std::move(e)), pump(); }
  void ended(LegId leg, LegEnd::Kind kind, Status status = {}) { core_->on_leg_end(now_, leg, {kind, std::move(status)}), pump(); }
  void advance(Duration d) {
    now_ += d;
    core_->on_time(now_);
    pump();
  }
  static wire::TokenEvent token(std::int32_t position, TokenId id, int choice = 0) { return {choice, position, id, {}, {}}; }
  static wire::LegEvent finish(int choice = 0) { return wire::FinishEvent{choice, wire::FinishReason::kLength, {}}; }
  LegId decode() const { return decodes_.back().leg; }
  LegId prefill() const { return prefills_.back().leg; }
  WorkerId decode_worker() const { return decodes_.back().worker; }
  std::string worker(WorkerId id) const { return core_->registry().at(id).name(); }
  // Reserve and commit with first token `id` at the end of a prompt of `n` tokens.
  void up_to_commit(std::int32_t n, TokenId id) {
    event(decode(), wire::Reserved{LeaseId(77)});
    event(prefill(), wire::Started{});
    event(prefill(), wire::Tokens{{token(n, id)}});
    event(decode(), wire::Committed{prefills_.back().body.attempt, {token(n, id)}});
  }

  TimePoint now_{};
  std::unique_ptr<Core> core_;
  std::deque<StartDecode> decodes_;
  std::deque<StartPrefill> prefills_;
  std::vector<LegId> cancelled_;
  std::vector<FinishChoice> finish_choices_;
  std::vector<WorkerId> polls_;
  std::map<int, std::vector<TokenId>> tokens_;
  std::map<int, std::vector<std::int32_t>> positions_;
  std::vector<wire::FinishEvent> finishes_;
  std::vector<Status> done_;
  wire::Served served_;
  std::vector<Remark> remarks_;
  int prompt_logprobs_ = 0;
};

inline const Status kLost(Code::kUnavailable, "connection reset");

}  // namespace baton::gateway::testing
