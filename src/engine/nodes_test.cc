// An engine over several hosts, which are threads here and speak over loopback.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <map>
#include <thread>

#include "device/gloo/test_nodes.h"
#include "device/node_group.h"
#include "engine/blocking_loop.h"
#include "engine/device_executor.h"
#include "engine/engine.h"
#include "model/random_model.h"

namespace baton::engine {
namespace {

using ::testing::HasSubstr;

struct Sink final : wire::GenerateSink {
  std::map<int, std::vector<wire::TokenEvent>> events;
  std::optional<Status> done;
  void on_served(const wire::Served&) override {}
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>>) override {}
  void on_token(wire::TokenEvent event) override { events[event.choice].push_back(std::move(event)); }
  void on_finish(wire::FinishEvent) override {}
  void on_done(Status status) override { done = std::move(status); }
};

class Nodes : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_);
    model::testing::RandomModel m;
    m.heads = 4, m.kv_heads = 2;
    const std::string path = (folder_ / "model.gguf").string();
    model::testing::write_gguf_model(m, path);
    auto files = model::ModelFiles::open(path);
    ASSERT_TRUE(files.ok()) << files.status().to_string();
    files_ = std::move(*files);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  struct Host {
    BlockingLoop loop;
    std::optional<Status> ended;
    std::unique_ptr<DeviceExecutor> executor;
  };
  // Makes this host's executor in `host`; returns when all hosts have.
  void make(Host& host, const device::gloo::testing::Place& place, int node, int nodes, int ranks, std::int32_t blocks) {
    std::shared_ptr<device::NodeGroup> group;
    if (nodes > 1) {
      const auto meeting = device::gloo::Meeting::hold(place.options(node, nodes));
      ASSERT_TRUE(meeting.ok()) << meeting.status().to_string();
      auto links = device::gloo::connect(**meeting, {.deadline = std::chrono::seconds(60)});
      ASSERT_TRUE(links.ok()) << links.status().to_string();
      group = std::make_shared<device::NodeGroup>(std::move(*links));
    }
    model::DecoderOptions decoder;
    decoder.compute = device::ComputeType::kF32;
    decoder.max_tokens = 16;
    decoder.max_logit_rows = 8;
    const std::vector<device::DeviceOptions> devices(static_cast<std::size_t>(ranks), device::DeviceOptions{.threads = 1});
    auto model = load_model(devices, *files_, decoder, std::chrono::seconds(60), group);
    ASSERT_TRUE(model.ok()) << model.status().to_string();
    DeviceExecutorOptions options;
    options.kv_dtype = device::DType::kF32;
    options.kv_blocks = blocks;
    options.max_num_seqs = 8;
    options.on_end = [&host](Status status) { host.ended = std::move(status); };
    auto executor = DeviceExecutor::create(host.loop, *model, options);
    ASSERT_TRUE(executor.ok()) << executor.status().to_string();
    host.executor = std::move(*executor);
  }

  // Runs `body` with the engine of node 0 while the others follow; what became of each host, by node.
  std::vector<std::optional<Status>> run(int nodes, int ranks, const std::function<void(Engine&, Host&)>& body,
                                         const std::function<void(int node, Host&)>& follow = {}) {
    const device::gloo::testing::Place place;
    std::vector<std::optional<Status>> ends(static_cast<std::size_t>(nodes));
    device::gloo::testing::as_nodes(nodes, [&](int node) {
      Host host;
      make(host, place, node, nodes, ranks, 40 - node);
      if (host.executor == nullptr) return;
      EXPECT_EQ(host.executor->kv_blocks(), 40 - (nodes - 1)) << "what the least has";
      if (node == 0) {
        EngineOptions e;
        e.max_model_len = 200;
        e.max_num_seqs = 8;
        e.max_num_batched_tokens = 64;
        e.max_step = Duration(0);
        e.kv_blocks = host.executor->kv_blocks();
        e.block_tokens = host.executor->kv_block_tokens();
        e.vocab = files_->config().vocab;
        const auto engine = Engine::create(host.loop, std::move(host.executor), e);
        body(*engine, host);
      } else if (follow) {
        follow(node, host);
      } else {
        EXPECT_TRUE(host.loop.run_until([&] { return host.ended.has_value(); }));
      }
      host.executor.reset();
      ends[static_cast<std::size_t>(node)] = host.ended;
    });
    return ends;
  }

  static wire::GenerateRequest request(int length, int choices) {
    wire::GenerateRequest r;
    for (int i = 0; i < length; ++i) r.ids.push_back(static_cast<TokenId>(i * 7 % 96));
    r.n_prompt = length;
    r.seed = 1;
    r.n = choices;
    r.sampling.temperature = choices > 1 ? 1.0f : 0.0f;
    r.sampling.logprobs = 0;
    r.sampling.max_tokens = 20;
    r.sampling.ignore_eos = true;
    return r;
  }

  const std::filesystem::path folder_ = std::filesystem::temp_directory_path() / ("baton-nodes-" + std::to_string(getpid()));
  std::unique_ptr<model::ModelFiles> files_;
};

// Prompts of several parts, whole steps of decode, and choices that share blocks until they part.
TEST_F(Nodes, TokensAreThoseOfOneHost) {
  std::vector<std::map<int, std::vector<wire::TokenEvent>>> first;
  for (const auto& [nodes, ranks] : {std::pair(1, 1), std::pair(2, 1), std::pair(2, 2), std::pair(3, 1)}) {
    SCOPED_TRACE(testing::Message() << nodes << " hosts of " << ranks);
    std::vector<std::shared_ptr<Sink>> sinks;
    const auto ends = run(nodes, ranks, [&](Engine& engine, Host& host) {
      std::vector<std::unique_ptr<wire::GenerateCall>> calls;
      for (const auto& [length, choices] : {std::pair(50, 1), std::pair(3, 1), std::pair(21, 3)}) {
        sinks.push_back(std::make_shared<Sink>());
        calls.push_back(engine.generate(request(length, choices), sinks.back()));
      }
      for (const auto& sink : sinks) {
        ASSERT_TRUE(host.loop.run_until([&] { return sink->done.has_value(); }));
        ASSERT_TRUE(sink->done->ok()) << sink->done->to_string();
      }
    });
    for (int node = 1; node < nodes; ++node) {
      ASSERT_TRUE(ends[static_cast<std::size_t>(node)].has_value());
      EXPECT_TRUE(ends[static_cast<std::size_t>(node)]->ok()) << "stopped with node 0: " << ends[static_cast<std::size_t>(node)]->message();
    }
    if (first.empty()) {
      for (const auto& sink : sinks) first.push_back(sink->events);
      continue;
    }
    for (std::size_t s = 0; s < sinks.size(); ++s) {
      ASSERT_EQ(sinks[s]->events.size(), first[s].size());
      for (const auto& [choice, events] : sinks[s]->events) {
        ASSERT_EQ(events.size(), 20u);
        for (std::size_t i = 0; i < events.size(); ++i) {
          ASSERT_EQ(events[i].token, first[s][choice][i].token) << s << ", " << choice << ", " << i;
          ASSERT_NEAR(*events[i].logprob, *first[s][choice][i].logprob, 1e-4);
        }
      }
    }
  }
}

TEST_F(Nodes, AHostThatLeavesFailsWhatRuns) {
  std::promise<void> gone;
  const auto ends = run(
      2, 1,
      [&](Engine& engine, Host& host) {
        gone.get_future().wait();
        const auto sink = std::make_shared<Sink>();
        const auto call = engine.generate(request(50, 1), sink);
        ASSERT_TRUE(host.loop.run_until([&] { return sink->done.has_value(); }));
        EXPECT_EQ(sink->done->code(), Code::kUnavailable);
        EXPECT_THAT(sink->done->message(), HasSubstr("node 1 is gone"));
        EXPECT_TRUE(engine.status().failed);
      },
      [&](int, Host& host) {
        host.executor.reset();
        gone.set_value();
      });
}

TEST_F(Nodes, AHostThatLeavesIsMissedThoughNothingRuns) {
  const auto ends = run(
      2, 1, [&](Engine&, Host& host) { ASSERT_TRUE(host.loop.run_until([&] { return host.ended.has_value(); })); },
      [&](int, Host& host) { host.executor.reset(); });
  ASSERT_TRUE(ends[0].has_value());
  EXPECT_EQ(ends[0]->code(), Code::kUnavailable);
  EXPECT_THAT(ends[0]->message(), HasSubstr("node 1 is gone"));
}

}  // namespace
}  // namespace baton::engine
