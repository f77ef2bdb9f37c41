#include "app/bench/compare/campaign.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"

namespace baton::app {

namespace {

// Shares of the arrivals' time.
constexpr double kEarlyFrom = 0.25, kEarlyTo = 0.60, kLateFrom = 0.65;
constexpr double kBorneShare = 0.05;
constexpr double kDeviations = 2;

// Long prompts of `mix` come by the clock, not at the rate.
bool at_the_rate(const RequestOutcome& o) { return o.kind != "long"; }

double mean_open(const std::vector<RequestOutcome>& outcomes, double from, double to) {
  double sum = 0;
  for (const RequestOutcome& o : outcomes) sum += std::max(0.0, std::min(o.start + o.latency, to) - std::max(o.start, from));
  return sum / (to - from);
}

// Of the mean of a count, with mean `open`, over so long a window, when what is counted stays for `stays`: the integral of a correlation
// that falls from 1 to 0 over that time.
double variance_of_mean(double open, double window, double stays) {
  const double x = stays / window;
  return open * (x < 1 ? x * (1 - x / 3) : 1 - 1 / (3 * x));
}

// How long requests that began until `end` stay, longer ones counting for more: of what is open at any time, most stays long.
double weighted_stay(const std::vector<RequestOutcome>& outcomes, double end) {
  double sum = 0, squares = 0;
  for (const RequestOutcome& o : outcomes) {
    if (o.start > end) continue;
    sum += o.latency;
    squares += o.latency * o.latency;
  }
  return sum > 0 ? squares / sum : 0;
}

bool judge(const KeptUp& run) { return !run.failed && run.growth <= run.allowed(); }

}  // namespace

double KeptUp::allowed() const { return std::max(borne, kDeviations * chance); }

KeptUp kept_up(const std::vector<RequestOutcome>& outcomes, double rate, double duration) {
  KeptUp out;
  out.rate = rate;
  double last = 0;
  std::size_t ok = 0, all_ok = 0;
  for (const RequestOutcome& o : outcomes) {
    last = std::max(last, o.start);
    all_ok += o.ok;
    ok += o.ok && at_the_rate(o);
  }
  out.failed = all_ok < outcomes.size();
  if (rate <= 0 || last <= 0) {
    out.completed = duration > 0 ? static_cast<double>(ok) / duration : 0;
    return out;
  }
  const double from = last * kEarlyFrom, centres = last * (kLateFrom - kEarlyFrom), window = last * (1 - kLateFrom);
  double went = 0;
  for (const RequestOutcome& o : outcomes) {
    const double end = o.start + o.latency;
    went += o.ok && at_the_rate(o) && end > from && end <= last;
  }
  out.completed = went / (last - from);
  const double early = mean_open(outcomes, from, last * kEarlyTo), late = mean_open(outcomes, last * kLateFrom, last);
  out.growth = late - early;
  out.borne = std::max(1.0, kBorneShare * static_cast<double>(outcomes.size()) * centres / last);
  out.chance = std::sqrt(2 * variance_of_mean(std::min(early, late), window, weighted_stay(outcomes, last * kEarlyTo)));
  out.sustained = judge(out);
  return out;
}

KeptUp together(const KeptUp& a, const KeptUp& b) {
  KeptUp out;
  out.rate = a.rate;
  out.completed = (a.completed + b.completed) / 2;
  out.failed = a.failed || b.failed;
  out.growth = (a.growth + b.growth) / 2;
  out.borne = (a.borne + b.borne) / 2;
  out.chance = std::hypot(a.chance, b.chance) / 2;
  out.sustained = judge(out);
  return out;
}

std::optional<double> SaturationSearch::next() const {
  if (probes_.empty()) return 0.0;
  if (static_cast<int>(probes_.size()) >= options_.probes_max || bracketed()) return std::nullopt;
  if (unclear_) return unclear_->rate;
  if (low_ > 0 && high_ > 0) return std::sqrt(low_ * high_);
  if (low_ > 0) return low_ * options_.stride;
  if (high_ > 0) {  // what it completed when it had too much is near what it can
    const double next = std::clamp(completed_at_high_, high_ / 4, high_ / options_.stride);
    return next;
  }
  return probes_.front().completed > 0 ? std::optional<double>(probes_.front().completed) : std::nullopt;
}

void SaturationSearch::on_probe(const KeptUp& probe) {
  probes_.push_back(probe);
  if (probe.rate <= 0) return;
  if (!unclear_ && !probe.clear() && static_cast<int>(probes_.size()) < options_.probes_max) {
    unclear_ = probe;
    return;
  }
  const KeptUp said = unclear_ ? together(*unclear_, probe) : probe;
  unclear_.reset();
  if (said.sustained) {
    low_ = std::max(low_, said.rate);
  } else if (high_ == 0 || said.rate < high_) {
    high_ = said.rate;
    completed_at_high_ = said.completed;
  }
}

double SaturationSearch::saturation() const {
  if (low_ > 0) return low_;
  if (high_ > 0) return completed_at_high_;
  return probes_.empty() ? 0 : probes_.front().completed;
}

std::string SaturationSearch::saturation_words(const std::string& name) const {
  if (low_ > 0) return "what " + name + " sustains";
  if (high_ > 0) return "what " + name + " completed at the least rate that was tried, which it did not sustain";
  return "what " + name + " completed when all came at once";
}

Campaign::Campaign(const CampaignOptions& options)
    : options_(options),
      searches_(options.arms, SaturationSearch(options.search)),
      failures_(options.arms),
      capacities_(options.arms),
      rate_(options.rate) {}

std::optional<Step> Campaign::search_step() {
  if (options_.rate > 0) return std::nullopt;
  for (std::size_t arm = 0; arm < options_.arms; ++arm) {
    if (!failures_[arm].empty()) continue;
    if (const auto rate = searches_[arm].next()) return Step{Purpose::kSearch, arm, *rate, 0, searches_[arm].draw(), false};
  }
  return std::nullopt;
}

// Each repeat, and each rate of the sweep, has all arms, in an order that begins with another arm each time: what drifts befalls all alike.
void Campaign::plan_repeats() {
  for (int repeat = 0; repeat < options_.repeats; ++repeat)
    for (std::size_t i = 0; i < options_.arms; ++i)
      queue_.push_back({Purpose::kMeasure, (i + static_cast<std::size_t>(repeat)) % options_.arms, rate_, repeat, 0, true});
}

void Campaign::plan_sweep() {
  if (!options_.sweep) return;
  std::vector<double> rates = options_.sweep_rates;
  if (rates.empty()) {
    double top = options_.rate;
    if (top <= 0)
      for (const SaturationSearch& search : searches_) top = std::max(top, search.saturation());
    for (const double share : kSweepShares) rates.push_back(share * top);
  }
  std::ranges::sort(rates);
  for (std::size_t r = 0; r < rates.size(); ++r)
    for (std::size_t i = 0; i < options_.arms; ++i) queue_.push_back({Purpose::kSweep, (i + r) % options_.arms, rates[r], 0, 0, true});
}

std::optional<Step> Campaign::next() {
  if (current_) return current_;
  current_ = search_step();
  if (!current_) {
    if (!planned_) {
      planned_ = true;
      for (std::size_t arm = 0; arm < options_.arms && rate_ <= 0; ++arm)
        if (failures_[arm].empty() && searches_[arm].saturation() > 0) {
          rate_ = options_.overload * searches_[arm].saturation();
          rate_from_ = arm;
        }
      if (rate_ > 0) {
        plan_repeats();
        plan_sweep();
      }
    }
    while (at_ < queue_.size() && !failures_[queue_[at_].arm].empty()) ++at_;
    if (at_ == queue_.size()) return std::nullopt;
    current_ = queue_[at_++];
  }
  current_->fresh = current_->fresh || !last_ || last_->arm != current_->arm || last_->purpose != current_->purpose;
  return current_;
}

void Campaign::on_run(const KeptUp& run) {
  BATON_CHECK(current_);
  if (current_->purpose == Purpose::kSearch) {
    searches_[current_->arm].on_probe(run);
    if (run.completed <= 0 && searches_[current_->arm].saturation() <= 0) failures_[current_->arm] = "no request succeeded";
  }
  if (!run.sustained && run.completed > 0) capacities_[current_->arm] = run.completed;
  last_ = std::exchange(current_, std::nullopt);
}

void Campaign::on_failure(std::string why) {
  BATON_CHECK(current_);
  failures_[current_->arm] = why.empty() ? "it failed" : std::move(why);
  last_.reset();
  current_.reset();
}

double Campaign::seconds_of(std::size_t arm, double rate, std::size_t requests) const {
  const double can = options_.rate > 0 ? capacities_[arm] : searches_[arm].saturation();
  const double speed = rate > 0 && can > 0 ? std::min(rate, can) : std::max(rate, can);
  return speed > 0 ? static_cast<double>(requests) / speed : -1;
}

Campaign::Estimate Campaign::left(std::size_t requests, double seconds_per_start) const {
  Estimate out;
  double seconds = 0;
  bool known = true;
  const auto add = [&](std::size_t arm, double rate, int runs, int starts) {
    const double one = seconds_of(arm, rate, requests);
    out.runs += runs;
    known = known && one >= 0;
    seconds += runs * one + starts * seconds_per_start;
  };
  // An arm of which nothing is known yet is thought to be as fast as the first of which something is.
  std::size_t like = 0;
  while (like + 1 < options_.arms && searches_[like].saturation() <= 0) ++like;
  const auto model = [&](std::size_t arm) { return searches_[arm].saturation() > 0 ? arm : like; };
  for (std::size_t arm = 0; arm < options_.arms; ++arm) {
    if (!failures_[arm].empty()) continue;
    if (options_.rate <= 0 && searches_[arm].next())
      add(model(arm), 0, std::max(1, kProbesUsual - static_cast<int>(searches_[arm].probes().size())), 1);
    if (planned_) continue;
    add(model(arm), rate_ > 0 ? rate_ : options_.overload * searches_[like].saturation(), options_.repeats, options_.repeats);
    if (!options_.sweep) continue;
    if (options_.sweep_rates.empty()) {
      for (const double share : kSweepShares)
        add(model(arm), share * (options_.rate > 0 ? options_.rate : searches_[like].saturation()), 1, 1);
    } else {
      for (const double rate : options_.sweep_rates) add(model(arm), rate, 1, 1);
    }
  }
  for (std::size_t i = at_; i < queue_.size(); ++i)
    if (failures_[queue_[i].arm].empty()) add(queue_[i].arm, queue_[i].rate, 1, queue_[i].fresh);
  if (current_ && current_->purpose != Purpose::kSearch) add(current_->arm, current_->rate, 1, current_->fresh);
  out.seconds = known ? seconds : -1;
  return out;
}

}  // namespace baton::app
