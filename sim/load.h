#pragma once
// The clients: which requests come when, what their clients do, and whether they got what they should have.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "sim/host.h"
#include "sim/model.h"
#include "sim/scenario.h"
#include "sim/trace.h"
#include "wire/generate.h"

namespace baton::sim {

struct ClientPlan {
  Duration arrival{};  // from the start of the load
  wire::GenerateRequest request;
  std::optional<Duration> cancel_after;          // from its arrival
  std::optional<int> cancel_at_token;            // of any choice
  std::optional<std::pair<int, int>> finish_at;  // choice and how many tokens
};
std::vector<ClientPlan> make_load(const Load& load, std::int64_t max_model_len, std::uint64_t seed);

// One client. Everything that its stream must never do goes to `failures`.
class Client final : public wire::GenerateSink, public std::enable_shared_from_this<Client> {
 public:
  enum class Outcome : std::uint8_t { kNone, kComplete, kCancelled, kDeadline, kFailed };
  struct Failures {
    std::vector<std::string> messages;
    static constexpr std::size_t kMax = 20;
  };

  Client(Host& host, Trace& trace, ClientPlan plan, const ModelShape& shape, std::int64_t max_model_len, Failures& failures);
  void start(wire::Generator& generator);
  void drop() { call_.reset(); }  // without an outcome: the run is over

  Outcome outcome() const { return outcome_; }
  std::uint64_t tokens() const { return tokens_; }

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
  TimePoint now() const { return host_.clock().now(); }
  void fail(const std::string& what);
  void end(Outcome outcome);
  void cancel();
  void later(std::optional<int> finished_choice);  // ends a choice, or cancels, on a turn of its own
  bool alive(const char* event);                   // events come only while it runs
  Choice* choice(int number);

  Host& host_;
  Trace& trace_;
  const ClientPlan plan_;
  Failures& failures_;
  std::map<int, Choice> choices_;
  std::unique_ptr<wire::GenerateCall> call_;
  TimePoint arrived_{};
  Outcome outcome_ = Outcome::kNone;
  std::uint64_t tokens_ = 0;
  bool served_ = false, prompt_logprobs_ = false;
};

}  // namespace baton::sim
