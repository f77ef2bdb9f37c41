#include "app/nodes.h"

#include <spdlog/fmt/fmt.h>

#include <charconv>

#include "base/log.h"
#include "device/gloo/gloo_links.h"
#include "engine/device_executor.h"

namespace baton::app {
namespace {

constexpr int kPort = 29501;
constexpr int kNodesMax = 64;

}  // namespace

void NodeFlags::add_to(CLI::App& app) {
  const char* group = "Several hosts";
  app.add_option("--nnodes", nnodes,
                 "hosts of one engine, which --tensor-parallel-size is of in all; start the same command on each, with its --node-rank")
      ->check(CLI::Range(1, kNodesMax))
      ->capture_default_str()
      ->group(group);
  app.add_option("--node-rank", node_rank, "this host's number, from 0; host 0 schedules and answers requests, the others follow it")
      ->check(CLI::Range(0, kNodesMax - 1))
      ->capture_default_str()
      ->group(group);
  app.add_option(
         "--master-addr", master_addr,
         fmt::format("HOST[:PORT] of host 0, on the network that the hosts are to use; whoever reaches it can join (port: {})", kPort))
      ->group(group);
  app.add_option("--node-timeout", timeout_s, "seconds in which all hosts must come, and then load")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--master-fd", master_fd, "an inherited listening socket, from the supervisor")->group("");
}

std::vector<std::string> NodeFlags::args() const {
  if (!several()) return {};
  return {"--nnodes",       std::to_string(nnodes),      "--node-rank", std::to_string(node_rank), "--master-addr", master_addr,
          "--node-timeout", fmt::format("{}", timeout_s)};
}

Status NodeFlags::check(int ranks) const {
  if (node_rank >= nnodes)
    return {Code::kInvalidArgument, fmt::format("--node-rank {} of --nnodes {}: ranks go from 0 to {}", node_rank, nnodes, nnodes - 1)};
  if (!several()) return {};
  if (ranks % nnodes != 0)
    return {Code::kInvalidArgument, fmt::format("--tensor-parallel-size {} does not divide by --nnodes {}: it is the degree of the whole "
                                                "instance, of which each host has as many ranks; e.g. {}",
                                                ranks, nnodes, (ranks / nnodes + 1) * nnodes)};
  return address().status();
}

Result<NodeFlags::Address> NodeFlags::address() const {
  if (master_addr.empty())
    return Status(Code::kInvalidArgument,
                  fmt::format("--nnodes {} needs --master-addr HOST[:PORT], an address of host 0 that the others reach", nnodes));
  Address out{master_addr, kPort};
  const auto named = [&](const Address& a) -> Result<Address> {
    if (a.host == "0.0.0.0" || a.host == "::" || a.host == "*")
      return Status(Code::kInvalidArgument, fmt::format("--master-addr {}: the others must reach host 0 there; give an address of it that "
                                                        "they know",
                                                        master_addr));
    return a;
  };
  const std::size_t colon = master_addr.rfind(':');
  const bool bracket = master_addr.starts_with('['), several_colons = master_addr.find(':') != colon;
  const std::size_t close = master_addr.find(']');
  if (bracket) out.host = master_addr.substr(1, close == std::string::npos ? close : close - 1);
  if (colon == std::string::npos || (several_colons && !bracket) || (bracket && (close == std::string::npos || colon < close)))
    return named(out);
  if (!bracket) out.host = master_addr.substr(0, colon);
  const char *begin = master_addr.data() + colon + 1, *end = master_addr.data() + master_addr.size();
  const auto [at, error] = std::from_chars(begin, end, out.port);
  if (error != std::errc() || at != end || out.port < 1 || out.port > 65535 || out.host.empty())
    return Status(Code::kInvalidArgument, fmt::format("--master-addr {}: expected HOST or HOST:PORT", master_addr));
  return named(out);
}

Result<Nodes> meet_nodes(const NodeFlags& flags, std::vector<std::pair<std::string, std::string>> terms) {
  BATON_ASSIGN_OR_RETURN(const NodeFlags::Address address, flags.address());
  device::gloo::MeetingOptions options;
  options.nodes = flags.nnodes;
  options.node = flags.node_rank;
  options.host = address.host;
  options.port = address.port;
  options.listen_fd = flags.master_fd;
  options.deadline = Duration(static_cast<std::int64_t>(flags.timeout_s * 1e6));
  options.terms = std::move(terms);
  log::info("node {} of {} waits for the others at {}:{}", flags.node_rank, flags.nnodes, address.host, address.port);
  Nodes nodes;
  BATON_ASSIGN_OR_RETURN(nodes.meeting, device::gloo::Meeting::hold(options));
  BATON_ASSIGN_OR_RETURN(auto links, device::gloo::connect(*nodes.meeting, {.deadline = engine::kCollectiveDeadline}));
  nodes.group = std::make_shared<device::NodeGroup>(std::move(links));
  log::info("all {} nodes are there, this one at {}", flags.nnodes, nodes.meeting->address());
  return nodes;
}

Status wait_for_nodes(Nodes& nodes, const NodeFlags& flags) {
  return nodes.meeting->exchange("here", Duration(static_cast<std::int64_t>(flags.timeout_s * 1e6))).status();
}

}  // namespace baton::app
