// On the real default model: a sequence's tokens and their log-probabilities, bit for bit, depend on nothing but its request. Each case
// stands alone, so that ctest runs them side by side. Skipped where the model is not there.

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>

#include "base/rng.h"
#include "engine/blocking_loop.h"
#include "engine/device_executor.h"
#include "engine/engine.h"

namespace baton::engine {
namespace {

std::string model_path() {
  if (const char* path = std::getenv("BATON_TEST_MODEL")) return path;
  const char* home = std::getenv("HOME");
  return std::string(home ? home : "") + "/.cache/baton/models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf";
}

// A token and the bits of its log-probability: equal logits, not just the same choice.
struct Draw {
  TokenId token = 0;
  float logprob = 0;
  bool operator==(const Draw& other) const { return token == other.token && std::memcmp(&logprob, &other.logprob, sizeof logprob) == 0; }
  friend void PrintTo(const Draw& d, std::ostream* out) { *out << d.token << " (" << d.logprob << ")"; }
};
using Draws = std::vector<Draw>;
Draw draw_of(const wire::TokenEvent& event) { return {event.token, event.logprob.value()}; }

struct Sink final : wire::GenerateSink {
  std::map<int, Draws> draws;
  std::vector<std::optional<wire::TokenEvent>> prompt;
  std::int32_t cached = 0;
  std::optional<Status> done;
  void on_served(const wire::Served& served) override { cached = served.cached_tokens; }
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) override { prompt = std::move(entries); }
  void on_token(wire::TokenEvent event) override { draws[event.choice].push_back(draw_of(event)); }
  void on_finish(wire::FinishEvent) override {}
  void on_done(Status status) override { done = std::move(status); }
};

struct Source final : PrefillSink {
  std::vector<FirstToken> first;
  std::map<int, std::int32_t> layers;  // reported up to
  std::optional<Status> failed;
  void on_started(std::int32_t) override {}
  void on_layer(int layer, std::int32_t begin, std::int32_t end) override {
    EXPECT_EQ(begin, layers[layer]);
    layers[layer] = end;
  }
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>>) override {}
  void on_first(std::vector<FirstToken> tokens) override { first = std::move(tokens); }
  void on_failed(Status status) override { failed = std::move(status); }
};

struct RigOptions {
  device::ComputeType compute = device::ComputeType::kInt8;
  int threads = 1;
  int chunk = 0;  // 0: as the step allows
  bool prefix_cache = false;
  std::int32_t kv_blocks = 0;
  bool chunked_prefill = true;
};

class Golden : public testing::Test {
 protected:
  static constexpr std::int32_t kMaxLen = 1600;

  void SetUp() override {
    if (!std::filesystem::exists(model_path())) GTEST_SKIP() << "no model at " << model_path() << ": run `baton pull smollm2-135m`";
  }

  // Loaded once for each compute type and team.
  std::shared_ptr<LoadedModel> load(const RigOptions& options) {
    auto& model = loaded_[{options.compute, options.threads}];
    if (model) return model;
    auto files = model::ModelFiles::open(model_path());
    EXPECT_TRUE(files.ok()) << files.status().to_string();
    device::DeviceOptions device;
    device.threads = options.threads;
    model::DecoderOptions decoder;
    decoder.compute = options.compute;
    decoder.max_positions = kMaxLen;
    decoder.max_tokens = 512;
    decoder.max_logit_rows = 64;
    auto result = load_model({&device, 1}, **files, decoder);
    EXPECT_TRUE(result.ok()) << result.status().to_string();
    model = *result;
    return model;
  }

  struct Rig {
    DeviceExecutor* executor = nullptr;
    std::unique_ptr<Engine> engine;
  };
  Rig rig(const RigOptions& options) { return rig_on(load(options), options); }
  Rig rig_on(std::shared_ptr<LoadedModel> model, const RigOptions& options) {
    DeviceExecutorOptions o;
    o.kv_bytes = std::size_t{256} << 20;
    o.kv_blocks = options.kv_blocks;
    auto executor = DeviceExecutor::create(loop_, model, o);
    EXPECT_TRUE(executor.ok()) << executor.status().to_string();
    Rig r;
    r.executor = executor->get();
    EngineOptions e;
    e.max_model_len = kMaxLen;
    e.max_num_seqs = 40;
    e.max_num_batched_tokens = 512;
    e.max_chunk = options.chunk;
    e.max_step = Duration(0);
    e.kv_blocks = r.executor->kv_blocks();
    e.block_tokens = r.executor->kv_block_tokens();
    e.vocab = model->config().vocab;
    e.prefix_cache = options.prefix_cache;
    e.chunked_prefill = options.chunked_prefill;
    r.engine = Engine::create(loop_, std::move(*executor), e);
    return r;
  }

  // Text-like ids: words of a small vocabulary, so that the model has something to repeat.
  static wire::GenerateRequest request(int length, std::uint64_t seed, bool greedy, int max_tokens = 24) {
    Rng rng(seed);
    wire::GenerateRequest r;
    for (int i = 0; i < length; ++i) r.ids.push_back(static_cast<TokenId>(300 + rng.below(seed % 2 == 0 ? 40 : 20000)));
    r.n_prompt = length;
    r.seed = seed;
    r.sampling.temperature = greedy ? 0.0f : 0.9f;
    r.sampling.top_p = greedy ? 1.0f : 0.95f;
    r.sampling.max_tokens = max_tokens;
    r.sampling.ignore_eos = true;
    r.sampling.logprobs = 0;
    return r;
  }

  Draws generate(Engine& engine, const wire::GenerateRequest& r, std::int32_t* cached = nullptr) {
    const auto sink = std::make_shared<Sink>();
    const auto call = engine.generate(r, sink);
    EXPECT_TRUE(loop_.run_until([&] { return sink->done.has_value(); }));
    EXPECT_TRUE(sink->done->ok()) << sink->done->to_string();
    if (cached != nullptr) *cached = sink->cached;
    return sink->draws[0];
  }
  Draws alone(const wire::GenerateRequest& r) { return generate(*rig({}).engine, r); }

  struct Batch {
    std::vector<std::shared_ptr<Sink>> sinks;
    std::vector<std::unique_ptr<wire::GenerateCall>> calls;
  };
  // All at once; returns when all are done.
  Batch generate_all(Engine& engine, const std::vector<wire::GenerateRequest>& requests) {
    Batch b;
    for (const auto& r : requests) {
      b.sinks.push_back(std::make_shared<Sink>());
      b.calls.push_back(engine.generate(r, b.sinks.back()));
    }
    EXPECT_TRUE(
        loop_.run_until([&] { return std::all_of(b.sinks.begin(), b.sinks.end(), [](const auto& s) { return s->done.has_value(); }); }));
    return b;
  }

  BlockingLoop loop_;

 private:
  std::map<std::pair<device::ComputeType, int>, std::shared_ptr<LoadedModel>> loaded_;
};

// ---- chunks and threads

struct Chunks {
  int chunk, threads;
  bool greedy;
};
class GoldenChunks : public Golden, public testing::WithParamInterface<Chunks> {};
INSTANTIATE_TEST_SUITE_P(, GoldenChunks,
                         testing::Values(Chunks{1, 1, true}, Chunks{7, 1, false}, Chunks{64, 1, true}, Chunks{7, 2, true},
                                         Chunks{64, 2, false}, Chunks{512, 2, false}),
                         [](const auto& i) {
                           return "of" + std::to_string(i.param.chunk) + "_threads" + std::to_string(i.param.threads) +
                                  (i.param.greedy ? "_greedy" : "_sampled");
                         });

TEST_P(GoldenChunks, DoNotMatterToALongPrompt) {
  const auto [chunk, threads, greedy] = GetParam();
  const auto r = request(1100, greedy ? 2 : 5, greedy);
  const auto expected = generate(*rig({.chunk = 512}).engine, r);
  EXPECT_EQ(expected.size(), 24u);
  EXPECT_EQ(generate(*rig({.threads = threads, .chunk = chunk}).engine, r), expected);
}

// Whole prompts, of more tokens than the decoder takes at once: the executor computes a step in parts.
TEST_F(Golden, WholePromptsDoNotMatter) {
  auto echoed = request(700, 9, true, 1);
  echoed.sampling.prompt_logprobs = 2;
  const std::vector<wire::GenerateRequest> requests = {request(1100, 2, true), request(40, 4, false), request(480, 5, false), echoed};
  const Batch whole = generate_all(*rig({.chunked_prefill = false}).engine, requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    ASSERT_TRUE(whole.sinks[i]->done->ok()) << whole.sinks[i]->done->to_string();
    EXPECT_EQ(whole.sinks[i]->draws[0], alone(requests[i])) << "request " << i;
  }
  const Batch chunked = generate_all(*rig({}).engine, {echoed});
  ASSERT_EQ(whole.sinks[3]->prompt.size(), 700u);
  ASSERT_EQ(chunked.sinks[0]->prompt.size(), 700u);
  for (std::size_t i = 1; i < 700; ++i) EXPECT_EQ(draw_of(*whole.sinks[3]->prompt[i]), draw_of(*chunked.sinks[0]->prompt[i])) << i;
}

// Around the tiles of the linear layers, the tokens that one member prepares, those that each member takes, and a pass over the weights.
TEST_F(Golden, ChunksAroundKernelThresholds) {
  const auto r = request(200, 3, false, 8);
  const auto expected = alone(r);
  for (const int threads : {1, 2}) {
    for (const int chunk : {2, 4, 5, 6, 12, 13, 47, 48, 49, 95, 96, 97, 192}) {
      EXPECT_EQ(generate(*rig({.threads = threads, .chunk = chunk}).engine, r), expected) << "chunk " << chunk << ", threads " << threads;
    }
  }
}

// ---- batches

class GoldenBatch : public Golden, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(, GoldenBatch, testing::Values(2, 3, 5, 8, 9, 16, 17, 32), testing::PrintToStringParamName());

TEST_P(GoldenBatch, NeighboursDoNotMatter) {
  const int batch = GetParam();
  const auto greedy = request(90, 4, true, 32), drawn = request(160, 7, false, 32);
  std::vector<wire::GenerateRequest> all;
  for (int i = 0; i < batch; ++i) all.push_back(request(20 + 5 * i, 100 + static_cast<std::uint64_t>(i), i % 2 == 0, 10 + i));
  const auto middle = static_cast<std::size_t>(batch / 2), last = static_cast<std::size_t>(batch - 1);
  all[middle] = greedy;
  all[last] = drawn;
  Rig e = rig({.threads = 2, .chunk = 100});
  Batch b = generate_all(*e.engine, all);
  EXPECT_EQ(b.sinks[last]->draws[0], alone(drawn));
  if (middle != last) {
    EXPECT_EQ(b.sinks[middle]->draws[0], alone(greedy));
  }
}

// Neighbours end two steps after one another, so that the batch shrinks through every size from 32 to 1.
TEST_F(Golden, EveryBatchSizeFrom32To1) {
  const auto ours = request(70, 15, false, 80);
  for (const int threads : {1, 2}) {
    std::vector<wire::GenerateRequest> all = {ours};
    for (int i = 1; i < 32; ++i) all.push_back(request(8, 200 + static_cast<std::uint64_t>(i), false, 6 + 2 * i));
    Rig e = rig({.threads = threads});
    Batch b = generate_all(*e.engine, all);
    EXPECT_EQ(b.sinks[0]->draws[0], alone(ours)) << "threads " << threads;
  }
}

// ---- the other compute types

class GoldenCompute : public Golden, public testing::WithParamInterface<device::ComputeType> {};
INSTANTIATE_TEST_SUITE_P(, GoldenCompute, testing::Values(device::ComputeType::kF32, device::ComputeType::kBF16),
                         [](const auto& i) { return std::string(device::to_string(i.param)); });

TEST_P(GoldenCompute, ChunksThreadsAndNeighboursDoNotMatter) {
  const device::ComputeType compute = GetParam();
  const auto greedy = request(300, 4, true, 12), drawn = request(130, 7, false, 12);
  Rig one = rig({.compute = compute});
  const Draws expected_greedy = generate(*one.engine, greedy), expected_drawn = generate(*one.engine, drawn);
  for (const int chunk : {7, 64}) {
    EXPECT_EQ(generate(*rig({.compute = compute, .threads = 2, .chunk = chunk}).engine, greedy), expected_greedy) << "chunk " << chunk;
  }
  for (const int batch : {2, 13}) {
    std::vector<wire::GenerateRequest> all;
    for (int i = 0; i < batch; ++i) all.push_back(request(10 + i, 100 + static_cast<std::uint64_t>(i), false, 5 + i));
    all.front() = greedy;
    all.back() = drawn;
    Rig e = rig({.compute = compute, .threads = 2, .chunk = 100});
    Batch b = generate_all(*e.engine, all);
    EXPECT_EQ(b.sinks.front()->draws[0], expected_greedy) << "batch " << batch;
    EXPECT_EQ(b.sinks.back()->draws[0], expected_drawn) << "batch " << batch;
  }
}

// ---- where the KV comes from

TEST_F(Golden, PrefixHitsAndContinuationsDoNotMatter) {
  const auto r = request(1050, 5, false, 40);
  Rig plain = rig({.threads = 2});
  const auto expected = generate(*plain.engine, r);
  Rig caching = rig({.threads = 2, .prefix_cache = true});
  std::int32_t cached = 0;
  EXPECT_EQ(generate(*caching.engine, r, &cached), expected);
  EXPECT_EQ(cached, 0);
  EXPECT_EQ(generate(*caching.engine, r, &cached), expected);
  EXPECT_GE(cached, 960);
  // As after a failover: what was decoded is prefilled here.
  auto rest = r;
  for (int i = 0; i < 15; ++i) rest.ids.push_back(expected[static_cast<std::size_t>(i)].token);
  EXPECT_EQ(generate(*plain.engine, rest), Draws(expected.begin() + 15, expected.end()));
}

TEST_F(Golden, PreemptionDoesNotMatter) {
  const int block = rig({}).executor->kv_block_tokens();
  const auto r = request(3 * block, 9, false, 2 * block);
  Rig tight = rig({.kv_blocks = 9});  // two of five blocks each do not fit
  Batch b = generate_all(*tight.engine, {r, r});
  EXPECT_GT(tight.engine->status().preemptions, 0u);
  const auto expected = alone(r);
  EXPECT_EQ(b.sinks[0]->draws[0], expected);
  EXPECT_EQ(b.sinks[1]->draws[0], expected);
}

TEST_F(Golden, SeveralChoicesAreThoseOfSingleRequests) {
  auto r = request(333, 11, false, 20);
  Rig e = rig({.threads = 2});
  r.n = 3;
  const auto sink = std::make_shared<Sink>();
  const auto call = e.engine->generate(r, sink);
  ASSERT_TRUE(loop_.run_until([&] { return sink->done.has_value(); }));
  EXPECT_EQ(e.engine->status().prompt_tokens_computed, 333u);  // one prefill
  r.n = 1;
  for (int choice = 0; choice < 3; ++choice) {
    r.first_choice = choice;
    const auto single = std::make_shared<Sink>();
    const auto one = e.engine->generate(r, single);
    ASSERT_TRUE(loop_.run_until([&] { return single->done.has_value(); }));
    EXPECT_EQ(sink->draws[choice], single->draws[choice]);
  }
  EXPECT_NE(sink->draws[0], sink->draws[1]);
}

class GoldenHandoff : public Golden, public testing::WithParamInterface<bool> {
 protected:
  // The tokens from `begin` on of P's sequence into the blocks that D granted.
  static void copy_kv(const Rig& p, SeqId at_p, const Rig& d, const Grant& grant, std::int32_t begin, std::int32_t end) {
    const device::KvView& from = p.executor->pool(0).view();
    const device::KvView& to = d.executor->pool(0).view();
    const auto blocks = p.engine->blocks(at_p);
    const int size = from.spec.block_tokens;
    for (int layer = 0; layer < from.spec.layers; ++layer) {
      for (int head = 0; head < from.spec.kv_heads; ++head) {
        for (const device::KvKind kind : {device::KvKind::kKey, device::KvKind::kValue}) {
          for (std::int32_t t = begin; t < end; ++t) {
            const auto b = static_cast<std::size_t>(t / size);
            std::memcpy(d.executor->pool(0).shared_region()->base + to.offset(layer, grant.blocks[b], head, kind, t % size),
                        p.executor->pool(0).shared_region()->base + from.offset(layer, blocks[b], head, kind, t % size),
                        from.spec.row_bytes());
          }
        }
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(, GoldenHandoff, testing::Values(true, false), [](const auto& i) { return i.param ? "greedy" : "sampled"; });

TEST_P(GoldenHandoff, DoesNotMatter) {
  constexpr std::int32_t kPrompt = 1234;
  const auto r = request(kPrompt, GetParam() ? 8 : 13, GetParam(), 40);
  Rig p = rig({.chunk = 200, .prefix_cache = true}), d = rig({.threads = 2, .prefix_cache = true});
  auto part = r;  // leaves part of the prompt in D's cache
  part.ids.resize(500);
  part.n_prompt = 500;
  part.sampling.max_tokens = 1;
  generate(*d.engine, part);
  ASSERT_TRUE(d.engine->reserve(LeaseId(1), r).ok());
  const auto source = std::make_shared<Source>();
  const Result<SeqId> at_p = p.engine->prefill(r, source);
  ASSERT_TRUE(at_p.ok());
  ASSERT_TRUE(loop_.run_until([&] { return !source->first.empty() || source->failed; }));
  const Result<Grant> grant = d.engine->grant(LeaseId(1), r);
  ASSERT_TRUE(grant.ok()) << grant.status().to_string();
  EXPECT_GE(grant->cached_tokens, 448);
  ASSERT_EQ(static_cast<int>(source->layers.size()), p.executor->pool(0).view().spec.layers);
  for (const auto& [layer, reported] : source->layers) ASSERT_EQ(reported, kPrompt) << "layer " << layer;
  copy_kv(p, *at_p, d, *grant, grant->cached_tokens, kPrompt);
  p.engine->release(*at_p);
  const auto sink = std::make_shared<Sink>();
  const auto call = d.engine->start_decode(grant->seq, source->first, sink);
  ASSERT_TRUE(loop_.run_until([&] { return sink->done.has_value(); }));
  Draws got = {draw_of(source->first[0].token)};
  got.insert(got.end(), sink->draws[0].begin(), sink->draws[0].end());
  EXPECT_EQ(got, alone(r));
}

TEST_F(Golden, PromptLogprobsAreThoseOfTheContinuation) {
  auto r = request(150, 21, true, 30);
  r.sampling.logprobs = 3;
  Rig e = rig({.threads = 2});
  const auto generated = std::make_shared<Sink>();
  const auto call = e.engine->generate(r, generated);
  ASSERT_TRUE(loop_.run_until([&] { return generated->done.has_value(); }));
  auto echoed = r;  // the answer as part of the prompt
  const Draws& answer = generated->draws[0];
  for (const Draw& draw : answer) echoed.ids.push_back(draw.token);
  echoed.n_prompt = static_cast<std::int32_t>(echoed.ids.size());
  echoed.sampling.max_tokens = 1;
  echoed.sampling.prompt_logprobs = 3;
  const auto sink = std::make_shared<Sink>();
  const auto second = e.engine->generate(echoed, sink);
  ASSERT_TRUE(loop_.run_until([&] { return sink->done.has_value(); }));
  ASSERT_EQ(sink->prompt.size(), 180u);
  for (std::size_t i = 150; i < 180; ++i) {
    ASSERT_TRUE(sink->prompt[i].has_value());
    EXPECT_EQ(draw_of(*sink->prompt[i]), answer[i - 150]);
    EXPECT_EQ(sink->prompt[i]->top.at(0).token, answer[i - 150].token);  // it was greedy
    EXPECT_EQ(sink->prompt[i]->top.at(0).logprob, sink->prompt[i]->logprob);
  }
}

// ---- ranks

// A rank's device whose next step hangs, until it is let go.
struct Gate {
  std::mutex mutex;
  std::condition_variable opened;
  bool closed = false, waited_at = false;
  void pass() {
    std::unique_lock lock(mutex);
    waited_at = closed;
    opened.wait(lock, [&] { return !closed; });
  }
  void set(bool close) {
    {
      std::lock_guard lock(mutex);
      closed = close;
    }
    opened.notify_all();
  }
};
class GatedContext final : public device::Context {
 public:
  GatedContext(std::unique_ptr<device::Context> inner, Gate& gate) : inner_(std::move(inner)), gate_(gate) {}
  device::Ops& ops() override { return inner_->ops(); }
  device::Collective& collective() override { return inner_->collective(); }
  Result<device::Tensor> scratch(device::DType dtype, std::initializer_list<std::int64_t> shape) override {
    return inner_->scratch(dtype, shape);
  }
  void reset_arena() override { inner_->reset_arena(); }
  Status upload_step(device::StepMeta& meta) override {
    gate_.pass();
    return inner_->upload_step(meta);
  }
  Status upload(const device::Tensor& target, const void* source, std::size_t bytes) override {
    return inner_->upload(target, source, bytes);
  }
  Result<const void*> download(const device::Tensor& source) override { return inner_->download(source); }
  void notify(void (*fn)(void*, std::uint64_t), void* user, std::uint64_t tag) override { inner_->notify(fn, user, tag); }
  Status synchronize(Duration deadline) override { return inner_->synchronize(deadline); }

 private:
  const std::unique_ptr<device::Context> inner_;
  Gate& gate_;
};
class GatedDevice final : public device::Device {
 public:
  GatedDevice(std::unique_ptr<device::Device> inner, Gate& gate) : inner_(std::move(inner)), gate_(gate) {}
  const device::DeviceInfo& info() const override { return inner_->info(); }
  Result<std::unique_ptr<device::Context>> create_context(const device::ContextOptions& options) override {
    BATON_ASSIGN_OR_RETURN(auto context, inner_->create_context(options));
    return std::unique_ptr<device::Context>(std::make_unique<GatedContext>(std::move(context), gate_));
  }
  Result<std::unique_ptr<device::Buffer>> allocate(std::size_t bytes) override { return inner_->allocate(bytes); }
  Result<std::unique_ptr<device::KvPool>> create_kv_pool(device::KvSpec spec) override { return inner_->create_kv_pool(spec); }
  Result<std::unique_ptr<device::Linear>> prepare_linear(std::span<const device::HostWeight> parts, std::span<const float> bias,
                                                         device::ComputeType compute) override {
    return inner_->prepare_linear(parts, bias, compute);
  }
  Result<std::unique_ptr<device::Embedding>> prepare_embedding(const device::HostWeight& table, std::int32_t first_id) override {
    return inner_->prepare_embedding(table, first_id);
  }
  Result<std::unique_ptr<device::RopeTable>> prepare_rope(std::span<const double> inverse_frequencies, std::int64_t positions,
                                                          double attention_factor) override {
    return inner_->prepare_rope(inverse_frequencies, positions, attention_factor);
  }
  device::DType activation_dtype(device::ComputeType compute) const override { return inner_->activation_dtype(compute); }
  std::string numerics_id(device::ComputeType compute, device::DType kv) const override { return inner_->numerics_id(compute, kv); }
  device::P2p* p2p() override { return inner_->p2p(); }
  device::MachineLimits measure_limits() override { return inner_->measure_limits(); }

 private:
  const std::unique_ptr<device::Device> inner_;
  Gate& gate_;
};

// Its step never ends, and yet everybody hears of it, once; what comes later is refused.
TEST_F(Golden, ARankThatHangsFailsTheInstanceWithinTheDeadline) {
  const auto files = model::ModelFiles::open(model_path());
  ASSERT_TRUE(files.ok());
  model::DecoderOptions decoder;
  decoder.compute = device::ComputeType::kInt8;
  decoder.max_positions = kMaxLen;
  decoder.max_tokens = 512;
  decoder.max_logit_rows = 64;
  const std::vector<device::DeviceOptions> devices(2, device::DeviceOptions{.threads = 1});
  auto loaded = load_model(devices, **files, decoder, std::chrono::milliseconds(300));
  ASSERT_TRUE(loaded.ok()) << loaded.status().to_string();
  Gate gate;
  auto& second = (*loaded)->ranks[1].device;
  second = std::make_unique<GatedDevice>(std::move(second), gate);
  Rig r = rig_on(*loaded, {});
  EXPECT_EQ(generate(*r.engine, request(20, 2, true, 4)).size(), 4u);

  gate.set(true);
  const auto sink = std::make_shared<Sink>();
  const auto call = r.engine->generate(request(20, 2, true, 4), sink);
  ASSERT_TRUE(loop_.run_until([&] { return sink->done.has_value(); }));
  EXPECT_TRUE(gate.waited_at);
  EXPECT_EQ(sink->done->code(), Code::kUnavailable);
  EXPECT_NE(sink->done->message().find("rank 1 did not come to a collective within 300 ms"), std::string::npos) << sink->done->to_string();
  EXPECT_TRUE(r.engine->status().failed);
  const auto late = std::make_shared<Sink>();
  const auto refused = r.engine->generate(request(20, 2, true, 4), late);
  ASSERT_TRUE(loop_.run_until([&] { return late->done.has_value(); }));
  EXPECT_EQ(late->done->code(), Code::kUnavailable);
  gate.set(false);  // so that the executor's threads can be joined
}

}  // namespace
}  // namespace baton::engine
