#include "app/chaos/cluster.h"

#include <fcntl.h>
#include <signal.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/log.h"

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

constexpr Duration kPoll = std::chrono::milliseconds(200);
constexpr Duration kAnswer = std::chrono::seconds(2);  // limit of a status
constexpr Duration kStopped = std::chrono::seconds(3);
constexpr std::int64_t kSlowBytesPerSecond = 4000;
constexpr Duration kLate = std::chrono::milliseconds(300), kJitter = std::chrono::milliseconds(100);

}  // namespace

struct ChaosCluster::Node {
  const WorkerPlan* plan = nullptr;
  std::unique_ptr<net::FaultProxy> http, link;  // link: of a worker that decodes
  // A fault is on until `lifted`, and the worker is sound when the gateway then has it as ready: as another process if it must restart.
  bool lifted = true, sound = false;
  std::string incarnation, incarnation_ended;
  int exits_due = 0;  // that a signal of ours will cause
};

Result<std::unique_ptr<ChaosCluster>> ChaosCluster::start(net::EventLoop& loop, ClusterOptions options) {
  std::unique_ptr<ChaosCluster> cluster(new ChaosCluster(loop, std::move(options)));
  BATON_RETURN_IF_ERROR(cluster->prepare());
  BATON_RETURN_IF_ERROR(cluster->supervisor_->start());
  cluster->poll();
  return cluster;
}

ChaosCluster::ChaosCluster(net::EventLoop& loop, ClusterOptions options)
    : loop_(loop), options_(std::move(options)), client_(net::HttpClient::create(loop)) {}

ChaosCluster::~ChaosCluster() {
  *alive_ = false;
  supervisor_.reset();  // kills them, stopped ones too
  for (const WorkerPlan& plan : plans_)
    for (const int fd : {plan.http_fd, plan.link_fd})
      if (fd >= 0) close(fd);
  for (const int fd : {listen_fd_, log_fd_})
    if (fd >= 0) close(fd);
}

Status ChaosCluster::prepare() {
  BATON_ASSIGN_OR_RETURN(plans_, plan_topology(options_.topology, options_.engine.tensor_parallel_size));
  BATON_ASSIGN_OR_RETURN(const auto files, model::ModelFiles::open(options_.model_path));
  BATON_RETURN_IF_ERROR(check_degrees(*files, plans_));
  BATON_ASSIGN_OR_RETURN(const auto notices, place_workers(plans_, device::cpu::allowed_cpus(), options_.engine));
  for (const std::string& notice : notices) log::warn("{}", notice);
  BATON_RETURN_IF_ERROR(open_sockets(plans_));
  BATON_ASSIGN_OR_RETURN(listen_fd_, listen_socket("127.0.0.1", 0, &port_));
  log_fd_ = open(options_.log_path.c_str(), O_CREAT | O_WRONLY | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
  if (log_fd_ < 0) return Status(Code::kUnavailable, fmt::format("cannot write {}: {}", options_.log_path, std::strerror(errno)));
  for (WorkerPlan& plan : plans_) {
    nodes_.push_back(std::make_unique<Node>());
    nodes_.back()->plan = &plan;
    BATON_RETURN_IF_ERROR(add_proxies(*nodes_.back()));
    plan.http_port_seen = nodes_.back()->http->port();
    if (nodes_.back()->link) plan.link_port_seen = nodes_.back()->link->port();
  }
  std::vector<ChildSpec> children = child_specs(options_.model_path, options_.engine, options_.front, plans_, listen_fd_);
  for (ChildSpec& child : children) child.output_fd = log_fd_;
  supervisor_ = std::make_unique<Supervisor>(
      loop_, std::move(children),
      Supervisor::Events{[this](const std::string& name, const std::string& how, Duration restart_in) { on_exit(name, how, restart_in); },
                         {}},
      Duration(0));
  return {};
}

Status ChaosCluster::add_proxies(Node& node) {
  BATON_ASSIGN_OR_RETURN(node.http, proxy_to(node.plan->http_port));
  if (node.plan->role != "decode") return {};  // nobody hands over to the others
  BATON_ASSIGN_OR_RETURN(node.link, proxy_to(node.plan->link_port));
  return {};
}

Result<std::unique_ptr<net::FaultProxy>> ChaosCluster::proxy_to(int target_port) {
  net::FaultProxyOptions options;
  options.target_port = target_port;
  options.seed = static_cast<std::uint64_t>(target_port);
  return net::FaultProxy::listen(loop_, std::move(options));
}

bool ChaosCluster::whole() const {
  return std::ranges::all_of(nodes_, [](const auto& node) { return node->sound && node->lifted; });
}

void ChaosCluster::get(int port, const std::string& target, std::function<void(std::string body)> done) {
  struct Get {
    std::unique_ptr<net::HttpCall> call;
    std::string body;
    int status = 0;
  };
  auto get = std::make_shared<Get>();
  net::HttpClientRequest request;
  request.method = "GET";
  request.host = "127.0.0.1";
  request.port = port;
  request.target = target;
  request.idle_timeout = kAnswer;
  // The callbacks hold `get`, and it the call, until the call is done.
  get->call = client_->call(std::move(request), {[get](int status, const net::Headers&) { get->status = status; },
                                                 [get](std::string_view data) { get->body += data; },
                                                 [get, alive = alive_, done = std::move(done)](Status status) {
                                                   const std::unique_ptr<net::HttpCall> ends = std::move(get->call);
                                                   if (*alive) done(status.ok() && get->status == 200 ? std::move(get->body) : "");
                                                 }});
}

void ChaosCluster::poll() {
  get(port_, "/debug/workers", [this](const std::string& body) {
    on_workers(body);
    loop_.after(kPoll, [this, alive = alive_] {
      if (*alive) poll();
    });
  });
}

void ChaosCluster::on_workers(const std::string& body) {
  const Json list = Json::parse(body, nullptr, false);
  if (!list.is_array()) return;  // no answer: the gateway starts
  for (const auto& node : nodes_) {
    const auto found = std::ranges::find_if(list, [&](const Json& w) { return w.is_object() && w.value("name", "") == node->plan->name; });
    const bool ready = found != list.end() && found->value("ready", false) && !found->value("draining", false);
    if (ready) node->incarnation = found->contains("incarnation") ? (*found)["incarnation"].dump() : "";
    node->sound = ready && node->lifted && node->incarnation != node->incarnation_ended;
  }
  if (whole()) supervisor_->mark_ready();
}

void ChaosCluster::on_exit(const std::string& name, const std::string& how, Duration restart_in) {
  if (restart_in.count() < 0) {
    failure_ = fmt::format("{} {} while starting; {} says why", name, how, options_.log_path);
    return;
  }
  const auto node = std::ranges::find_if(nodes_, [&](const auto& n) { return n->plan->name == name; });
  const bool due = node == nodes_.end() ? std::exchange(gateway_killed_, false) : std::exchange((*node)->exits_due, 0) > 0;
  const bool well = how.starts_with("killed by signal 9 ") || how == "exited with code 0";
  if (!due || !well) crashes_.push_back(fmt::format("{} {}", name, how));
}

int ChaosCluster::pid_of(const std::string& name) const {
  if (!supervisor_) return -1;
  for (const Supervisor::ChildState& child : supervisor_->children())
    if (child.name == name) return child.pid;
  return -1;
}

// A sound worker with another sound one of its role; two times of three one that decodes, since there streams are cut in the middle.
ChaosCluster::Node* ChaosCluster::choose(std::uint64_t number) {
  std::vector<Node*> decode, prefill;
  for (const auto& node : nodes_) {
    const auto sound = std::ranges::count_if(nodes_, [&](const auto& n) { return n->sound && n->plan->role == node->plan->role; });
    if (!node->sound || sound < 2 || pid_of(node->plan->name) <= 0) continue;
    (node->plan->role == "prefill" ? prefill : decode).push_back(node.get());
  }
  const bool wants_decode = (number >> 40) % 3 != 0;
  const std::vector<Node*>& able = decode.empty() || (!prefill.empty() && !wants_decode) ? prefill : decode;
  return able.empty() ? nullptr : able[number % able.size()];
}

std::optional<Befallen> ChaosCluster::inject(const Fault& fault) {
  Befallen out{loop_.clock().now(), fault.kind, "gateway", false, "", false};
  if (fault.kind == FaultKind::kGateway) {
    const int pid = pid_of("gateway");
    if (pid <= 0 || !whole() || gateway_stopped_) return std::nullopt;
    if (fault.target % 2 == 0) {
      gateway_killed_ = out.took_streams = true;
      kill(pid, SIGKILL);
      out.what = "gateway killed";
    } else {
      gateway_stopped_ = true;
      out.what = stop("gateway", [this] { gateway_stopped_ = false; });
    }
    return out;
  }
  Node* node = choose(fault.target);
  if (!node) return std::nullopt;
  const int pid = pid_of(node->plan->name);
  out.target = node->plan->name;
  out.decode = node->plan->role != "prefill";
  node->sound = false;
  switch (fault.kind) {
    case FaultKind::kKill:
    case FaultKind::kTerm:
      node->incarnation_ended = node->incarnation;
      node->exits_due = 1;
      kill(pid, fault.kind == FaultKind::kKill ? SIGKILL : SIGTERM);
      out.what = fmt::format("{} {}", out.target, fault.kind == FaultKind::kKill ? "killed" : "told to end");
      break;
    case FaultKind::kStop:
      node->lifted = false;
      out.what = stop(out.target, [node] { node->lifted = true; });
      break;
    case FaultKind::kProxy:
      out.what = break_path(*node, fault);
      break;
    case FaultKind::kGateway:
      break;
  }
  return out;
}

std::string ChaosCluster::stop(const std::string& name, std::function<void()> lifted) {
  kill(pid_of(name), SIGSTOP);
  loop_.after(kStopped, [name, lifted = std::move(lifted), alive = alive_, this] {
    if (!*alive) return;
    if (const int stopped = pid_of(name); stopped > 0) kill(stopped, SIGCONT);
    lifted();
  });
  return fmt::format("{} stopped for {:.0f} s", name, to_seconds(kStopped));
}

// Half of the faults of a decode worker's paths are on the one from the prefill workers.
std::string ChaosCluster::break_path(Node& node, const Fault& fault) {
  const bool link = node.link && (fault.target >> 32) % 2 == 0;
  net::FaultProxy* proxy = link ? node.link.get() : node.http.get();
  const std::string path = fmt::format("{} to {}", link ? "prefill workers" : "gateway", node.plan->name);
  net::PathFaults faults;
  switch (fault.path) {
    case PathFault::kReset:
    case PathFault::kEnd:
      proxy->cut(fault.path == PathFault::kReset);
      return fmt::format("{}: {}", path, to_string(fault.path));
    case PathFault::kHalfClose:
      proxy->half_close(fault.up ? net::Way::kUp : net::Way::kDown);
      return fmt::format("{}: {}", path, to_string(fault.path));
    case PathFault::kRefuse:
      proxy->cut(true);
      proxy->refuse(true);
      break;
    case PathFault::kBlackHole:
      faults.swallow = true;
      break;
    case PathFault::kHold:
      faults.hold = true;
      break;
    case PathFault::kThrottle:
      faults.bytes_per_second = kSlowBytesPerSecond;
      break;
    case PathFault::kDelay:
      faults.delay = kLate;
      faults.jitter = kJitter;
      break;
  }
  if (fault.up) proxy->set(net::Way::kUp, faults);
  if (fault.down) proxy->set(net::Way::kDown, faults);
  node.lifted = false;
  loop_.after(fault.length, [proxy, &node, alive = alive_] {
    if (!*alive) return;
    proxy->refuse(false);
    for (const net::Way way : {net::Way::kUp, net::Way::kDown}) proxy->set(way, {});
    node.lifted = true;
  });
  return fmt::format("{}: {} for {:.1f} s", path, to_string(fault.path), to_seconds(fault.length));
}

void ChaosCluster::ask_workers(std::function<void(std::map<std::string, std::string>)> done) {
  struct Round {
    std::map<std::string, std::string> statuses;
    std::function<void(std::map<std::string, std::string>)> done;
  };
  auto round = std::make_shared<Round>();
  round->done = std::move(done);
  for (const auto& node : nodes_)
    get(node->plan->http_port, "/internal/status", [round, count = nodes_.size(), name = node->plan->name](std::string body) {
      round->statuses[name] = std::move(body);
      if (round->statuses.size() == count) round->done(std::move(round->statuses));
    });
}

}  // namespace baton::app
