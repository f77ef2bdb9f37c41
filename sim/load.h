#pragma once
// The clients: which requests come when, what their clients do, and whether they got what they should have.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "sim/audit.h"
#include "sim/host.h"
#include "sim/model.h"
#include "sim/scenario.h"
#include "sim/trace.h"
#include "wire/generate.h"

namespace baton::sim {

struct ClientPlan {
  int number = 0;
  Duration arrival{};  // from the start of the load
  wire::GenerateRequest request;
  std::optional<Duration> cancel_after;          // from its arrival
  std::optional<int> cancel_at_token;            // of any choice
  std::optional<std::pair<int, int>> finish_at;  // choice and how many tokens
  std::optional<Duration> reads_a_token;         // a slow client, in this time
  int unread_max = 64;                           // tokens; beyond, production cuts the client
  bool may_fail = false;                         // something fails while it runs: an error may be the answer
  bool short_of_time = false;                    // it may be refused for that: what cannot be in time is not computed in vain
};
// The load of a scenario, and its probes, which arrive from `calm` on. Each request is a function of seed and number.
std::vector<ClientPlan> make_load(const Scenario& scenario, std::int64_t max_model_len, Duration calm);

// One client, and the part of the gateway's process that serves it. Everything that its stream must never do goes to `failures`.
class Client final : public wire::GenerateSink, public std::enable_shared_from_this<Client> {
 public:
  enum class Outcome : std::uint8_t {
    kNone,
    kComplete,
    kCancelled,  // by the client
    kDeadline,
    kRefused,  // an error that says: try again; allowed only where something fails
    kLost,     // the gateway died, or was dead
    kFailed,   // any other end
  };

  Client(Trace& trace, ClientPlan plan, const ModelShape& shape, std::int64_t max_model_len, Failures& failures);
  // The request arrives at a gateway.
  void arrive(Host& gateway, wire::Generator& generator);
  // The gateway is dead: nobody calls any more.
  void lost();
  bool arrived() const { return host_ != nullptr; }
  void drop() { call_.reset(); }  // without an outcome: the run is over

  const ClientPlan& plan() const { return plan_; }
  // What its choices get on any cluster.
  const Expected& expected(int choice) const { return choices_.at(choice).expected; }
  Outcome outcome() const { return outcome_; }
  std::uint64_t tokens() const { return tokens_; }
  // Of kRefused: why, and when.
  const Status& refusal() const { return refusal_; }
  TimePoint began() const { return began_; }
  TimePoint refused_at() const { return refused_at_; }

  void on_served(const wire::Served& served) override;
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) override;
  void on_token(wire::TokenEvent event) override;
  void on_finish(wire::FinishEvent event) override;
  void on_done(Status status) override;

 private:
  struct Choice {
    Expected expected;
    std::size_t got = 0;
    bool finished = false, finished_by_us = false;
  };
  void start(wire::Generator& generator);
  TimePoint now() const { return host_->clock().now(); }  // by the gateway's clock
  TimePoint real_now() const { return host_->real_now(); }
  void fail(std::string_view invariant, const std::string& what);
  bool too_much_unread();
  void end(Outcome outcome);
  void cancel();
  void later(std::optional<int> finished_choice);  // ends a choice, or cancels, on a turn of its own
  bool alive(const char* event);                   // events come only while it runs
  Choice* choice(int number);

  Host* host_ = nullptr;  // of the gateway's process
  Trace& trace_;
  const ClientPlan plan_;
  Failures& failures_;
  std::map<int, Choice> choices_;
  std::unique_ptr<wire::GenerateCall> call_;
  TimePoint arrived_{};  // by the gateway's clock
  TimePoint began_{}, refused_at_{};
  Status refusal_;
  Outcome outcome_ = Outcome::kNone;
  std::uint64_t tokens_ = 0;
  bool served_ = false, prompt_logprobs_ = false;
  TimePoint reads_next_{};  // slow client: when it will have read everything
};

}  // namespace baton::sim
