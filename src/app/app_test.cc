#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "app/args.h"
#include "app/local_http.h"
#include "app/options.h"
#include "app/paths.h"
#include "app/stats_line.h"
#include "app/supervisor.h"

namespace baton::app {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(RestartPauses, CrashesWaitLongerEachTimeWhoWasAskedDoesNot) {
  using std::chrono::milliseconds;
  using std::chrono::seconds;
  RestartPauses pauses;
  const Duration crashes[] = {milliseconds(100), milliseconds(200), milliseconds(400)};
  for (const Duration expected : crashes) EXPECT_EQ(pauses.next(false, seconds(1), seconds(30)), expected);
  EXPECT_EQ(pauses.next(true, seconds(1), seconds(30)), Duration(0));
  EXPECT_EQ(pauses.next(true, milliseconds(1), seconds(30)), milliseconds(100)) << "one that ends as soon as it starts is no busy loop";
  EXPECT_EQ(pauses.next(false, seconds(1), seconds(30)), milliseconds(800)) << "a restart that was asked for is neither penalty nor pardon";
  for (int i = 0; i < 10; ++i) (void)pauses.next(false, seconds(1), seconds(30));
  EXPECT_EQ(pauses.next(false, seconds(1), seconds(30)), seconds(10));
  EXPECT_EQ(pauses.next(false, seconds(31), seconds(30)), milliseconds(100));
}

TEST(StatsLine, SaysWhatIsHeldForLongAndWhatDoesNotAddUpThoughNothingRuns) {
  StatsLine stats;
  gateway::Registry registry({}, {{"d0", "host", 1, wire::Role::kDecode}});
  const std::vector<gateway::Worker>& workers = registry.workers();
  registry.at(gateway::WorkerId(0)).liveness = gateway::Liveness::kAlive;
  wire::WorkerStatus& s = registry.at(gateway::WorkerId(0)).status;
  s.held_ms = {{"credit", 59'999}, {"lease", 4'999}, {"sequence", 0}};
  EXPECT_THAT(stats.lines(workers, 10), ElementsAre()) << "nothing runs, nothing is wrong";
  s.generation_tokens = 50;
  EXPECT_THAT(stats.lines(workers, 10),
              ElementsAre(testing::AllOf(HasSubstr("Engine d0: "), HasSubstr("generation throughput: 5.0 tokens/s"),
                                         testing::Not(HasSubstr("held")))));
  s.held_ms[1].second = 12'345;
  EXPECT_THAT(stats.lines(workers, 10), ElementsAre(testing::EndsWith(", lease held without progress for 12.3 s")));
  s.held_ms[1].second = 0;
  s.balanced = false, s.blocks_total = 100, s.blocks_free = 80, s.blocks_cached = 10, s.blocks_held = 9;
  EXPECT_THAT(stats.lines(workers, 10), ElementsAre(testing::EndsWith(", KV BOOKS UNBALANCED: 80 free + 10 cached + 9 held of 100")));
}

TEST(Args, SizesInBothSystems) {
  EXPECT_EQ(*parse_size("262144"), 262144);
  EXPECT_EQ(*parse_size("32k"), 32000);
  EXPECT_EQ(*parse_size("4GiB"), std::int64_t{4} << 30);
  EXPECT_EQ(*parse_size("1.5GB"), 1'500'000'000);
  for (const char* bad : {"", "x", "4 apples", "-1", "1e30G"}) EXPECT_FALSE(parse_size(bad).ok()) << bad;
}

TEST(Args, CoreLists) {
  EXPECT_THAT(*parse_core_sets("0-3,6"), ElementsAre(ElementsAre(0, 1, 2, 3, 6)));
  EXPECT_THAT(*parse_core_sets("0,1:2-4"), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3, 4)));
  EXPECT_TRUE(parse_core_sets("")->empty());
  for (const char* bad : {"a", "3-1", "1,", "1-", "0-99999", "-1", "1:", ":1", "1::2", "1;2", "1 2"})
    EXPECT_FALSE(parse_core_sets(bad).ok()) << bad;
  for (const char* text : {"", "0", "0,1", "0-2", "0-3,6,8-10", "0-3:4,5:0"}) EXPECT_EQ(format_core_sets(*parse_core_sets(text)), text);
}

TEST(Args, DidYouMeanOnlyWhatIsNear) {
  const std::vector<std::string> flags = {"--prefill", "--decode", "--max-model-len"};
  EXPECT_EQ(did_you_mean("--prefil", flags), "--prefill");
  EXPECT_EQ(did_you_mean("--max-model-length", flags), "--max-model-len");
  EXPECT_EQ(did_you_mean("--xyz", flags), std::nullopt);
}

struct Parsed {
  std::optional<int> exit;
  EngineFlags engine;
  std::string out, err;
};
Parsed parse(std::vector<std::string> args) {
  Parsed p;
  CLI::App app("test", "baton test");
  std::string config;
  app.add_option("--config", config);
  p.engine.add_to(app);
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  p.exit = parse_args(app, std::move(args));
  p.out = testing::internal::GetCapturedStdout();
  p.err = testing::internal::GetCapturedStderr();
  return p;
}

TEST(Args, UnderscoresHarmlessAndUnknownFlags) {
  Parsed p = parse({"--max_num_seqs=7", "--gpu-memory-utilization", "0.9", "--enforce-eager"});
  EXPECT_EQ(p.exit, std::nullopt);
  EXPECT_EQ(p.engine.max_num_seqs, 7);
  EXPECT_THAT(p.err, HasSubstr("--gpu-memory-utilization has no effect here"));
  p = parse({"--max-num-sequences", "7"});
  EXPECT_EQ(p.exit, kExitUsage);
  EXPECT_THAT(p.err, HasSubstr("did you mean --max-num-seqs?"));
  EXPECT_EQ(parse({"--help"}).exit, 0);
  EXPECT_EQ(parse({"--compute-type", "int7"}).exit, kExitUsage);
}

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "baton-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name, const std::string& text) const {
    std::ofstream(path_ + "/" + name) << text;
    return path_ + "/" + name;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(Args, ConfigFileGivesWayToTheCommandLine) {
  const TempDir dir;
  const std::string config =
      dir.file("serve.yaml", "# a comment\nmax_num_seqs: 5\nmax-model-len: \"2k\"  # inline\nno-enable-prefix-caching: true\n");
  Parsed p = parse({"--config", config});
  EXPECT_EQ(p.exit, std::nullopt) << p.err;
  EXPECT_EQ(p.engine.max_num_seqs, 5);
  EXPECT_EQ(p.engine.max_model_len, "2k");
  EXPECT_TRUE(p.engine.no_prefix_caching);
  p = parse({"--max-num-seqs", "9", "--config", config});
  EXPECT_EQ(p.engine.max_num_seqs, 9);
  EXPECT_EQ(parse({"--config", dir.path() + "/none.yaml"}).exit, kExitUsage);
}

TEST(Options, ArgsOfAChildMeanTheSame) {
  EngineFlags flags;
  flags.max_num_seqs = 3;
  flags.kv_cache_memory_bytes = "64MiB";
  flags.no_prefix_caching = true;
  flags.cores = "0,1:2,3";
  flags.cores_shared = true;
  flags.tensor_parallel_size = 2;
  flags.chunked_prefill = false;
  const Parsed p = parse(flags.args());
  EXPECT_EQ(p.exit, std::nullopt) << p.err;
  EXPECT_EQ(p.engine.args(), flags.args());
}

TEST(Options, ChunkedPrefillByVllmsNames) {
  EXPECT_TRUE(parse({}).engine.chunked_prefill);
  EXPECT_TRUE(parse({"--enable-chunked-prefill"}).engine.chunked_prefill);
  EXPECT_FALSE(parse({"--no-enable-chunked-prefill"}).engine.chunked_prefill);
}

TEST(Options, ShortNamesOfVllm) {
  EXPECT_EQ(parse({"-tp", "3"}).engine.tensor_parallel_size, 3);
  EXPECT_EQ(parse({"-tp=4"}).engine.tensor_parallel_size, 4);
  EXPECT_EQ(parse({"-tp", "0"}).exit, kExitUsage);
}

TEST(Options, MaxModelLenNamesTheLargest) {
  EXPECT_EQ(*effective_max_model_len("", 8192), 8192);
  EXPECT_EQ(*effective_max_model_len("4k", 8192), 4000);
  EXPECT_THAT(effective_max_model_len("9000", 8192).status().message(), HasSubstr("8192"));
}

TEST(Paths, ResolvesAndSaysHowToGetAModel) {
  const TempDir dir;
  setenv("BATON_HOME", dir.path().c_str(), 1);
  EXPECT_THAT(resolve_model("smollm2-135m").status().message(), HasSubstr("baton pull smollm2-135m"));
  EXPECT_THAT(resolve_model("nothing").status().message(), HasSubstr("smollm2-135m"));
  const std::string file = dir.file("x.gguf", "");
  EXPECT_EQ(*resolve_model(file), std::filesystem::canonical(file));
  ASSERT_TRUE(make_dirs(models_dir() + "/org/name").ok());
  EXPECT_EQ(*resolve_model("org/name"), models_dir() + "/org/name");
  unsetenv("BATON_HOME");
}

TEST(Paths, WritesWholeOrNot) {
  const TempDir dir;
  ASSERT_TRUE(write_text_file(dir.path() + "/deep/er/file", "text").ok());
  EXPECT_EQ(*read_text_file(dir.path() + "/deep/er/file"), "text");
  EXPECT_FALSE(write_text_file("/proc/none/file", "text").ok());
}

TEST(EventSplitter, FindsEventsHoweverTheBytesAreCut) {
  const std::string stream = "data: {\"a\":1}\n\n: ping\n\ndata: two\n\ndata: [DONE]\n\n";
  for (std::size_t step = 1; step <= stream.size(); ++step) {
    EventSplitter splitter;
    std::vector<std::string> seen;
    for (std::size_t at = 0; at < stream.size(); at += step)
      splitter.push(std::string_view(stream).substr(at, step), [&](std::string_view e) {
        seen.emplace_back(e);
        return true;
      });
    EXPECT_THAT(seen, ElementsAre("{\"a\":1}", "two", "[DONE]")) << step;
  }
}

}  // namespace
}  // namespace baton::app
