#pragma once
// Carries out a comparison: starts the arm that the campaign names, sends the requests, stops it, until all is done or the user has enough.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "app/bench/compare/arm_server.h"
#include "app/bench/compare/campaign.h"
#include "app/bench/compare/result.h"
#include "app/bench/dataset.h"
#include "app/bench/load.h"

namespace baton::app {

struct RunnerOptions {
  std::string model;                    // as the server is asked for it
  std::vector<std::string> serve_args;  // that all arms share: "serve", the model, flags
  std::string log_path;                 // of all servers
  double burstiness = 1;
  std::uint64_t seed = 0;
  bool ignore_eos = false;
  bool own_times = false;  // requests() gives them their arrival times
  int warmups = 0;         // requests
  Duration start_limit{};
  std::function<Result<std::vector<BenchRequest>>(double rate, int draw)> requests;  // those for a rate (0: all at once) and draw
  std::function<void()> on_run;                                                      // after each: the comparison is what there is so far
};

class Runner {
 public:
  Runner(RunnerOptions options, const CampaignOptions& campaign, Comparison& comparison);
  // Fills the comparison's arms, rate and notes. What went wrong with an arm is there, too.
  void run();

 private:
  enum class Went { kWell, kFailed, kInterrupted };
  Went carry_out(const Step& step);
  LoadOptions load_options(const std::string& name, int draw);  // of the next run
  Status start(std::size_t arm);
  std::string what_ended();  // of the server, since it was warm; "": nothing
  void stop();
  bool interrupted();
  void tell(const Step& step, const ArmRun& run);
  std::string rate_words(double rate) const;
  void take_stock();  // of the campaign, into the comparison
  std::string what_is_left() const;
  void progress(const Step& step, std::size_t done, std::size_t all) const;

  const RunnerOptions options_;
  Campaign campaign_;
  Comparison& comparison_;
  net::EventLoop loop_;  // for signals
  bool interrupted_ = false;
  std::unique_ptr<ArmServer> server_;
  Incarnations workers_;      // of server_, since it was warm
  int runs_ = 0;              // begun, for what must differ between them
  double start_seconds_ = 2;  // of the last start
  const bool terminal_;
};

}  // namespace baton::app
