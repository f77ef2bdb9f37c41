#include "sim/cluster.h"

#include <utility>

#include "base/rng.h"

namespace baton::sim {
namespace {

constexpr Duration kDialTimeout = std::chrono::seconds(2);

engine::EngineOptions engine_options(const WorkerShape& shape) {
  engine::EngineOptions o;
  o.max_model_len = shape.max_model_len;
  o.max_num_seqs = shape.max_num_seqs;
  o.max_num_batched_tokens = shape.max_num_batched_tokens;
  o.kv_blocks = shape.blocks;
  o.block_tokens = shape.block_tokens;
  o.vocab = kVocab;
  return o;
}

worker::WorkerOptions worker_options(const WorkerShape& shape) {
  Rng rng(shape.seed);
  worker::WorkerOptions o;
  o.name = shape.name;
  o.role = shape.role;
  o.link_port = WorkerProcess::kLinkPort;
  o.incarnation = Incarnation(rng.next_u64() | 1);
  o.lease_key = rng.next_u64();
  o.model_digest = "modelled";
  o.numerics_id = "exact";
  o.kv = shape.model.schema();
  o.max_model_len = shape.max_model_len;
  o.max_num_seqs = shape.max_num_seqs;
  return o;
}

void say(std::string& held, const char* what, std::uint64_t count) {
  if (count > 0) held += (held.empty() ? "" : ", ") + std::to_string(count) + " " + what;
}

}  // namespace

WorkerProcess::WorkerProcess(World& world, const WorkerShape& shape) : world_(world), name_(shape.name), host_(world.queue, shape.name) {
  world.network.add(host_);
  const device::KvView view = device::KvView::dense(shape.model.spec(shape.block_tokens, shape.blocks));
  memory_ = std::make_shared<std::vector<std::uint64_t>>(view.spec.bytes() / sizeof(std::uint64_t), 0);
  fabric_ = std::make_unique<Fabric>(host_, world.trace, shape.seed, world.fabric, world.memories, view, memory_);
  engine_ = engine::Engine::create(host_, std::make_unique<Device>(host_, world.trace, shape.device, view, memory_), engine_options(shape));
  const auto dialer = [this](const worker::PeerAddress& address, std::function<void(Result<std::unique_ptr<net::Link>>)> done) {
    world_.network.connect(host_, address.first, address.second, kDialTimeout, std::move(done));
  };
  node_ = std::make_unique<worker::Node>(host_, *engine_, *fabric_, dialer, worker_options(shape));
  world.network.listen(host_, kLinkPort, [this](std::unique_ptr<net::Link> link) { node_->accept(std::move(link)); });
  server_ = std::make_unique<HttpServer>(host_, world.network, kHttpPort,
                                         [this](net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder) {
                                           node_->handle(std::move(request), std::move(responder));
                                         });
}

WorkerProcess::~WorkerProcess() { world_.network.remove(host_); }

std::string WorkerProcess::held() const {
  std::string held;
  const engine::EngineStatus s = engine_->status();
  say(held, "running", static_cast<std::uint64_t>(s.running));
  say(held, "waiting", static_cast<std::uint64_t>(s.waiting));
  say(held, "blocks promised", static_cast<std::uint64_t>(s.blocks_reserved));
  say(held, "blocks neither free nor cached", static_cast<std::uint64_t>(s.blocks_total - s.blocks_free - s.blocks_cached));
  say(held, "legs", node_->open_legs());
  const auto target = node_->target_stats();
  for (int i = 0; i < transfer::Receiver::kStates; ++i) {
    say(held, to_string(static_cast<transfer::Receiver::State>(i)).data(), static_cast<std::uint64_t>(target.by_state[i]));
  }
  say(held, "fetches", target.fetches_in_flight);
  say(held, "hand-offs", node_->source_stats().open);
  say(held, "copies", fabric_->jobs());
  return held.empty() ? held : name_ + " holds " + held + "; ";
}

GatewayProcess::GatewayProcess(World& world, std::vector<gateway::WorkerConfig> workers)
    : world_(world), host_(world.queue, "gateway"), client_(host_, world.network) {
  world.network.add(host_);
  gateway::GatewayOptions options;
  options.workers = std::move(workers);
  gateway_ = std::make_unique<gateway::Gateway>(host_, client_, std::move(options));
}

GatewayProcess::~GatewayProcess() { world_.network.remove(host_); }

std::string GatewayProcess::held() const {
  std::string held;
  const gateway::Stats s = gateway_->stats();
  say(held, "requests waiting", s.waiting);
  say(held, "requests running", s.running);
  say(held, "legs", gateway_->open_legs());
  return held.empty() ? held : "the gateway holds " + held + "; ";
}

Cluster::Cluster(World& world, const Scenario& scenario, std::uint64_t seed) : world_(world) {
  Rng rng(seed, 2);
  model_.layers = 1 + static_cast<int>(rng.below(5));
  model_.kv_heads = 1 << rng.below(3);
  std::vector<gateway::WorkerConfig> configs;
  for (const WorkerGroup& group : scenario.workers) {
    for (int i = 0; i < group.count; ++i) {
      const char letter = group.role == wire::Role::kPrefill ? 'p' : group.role == wire::Role::kDecode ? 'd' : 'w';
      WorkerShape shape;
      shape.name = letter + std::to_string(i);
      shape.role = group.role;
      shape.seed = rng.next_u64();
      shape.model = model_;
      shape.block_tokens = group.block_tokens[rng.below(group.block_tokens.size())];
      shape.blocks = group.pool_tokens / shape.block_tokens;
      shape.max_model_len = kMaxModelLen;
      shape.max_num_seqs = group.max_num_seqs;
      shape.max_num_batched_tokens = group.max_num_batched_tokens;
      shape.device = group.device;
      workers_[shape.name] = {shape, std::make_unique<WorkerProcess>(world, shape)};
      configs.push_back({shape.name, shape.name, WorkerProcess::kHttpPort, group.role});
    }
  }
  gateway_ = std::make_unique<GatewayProcess>(world, std::move(configs));
}

std::vector<WorkerProcess*> Cluster::workers() const {
  std::vector<WorkerProcess*> living;
  for (const auto& [name, slot] : workers_) {
    if (slot.process) living.push_back(slot.process.get());
  }
  return living;
}

Host& Cluster::host(const std::string& name) { return name == "gateway" ? gateway_->host() : workers_.at(name).process->host(); }

void Cluster::apply(const Fault& fault) {
  world_.trace(world_.queue.now(), fault.host, "fault", static_cast<int>(fault.kind), hash_bytes(fault.to));
  switch (fault.kind) {
    case Fault::Kind::kCut:
      return world_.network.cut(fault.host, fault.to);
    case Fault::Kind::kMend:
      return world_.network.mend(fault.host, fault.to);
    case Fault::Kind::kStall:
      return world_.network.stall(fault.host, fault.to);
    case Fault::Kind::kRelease:
      return world_.network.release(fault.host, fault.to);
    case Fault::Kind::kThrottle:
      return world_.network.throttle(fault.host, fault.to, fault.bytes_per_ms);
    case Fault::Kind::kFreeze:
      return host(fault.host).freeze();
    case Fault::Kind::kThaw:
      return host(fault.host).thaw();
    case Fault::Kind::kKill:
      workers_.at(fault.host).process.reset();
      return;
    case Fault::Kind::kRestart: {
      Slot& slot = workers_.at(fault.host);
      slot.process.reset();
      slot.shape.seed = mix(slot.shape.seed, 1);  // another incarnation
      slot.process = std::make_unique<WorkerProcess>(world_, slot.shape);
      return;
    }
  }
}

Status Cluster::check() const {
  for (const WorkerProcess* worker : workers()) BATON_RETURN_IF_ERROR(worker->check().with_context(worker->status().name));
  return {};
}

std::string Cluster::held() const {
  std::string held = gateway_->held();
  for (const WorkerProcess* worker : workers()) held += worker->held();
  return held;
}

}  // namespace baton::sim
