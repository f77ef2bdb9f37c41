"""SIGTERM to every worker in turn under load: each hands its streams over or finishes them, and no client notices."""

import os
import signal
import threading

import harness
from harness import open_stream, post, wait_until
from test_kill import STORY, Reader


class RollingRestartTest(harness.BatonTest):
    def load(self, server, reference, count):
        """Clients that read one stream after another, greedy and whole; what is not goes to `self.wrong`."""
        self.stop, self.wrong, self.streams = threading.Event(), [], 0

        def client():
            while not self.stop.is_set():
                try:
                    with open_stream(server.port, "/v1/completions", STORY, timeout=120) as c:
                        if c.status != 200:
                            self.wrong.append((c.status, b"".join(c.chunks())))
                            continue
                        reader = Reader.of(c)
                    if not reader.whole or reader.text != reference:
                        self.wrong.append((reader.broken, reader.error, reader.text))
                    self.streams += 1
                except (OSError, AssertionError) as error:
                    self.wrong.append(repr(error))

        self.clients = [threading.Thread(target=client, daemon=True) for _ in range(count)]
        for c in self.clients:
            c.start()

    def restart(self, server, name):
        """One worker, by the signal that a person would send; it is down until its streams are elsewhere or over."""
        pid = server.child(name)
        wait_until(lambda: server.workers()[name]["running"] or name[0] == "p", 20, lambda: f"{name} has something to lose: {server.workers()}")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: server.state()["children"].get(name) not in (pid, -1), 60, lambda: f"{name} has ended and is started again\n{server.log()}")
        wait_until(lambda: server.workers().get(name, {}).get("ready"), 30, lambda: f"{name} is ready again\n{server.log()}")
        self.assertIn(f"{name} exited with code 0; restarting in 0.0 s", server.log())

    def roll(self, *flags, clients):
        server = self.start(*flags)
        reference = post(server.port, "/v1/completions", STORY).json()["choices"][0]["text"]
        self.load(server, reference, clients)
        workers = sorted(server.workers(), reverse=True)
        for name in workers:
            self.restart(server, name)
        self.stop.set()
        for c in self.clients:
            c.join(60)
            self.assertFalse(c.is_alive(), "a stream hangs")
        self.assertEqual(self.wrong, [], "no stream is lost, none is different")
        self.assertGreaterEqual(self.streams, clients)
        wait_until(lambda: all(w["running"] == 0 and w["blocks_free"] + w["blocks_cached"] == w["blocks_total"] for w in server.workers().values()), 10,
                   lambda: f"nothing is held: {server.workers()}")
        metrics = harness.get(server.port, "/metrics").body.decode()
        return {line.split()[0]: float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("baton:gateway_")}

    def test_two_and_two(self):
        metrics = self.roll("--prefill", 2, "--decode", 2, "--threads", 1, "--kv-cache-memory-bytes", "256MiB", clients=4)
        value = {name.split("{")[0]: v for name, v in metrics.items()}
        self.assertGreater(value["baton:gateway_streams_moved_total"], 0, "streams left the decode workers before these were gone")
        self.assertEqual(value["baton:gateway_conflicting_tokens_total"], 0)

    def test_one_and_one(self):
        """Nobody to hand over to: what runs is finished, and what comes meanwhile is served by the other role."""
        self.roll("--prefill", 1, "--decode", 1, clients=2)
