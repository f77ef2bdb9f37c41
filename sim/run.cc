#include "sim/run.h"

#include <algorithm>
#include <cstdio>
#include <memory>

#include "sim/cluster.h"
#include "sim/load.h"

namespace baton::sim {
namespace {

constexpr Duration kWarmUp = std::chrono::seconds(1);  // until the gateway has heard of every worker
constexpr std::uint64_t kCheckEvery = 128;             // events between two looks into the books
constexpr std::uint64_t kEventsMax = 20'000'000;       // at a standstill of virtual time

class Run {
 public:
  Run(const Scenario& scenario, std::uint64_t seed, std::ostream* text)
      : scenario_(scenario), world_(seed, scenario, text), cluster_(world_, scenario, seed) {
    result_.seed = seed;
    std::vector<ClientPlan> plans = make_load(scenario.load, Cluster::kMaxModelLen, seed);
    result_.requests = static_cast<int>(plans.size());
    last_arrival_ = TimePoint(kWarmUp) + (plans.empty() ? Duration(0) : plans.back().arrival);
    Host& host = cluster_.gateway().host();
    for (ClientPlan& plan : plans) {
      const Duration arrival = kWarmUp + plan.arrival;
      clients_.push_back(std::make_shared<Client>(host, world_.trace, std::move(plan), cluster_.model(), Cluster::kMaxModelLen, failures_));
      host.after(arrival, [this, client = clients_.back()] { client->start(cluster_.gateway().gateway()); });
    }
    for (const Fault& fault : scenario.faults) world_.queue.at(TimePoint(kWarmUp) + fault.at, [this, &fault] { cluster_.apply(fault); });
    host.after(kWarmUp, [this] {
      if (const auto why = cluster_.gateway().gateway().not_ready()) fail("the cluster is not ready: " + *why);
    });
  }

  RunResult finish() {
    const bool over = until(last_arrival_ + scenario_.limit, [this] { return all_over(); });
    if (!over) {
      const auto open =
          std::count_if(clients_.begin(), clients_.end(), [](const auto& c) { return c->outcome() == Client::Outcome::kNone; });
      if (failures_.messages.empty()) fail(std::to_string(open) + " requests have no outcome in time: " + cluster_.held());
    } else if (!until(world_.queue.now() + scenario_.settle, [this] { return cluster_.held().empty(); }) && failures_.messages.empty()) {
      fail("not quiescent: " + cluster_.held());
    }
    look();
    conclude();
    for (const auto& client : clients_) client->drop();
    return std::move(result_);
  }

 private:
  void fail(const std::string& what) {
    if (failures_.messages.size() < Client::Failures::kMax)
      failures_.messages.push_back("at " + std::to_string(world_.queue.now().time_since_epoch().count()) + " us: " + what);
  }

  bool all_over() {
    while (first_open_ < clients_.size() && clients_[first_open_]->outcome() != Client::Outcome::kNone) ++first_open_;
    return first_open_ == clients_.size();
  }

  // Runs events until it holds; false if it did not by then, or something has failed.
  template <class Condition>
  bool until(TimePoint limit, Condition condition) {
    while (!condition()) {
      if (!failures_.messages.empty() || world_.queue.now() > limit || world_.queue.executed() > kEventsMax) return false;
      if (!world_.queue.run_one()) return false;
      if (world_.queue.executed() % kCheckEvery == 0) look();
    }
    return true;
  }

  // What must hold at every moment.
  void look() {
    if (Status s = cluster_.check(); !s.ok()) fail("the books do not balance: " + s.to_string());
    const gateway::Stats s = cluster_.gateway().gateway().stats();
    if (s.conflicts > 0) fail("two different tokens for one position");
    if (scenario_.no_retries &&
        s.retries_decode_failed + s.retries_prefill_failed + s.retries_nacked + s.waits_expired + s.fallbacks + s.resumed > 0)
      fail("something was tried again where nothing fails");
    for (const WorkerProcess* worker : cluster_.workers()) {
      const auto target = worker->node().target_stats();
      if (target.digest_mismatches > 0 && world_.fabric.damaged_one_in == 0) fail(worker->status().name + " received damaged KV");
    }
  }

  void conclude() {
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
        default:
          break;
      }
    }
    for (const WorkerProcess* worker : cluster_.workers()) {
      const wire::WorkerStatus s = worker->status();
      const auto target = worker->node().target_stats();
      result_.handoffs += target.committed;
      result_.digest_mismatches += target.digest_mismatches;
      result_.kv_bytes += target.kv_bytes;
      result_.preemptions += s.preemptions;
      result_.prefix_hits += s.prefix_hits;
    }
    const gateway::Stats s = cluster_.gateway().gateway().stats();
    result_.queued = s.queued;
    result_.resumed = s.resumed;
    result_.retries =
        s.retries_decode_refused + s.retries_decode_failed + s.retries_prefill_refused + s.retries_prefill_failed + s.retries_nacked;
    result_.hash = world_.trace.hash();
    result_.events = world_.trace.events();
    result_.virtual_time = world_.queue.now() - TimePoint();
    result_.failures = failures_.messages;
  }

  const Scenario& scenario_;
  World world_;
  Client::Failures failures_;
  std::vector<std::shared_ptr<Client>> clients_;
  Cluster cluster_;
  TimePoint last_arrival_{};
  std::size_t first_open_ = 0;
  RunResult result_;
};

}  // namespace

RunResult run(const Scenario& scenario, std::uint64_t seed, std::ostream* trace) { return Run(scenario, seed, trace).finish(); }

std::string summary(const Scenario& scenario, const RunResult& r) {
  char line[320];
  std::snprintf(line, sizeof line,
                "%-14s seed %-8llu hash %016llx  %s  %7.3f s  %8llu events  %3d requests: %d complete, %d cancelled, %d late  "
                "%llu tokens  %llu hand-offs (%.1f MB)  %llu preempted  %llu prefix hits  %llu queued  %llu retries  %llu resumed",
                scenario.name.c_str(), static_cast<unsigned long long>(r.seed), static_cast<unsigned long long>(r.hash),
                r.ok() ? "ok    " : "FAILED", to_seconds(r.virtual_time), static_cast<unsigned long long>(r.events), r.requests, r.complete,
                r.cancelled, r.deadline, static_cast<unsigned long long>(r.tokens), static_cast<unsigned long long>(r.handoffs),
                static_cast<double>(r.kv_bytes) / 1e6, static_cast<unsigned long long>(r.preemptions),
                static_cast<unsigned long long>(r.prefix_hits), static_cast<unsigned long long>(r.queued),
                static_cast<unsigned long long>(r.retries), static_cast<unsigned long long>(r.resumed));
  return line;
}

}  // namespace baton::sim
