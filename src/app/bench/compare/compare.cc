// `baton bench compare`: the same requests at the same times on each way to run a model on the same devices.

#include <spdlog/fmt/chrono.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "app/args.h"
#include "app/bench/bench.h"
#include "app/bench/compare/machine.h"
#include "app/bench/compare/outputs.h"
#include "app/bench/compare/runner.h"
#include "app/bench/compare/text_report.h"
#include "app/bench/serve_flags.h"
#include "app/bench/text_side.h"
#include "app/devices.h"
#include "app/options.h"
#include "app/paths.h"
#include "base/log.h"
#include "model/decoder.h"
#include "model/model_files.h"

namespace baton::app {

extern const char kCommit[];

namespace {

struct CompareFlags {
  EngineFlags engine;
  DatasetFlags dataset;
  int devices = 0, repeats = 3, warmups = 8;
  std::vector<std::string> arms, goodput;
  std::string rate = "auto";
  double burstiness = 1, overload = 1.23, start_limit_s = 600;
  SearchOptions search;
  std::vector<double> sweep_rates;
  OutputFiles files;
  std::string output_dir, command;
};

Result<double> parse_rate(const std::string& text) {
  if (text == "auto") return 0.0;
  char* end = nullptr;
  const double rate = std::strtod(text.c_str(), &end);
  if (end == text.c_str() || *end || !(rate > 0) || !std::isfinite(rate))
    return Status(Code::kInvalidArgument, fmt::format("--request-rate {}: expected a positive number or auto", text));
  return rate;
}

// The devices of every arm, as `baton serve` deals them out; `notes` gets what is unusual.
Status choose_devices(CompareFlags& flags, Comparison& c) {
  const std::vector<device::cpu::Cpu> cpus = device::cpu::allowed_cpus();
  if (flags.devices == 0) {
    BATON_ASSIGN_OR_RETURN(const CoreSets named, parse_core_sets(flags.engine.cores));
    flags.devices = static_cast<int>(named.empty()       ? device::cpu::physical_cores(cpus).size()
                                     : named.size() == 1 ? named[0].size()
                                                         : named.size());
  }
  BATON_ASSIGN_OR_RETURN(const DevicePlan plan, plan_devices(cpus, flags.engine, flags.devices));
  if (!plan.shared) flags.engine.cores = format_core_sets(plan.devices);  // so that no arm can have others
  c.devices = flags.devices;
  c.cores = describe_devices(cpus, plan.devices);
  for (std::string& notice : notices_of(plan)) c.notes.push_back(std::move(notice));
  return {};
}

std::string shell_word(const std::string& word) {
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./:,+@%";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? "'\\''" : std::string(1, c);
  return out + "'";
}

std::string shell_words(const std::string& program, const std::vector<std::string>& args) {
  std::string out = program;
  for (const std::string& arg : args) out += " " + shell_word(arg);
  return out;
}

std::string dataset_words(const DatasetFlags& d) {
  std::string out = d.name;
  if (!d.path.empty()) out += " of " + d.path;
  if (d.name == "random") out += fmt::format(", {} tokens in, {} out", d.random_input_len, d.random_output_len);
  if (d.name == "mix")
    out += fmt::format(", chats of about {} tokens in and {} out, and a prompt of {} with {} out every {:g} s", d.mix_chat_input_len,
                       d.mix_chat_output_len, d.mix_long_input_len, d.mix_long_output_len, d.mix_long_every_s);
  return out;
}

// Requests for each rate: only those of mix depend on it.
class RequestSource {
 public:
  static Result<std::unique_ptr<RequestSource>> open(const DatasetFlags& flags, double burstiness, const model::ModelFiles& files) {
    auto source = std::make_unique<RequestSource>();
    source->flags_ = flags;
    source->flags_.mix_burstiness = burstiness;
    BATON_ASSIGN_OR_RETURN(source->text_, load_text_side(files));
    BATON_ASSIGN_OR_RETURN(source->all_, source->load(source->flags_));
    for (BenchRequest& request : source->all_) request.arrival_s = -1;  // a trace is sent at the rates of the comparison
    return source;
  }

  Result<std::vector<BenchRequest>> at(double rate, int draw) const {
    if (flags_.name != "mix") return all_;
    DatasetFlags flags = flags_;
    flags.mix_rate = rate;
    flags.mix_arrivals = static_cast<std::uint64_t>(draw);
    return load(flags);
  }
  // Those that come at the rate.
  std::size_t size() const { return flags_.name == "mix" ? static_cast<std::size_t>(flags_.num_prompts) : all_.size(); }

 private:
  // As `baton bench serve` has them for /v1/completions.
  Result<std::vector<BenchRequest>> load(const DatasetFlags& flags) const {
    return load_dataset(flags, text_.tokenizer.get(), false, text_.chat_template.get());
  }

  DatasetFlags flags_;
  TextSide text_;
  std::vector<BenchRequest> all_;
};

// `baton` arguments that all arms share.
std::vector<std::string> serve_args(const CompareFlags& flags) {
  std::vector<std::string> args = {"serve", flags.engine.model};
  const auto engine = flags.engine.args();
  args.insert(args.end(), engine.begin(), engine.end());
  args.insert(args.end(),
              {"--served-model-name", flags.engine.model, "--stats-interval", "0", "--shutdown-timeout", "1", "--max-queue-wait",
               "0",  // an overloaded arm is measured, not spared
               "--max-requests", std::to_string(std::max<std::int64_t>(4096, 2 * flags.dataset.num_prompts))});
  return args;
}

Result<Comparison> prepare(CompareFlags& flags, const model::ModelFiles& files) {
  if (flags.engine.tensor_parallel_size != 1)
    return Status(Code::kInvalidArgument, "--tensor-parallel-size: the arms have degrees of their own; say how many --devices there are");
  if (flags.engine.threads != 0)
    return Status(
        Code::kInvalidArgument,
        "--threads: a number for each engine would give arms with more engines more of the machine; --cores names each device's cores");
  if (!flags.engine.chunked_prefill)
    return Status(Code::kInvalidArgument, "--no-enable-chunked-prefill: that is the arm tpN-prefill-first; choose arms with --arms");
  Comparison c;
  BATON_ASSIGN_OR_RETURN(c.goodput_ms, parse_goodput(flags.goodput));
  BATON_RETURN_IF_ERROR(choose_devices(flags, c));
  BATON_ASSIGN_OR_RETURN(ArmPlan plan, plan_arms(flags.devices, flags.arms, [&](int degree) {
                           const auto possible = model::shard_plan(files, degree);
                           return possible.ok() ? std::string() : possible.status().message();
                         }));
  c.left_out = std::move(plan.left_out);
  for (Arm& arm : plan.arms) {
    ArmResult result;
    result.command = shell_words("baton", with_flags(serve_args(flags), arm.flags));
    result.arm = std::move(arm);
    c.arms.push_back(std::move(result));
  }
  c.model = flags.engine.model;
  c.command = flags.command;
  c.version = kVersion;
  c.commit = kCommit;
  c.date = fmt::format("{:%Y-%m-%d %H:%M:%S}", fmt::localtime(static_cast<std::time_t>(SystemClock().unix_seconds())));
  c.dataset = dataset_words(flags.dataset);
  c.seed = flags.dataset.seed;
  c.repeats = flags.repeats;
  c.machine = look_at_machine(flags.engine.isa);
  if (c.machine.load > 0.5)
    c.notes.push_back(fmt::format("the machine was not idle before the first run: load average {:.2f}", c.machine.load));
  return c;
}

void announce(const Comparison& c, const std::string& log) {
  std::vector<std::string> names;
  for (const ArmResult& arm : c.arms) names.push_back(arm.arm.name);
  std::fprintf(stderr, "%-9s%s\n", "compare",
               fmt::format("{} on {} device(s), cores {}: {}; {} {} a run ({})", c.model, c.devices, c.cores, fmt::join(names, ", "),
                           c.requests, c.unit, c.dataset)
                   .c_str());
  for (const auto& [name, why] : c.left_out) std::fprintf(stderr, "%-9s%s is left out: %s\n", "note", name.c_str(), why.c_str());
  for (const std::string& note : c.notes) std::fprintf(stderr, "%-9s%s\n", "note", note.c_str());
  std::fprintf(stderr, "%-9s%s\n", "log", log.c_str());
}

Result<Comparison> run(CompareFlags& flags) {
  BATON_RETURN_IF_ERROR(flags.files.add_folder(flags.output_dir));
  BATON_RETURN_IF_ERROR(flags.files.check());
  CampaignOptions campaign;
  BATON_ASSIGN_OR_RETURN(campaign.rate, parse_rate(flags.rate));
  BATON_ASSIGN_OR_RETURN(const std::string path, resolve_model(flags.engine.model));
  BATON_ASSIGN_OR_RETURN(const auto files, model::ModelFiles::open(path));
  BATON_ASSIGN_OR_RETURN(Comparison c, prepare(flags, *files));
  BATON_ASSIGN_OR_RETURN(const auto source, RequestSource::open(flags.dataset, flags.burstiness, *files));
  c.requests = source->size();
  if (flags.dataset.name == "mix") c.unit = "chats";
  c.overload = campaign.rate > 0 ? 0 : flags.overload;
  campaign.arms = c.arms.size();
  campaign.repeats = flags.repeats;
  campaign.overload = flags.overload;
  campaign.sweep = !flags.goodput.empty() || !flags.sweep_rates.empty();
  campaign.sweep_rates = flags.sweep_rates;
  campaign.search = flags.search;

  RunnerOptions runner;
  runner.model = flags.engine.model;
  runner.serve_args = serve_args(flags);
  BATON_RETURN_IF_ERROR(make_dirs(home_dir() + "/run"));
  runner.log_path = fmt::format("{}/run/compare-{}.log", home_dir(), getpid());
  runner.burstiness = flags.burstiness;
  runner.seed = flags.dataset.seed;
  runner.ignore_eos = flags.dataset.wants_full_answers();
  runner.own_times = flags.dataset.name == "mix";
  runner.warmups = flags.warmups;
  runner.start_limit = Duration(static_cast<std::int64_t>(flags.start_limit_s * 1e6));
  runner.requests = [&](double rate, int draw) { return source->at(rate, draw); };
  announce(c, runner.log_path);
  const SystemClock clock;
  const TimePoint begin = clock.now();
  runner.on_run = [&] {
    c.seconds = to_seconds(clock.now() - begin);
    if (const Status saved = flags.files.save_so_far(c); !saved.ok())
      std::fprintf(stderr, "%-9s%s; the next run tries again\n", "ERROR", saved.to_string().c_str());
  };
  Runner(std::move(runner), campaign, c).run();
  c.seconds = to_seconds(clock.now() - begin);
  return c;
}

}  // namespace

int run_bench_compare(Args args) {
  forget_api_keys();
  CompareFlags flags;
  flags.command = shell_words("baton bench compare", args);
  flags.dataset.name = "lengths";
  flags.dataset.num_prompts = 200;
  flags.engine.log.level = "warn";
  CLI::App app(
      "Starts each way to run MODEL on the same devices in turn (the arms), sends each the same requests at the same times, and prints "
      "what\n"
      "clients saw: medians over repeats, a spread, and the difference of each arm to the first. Arms, on N devices:\n"
      "  tpN-prefill-first  one group of N ranks that runs whole prompts before it decodes\n"
      "  tpN                one group of N ranks, prompts in chunks beside decode\n"
      "  dp                 two engines of N/2 ranks\n"
      "  pd                 a prefill and a decode worker of N/2 ranks",
      "baton bench compare");
  app.set_help_flag("-h,--help", "this text");
  app.add_option("model,--model", flags.engine.model, "as of `baton serve`")->required();
  const char* arms = "Arms";
  app.add_option("--devices", flags.devices, "devices of each arm (default: one a core)")->check(CLI::Range(1, 1024))->group(arms);
  app.add_option("--arms", flags.arms, "which, and in which order; differences are to the first (default: all that are possible)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->group(arms);
  const char* load = "Load";
  app.add_option("--request-rate", flags.rate, "requests/s of the repeats; auto: --overload times what the first arm sustains")
      ->capture_default_str()
      ->group(load);
  app.add_option("--overload", flags.overload, "of auto")->check(CLI::Range(0.1, 10.0))->capture_default_str()->group(load);
  app.add_option("--burstiness", flags.burstiness, "1 Poisson, below burstier, above more even")
      ->check(CLI::Range(1e-3, 1e6))
      ->capture_default_str()
      ->group(load);
  app.add_option("--repeats", flags.repeats, "runs of each arm at that rate")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->group(load);
  app.add_option("--num-warmups", flags.warmups, "requests that an arm gets after its start, not counted")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str()
      ->group(load);
  app.add_option("--search-runs", flags.search.probes_max, "runs to find what an arm sustains, at most")
      ->check(CLI::Range(2, 100))
      ->capture_default_str()
      ->group(load);
  app.add_option("--goodput", flags.goodput, "limits in ms, e.g. ttft:300 tpot:150: a sweep over rates counts the requests that keep all")
      ->expected(1, 3)
      ->group(load);
  app.add_option("--sweep-rates", flags.sweep_rates, "its rates (default: 0.25 to 1.25 of what the best arm sustains)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1e-3, 1e6))
      ->group(load);
  const char* results = "Results";
  app.add_option("--output-dir", flags.output_dir, "folder for compare.json, compare.md and compare.html")->group(results);
  app.add_option("--json", flags.files.json, "file for all figures")->group(results);
  app.add_option("--markdown", flags.files.markdown, "file for the table")->group(results);
  app.add_option("--html", flags.files.html, "file for a page with plots, which needs nothing else")->group(results);
  app.add_option("--ready-timeout", flags.start_limit_s, "seconds for an arm to become ready")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str()
      ->group(arms);
  flags.dataset.add_to(app);
  flags.engine.add_to(app);
  if (const auto code = parse_args(app, std::move(args))) return *code;
  log::init({"warn", "compare"});
  const auto comparison = run(flags);
  if (!comparison.ok()) return fail(comparison.status());
  fmt::print("{}", table(*comparison));
  std::fflush(stdout);
  if (const Status written = flags.files.write(*comparison); !written.ok()) return fail(written);
  const bool whole = std::ranges::all_of(comparison->arms, [&](const ArmResult& arm) {
    return arm.failure.empty() && arm.clean() && std::ssize(arm.measured()) == comparison->repeats;
  });
  return whole ? 0 : kExitFailed;
}

}  // namespace baton::app
