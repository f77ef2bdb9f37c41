#include "sim/cluster.h"

#include <algorithm>
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
  o.receiver.fetches_max = 1u << rng.below(4);
  return o;
}

// Machines were started at different times.
Duration ahead(std::uint64_t seed) { return Duration(static_cast<std::int64_t>(mix(seed, 3) % 10'000'000'000)); }

void say(std::string& held, const char* what, std::uint64_t count) {
  if (count > 0) held += (held.empty() ? "" : ", ") + std::to_string(count) + " " + what;
}

}  // namespace

WorkerProcess::WorkerProcess(World& world, const WorkerShape& shape)
    : world_(world), name_(shape.name), host_(world.queue, shape.name, ahead(shape.seed)), max_model_len_(shape.max_model_len) {
  world.network.add(host_);
  const auto memory = std::make_shared<Pool>(shape.model, shape.block_tokens, shape.blocks, shape.ranks);
  audit_ = std::make_unique<PoolAudit>(world.queue, name_, memory, world.known, world.failures);
  fabric_ = std::make_unique<Fabric>(host_, world.trace, *audit_, shape.seed, world.fabric, world.memories, memory);
  auto device = std::make_unique<Device>(host_, world.trace, *audit_, shape.device, memory);
  device_ = device.get();
  engine_ = engine::Engine::create(host_, std::move(device), engine_options(shape));
  audit_->watch(engine_->pool());
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

Status WorkerProcess::check() {
  audit_->check_published();
  return engine_->check();
}

void WorkerProcess::check_turn() {
  if (std::exchange(turns_seen_, host_.turns()) == host_.turns()) return;
  audit_->check();
  sim::check_turn(world_.queue.now(), books(), world_.failures);
}

WorkerBooks WorkerProcess::books() const {
  const kv::BlockPool& pool = engine_->pool();
  const auto target = node_->target_stats();
  const auto source = node_->source_stats();
  WorkerBooks b;
  b.name = name_;
  b.engine = engine_->status();
  b.blocks_total = pool.total();
  b.blocks_free = pool.free();
  b.blocks_cached = pool.cached();
  b.blocks_held = pool.held();
  b.blocks_available = pool.available();
  b.legs = node_->open_legs();
  b.prefill_legs = node_->open_prefill_legs();
  b.handoffs = source.open;
  b.handoff_legs = source.legs;
  b.retained = source.retention.holds;
  for (const int n : target.by_state) b.leases += static_cast<std::size_t>(n);
  b.clock = host_.clock().now();
  b.next_deadline = std::min(target.next_deadline, source.next_deadline);
  b.frozen = host_.frozen();
  b.stepping = device_->busy();
  return b;
}

// As if from another gateway: credit that nobody attaches to.
void WorkerProcess::squeeze(std::int64_t percent) {
  const kv::BlockPool& pool = engine_->pool();
  const auto target = static_cast<std::int32_t>(std::int64_t{pool.total()} * percent / 100);
  ++squeezes_;
  for (std::int64_t tokens = max_model_len_ - 1; tokens >= 8 && engine_->status().blocks_reserved < target;) {
    wire::GenerateRequest r;
    r.id = "squeeze";
    r.ids.assign(static_cast<std::size_t>(tokens), TokenId(3));
    r.n_prompt = static_cast<std::int32_t>(tokens);
    r.sampling.max_tokens = 1;
    const LeaseId lease(~std::uint64_t{0} - squeezed_.size());
    if (!engine_->reserve(lease, r).ok()) {
      tokens /= 2;
      continue;
    }
    squeezed_.push_back(lease);
  }
}

void WorkerProcess::relax() {
  if (--squeezes_ > 0) return;
  for (const LeaseId lease : std::exchange(squeezed_, {})) engine_->unreserve(lease);
}

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

GatewayProcess::GatewayProcess(World& world, std::vector<gateway::WorkerConfig> workers, Duration ahead)
    : world_(world),
      host_(world.queue, "gateway", ahead),
      client_(host_, world.network),
      audit_(host_, client_, [this](const std::string& worker) { return believes(worker); }, world.failures) {
  world.network.add(host_);
  gateway::GatewayOptions options;
  options.workers = std::move(workers);
  options.core.tenants.resize(3);  // of a load's requests; what they have waiting, they share by weight
  options.core.tenants[2].weight = 4;
  options.core.identity = Incarnation(1 + static_cast<std::uint64_t>(world.queue.now().time_since_epoch().count()));  // one a life
  gateway_ = std::make_unique<gateway::Gateway>(host_, audit_, std::move(options));
}

const gateway::Worker* GatewayProcess::believes(const std::string& worker) const {
  if (!gateway_) return nullptr;
  const auto& workers = gateway_->workers();
  const auto found = std::ranges::find(workers, worker, [](const gateway::Worker& w) { return w.config.name; });
  return found == workers.end() ? nullptr : &*found;
}

GatewayProcess::~GatewayProcess() {
  audit_.stop();
  world_.network.remove(host_);
}

std::string GatewayProcess::held() const {
  std::string held;
  const gateway::Stats s = gateway_->stats();
  say(held, "requests waiting", s.waiting);
  say(held, "requests running", s.running);
  say(held, "legs", gateway_->open_legs());
  for (const gateway::Worker& w : gateway_->workers())
    say(held, "charges of a worker",
        static_cast<std::uint64_t>(w.legs + w.sequences + w.blocks_promised + w.prefill_blocks + w.prefill_tokens));
  return held.empty() ? held : "the gateway holds " + held + "; ";
}

// ---------------------------------------------------------------------------------------------------------------- cluster

Cluster::Cluster(World& world, const Scenario& scenario) : world_(world), sockets_inherited_(scenario.sockets_inherited) {
  Rng rng(scenario.seed, 2);
  model_.layers = 1 + static_cast<int>(rng.below(5));
  model_.kv_heads = 1 << rng.below(3);
  if (scenario.layers > 0) model_.layers = scenario.layers;
  if (scenario.kv_heads > 0) model_.kv_heads = scenario.kv_heads;
  const std::vector<std::string> names = worker_names(scenario);
  for (const WorkerGroup& group : scenario.workers) {
    for (int i = 0; i < group.count; ++i) {
      WorkerShape shape;
      shape.name = names[configs_.size()];
      shape.role = group.role;
      shape.seed = rng.next_u64();
      shape.model = model_;
      shape.block_tokens = group.block_tokens[rng.below(group.block_tokens.size())];
      shape.blocks = group.pool_tokens / shape.block_tokens;
      shape.ranks = group.ranks[Rng(shape.seed, 3).below(group.ranks.size())];
      shape.max_model_len = kMaxModelLen;
      shape.max_num_seqs = group.max_num_seqs;
      shape.max_num_batched_tokens = group.max_num_batched_tokens;
      shape.device = group.device;
      Slot& slot = workers_[shape.name];
      slot.shape = shape;
      slot.process = std::make_unique<WorkerProcess>(world, shape);
      configs_.push_back({shape.name, shape.name, WorkerProcess::kHttpPort, group.role});
    }
  }
  gateway_ahead_ = ahead(rng.next_u64());
  gateway_ = std::make_unique<GatewayProcess>(world, configs_, gateway_ahead_);
}

std::vector<WorkerProcess*> Cluster::workers() const {
  std::vector<WorkerProcess*> living;
  for (const auto& [name, slot] : workers_) {
    if (slot.process) living.push_back(slot.process.get());
  }
  return living;
}

Cluster::Life Cluster::life(const std::string& worker) const {
  const Slot& slot = workers_.at(worker);
  return {worker_options(slot.shape).incarnation, slot.since, slot.process != nullptr};
}

std::set<int> Cluster::block_sizes() const {
  std::set<int> sizes;
  for (const auto& [name, slot] : workers_) sizes.insert(slot.shape.block_tokens);
  return sizes;
}

Host* Cluster::host(const std::string& name) {
  if (name == "gateway") return gateway_ ? &gateway_->host() : nullptr;
  const Slot& slot = workers_.at(name);
  return slot.process ? &slot.process->host() : nullptr;
}

std::uint64_t Cluster::generation(const std::string& name) const {
  return name == "gateway" ? gateway_generation_ : workers_.at(name).generation;
}

// ---------------------------------------------------------------------------------------------------------------- faults

void Cluster::apply(const Fault& fault) {
  world_.trace(world_.queue.now(), fault.host, to_string(fault.kind), hash_bytes(fault.to), fault.lasts.count(), fault.value);
  const auto value = fault.value;
  switch (fault.kind) {
    case Fault::Kind::kCut:
      return to_paths(fault, &Network::cut, &Network::mend);
    case Fault::Kind::kStall:
      return to_paths(fault, &Network::stall, &Network::release);
    case Fault::Kind::kThrottle: {
      const auto all = paths(fault);
      for (const auto& [from, to] : all) world_.network.throttle(from, to, value);
      return after(fault.lasts, [this, all] {
        for (const auto& [from, to] : all) world_.network.unthrottle(from, to);
      });
    }
    case Fault::Kind::kKill:
      return kill(fault.host, fault.lasts);
    case Fault::Kind::kDrain:
      return drain(fault);
    case Fault::Kind::kFreeze:
      return to_process(fault, [](Host& h) { h.freeze(); }, [](Host& h) { h.thaw(); });
    case Fault::Kind::kClockJump:
      return to_process(fault, [value](Host& h) { h.jump(Duration(value)); }, [](Host&) {});
    case Fault::Kind::kClockRate:
      return to_process(fault, [value](Host& h) { h.set_rate(value); }, [](Host& h) { h.set_rate(0); });
    case Fault::Kind::kSqueeze:
      return to_worker(fault, [value](WorkerProcess& w) { w.squeeze(value); }, [](WorkerProcess& w) { w.relax(); });
    case Fault::Kind::kSlowDevice:
      return to_worker(
          fault, [value](WorkerProcess& w) { w.device().slow_down(value); }, [](WorkerProcess& w) { w.device().slow_down(0); });
    case Fault::Kind::kFetchLate:
      return to_worker(
          fault, [value](WorkerProcess& w) { w.fabric().faults().late = Duration(value); },
          [](WorkerProcess& w) { w.fabric().faults().late = Duration(0); });
    case Fault::Kind::kFetchLost:
      return to_worker(
          fault, [value](WorkerProcess& w) { w.fabric().faults().lost_one_in = static_cast<std::uint64_t>(value); },
          [](WorkerProcess& w) { w.fabric().faults().lost_one_in = 0; });
    case Fault::Kind::kFetchDamaged:
      return to_worker(
          fault, [value](WorkerProcess& w) { w.fabric().faults().damaged_one_in = static_cast<std::uint64_t>(value); },
          [](WorkerProcess& w) { w.fabric().faults().damaged_one_in = 0; });
  }
}

std::vector<std::pair<std::string, std::string>> Cluster::paths(const Fault& fault) const {
  std::vector<std::string> names = {"gateway"};
  for (const auto& [name, slot] : workers_) names.push_back(name);
  std::vector<std::pair<std::string, std::string>> out;
  for (const std::string& from : names) {
    for (const std::string& to : names) {
      if (from != to && (fault.host == "*" || fault.host == from) && (fault.to == "*" || fault.to == to)) out.emplace_back(from, to);
    }
  }
  return out;
}

void Cluster::to_paths(const Fault& fault, void (Network::*now)(const std::string&, const std::string&),
                       void (Network::*later)(const std::string&, const std::string&)) {
  const auto all = paths(fault);
  for (const auto& [from, to] : all) (world_.network.*now)(from, to);
  after(fault.lasts, [this, all, later] {
    for (const auto& [from, to] : all) (world_.network.*later)(from, to);
  });
}

void Cluster::to_process(const Fault& fault, const std::function<void(Host&)>& now, const std::function<void(Host&)>& later) {
  Host* h = host(fault.host);
  if (h == nullptr) return;
  now(*h);
  after(fault.lasts, [this, name = fault.host, which = generation(fault.host), later] {
    if (Host* same = host(name); same != nullptr && generation(name) == which) later(*same);
  });
}

void Cluster::to_worker(const Fault& fault, const std::function<void(WorkerProcess&)>& now,
                        const std::function<void(WorkerProcess&)>& later) {
  const auto worker = [this, name = fault.host] { return std::ref(*workers_.at(name).process); };
  to_process(fault, [&](Host&) { now(worker()); }, [worker, later](Host&) { later(worker()); });
}

void Cluster::kill(const std::string& name, Duration down) {
  Host* dead = host(name);
  if (dead == nullptr) return;
  ++totals_.kills;
  world_.network.remove(*dead, sockets_inherited_);
  if (name == "gateway") {
    count(totals_, gateway_->gateway().stats());
    ++gateway_generation_;
    gateway_.reset();
    if (tell_) tell_();
  } else {
    Slot& slot = workers_.at(name);
    count(totals_, *slot.process);
    ++slot.generation;
    slot.since = world_.queue.now();
    slot.draining = false;
    slot.process.reset();
  }
  after(down, [this, name] { start(name); });
}

// A new process on the old address.
void Cluster::start(const std::string& name) {
  if (host(name) != nullptr) return;
  world_.trace(world_.queue.now(), name, "starts");
  if (name == "gateway") {
    gateway_ = std::make_unique<GatewayProcess>(world_, configs_, gateway_ahead_);
    return;
  }
  Slot& slot = workers_.at(name);
  slot.shape.seed = mix(slot.shape.seed, 1);  // another incarnation
  slot.since = world_.queue.now();
  slot.process = std::make_unique<WorkerProcess>(world_, slot.shape);
}

void Cluster::drain(const Fault& fault) {
  Slot& slot = workers_.at(fault.host);
  if (!slot.process || std::exchange(slot.draining, true)) return;
  ++totals_.drains;
  // The signal waits while it is stopped. It exits on a turn of its own: the drain ends amid its code.
  slot.process->host().post([this, &slot, name = fault.host, limit = Duration(fault.value), down = fault.lasts] {
    slot.process->node().drain(limit, [this, &slot, name, down, which = slot.generation] {
      after(Duration(0), [this, &slot, name, down, which] {
        if (slot.generation == which) kill(name, down);
      });
    });
  });
}

// ---------------------------------------------------------------------------------------------------------------- views

void Cluster::check_turn() {
  for (const auto& [name, slot] : workers_) {
    if (slot.process) slot.process->check_turn();
  }
}

Status Cluster::check() const {
  for (WorkerProcess* worker : workers()) BATON_RETURN_IF_ERROR(worker->check().with_context(worker->name()));
  return {};
}

std::string Cluster::held() const {
  std::string held = gateway_ ? gateway_->held() : "the gateway is dead; ";
  for (const auto& [name, slot] : workers_) held += slot.process ? slot.process->held() : name + " is dead; ";
  return held;
}

void Cluster::count(Totals& totals, const WorkerProcess& worker) {
  const wire::WorkerStatus s = worker.status();
  const auto target = worker.node().target_stats();
  totals.handoffs += target.committed;
  totals.digest_mismatches += target.digest_mismatches;
  totals.kv_bytes += target.kv_bytes;
  totals.preemptions += s.preemptions;
  totals.prefix_hits += s.prefix_hits;
}

void Cluster::count(Totals& totals, const gateway::Stats& s) {
  totals.queued += s.queued;
  totals.resumed += s.resumed;
  totals.moved += s.moved;
  totals.fallbacks += s.fallbacks;
  totals.retries +=
      s.retries_decode_refused + s.retries_decode_failed + s.retries_prefill_refused + s.retries_prefill_failed + s.retries_nacked;
}

Totals Cluster::totals() const {
  Totals all = totals_;
  if (gateway_) count(all, gateway_->gateway().stats());
  for (const WorkerProcess* worker : workers()) count(all, *worker);
  return all;
}

}  // namespace baton::sim
