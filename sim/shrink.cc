#include "sim/shrink.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

namespace baton::sim {
namespace {

class Shrinker {
 public:
  Shrinker(Shrunk start, const std::function<std::string(const Scenario&)>& fails, int runs_max)
      : best_(std::move(start)), kind_(failure_kind(best_.failure)), fails_(fails), runs_max_(runs_max) {}

  Shrunk run() {
    // A simpler scenario may do without what the one before needed.
    for (bool smaller = true; smaller && best_.runs < runs_max_;) {
      const Scenario before = best_.scenario;
      delete_faults();
      delete_requests();
      simplify();
      smaller = best_.scenario != before;
    }
    return std::move(best_);
  }

 private:
  // Keeps `candidate` if it fails in the same way.
  bool attempt(Scenario candidate) {
    if (best_.runs >= runs_max_ || candidate == best_.scenario) return false;
    ++best_.runs;
    std::string failure = fails_(candidate);
    if (failure.empty() || failure_kind(failure) != kind_) return false;
    best_.scenario = std::move(candidate);
    best_.failure = std::move(failure);
    return true;
  }
  template <class Change>
  bool with(Change change) {
    Scenario candidate = best_.scenario;
    change(candidate);
    return attempt(std::move(candidate));
  }

  // Delta debugging: leaves out ever smaller parts of `items`. `keep` makes a scenario of those that are left.
  template <class T, class Keep>
  void reduce(std::vector<T> items, Keep keep) {
    if (items.empty()) return;
    for (std::size_t part = items.size(); part > 0; part /= 2) {
      for (std::size_t begin = 0; begin < items.size();) {
        std::vector<T> rest = items;
        const auto from = rest.begin() + static_cast<std::ptrdiff_t>(begin);
        rest.erase(from, from + static_cast<std::ptrdiff_t>(std::min(part, items.size() - begin)));
        if (attempt(keep(rest))) {
          items = std::move(rest);
        } else {
          begin += part;
        }
      }
    }
  }

  void delete_faults() {
    reduce(best_.scenario.faults, [this](const std::vector<Fault>& faults) {
      Scenario candidate = best_.scenario;
      candidate.faults = faults;
      return candidate;
    });
  }

  void delete_requests() {
    const Load& load = best_.scenario.load;
    std::vector<int> numbers(static_cast<std::size_t>(load.requests + load.probes));
    std::iota(numbers.begin(), numbers.end(), 0);
    std::erase_if(numbers, [&](int n) { return std::ranges::find(load.skip, n) != load.skip.end(); });
    reduce(numbers, [this](const std::vector<int>& kept) {
      Scenario candidate = best_.scenario;
      Load& l = candidate.load;
      l.skip.clear();
      for (int n = 0; n < l.requests + l.probes; ++n)
        if (!std::ranges::binary_search(kept, n)) l.skip.push_back(n);
      return candidate;
    });
  }

  void simplify() {
    with([](Scenario& s) { s.load.probes = 0, std::erase_if(s.load.skip, [&](int n) { return n >= s.load.requests; }); });
    with([](Scenario& s) {
      int last = s.load.requests;
      while (last > 0 && std::ranges::find(s.load.skip, last - 1) != s.load.skip.end()) --last;
      s.load.requests = last;
      std::erase_if(s.load.skip, [&](int n) { return n >= last; });
    });
    // The last worker of a role, so that the others keep their names.
    for (int i = 0; i < 8; ++i) {
      with([](Scenario& s) {
        const std::string name = worker_names(s).back();
        const bool faulty = std::ranges::any_of(s.faults, [&](const Fault& f) { return f.host == name || f.to == name; });
        if (faulty || worker_names(s).size() < 2) return;
        if (--s.workers.back().count == 0) s.workers.pop_back();
      });
    }
    for (int Load::* feature :
         {&Load::several_choices, &Load::logprobs, &Load::prompt_logprobs, &Load::cancelled, &Load::choice_finished, &Load::slow_clients,
          &Load::short_timeouts, &Load::penalties, &Load::biased, &Load::truncated, &Load::sampled, &Load::shared_prompts})
      with([&](Scenario& s) { s.load.*feature = 0; });
    with([](Scenario& s) { s.load.burst = 1; });
    with([](Scenario& s) { s.load.prompt_max = std::max(s.load.prompt_min, s.load.prompt_max / 2); });
    with([](Scenario& s) { s.load.output_max = std::max(s.load.output_min, s.load.output_max / 2); });
    with([](Scenario& s) { s.network = {}; });
    with([](Scenario& s) { s.network.split_one_in = 0; });
    with([](Scenario& s) { s.fabric = {}; });
    with([](Scenario& s) { s.layers = 1; });
    with([](Scenario& s) { s.kv_heads = 1; });
    with([](Scenario& s) {
      for (WorkerGroup& group : s.workers) group.ranks = {1};
    });
    with([](Scenario& s) { s.sockets_inherited = false; });
  }

  Shrunk best_;
  const std::string kind_;
  const std::function<std::string(const Scenario&)>& fails_;
  const int runs_max_;
};

}  // namespace

std::string failure_kind(const std::string& failure) { return failure.substr(0, failure.find(' ')); }

Shrunk shrink(Scenario scenario, std::string failure, const std::function<std::string(const Scenario&)>& fails, int runs_max) {
  return Shrinker({std::move(scenario), std::move(failure), 0}, fails, runs_max).run();
}

}  // namespace baton::sim
