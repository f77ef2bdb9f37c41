// `baton bench engine`: prompt and generation speed of a model on this machine, beside what the machine allows.

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "app/args.h"
#include "app/bench/bench.h"
#include "app/engine_setup.h"
#include "base/log.h"
#include "base/rng.h"
#include "net/event_loop.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

struct BenchEngineFlags {
  EngineFlags engine;
  std::vector<int> prompt = {512}, batch = {1, 8, 32};
  int generate = 64, context = 64, repeats = 3;
  bool json = false;
};

// Runs plans one after another and takes the time of each, with the engine's own executor: what is measured is a step as serving runs it,
// sampling included.
class Stepper {
 public:
  Stepper(net::EventLoop& loop, engine::DeviceExecutor& executor) : loop_(loop), executor_(executor) {
    executor_.start({[this](engine::StepResult& result) {
                       status_ = result.status;
                       for (std::size_t i = 0; i < last_.size(); ++i)
                         last_[i] = result.rows[i].sampled.empty() ? 0 : result.rows[i].sampled[0].token;
                       loop_.stop();
                     },
                     [](std::uint64_t, int) {}});
    params_.temperature = 0;
    params_.max_tokens = 1 << 20;
  }

  struct Sequence {
    std::vector<TokenId> ids;
    std::vector<BlockId> blocks;
    std::int32_t done = 0;
  };

  // `count` sequences of `length` drawn ids, none computed yet.
  std::vector<Sequence> sequences(int count, int length, int growth) {
    Rng rng(1);
    const int size = executor_.kv_block_tokens(), blocks = (length + growth + size - 1) / size;
    std::vector<Sequence> out(static_cast<std::size_t>(count));
    std::int32_t next = 0;
    for (Sequence& s : out) {
      for (int i = 0; i < length; ++i)
        s.ids.push_back(static_cast<TokenId>(rng.below(static_cast<std::uint64_t>(executor_.model().config().vocab))));
      for (int b = 0; b < blocks; ++b) s.blocks.push_back(BlockId(next++ % executor_.kv_blocks()));
    }
    return out;
  }

  // One step over all `sequences`, each from where it stands to the end of its ids (at most `chunk` tokens). Seconds.
  Result<double> step(std::vector<Sequence>& sequences, int chunk) {
    engine::StepPlan plan;
    plan.step = ++step_;
    last_.assign(sequences.size(), 0);
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      Sequence& s = sequences[i];
      engine::StepRow row;
      row.seq = SeqId(i + 1);
      row.begin = s.done;
      row.end = std::min<std::int32_t>(static_cast<std::int32_t>(s.ids.size()), s.done + chunk);
      row.ids = &s.ids;
      row.blocks = &s.blocks;
      if (row.end == static_cast<std::int32_t>(s.ids.size())) row.sample = engine::SampleSpec{&params_, 1, 1, 0, 1};
      s.done = row.end;
      plan.rows.push_back(row);
    }
    const TimePoint start = loop_.clock().now();
    executor_.submit(plan);
    loop_.run();
    BATON_RETURN_IF_ERROR(status_);
    const double seconds = to_seconds(loop_.clock().now() - start);
    for (std::size_t i = 0; i < sequences.size(); ++i)
      if (plan.rows[i].sample) sequences[i].ids.push_back(last_[i]);
    return seconds;
  }

 private:
  net::EventLoop& loop_;
  engine::DeviceExecutor& executor_;
  wire::SamplingParams params_;
  std::uint64_t step_ = 0;
  Status status_;
  std::vector<TokenId> last_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Of the cores of all ranks together.
device::MachineLimits limits_of(const std::vector<device::DeviceOptions>& ranks) {
  device::DeviceOptions all = ranks[0];
  for (std::size_t r = 1; r < ranks.size(); ++r)
    for (const int core : ranks[r].cores)
      if (std::ranges::find(all.cores, core) == all.cores.end()) all.cores.push_back(core);
  const auto device = device::open_device(all);
  return device.ok() ? (*device)->measure_limits() : device::MachineLimits{};
}

class BenchEngine {
 public:
  BenchEngine(const BenchEngineFlags& flags, net::EventLoop& loop, EngineSetup& setup)
      : flags_(flags),
        setup_(setup),
        stepper_(loop, *setup.executor),
        chunk_(setup.options.max_num_batched_tokens),
        limits_(limits_of(setup.devices)) {}

  Status run() {
    const model::ModelConfig& c = setup_.files->config();
    linear_flops_ = 2.0 * static_cast<double>(c.linear_weights());
    head_flops_ = 2.0 * c.hidden * c.vocab;
    weight_bytes_ = static_cast<double>(setup_.loaded->weight_bytes());
    kv_per_token_ = 2.0 * c.layers * c.kv_heads * c.head_dim * static_cast<double>(size_of(setup_.kv_dtype));
    if (!flags_.json) header();
    for (const int tokens : flags_.prompt) BATON_RETURN_IF_ERROR(prompt(tokens));
    for (const int batch : flags_.batch) BATON_RETURN_IF_ERROR(generation(batch));
    if (flags_.json) {
      const Json out{{"model", flags_.engine.model},
                     {"device", setup_.loaded->device().name},
                     {"isa", setup_.loaded->device().isa},
                     {"tensor_parallel_size", setup_.devices.size()},
                     {"threads", threads()},
                     {"compute", std::string(to_string(setup_.compute))},
                     {"load_seconds", setup_.load_seconds},
                     {"limits",
                      {{"read_bytes_per_s", limits_.read_bytes_per_s},
                       {"f32_flops", limits_.f32_flops},
                       {"bf16_flops", limits_.bf16_flops},
                       {"int8_ops", limits_.int8_ops}}},
                     {"results", results_}};
      fmt::print("{}\n", out.dump(2));
    }
    return {};
  }

 private:
  int threads() const {
    if (setup_.loaded->device().asynchronous) return 0;
    std::size_t threads = 0;
    for (const device::DeviceOptions& device : setup_.devices)
      threads += device.cores.empty() ? static_cast<std::size_t>(device.threads) : device.cores.size();
    return static_cast<int>(threads);
  }

  void header() const {
    fmt::print("{}: {}, {} of weights a step, compute {}, {} thread(s), {}\n", flags_.engine.model,
               to_string(setup_.files->dominant_format()), format_bytes(weight_bytes_), to_string(setup_.compute), threads(),
               setup_.loaded->device().isa);
    fmt::print("limits of these cores: read {:.1f} GB/s; multiply f32 {:.0f}, bf16 {:.0f} GFLOP/s, int8 {:.0f} GOP/s\n\n",
               limits_.read_bytes_per_s / 1e9, limits_.f32_flops / 1e9, limits_.bf16_flops / 1e9, limits_.int8_ops / 1e9);
    fmt::print("{:<22} {:>10} {:>10} {:>12} {:>22} {:>22}\n", "", "tokens/s", "ms/step", "spread", "of arithmetic peak",
               "of read bandwidth");
  }

  void row(const std::string& name, const std::vector<double>& seconds, double tokens, double flops, double bytes) {
    const double s = median(seconds);
    const double spread = (*std::max_element(seconds.begin(), seconds.end()) - *std::min_element(seconds.begin(), seconds.end())) / s;
    const double rate = flops / s, bandwidth = bytes / s;
    const double peak = setup_.compute == device::ComputeType::kInt8   ? limits_.int8_ops
                        : setup_.compute == device::ComputeType::kBF16 ? limits_.bf16_flops
                                                                       : limits_.f32_flops;
    results_.push_back({{"name", name},
                        {"tokens_per_s", tokens / s},
                        {"seconds_per_step", s},
                        {"spread", spread},
                        {"flops", rate},
                        {"of_compute_peak", rate / peak},
                        {"of_bf16_peak", limits_.bf16_flops > 0 ? Json(rate / limits_.bf16_flops) : Json()},
                        {"bytes_per_s", bandwidth},
                        {"of_read_bandwidth", bandwidth / limits_.read_bytes_per_s}});
    if (flags_.json) return;
    fmt::print("{:<22} {:>10.1f} {:>10.2f} {:>11.1f}% {:>22} {:>22}\n", name, tokens / s, s * 1e3, spread * 100,
               fmt::format("{:.0f} G/s {:.0f}% (bf16 {:.0f}%)", rate / 1e9, 100 * rate / peak,
                           limits_.bf16_flops > 0 ? 100 * rate / limits_.bf16_flops : 0.0),
               fmt::format("{:.1f} GB/s {:.0f}%", bandwidth / 1e9, 100 * bandwidth / limits_.read_bytes_per_s));
    std::fflush(stdout);
  }

  // A prompt in chunks of --max-num-batched-tokens; one warm-up, then the repeats.
  Status prompt(int tokens) {
    std::vector<double> times;
    for (int r = 0; r <= flags_.repeats; ++r) {
      auto sequences = stepper_.sequences(1, tokens, 1);
      double sum = 0;
      while (sequences[0].done < tokens) {
        BATON_ASSIGN_OR_RETURN(const double seconds, stepper_.step(sequences, chunk_));
        sum += seconds;
      }
      if (r > 0) times.push_back(sum);
    }
    const int steps = (tokens + chunk_ - 1) / chunk_;
    row(fmt::format("prompt of {}", tokens), times, tokens, linear_flops_ * tokens + head_flops_, weight_bytes_ * steps);
    return {};
  }

  // `batch` sequences with a context, each step one token more for all.
  Status generation(int batch) {
    auto sequences = stepper_.sequences(batch, flags_.context, flags_.generate * (flags_.repeats + 1) + 1);
    for (Stepper::Sequence& s : sequences) {
      std::vector<Stepper::Sequence> one = {std::move(s)};
      while (one[0].done < flags_.context) BATON_RETURN_IF_ERROR(stepper_.step(one, chunk_).status());
      s = std::move(one[0]);
    }
    std::vector<double> times;
    double context = 0;
    for (int r = 0; r <= flags_.repeats; ++r) {
      double sum = 0;
      context = sequences[0].done + flags_.generate / 2.0;
      for (int i = 0; i < flags_.generate; ++i) {
        BATON_ASSIGN_OR_RETURN(const double seconds, stepper_.step(sequences, 1));
        sum += seconds;
      }
      if (r > 0) times.push_back(sum / flags_.generate);
    }
    row(fmt::format("generate, batch {}", batch), times, batch, (linear_flops_ + head_flops_) * batch,
        weight_bytes_ + kv_per_token_ * context * batch);
    return {};
  }

  const BenchEngineFlags& flags_;
  EngineSetup& setup_;
  Stepper stepper_;
  const int chunk_;
  const device::MachineLimits limits_;
  double linear_flops_ = 0, head_flops_ = 0, weight_bytes_ = 0, kv_per_token_ = 0;
  Json results_ = Json::array();
};

Status run(BenchEngineFlags& flags) {
  net::EventLoop loop;
  if (flags.engine.threads == 0 && flags.engine.cores.empty()) flags.engine.threads = flags.engine.tensor_parallel_size;
  const int longest =
      std::max(*std::max_element(flags.prompt.begin(), flags.prompt.end()), flags.context + flags.generate * (flags.repeats + 1)) + 1;
  const int most = *std::max_element(flags.batch.begin(), flags.batch.end());
  flags.engine.max_num_seqs = std::max(most, 1);
  if (flags.engine.max_model_len.empty()) flags.engine.max_model_len = std::to_string(longest);
  BATON_ASSIGN_OR_RETURN(EngineSetup setup, set_up_engine(flags.engine, 1, loop));
  return BenchEngine(flags, loop, setup).run();
}

}  // namespace

int run_bench_engine(Args args) {
  BenchEngineFlags flags;
  flags.engine.log.level = "warn";
  CLI::App app(
      "Measures prompt and generation speed of MODEL with the engine's own steps, beside the limits of the same cores, measured in the "
      "same run.\n"
      "Arithmetic counts the linear layers; bytes count the weights (and, in generation, the KV cache) that a step reads. Median of the "
      "repeats.",
      "baton bench engine");
  app.set_help_flag("-h,--help", "this text");
  app.add_option("model,--model", flags.engine.model, "the model")->required();
  app.add_option("-p,--prompt", flags.prompt, "prompt lengths")->delimiter(',')->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("-b,--batch", flags.batch, "batch sizes of generation")->delimiter(',')->check(CLI::Range(1, 4096))->capture_default_str();
  app.add_option("-n,--generate", flags.generate, "tokens to generate in each repeat")->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("--context", flags.context, "context before the first generated token")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("-r,--repeats", flags.repeats, "repeats after one warm-up")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_flag("--json", flags.json, "as JSON");
  flags.engine.add_to(app);
  if (const auto code = parse_args(app, std::move(args))) return *code;
  flags.engine.log.init("bench");
  const Status status = run(flags);
  return status.ok() ? 0 : fail(status);
}

}  // namespace baton::app
