#include "sim/run.h"

#include <algorithm>
#include <cstdio>
#include <memory>

#include "sim/checks.h"
#include "sim/cluster.h"
#include "sim/load.h"

namespace baton::sim {
namespace {

constexpr Duration kWarmUp = std::chrono::seconds(1);   // until the gateway has heard of every worker
constexpr Duration kNoticed = std::chrono::seconds(5);  // after a fault: until polls and links are as they were
constexpr std::uint64_t kCheckEvery = 128;              // events between two looks into the books
constexpr std::uint64_t kEventsMax = 20'000'000;        // at a standstill of virtual time

class Run {
 public:
  Run(const Scenario& scenario, std::ostream* text) : scenario_(scenario), world_(scenario, text), cluster_(world_, scenario) {
    result_.seed = scenario.seed;
    const Duration calm = calm_at(scenario);
    std::vector<ClientPlan> plans = make_load(scenario, Cluster::kMaxModelLen, calm);
    result_.requests = static_cast<int>(plans.size());
    const Duration last_arrival = plans.empty() ? Duration(0) : plans.back().arrival;
    busy_until_ = TimePoint(kWarmUp) + std::max(calm, last_arrival);
    for (ClientPlan& plan : plans) {
      const Duration arrival = kWarmUp + plan.arrival;
      clients_.push_back(std::make_shared<Client>(world_.trace, std::move(plan), cluster_.model(), Cluster::kMaxModelLen, world_.failures));
      learn(*clients_.back());
      world_.queue.at(TimePoint(arrival), [this, client = clients_.back()] { arrive(*client); });
    }
    for (const Fault& fault : scenario.faults) world_.queue.at(TimePoint(kWarmUp) + fault.at, [this, &fault] { cluster_.apply(fault); });
    world_.queue.at(TimePoint(kWarmUp) - Duration(1), [this] {
      if (const auto why = cluster_.gateway()->gateway().not_ready()) fail("I20", "the cluster is not ready: " + *why);
    });
    cluster_.on_gateway_death([this] {
      for (const auto& client : clients_) {
        if (client->arrived()) client->lost();
      }
    });
  }

  RunResult finish() {
    const bool over = until(busy_until_ + scenario_.limit, [this] { return all_over(); });
    if (!over) {
      const auto open =
          std::count_if(clients_.begin(), clients_.end(), [](const auto& c) { return c->outcome() == Client::Outcome::kNone; });
      if (!world_.failures.any()) fail("liveness", std::to_string(open) + " requests have no outcome in time: " + cluster_.held());
    } else if (!until(world_.queue.now() + scenario_.settle, [this] { return cluster_.held().empty(); }) && !world_.failures.any()) {
      fail("I4", "not quiescent: " + cluster_.held());
    }
    look();
    conclude();
    for (const auto& client : clients_) client->drop();
    return std::move(result_);
  }

 private:
  void fail(std::string_view invariant, const std::string& what) { world_.failures.add(world_.queue.now(), invariant, what); }

  // What its sequences may come to publish.
  void learn(const Client& client) {
    const wire::GenerateRequest& r = client.plan().request;
    for (int c = 0; c < r.n; ++c) {
      std::vector<TokenId> ids = r.ids;
      for (const auto& t : client.expected(c).tokens) ids.push_back(t.token);
      for (const int size : cluster_.block_sizes()) world_.known.add(ids, client.expected(c).rows, size, r.cache_salt);
    }
  }

  void arrive(Client& client) {
    if (GatewayProcess* gateway = cluster_.gateway()) {
      client.arrive(gateway->host(), gateway->gateway());
    } else {
      client.lost();  // nobody listens
    }
  }

  bool all_over() {
    while (first_open_ < clients_.size() && clients_[first_open_]->outcome() != Client::Outcome::kNone) ++first_open_;
    return first_open_ == clients_.size();
  }

  // Runs events until it holds; false if it did not by then, or something has failed.
  template <class Condition>
  bool until(TimePoint limit, Condition condition) {
    while (!condition()) {
      if (world_.failures.any() || world_.queue.now() > limit || world_.queue.executed() > kEventsMax) return false;
      if (!world_.queue.run_one()) return false;
      cluster_.check_turn();
      if (world_.queue.executed() % kCheckEvery == 0) look();
    }
    return true;
  }

  // What must hold at every moment and costs too much to look at after every event.
  void look() {
    if (Status s = cluster_.check(); !s.ok()) fail("I4", "the books do not balance: " + s.to_string());
    for (WorkerProcess* worker : cluster_.workers()) look(*worker);
    if (GatewayProcess* gateway = cluster_.gateway()) look(*gateway);
  }

  void look(WorkerProcess& worker) {
    const auto target = worker.node().target_stats();
    if (target.digest_mismatches > 0 && world_.fabric.damaged_one_in == 0 && scenario_.faults.empty())
      fail("I6", worker.name() + " received damaged KV");
    if (Status s = worker.node().check_books(); !s.ok()) fail("I18", worker.name() + ": " + s.message());
    if (!worker.node().status().balanced) fail("I4", worker.name() + " says that its books do not add up: " + worker.held());
    if (target.violations > 0) fail("I12", worker.name() + " was sent chunks or commits that no sound source says");
    watch_.look(world_.queue.now(), worker.books());
  }

  void look(GatewayProcess& gateway) {
    const gateway::Stats s = gateway.gateway().stats();
    if (s.conflicts > 0) fail("I14", "two different tokens for one position");
    if (s.garbage > 0) fail("I12", "the gateway was sent events that no sound worker sends");
    if (scenario_.no_retries &&
        s.retries_decode_failed + s.retries_prefill_failed + s.retries_nacked + s.waits_expired + s.fallbacks + s.resumed > 0)
      fail("I18", "something was tried again where nothing fails");
    for (const gateway::Worker& w : gateway.gateway().workers()) {
      const Belief belief{.worker = w.config.name,
                          .alive = w.liveness == gateway::Liveness::kAlive,
                          .lost = w.liveness == gateway::Liveness::kDead || w.hung,
                          .legs = w.legs,
                          .believed = w.status.incarnation,
                          .living = cluster_.life(w.config.name).incarnation};
      watch_.look(world_.queue.now(), belief, gateway.host().frozen());
    }
  }

  // A fault that has to do with a process; with the path to somebody else, too.
  bool disturbed(const std::string& process, TimePoint from, TimePoint to) const {
    return std::any_of(scenario_.faults.begin(), scenario_.faults.end(), [&](const Fault& f) {
      if (f.host != process && f.to != process && f.host != "*" && f.to != "*") return false;
      const TimePoint begin = TimePoint(kWarmUp) + f.at;
      return begin <= to && from <= begin + f.lasts + (f.kind == Fault::Kind::kDrain ? Duration(f.value) : Duration(0)) + kNoticed;
    });
  }

  // Whoever does one role can do the other where nobody else is left: as long as one worker is well, a request is served.
  void look_at_refusals() {
    for (const auto& client : clients_) {
      if (client->outcome() != Client::Outcome::kRefused) continue;
      const std::string& why = client->refusal().message();
      const bool tried_often = why.starts_with("gave up") || client->plan().request.sampling.prompt_logprobs >= 0;
      if (tried_often || disturbed("gateway", client->began(), client->refused_at())) continue;
      for (const std::string& worker : worker_names(scenario_)) {
        if (disturbed(worker, client->began(), client->refused_at())) continue;
        return fail("I18", "request " + client->plan().request.id + " was refused while " + worker + " was well: " + why);
      }
    }
  }

  void conclude() {
    look_at_refusals();
    for (const auto& client : clients_) {
      result_.tokens += client->tokens();
      switch (client->outcome()) {
        case Client::Outcome::kComplete:
          ++result_.complete;
          break;
        case Client::Outcome::kCancelled:
          ++result_.cancelled;
          break;
        case Client::Outcome::kDeadline:
          ++result_.deadline;
          break;
        case Client::Outcome::kRefused:
          ++result_.refused;
          break;
        case Client::Outcome::kLost:
          ++result_.lost;
          break;
        default:
          break;
      }
    }
    const Totals all = cluster_.totals();
    result_.handoffs = all.handoffs;
    result_.digest_mismatches = all.digest_mismatches;
    result_.kv_bytes = all.kv_bytes;
    result_.preemptions = all.preemptions;
    result_.prefix_hits = all.prefix_hits;
    result_.queued = all.queued;
    result_.retries = all.retries;
    result_.resumed = all.resumed;
    result_.moved = all.moved;
    result_.kills = all.kills;
    result_.drains = all.drains;
    result_.hash = world_.trace.hash();
    result_.events = world_.trace.events();
    result_.virtual_time = world_.queue.now() - TimePoint();
    result_.failures = world_.failures.messages();
  }

  const Scenario& scenario_;
  World world_;
  std::vector<std::shared_ptr<Client>> clients_;
  Cluster cluster_;
  Watch watch_{world_.failures};
  TimePoint busy_until_{};
  std::size_t first_open_ = 0;
  RunResult result_;
};

}  // namespace

RunResult run(const Scenario& scenario, std::ostream* trace) { return Run(scenario, trace).finish(); }

RunResult run(Scenario scenario, std::uint64_t seed, std::ostream* trace) {
  scenario.seed = seed;
  return run(scenario, trace);
}

std::string summary(const Scenario& scenario, const RunResult& r) {
  char line[400];
  std::snprintf(line, sizeof line,
                "%-14s seed %-8llu hash %016llx  %s  %7.3f s  %8llu events  %3d requests: %d complete, %d cancelled, %d late, %d refused, "
                "%d lost  %llu tokens  %llu hand-offs (%.1f MB)  %llu preempted  %llu prefix hits  %llu queued  %llu retries  %llu resumed "
                " %llu moved",
                scenario.name.c_str(), static_cast<unsigned long long>(r.seed), static_cast<unsigned long long>(r.hash),
                r.ok() ? "ok    " : "FAILED", to_seconds(r.virtual_time), static_cast<unsigned long long>(r.events), r.requests, r.complete,
                r.cancelled, r.deadline, r.refused, r.lost, static_cast<unsigned long long>(r.tokens),
                static_cast<unsigned long long>(r.handoffs), static_cast<double>(r.kv_bytes) / 1e6,
                static_cast<unsigned long long>(r.preemptions), static_cast<unsigned long long>(r.prefix_hits),
                static_cast<unsigned long long>(r.queued), static_cast<unsigned long long>(r.retries),
                static_cast<unsigned long long>(r.resumed), static_cast<unsigned long long>(r.moved));
  return line;
}

}  // namespace baton::sim
