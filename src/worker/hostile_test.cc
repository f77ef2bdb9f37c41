// Strangers at a worker's two ports, over sockets written by hand: whatever they say, or do not say, costs them their connection and
// nobody else anything.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "net/test_util.h"
#include "worker/test_engine.h"
#include "worker/worker.h"

namespace baton::worker {
namespace {

using net::RawSocket;
using ::testing::HasSubstr;
using transfer::Message;
using transfer::testing::TestPool;

constexpr int kBlockTokens = 8, kPromptTokens = 24;

device::KvSpec spec() { return {4, 2, 16, device::DType::kBF16, kBlockTokens, 64}; }

class HostileTest : public ::testing::Test {
 protected:
  void TearDown() override {
    thread_.run([this] {
      worker_.reset();
      engine_.reset();
    });
  }
  void start(const std::function<void(WorkerOptions&)>& change = {}) {
    thread_.run([&] {
      engine::EngineOptions e;
      e.kv_blocks = spec().blocks;
      e.block_tokens = kBlockTokens;
      engine_ = engine::Engine::create(thread_.loop(), std::make_unique<testing::KvExecutor>(thread_.loop(), pool_), e);
      WorkerOptions o;
      o.name = "d";
      o.role = wire::Role::kDecode;
      o.incarnation = Incarnation(7);
      o.lease_key = entropy_u64();
      o.model_digest = "m";
      o.numerics_id = "n";
      o.kv = {4, 2, 16, "bf16"};
      if (change) change(o);
      worker_ = std::move(Worker::create(thread_.loop(), *engine_, {&rank_, 1}, o)).value();
      http_port_ = worker_->http_port();
      link_port_ = worker_->link_port();
    });
  }
  wire::WorkerStatus status() {
    return thread_.run([this] { return worker_->status(); });
  }
  // Nothing runs, and no block and no credit is held.
  bool idle() {
    return thread_.eventually([this] {
      const auto s = worker_->status();
      return s.running + s.waiting == 0 && s.blocks_free + s.blocks_cached == s.blocks_total && engine_->status().blocks_reserved == 0;
    });
  }

  transfer::Hello hello() const {
    transfer::Hello h;
    h.incarnation = Incarnation(5);
    h.name = "p";
    h.model_digest = "m";
    h.numerics_id = "n";
    h.kv = {4, 2, 16, "bf16"};
    h.region = {::getpid(), {{source_.shared_region()->fd, source_.shared_region()->bytes, source_.view(), {0, 2}}}};
    return h;
  }
  // What comes back on a link, message by message; nullopt at its end.
  static std::optional<Message> next(RawSocket& link, transfer::FrameReader& reader) {
    for (;;) {
      auto m = reader.next();
      if (!m.ok()) return std::nullopt;
      if (m->has_value()) return std::move(**m);
      const std::string bytes = link.receive_some();
      if (bytes.empty()) return std::nullopt;
      reader.append(bytes);
    }
  }
  struct Peer {
    RawSocket socket;
    transfer::FrameReader reader = {};
    bool send(const Message& m) { return socket.send(transfer::encode(m)); }
    std::optional<Message> receive() { return next(socket, reader); }
    // The next message, which must be a T.
    template <class T>
    T expect() {
      const auto m = receive();
      if (!m || !std::holds_alternative<T>(*m)) {
        ADD_FAILURE() << "not what was expected, but " << (m ? transfer::name_of(*m) : "the end");
        return T();
      }
      return std::get<T>(*m);
    }
  };
  Peer stranger() { return {RawSocket::connect(link_port_)}; }
  Peer introduced() {
    Peer p = stranger();
    p.send(hello());
    p.expect<transfer::HelloAck>();
    return p;
  }
  std::string post(const std::string& target, const std::string& body) {
    auto client = RawSocket::connect(http_port_);
    client.send("POST " + target + " HTTP/1.1\r\nHost: w\r\nConnection: close\r\nContent-Length: " + std::to_string(body.size()) +
                "\r\n\r\n");
    client.send(body);
    return client.receive_all();
  }
  static wire::GenerateRequest request() {
    wire::GenerateRequest r;
    r.id = "victim";
    for (int i = 0; i < kPromptTokens; ++i) r.ids.push_back(i);
    r.n_prompt = kPromptTokens;
    r.sampling.max_tokens = 4;
    r.sampling.temperature = 0;
    r.timeout = std::chrono::seconds(60);
    return r;
  }
  // A decode leg that waits for its prefill, and the lease that it got.
  std::pair<RawSocket, LeaseId> reserve() {
    auto client = RawSocket::connect(http_port_);
    const std::string body = wire::to_json(wire::DecodeLeg{request(), Attempt(1), false});
    client.send("POST /internal/decode HTTP/1.1\r\nHost: w\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
    client.receive_until("\r\n\r\n");
    client.receive_until("\r\n");
    const std::string line = client.receive_until("\n");
    const auto event = wire::leg_event_from_json(line);
    EXPECT_TRUE(event.ok()) << line;
    return {std::move(client), std::get<wire::Reserved>(*event).lease};
  }
  static transfer::Attach attach(LeaseId lease, int attempt = 1) {
    return {{lease, Attempt(static_cast<std::uint32_t>(attempt)), Epoch(0)}, "victim", kPromptTokens, transfer::digest_ids(request().ids)};
  }

  net::LoopThread thread_;
  TestPool pool_{device::KvView::dense(spec()), spec().bytes()}, source_{device::KvView::dense(spec()), spec().bytes()};
  const transfer::RankPool rank_{&pool_, {0, 2}};
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<Worker> worker_;
  int http_port_ = 0, link_port_ = 0;
};

TEST_F(HostileTest, ABadFrameClosesItsLink) {
  start();
  const transfer::Key key{LeaseId(1), Attempt(1), Epoch(1)};
  const std::string good = transfer::encode(hello());
  std::string wrong_type = good, wrong_magic = good;
  wrong_type[6] = 99;
  wrong_magic[8] ^= 1;
  const std::string first[] = {
      "GET / HTTP/1.1\r\n\r\n",
      std::string("\xff\xff\xff\x7f", 4),                     // 2 GB are announced
      std::string("\0\0\x08\0", 4),                           // more than an introduction may have
      std::string("\x01\0\0\0", 4),                           // shorter than its header
      good.substr(0, 4) + std::string(good.size() - 4, 'x'),  // the length is right
      wrong_type,
      wrong_magic,
      transfer::encode(attach(LeaseId(1))),  // before an introduction
      transfer::encode(transfer::Chunk{key, 0, {0, 2}, {0, 8}, {1, 2}, "locator"}),
      transfer::encode(transfer::HelloAck{Incarnation(1), "d", "n"}),  // the other side's word
  };
  for (const std::string& say : first) {
    Peer p = stranger();
    p.socket.send(say);
    while (const auto m = p.receive()) EXPECT_TRUE(std::holds_alternative<transfer::Reject>(*m)) << transfer::name_of(*m);
  }
  // The same of one who was let in.
  for (const std::string& say : {good, std::string("\0\0\x11\0", 4), transfer::encode(transfer::Grant{key, 0}), wrong_type}) {
    Peer p = introduced();
    p.socket.send(say);
    EXPECT_FALSE(p.receive());
  }
  EXPECT_TRUE(idle());
  EXPECT_TRUE(status().ready);
}

TEST_F(HostileTest, AHelloThatCannotPairIsToldTheDifference) {
  start();
  const auto why = [&](const std::function<void(transfer::Hello&)>& change) {
    transfer::Hello h = hello();
    change(h);
    Peer p = stranger();
    p.send(h);
    const std::string message = p.expect<transfer::Reject>().status.message();
    EXPECT_FALSE(p.receive()) << "the link is closed behind it";
    return message;
  };
  EXPECT_THAT(why([](auto& h) { h.model_digest = "x"; }), HasSubstr("model digest differs: prefill worker has 'x'"));
  EXPECT_THAT(why([](auto& h) { h.kv.layers = 5; }), HasSubstr("KV schema differs: prefill worker has '5 layers"));
  EXPECT_THAT(why([](auto& h) { h.region.parts[0].view.spec.head_dim = 8; }), HasSubstr("shape"));
  EXPECT_THAT(why([](auto& h) { h.region.parts[0].view.layer_stride = std::numeric_limits<std::int64_t>::max(); }),
              HasSubstr("leaves its region"));
  EXPECT_THAT(why([](auto& h) { h.region.parts[0].bytes *= 1000; }), HasSubstr("not a memory region of"));
  EXPECT_THAT(why([](auto& h) { h.region.parts[0].fd = 0; }), HasSubstr("cannot map"));
  EXPECT_THAT(why([](auto& h) { h.region.pid = std::numeric_limits<std::int32_t>::max(); }), HasSubstr("cannot map"));
  Peer p = stranger();  // other arithmetic pairs; the answer says so
  transfer::Hello h = hello();
  h.numerics_id = "other";
  p.send(h);
  EXPECT_EQ(p.expect<transfer::HelloAck>().numerics_id, "n");
}

TEST_F(HostileTest, AGuessedLeaseIsNobodys) {
  start();
  auto [leg, lease] = reserve();
  Peer p = introduced();
  // Ids are 64 bits of a keyed generator: neighbours, and whatever else one tries, are answered alike and touch nothing.
  Rng rng(1);
  std::string said;
  for (int i = 0; i < 200; ++i) {
    const LeaseId guess(i < 100 ? lease.value + static_cast<std::uint64_t>(i) - 50 : rng.next_u64());
    if (guess == lease) continue;
    p.send(attach(guess));
    const std::string message = p.expect<transfer::Refuse>().status.to_string();
    if (said.empty()) said = message;
    EXPECT_EQ(message, said);
    p.send(transfer::Commit{{guess, Attempt(1), Epoch(1)}, {{{0, kPromptTokens, 17, std::nullopt, {}}, std::nullopt}}});
    p.expect<transfer::Nack>();
    p.send(transfer::Abort{{guess, Attempt(1), Epoch(1)}});
    p.expect<transfer::AbortAck>();
  }
  EXPECT_GT(engine_->status().blocks_reserved, 0) << "the lease that was not guessed still has its credit";
  p.send(attach(lease));
  EXPECT_NE(p.expect<transfer::Grant>().key.epoch, Epoch(0));
  leg.close();
  EXPECT_TRUE(idle());
}

// One who knows a lease (a prefill worker that was named for it, gone mad) gets no further than the digests.
TEST_F(HostileTest, ForgedAndReplayedFramesAreNotDecoded) {
  start();
  auto [leg, lease] = reserve();
  Peer p = introduced(), q = introduced();
  p.send(attach(lease));
  const transfer::Key key = p.expect<transfer::Grant>().key;
  p.send(attach(lease));  // replayed
  EXPECT_THAT(p.expect<transfer::Refuse>().status.message(), HasSubstr("not newer"));
  const transfer::Commit commit{key, {{{0, kPromptTokens, 17, std::nullopt, {}}, std::nullopt}}};
  q.send(commit);  // another link's words
  EXPECT_THAT(q.expect<transfer::Nack>().status.message(), HasSubstr("over"));
  const BlockId blocks[] = {BlockId(0), BlockId(1), BlockId(2)};
  p.send(transfer::Chunk{key, 0, {0, 2}, {0, kPromptTokens}, {1, 2}, transfer::locator_from_blocks(blocks, 3)});
  EXPECT_THAT(p.expect<transfer::Nack>().status.message(), HasSubstr("digest of layer 0"));
  p.send(commit);
  p.expect<transfer::Nack>();

  const auto nacked = [&](int attempt, transfer::Chunk chunk, const std::string& why) {
    p.send(attach(lease, attempt));
    chunk.key = p.expect<transfer::Grant>().key;
    p.send(chunk);
    EXPECT_THAT(p.expect<transfer::Nack>().status.message(), HasSubstr(why));
  };
  const BlockId wild[] = {BlockId(0), BlockId(1), BlockId(64)};
  nacked(2, {{}, 0, {0, 2}, {0, kPromptTokens}, {1, 2}, transfer::locator_from_blocks(wild, 3)}, "names block 64");
  nacked(3, {{}, 0, {0, 2}, {0, kPromptTokens}, {1, 2}, transfer::locator_from_blocks(blocks, 2)}, "does not hold tokens");
  nacked(4, {{}, 0, {0, 2}, {0, kPromptTokens + 1}, {1, 2}, ""}, "outside");
  nacked(5, {{}, 4, {0, 2}, {0, 8}, {1, 2}, ""}, "no such layer");
  nacked(6, {{}, 0, {0, 3}, {0, 8}, {1, 2}, ""}, "no such head");
  EXPECT_EQ(status().generation_tokens, 0u);
  leg.close();
  EXPECT_TRUE(idle());
}

TEST_F(HostileTest, AnIntroductionThatTricklesHasADeadline) {
  start([](WorkerOptions& o) { o.receiver.hello_timeout = std::chrono::milliseconds(20); });
  Peer slow = stranger(), silent = stranger(), half = stranger();
  half.socket.send(transfer::encode(hello()).substr(0, 50));
  EXPECT_FALSE(silent.receive());
  EXPECT_FALSE(half.receive());
  // A byte a turn of the loop, of a frame that is long in coming.
  slow.socket.send(std::string("\0\x70\0\0", 4));
  while (slow.socket.send("x")) thread_.run([] {});
  EXPECT_FALSE(slow.receive());
  Peer p = introduced();
  EXPECT_TRUE(status().ready);
}

TEST_F(HostileTest, SilentLinksKeepNobodyOut) {
  start([](WorkerOptions& o) {
    o.receiver.links_max = 8;
    o.receiver.hello_timeout = std::chrono::hours(1);
  });
  Peer before = introduced();
  std::vector<Peer> silent;
  for (int i = 0; i < 100; ++i) silent.push_back(stranger());
  auto [leg, lease] = reserve();
  Peer after = introduced();
  before.send(attach(lease));
  EXPECT_NE(before.expect<transfer::Grant>().key.epoch, Epoch(0)) << "a known link goes on";
  for (int i = 0; i < 90; ++i) EXPECT_FALSE(silent[static_cast<std::size_t>(i)].receive()) << i;
  leg.close();
  EXPECT_TRUE(idle());
}

TEST_F(HostileTest, BadBodiesAreRefusedByName) {
  start();
  const std::string good = wire::to_json(wire::DecodeLeg{request(), Attempt(1), false});
  const auto with = [&](const std::string& field, const std::string& value) {
    const std::string key = "\"" + field + "\":";
    const std::size_t begin = good.find(key) + key.size(), end = good.find_first_of(",}", begin);
    return good.substr(0, begin) + value + good.substr(end);
  };
  const std::pair<std::string, std::string> cases[] = {
      {"{", "not JSON"},
      {std::string(1 << 20, '['), "not JSON"},
      {"{\"request\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}", "request: expected an object"},
      {"{\"request\":\"\xff\xfe\"}", "not JSON"},
      {with("temperature", "NaN"), "not JSON"},
      {with("temperature", "\\\"nan\\\""), "not JSON"},
      {with("temperature", "\"nan\""), "temperature: expected a finite number"},
      {with("temperature", "1e999"), "not JSON"},
      {with("timeout_us", "9223372036854775807"), "timeout_us: out of range"},
      {with("max_tokens", "99999999999999999999"), "max_tokens: expected an integer"},
      {with("n", "1000000"), "n or first_choice"},
      {with("n", "-1"), "n: out of range"},
      {with("n_prompt", "99"), "n_prompt: 99 but there are 24 ids"},
      {with("logprobs", "1000000000"), "logprobs: out of range"},
  };
  for (const auto& [body, why] : cases) {
    for (const char* target : {"/internal/decode", "/internal/prefill"}) {
      const std::string answer = post(target, body);
      EXPECT_THAT(answer, HasSubstr("HTTP/1.1 400")) << body.substr(0, 200);
      if (std::string(target) == "/internal/decode") {
        EXPECT_THAT(answer, HasSubstr(why)) << body.substr(0, 200);
      }
    }
  }
  auto many = request();
  many.n = 200;
  many.sampling.logprobs = 1000;
  EXPECT_THAT(post("/internal/decode", wire::to_json(wire::DecodeLeg{many, Attempt(1), false})), HasSubstr("200 choices"))
      << "its first tokens would not fit a frame";
  EXPECT_THAT(post("/internal/decode", std::string(33u << 20, ' ')), HasSubstr("HTTP/1.1 413"));
  EXPECT_TRUE(idle());
}

}  // namespace
}  // namespace baton::worker
