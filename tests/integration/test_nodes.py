"""One engine over two hosts, which are two `baton serve` on loopback here."""

import os
import signal

import harness
from harness import alive, free_port, get, open_stream, post, wait_until

STORY = {"prompt": "Once upon a time there was a king who", "max_tokens": 60, "ignore_eos": True, "temperature": 0, "logprobs": 0}
SMALL = ("--max-model-len", 2048, "--kv-cache-memory-bytes", "256MiB")


def answer(port):
    choice = post(port, "/v1/completions", STORY).json()["choices"][0]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def worker_pid(server):
    """The worker that this `baton serve` has started."""
    children = []
    for task in os.listdir(f"/proc/{server.process.pid}/task"):
        with open(f"/proc/{server.process.pid}/task/{task}/children", encoding="ascii") as f:
            children += map(int, f.read().split())
    for pid in children:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            if f.read().split(b"\0")[1:2] == [b"worker"]:
                return pid
    return None


class Pair(harness.BatonTest):
    def flags(self, node, master, degree=2):
        return ("-tp", degree, "--nnodes", 2, "--node-rank", node, "--master-addr", f"127.0.0.1:{master}", *SMALL)

    def start_pair(self):
        master = free_port()
        nodes = [self.start(*self.flags(node, master), ready=False) for node in (0, 1)]
        self.wait_joined(nodes)
        return nodes

    @staticmethod
    def wait_joined(nodes):
        nodes[0].wait_ready()
        wait_until(lambda: "joined   after" in nodes[1].log(), 30, nodes[1].log)


class NodesTest(Pair):
    def test_answers_as_ranks_of_one_host_do(self):
        nodes = self.start_pair()
        over_two = answer(nodes[0].port)
        worker = get(nodes[0].port, "/debug/workers").json()[0]
        self.assertTrue(worker["numerics_id"].endswith("/tp2n2"), worker["numerics_id"])
        self.assertEqual(answer(nodes[0].port), over_two)
        # The end of node 0 is that of node 1's worker too; its supervisor stays for the next, until it is told to go.
        followers = worker_pid(nodes[1])
        self.assertEqual(nodes[0].stop(), 0)
        wait_until(lambda: "node 0 has stopped" in nodes[1].log() and not alive(followers), 20, nodes[1].log)
        self.assertEqual(nodes[1].stop(), 0)
        one = self.start("-tp", 2, *SMALL)
        self.assertEqual(answer(one.port), over_two, "one rank a host: the same sums in the same order")

    def test_a_worker_that_dies_takes_the_instance_and_both_come_back(self):
        nodes = self.start_pair()
        before = answer(nodes[0].port)
        for victim, other in ((1, 0), (0, 1)):
            pids = [worker_pid(node) for node in nodes]
            seen = len(nodes[other].log())
            with open_stream(nodes[0].port, "/v1/completions", {**STORY, "max_tokens": 1500}) as stream:
                events = stream.events()
                next(events)
                os.kill(pids[victim], signal.SIGKILL)
                rest = list(events)
            # There is no other worker that could go on, but the same one may be back in time.
            self.assertTrue('"error"' in rest[-2] or '"finish_reason":"length"' in rest[-2], rest[-2])
            wait_until(lambda: not alive(pids[0]) and not alive(pids[1]), 20, "both workers to end")
            self.assertIn(f"node {victim} is gone", wait_until(lambda: "is gone" in (log := nodes[other].log()[seen:]) and log, 20, "the cause in the log"))
            wait_until(lambda: nodes[0].ready() and worker_pid(nodes[0]) not in (None, pids[0]), 60, nodes[0].log)
            self.assertEqual(answer(nodes[0].port), before)
            self.assertEqual(nodes[0].process.poll(), None)
            self.assertEqual(nodes[1].process.poll(), None)

    def test_nothing_outlives_a_supervisor(self):
        nodes = self.start_pair()
        pids = [worker_pid(node) for node in nodes]
        nodes[1].kill()
        wait_until(lambda: not alive(pids[1]), 10, "node 1's worker to end")
        wait_until(lambda: "node 1 is gone" in nodes[0].log(), 10, "node 0 to miss it, though nothing runs")
        nodes[0].kill()
        wait_until(lambda: not alive(pids[0]), 10, "node 0's worker to end")


class NodeRefusalsTest(Pair):
    def test_nodes_that_differ_are_told_how(self):
        harness.need_model()
        master = free_port()
        nodes = [self.start(*self.flags(node, master), "--dtype", dtype, ready=False) for node, dtype in ((0, "float16"), (1, "bfloat16"))]
        for node in nodes:
            self.assertEqual(node.process.wait(60), 1, node.log())
            self.assertIn("--dtype is bf16 on node 1", node.log())
            self.assertIn("f16 on node 0", node.log())

    def test_a_node_that_does_not_come(self):
        harness.need_model()
        for node, expected in ((0, "node 1 did not come"), (1, "node 0 cannot be reached")):
            server = self.start(*self.flags(node, free_port()), "--node-timeout", 1, ready=False)
            self.assertEqual(server.process.wait(60), 1, server.log())
            self.assertIn(expected, server.log())

    def test_flags_that_do_not_fit(self):
        harness.need_model()
        busy = self.start(*SMALL)
        for flags, expected in (
            (self.flags(0, free_port(), degree=3), "does not divide by --nnodes 2"),
            (("-tp", 2, "--nnodes", 2, "--node-rank", 0), "needs --master-addr"),
            (("-tp", 2, "--nnodes", 2, "--node-rank", 2, "--master-addr", "127.0.0.1"), "ranks go from 0 to 1"),
            ((*self.flags(0, free_port()), "--prefill", 1, "--decode", 1), "shared memory"),
            ((*self.flags(1, free_port()), "--detach"), "--detach"),
            (self.flags(0, busy.port), "already in use"),
            (("-tp", 2, "--nnodes", 2, "--node-rank", 0, "--master-addr", "192.0.2.1:7000"), "has no address 192.0.2.1"),
        ):
            result = self.baton("serve", harness.ALIAS, "--port", free_port(), *flags)
            self.assertNotEqual(result.returncode, 0, flags)
            self.assertIn(expected, result.stdout + result.stderr)
        result = self.baton("worker", harness.ALIAS, "--role", "prefill", *self.flags(0, free_port()))
        self.assertEqual(result.returncode, 1)
        self.assertIn("takes --role both only", result.stderr)
