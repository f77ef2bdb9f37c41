#include "app/nodes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/topology.h"

namespace baton::app {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

NodeFlags flags(int nodes, int node, const std::string& master) {
  NodeFlags f;
  f.nnodes = nodes, f.node_rank = node, f.master_addr = master;
  return f;
}

TEST(NodeFlags, AddressesOfNodeZero) {
  const struct {
    const char *text, *host;
    int port;
  } kCases[] = {{"10.0.0.1", "10.0.0.1", 29501}, {"10.0.0.1:7000", "10.0.0.1", 7000}, {"box:1", "box", 1},
                {"fe80::1", "fe80::1", 29501},   {"[fe80::1]:7000", "fe80::1", 7000}, {"[fe80::1]", "fe80::1", 29501}};
  for (const auto& c : kCases) {
    const auto address = flags(2, 0, c.text).address();
    ASSERT_TRUE(address.ok()) << c.text;
    EXPECT_EQ(address->host, c.host);
    EXPECT_EQ(address->port, c.port) << c.text;
  }
  for (const char* text : {"", "box:", "box:0", "box:65536", "box:7x", ":7000"}) EXPECT_FALSE(flags(2, 0, text).address().ok()) << text;
}

TEST(NodeFlags, WhatDoesNotFitIsRefused) {
  EXPECT_TRUE(flags(1, 0, "").check(3).ok());
  EXPECT_TRUE(flags(2, 1, "a:1").check(4).ok());
  EXPECT_THAT(flags(2, 0, "a:1").check(3).message(), HasSubstr("does not divide by --nnodes 2"));
  EXPECT_THAT(flags(2, 0, "a:1").check(1).message(), HasSubstr("e.g. 2"));
  EXPECT_THAT(flags(2, 2, "a:1").check(4).message(), HasSubstr("ranks go from 0 to 1"));
  EXPECT_THAT(flags(1, 1, "").check(1).message(), HasSubstr("--node-rank 1 of --nnodes 1"));
  EXPECT_THAT(flags(2, 0, "").check(2).message(), HasSubstr("needs --master-addr"));
}

TEST(Topology, OneEngineOverSeveralNodes) {
  const NodeFlags nodes = flags(2, 0, "a:1");
  auto workers = plan_topology({}, 4);
  ASSERT_TRUE(workers.ok());
  ASSERT_TRUE(span_nodes(*workers, nodes).ok());
  const std::vector<device::cpu::Cpu> cpus = {{.id = 0, .core = 0}, {.id = 1, .core = 1}};
  EngineFlags engine;
  engine.nodes = nodes;
  engine.nodes.master_fd = 9;
  ASSERT_TRUE(place_workers(*workers, cpus, engine).ok());
  EXPECT_THAT((*workers)[0].devices, ElementsAre(ElementsAre(0), ElementsAre(1))) << "the two ranks of this node";
  (*workers)[0].http_fd = 5, (*workers)[0].link_fd = 6;
  auto children = child_specs("model", engine, {}, *workers, 3);
  ASSERT_EQ(children.size(), 2u);
  for (const char* word : {"--nnodes", "--node-rank", "--master-addr", "--master-fd", "4"}) EXPECT_THAT(children[1].args, Contains(word));
  EXPECT_THAT(children[1].fds, ElementsAre(5, 6, 9));

  engine.nodes = flags(2, 1, "a:1");
  (*workers)[0].http_fd = (*workers)[0].link_fd = -1, (*workers)[0].ready_fd = 7;
  children = child_specs("model", engine, {}, *workers, -1);
  ASSERT_EQ(children.size(), 1u) << "no gateway";
  EXPECT_THAT(children[0].fds, ElementsAre(7));

  TopologyFlags roles;
  roles.prefill = roles.decode = "1";
  auto pair = plan_topology(roles, 2);
  ASSERT_TRUE(pair.ok());
  EXPECT_THAT(span_nodes(*pair, nodes).message(), HasSubstr("shared memory"));
  EXPECT_TRUE(span_nodes(*pair, NodeFlags{}).ok());
}

}  // namespace
}  // namespace baton::app
