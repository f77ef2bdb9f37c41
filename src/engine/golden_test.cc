// On the real default model: a sequence's tokens depend on nothing but its request. Skipped where the model is not there.

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>

#include "base/rng.h"
#include "engine/device_executor.h"
#include "engine/engine.h"

namespace baton::engine {
namespace {

std::string model_path() {
  if (const char* path = std::getenv("BATON_TEST_MODEL")) return path;
  const char* home = std::getenv("HOME");
  return std::string(home ? home : "") + "/.cache/baton/models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf";
}

// Work posted by executors' threads, run by the test's.
class BlockingLoop final : public net::Executor {
 public:
  void post(std::function<void()> work) override {
    {
      std::lock_guard lock(mutex_);
      work_.push_back(std::move(work));
    }
    ready_.notify_one();
  }
  TimerId after(Duration, std::function<void()>) override { return 1; }  // deadlines here are an hour away
  void cancel(TimerId) override {}
  const Clock& clock() const override { return clock_; }
  // False after five minutes without work.
  template <class Done>
  bool run_until(Done done) {
    while (!done()) {
      std::function<void()> work;
      {
        std::unique_lock lock(mutex_);
        if (!ready_.wait_for(lock, std::chrono::minutes(5), [&] { return !work_.empty(); })) return false;
        work = std::move(work_.front());
        work_.pop_front();
      }
      work();
    }
    return true;
  }

 private:
  SystemClock clock_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> work_;
};

struct Sink final : wire::GenerateSink {
  std::map<int, std::vector<TokenId>> tokens;
  std::vector<std::optional<wire::TokenEvent>> prompt;
  std::int32_t cached = 0;
  std::optional<Status> done;
  void on_served(const wire::Served& served) override { cached = served.cached_tokens; }
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) override { prompt = std::move(entries); }
  void on_token(wire::TokenEvent event) override { tokens[event.choice].push_back(event.token); }
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

class Golden : public testing::Test {
 protected:
  static constexpr std::int32_t kMaxLen = 1600;

  void SetUp() override {
    if (!std::filesystem::exists(model_path())) GTEST_SKIP() << "no model at " << model_path() << ": run `baton pull smollm2-135m`";
  }

  static std::shared_ptr<LoadedModel> load(int threads) {
    static std::map<int, std::shared_ptr<LoadedModel>> loaded;
    auto& model = loaded[threads];
    if (model) return model;
    auto files = model::ModelFiles::open(model_path());
    EXPECT_TRUE(files.ok()) << files.status().to_string();
    device::DeviceOptions device;
    device.threads = threads;
    model::DecoderOptions options;
    options.max_positions = kMaxLen;
    options.max_tokens = 512;
    options.max_logit_rows = 64;
    auto result = load_model(device, **files, options);
    EXPECT_TRUE(result.ok()) << result.status().to_string();
    model = *result;
    return model;
  }

  struct Rig {
    DeviceExecutor* executor = nullptr;
    std::unique_ptr<Engine> engine;
  };
  Rig rig(int threads, int chunk, bool prefix_cache = false, std::int32_t blocks = 0) {
    auto model = load(threads);
    DeviceExecutorOptions o;
    o.kv_bytes = std::size_t{256} << 20;
    o.kv_blocks = blocks;
    auto executor = DeviceExecutor::create(loop_, model, o);
    EXPECT_TRUE(executor.ok()) << executor.status().to_string();
    Rig r;
    r.executor = executor->get();
    EngineOptions e;
    e.max_model_len = kMaxLen;
    e.max_num_seqs = 40;
    e.max_num_batched_tokens = 512;
    e.max_chunk = chunk;
    e.max_step = Duration(0);
    e.kv_blocks = r.executor->kv_spec().blocks;
    e.block_tokens = r.executor->kv_spec().block_tokens;
    e.vocab = model->decoder->config().vocab;
    e.prefix_cache = prefix_cache;
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
    return r;
  }

  std::vector<TokenId> generate(Engine& engine, const wire::GenerateRequest& r, std::int32_t* cached = nullptr) {
    const auto sink = std::make_shared<Sink>();
    const auto call = engine.generate(r, sink);
    EXPECT_TRUE(loop_.run_until([&] { return sink->done.has_value(); }));
    EXPECT_TRUE(sink->done->ok()) << sink->done->to_string();
    if (cached != nullptr) *cached = sink->cached;
    return sink->tokens[0];
  }

  BlockingLoop loop_;
};

TEST_F(Golden, TokensDoNotDependOnChunksOrThreads) {
  for (const bool greedy : {true, false}) {
    const auto r = request(1100, greedy ? 2 : 5, greedy);
    std::vector<TokenId> expected;
    for (const int threads : {1, 2}) {
      for (const int chunk : {512, 64, 7, 1}) {
        if (chunk == 1 && (threads != 1 || !greedy)) continue;  // 1,100 steps: once
        Rig e = rig(threads, chunk);
        const auto got = generate(*e.engine, r);
        if (expected.empty()) expected = got;
        EXPECT_EQ(got, expected) << "chunk " << chunk << ", threads " << threads << ", greedy " << greedy;
      }
    }
    EXPECT_EQ(expected.size(), 24u);
  }
}

TEST_F(Golden, TokensDoNotDependOnNeighbours) {
  const auto greedy = request(210, 4, true, 40), drawn = request(330, 7, false, 40);
  Rig alone = rig(2, 0);
  const auto expected_greedy = generate(*alone.engine, greedy), expected_drawn = generate(*alone.engine, drawn);
  for (const int batch : {2, 3, 5, 8, 9, 16, 17, 32}) {
    Rig e = rig(2, 100);
    std::vector<std::shared_ptr<Sink>> sinks;
    std::vector<std::unique_ptr<wire::GenerateCall>> calls;
    for (int i = 0; i < batch; ++i) {
      sinks.push_back(std::make_shared<Sink>());
      const bool ours = i == batch / 2 || i == batch - 1;
      const auto r = !ours ? request(20 + 13 * i, 100 + static_cast<std::uint64_t>(i), i % 2 == 0, 10 + 2 * i) : i == batch - 1 ? drawn : greedy;
      calls.push_back(e.engine->generate(r, sinks.back()));
    }
    ASSERT_TRUE(loop_.run_until([&] { return std::all_of(sinks.begin(), sinks.end(), [](const auto& s) { return s->done.has_value(); }); }));
    EXPECT_EQ(sinks[static_cast<std::size_t>(batch - 1)]->tokens[0], expected_drawn) << "batch " << batch;
    if (batch / 2 == batch - 1) continue;
    EXPECT_EQ(sinks[static_cast<std::size_t>(batch / 2)]->tokens[0], expected_greedy) << "batch " << batch;
  }
}

TEST_F(Golden, TokensDoNotDependOnAPrefixHitOrPreemption) {
  const auto r = request(1050, 5, false, 40);
  Rig plain = rig(2, 0);
  const auto expected = generate(*plain.engine, r);
  Rig caching = rig(2, 0, true);
  std::int32_t cached = 0;
  EXPECT_EQ(generate(*caching.engine, r, &cached), expected);
  EXPECT_EQ(cached, 0);
  EXPECT_EQ(generate(*caching.engine, r, &cached), expected);
  EXPECT_GE(cached, 960);
  // A continuation, as after a failover: what was decoded is prefilled here.
  auto rest = r;
  rest.ids.insert(rest.ids.end(), expected.begin(), expected.begin() + 15);
  EXPECT_EQ(generate(*plain.engine, rest), std::vector<TokenId>(expected.begin() + 15, expected.end()));

  const int block = plain.executor->kv_spec().block_tokens;
  const auto small = request(3 * block, 9, false, 2 * block);
  const auto expected_small = generate(*plain.engine, small);
  Rig tight = rig(2, 0, false, 9);  // two of five blocks each do not fit
  const auto a = std::make_shared<Sink>(), b = std::make_shared<Sink>();
  const auto call_a = tight.engine->generate(small, a), call_b = tight.engine->generate(small, b);
  ASSERT_TRUE(loop_.run_until([&] { return a->done && b->done; }));
  EXPECT_GT(tight.engine->status().preemptions, 0u);
  EXPECT_EQ(a->tokens[0], expected_small);
  EXPECT_EQ(b->tokens[0], expected_small);
}

TEST_F(Golden, SeveralChoicesAreThoseOfSingleRequests) {
  auto r = request(333, 11, false, 20);
  Rig e = rig(2, 0);
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
    EXPECT_EQ(sink->tokens[choice], single->tokens[choice]);
  }
  EXPECT_NE(sink->tokens[0], sink->tokens[1]);
}

TEST_F(Golden, TokensDoNotDependOnDisaggregation) {
  for (const bool greedy : {true, false}) {
    const auto r = request(1234, greedy ? 8 : 13, greedy, 40);
    Rig aggregated = rig(1, 0);
    const auto expected = generate(*aggregated.engine, r);

    Rig p = rig(1, 200, true), d = rig(1, 0, true);
    generate(*d.engine, [&] {  // leaves part of the prompt in D's cache
      auto part = r;
      part.ids.resize(500);
      part.n_prompt = 500;
      part.sampling.max_tokens = 1;
      return part;
    }());
    ASSERT_TRUE(d.engine->reserve(LeaseId(1), r).ok());
    const auto source = std::make_shared<Source>();
    const Result<SeqId> at_p = p.engine->prefill(r, source);
    ASSERT_TRUE(at_p.ok());
    ASSERT_TRUE(loop_.run_until([&] { return !source->first.empty() || source->failed; }));
    const Result<Grant> grant = d.engine->grant(LeaseId(1), r);
    ASSERT_TRUE(grant.ok()) << grant.status().to_string();
    EXPECT_GE(grant->cached_tokens, 448);
    const device::KvView& from = p.executor->pool().view();
    const device::KvView& to = d.executor->pool().view();
    ASSERT_EQ(static_cast<int>(source->layers.size()), from.spec.layers);
    const auto blocks = p.engine->blocks(*at_p);
    const int size = from.spec.block_tokens;
    for (int layer = 0; layer < from.spec.layers; ++layer) {
      ASSERT_EQ(source->layers[layer], 1234);
      for (int head = 0; head < from.spec.kv_heads; ++head) {
        for (const device::KvKind kind : {device::KvKind::kKey, device::KvKind::kValue}) {
          for (std::int32_t t = grant->cached_tokens; t < 1234; ++t) {
            const auto b = static_cast<std::size_t>(t / size);
            std::memcpy(d.executor->pool().shared_region()->base + to.offset(layer, grant->blocks[b], head, kind, t % size),
                        p.executor->pool().shared_region()->base + from.offset(layer, blocks[b], head, kind, t % size), from.spec.row_bytes());
          }
        }
      }
    }
    p.engine->release(*at_p);
    const auto sink = std::make_shared<Sink>();
    const auto call = d.engine->start_decode(grant->seq, source->first, sink);
    ASSERT_TRUE(loop_.run_until([&] { return sink->done.has_value(); }));
    std::vector<TokenId> got = {source->first[0].token.token};
    got.insert(got.end(), sink->tokens[0].begin(), sink->tokens[0].end());
    EXPECT_EQ(got, expected) << "greedy " << greedy;
  }
}

TEST_F(Golden, PromptLogprobsAreThoseOfTheContinuation) {
  auto r = request(150, 21, true, 30);
  r.sampling.logprobs = 3;
  Rig e = rig(2, 0);
  const auto generated = std::make_shared<Sink>();
  const auto call = e.engine->generate(r, generated);
  ASSERT_TRUE(loop_.run_until([&] { return generated->done.has_value(); }));
  auto echoed = r;  // the answer as part of the prompt
  const auto& answer = generated->tokens[0];
  echoed.ids.insert(echoed.ids.end(), answer.begin(), answer.end());
  echoed.n_prompt = static_cast<std::int32_t>(echoed.ids.size());
  echoed.sampling.max_tokens = 1;
  echoed.sampling.prompt_logprobs = 3;
  const auto sink = std::make_shared<Sink>();
  const auto second = e.engine->generate(echoed, sink);
  ASSERT_TRUE(loop_.run_until([&] { return sink->done.has_value(); }));
  ASSERT_EQ(sink->prompt.size(), 180u);
  for (std::size_t i = 150; i < 180; ++i) {
    ASSERT_TRUE(sink->prompt[i].has_value());
    EXPECT_EQ(sink->prompt[i]->token, answer[i - 150]);
    EXPECT_EQ(sink->prompt[i]->top.at(0).token, answer[i - 150]);  // it was greedy
    EXPECT_EQ(sink->prompt[i]->top.at(0).logprob, sink->prompt[i]->logprob);
  }
}

}  // namespace
}  // namespace baton::engine
