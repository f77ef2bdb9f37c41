"""Strangers at every port of real processes: thousands that say nothing, half requests, garbage, workers that do not fit. The others go on."""

import json
import pathlib
import random
import resource
import socket
import struct
import subprocess
import sys
import time
import unittest

import harness
from harness import Connection, get, open_stream, post, request_bytes, wait_until

try:
    import numpy
except ImportError:
    numpy = None

SILENT = 10_000
MB = 1 << 20


def make_model(folder, *flags):
    subprocess.run([sys.executable, harness.ROOT / "tools" / "make_model.py", folder, *flags], check=True, timeout=60, capture_output=True)
    return folder


class Process:
    """One command in the background, its output in a file."""

    def __init__(self, test, name, *args):
        self.log_path = test.home.path / f"{name}.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([harness.PROGRAM, *map(str, args)], env=harness.environment(test.home), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        test.addCleanup(self.process.wait)
        test.addCleanup(self.process.kill)

    def log(self):
        return self.log_path.read_text(errors="replace")

    def memory(self):
        """Resident bytes."""
        return int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def alive(self):
        return self.process.poll() is None


class Cluster:
    """A prefill worker, a decode worker and a gateway as three commands; `decode` may be another model than `prefill`."""

    def __init__(self, test, prefill, decode, *decode_flags):
        self.ports = {name: harness.free_port() for name in ("gateway", "p0", "d0", "p0-link", "d0-link")}
        self.processes = {}
        for name, role, model, flags in (("p0", "prefill", prefill, ()), ("d0", "decode", decode, decode_flags)):
            self.processes[name] = Process(test, name, "worker", model, "--name", name, "--role", role, "--port", self.ports[name], "--link-port", self.ports[f"{name}-link"], "--peers", 2,
                                           "--kv-cache-memory-bytes", "64MiB", "--threads", 1, *flags)
        workers = [arg for name, role in (("p0", "prefill"), ("d0", "decode")) for arg in ("--worker", f"{name}={role}@127.0.0.1:{self.ports[name]}")]
        self.processes["gateway"] = Process(test, "gateway", "gateway", prefill, "--port", self.ports["gateway"], *workers)
        self.port = self.ports["gateway"]

    def logs(self):
        return "\n".join(f"--- {name}\n{p.log()}" for name, p in self.processes.items())

    def answers(self, path="/health/ready"):
        try:
            return get(self.port, path, timeout=2)
        except OSError:
            return None

    def wait_ready(self):
        wait_until(lambda: (a := self.answers()) and a.status == 200, 30, lambda: f"ready:\n{self.logs()}")
        return self

    def workers(self):
        return {w["name"]: w for w in get(self.port, "/debug/workers").json()}


@unittest.skipUnless(numpy, "numpy is not installed; ./test.sh installs it")
class HostileTest(harness.BatonTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = make_model(cls.home.path / "model", "--layers", "2")

    def setUp(self):
        self.cluster = Cluster(self, self.model, self.model).wait_ready()

    def tearDown(self):
        self.assertTrue(all(p.alive() for p in self.cluster.processes.values()), self.cluster.logs())
        self.expect_served()
        wait_until(lambda: all(w["running"] + w["waiting"] == 0 and w["blocks_free"] + w["blocks_cached"] == w["blocks_total"] for w in self.cluster.workers().values()), 10,
                   lambda: f"nothing is held: {self.cluster.workers()}")

    def expect_served(self):
        answer = post(self.cluster.port, "/v1/completions", {"prompt": "hello world", "max_tokens": 4, "ignore_eos": True})
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.headers["x-baton-disaggregated"], "true")

    def test_ten_thousand_connections_that_send_nothing(self):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        count = min(SILENT, limit - 1000) if limit != resource.RLIM_INFINITY else SILENT
        for name in ("gateway", "d0", "p0", "d0-link"):
            process = self.cluster.processes[name.removesuffix("-link")]
            with self.subTest(port=name, connections=count), open_stream(self.cluster.port, "/v1/completions", {"prompt": "hello", "max_tokens": 200, "ignore_eos": True}) as running:
                before = process.memory()
                silent = []
                try:
                    for _ in range(count):
                        s = socket.socket()
                        silent.append(s)
                        s.settimeout(20)
                        s.connect(("127.0.0.1", self.cluster.ports[name]))
                    self.expect_served()
                    self.assertEqual(len([e for e in running.events() if e != "[DONE]"]), 200, "who was there before is served on")
                    self.assertLess(process.memory() - before, 200 * MB)
                finally:
                    for s in silent:
                        s.close()
                self.expect_served()

    def test_silent_and_half_sent_are_cut_by_deadlines(self):
        def half(port):
            c = Connection(port, timeout=90)
            self.addCleanup(c.close)
            c.send(b"POST /internal/decode HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{\"request\"")
            return c

        halves = [half(self.cluster.ports[name]) for name in ("gateway", "p0", "d0")]
        links = [Connection(self.cluster.ports["d0-link"], timeout=90) for _ in range(2)]
        links[1].send(struct.pack("<I", 200) + b"half a frame")
        for c in links:
            self.addCleanup(c.close)
            while c._fill():
                pass
        self.expect_served()
        for c in halves:
            self.assertEqual(c.read_head(), 408)

    def test_garbage_on_every_port(self):
        rng = random.Random(1)
        for name in ("gateway", "p0", "d0", "p0-link", "d0-link"):
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\xff" * 64, struct.pack("<IHH", 1 << 19, 1, 1), struct.pack("<IHH", 4, 1, 13), struct.pack("<IHH", 8, 77, 1) + b"abcd",
                            rng.randbytes(5000), b"POST /internal/decode HTTP/1.1\r\nContent-Length: 3\r\n\r\n{}}"):
                with Connection(self.cluster.ports[name], timeout=20) as c:
                    try:
                        c.send(garbage)
                        c.sock.shutdown(socket.SHUT_WR)
                        while c._fill():
                            pass
                    except (ConnectionError, OSError) as e:
                        self.assertNotIsInstance(e, TimeoutError, name)
        self.expect_served()

    def test_bodies_of_a_worker(self):
        for body in (b"", b"[" * 200_000, b'{"request": {"ids": [1e400]}}', b'{"request": {"ids": [' + b"9" * 100_000 + b"]}}", b'{"request": NaN}', b'{"request": 1, "request": 2}', b'{"request": "\xff"}'):
            for name in ("p0", "d0"):
                for path in ("/internal/decode", "/internal/prefill"):
                    answer = post(self.cluster.ports[name], path, body)
                    self.assertEqual(answer.status, 400, answer.body[:300])
                    self.assertEqual(answer.json()["event"], "failed")
        with Connection(self.cluster.ports["d0"], timeout=20) as c:
            c.send(request_bytes("POST", "/internal/decode", headers={"Content-Length": str(64 * MB)}))
            self.assertEqual(c.read_head(), 413)


@unittest.skipUnless(numpy, "numpy is not installed; ./test.sh installs it")
class WorkersThatDoNotFitTest(harness.BatonTest):
    """The gateway names the difference, in /health/ready and its log, and sends nothing to such a worker."""

    def expect_problem(self, cluster, *words):
        def look():
            a = cluster.answers()
            return a and a.status == 503 and all(word in a.body.decode() for word in words)

        wait_until(look, 30, lambda: f"/health/ready says {words}: {cluster.answers()}\n{cluster.logs()}")
        for word in words:
            self.assertIn(word, cluster.processes["gateway"].log())

    def test_another_model(self):
        a, b = make_model(self.home.path / "a", "--layers", "2"), make_model(self.home.path / "b", "--layers", "2", "--seed", "7")
        self.expect_problem(Cluster(self, a, b), "serves the model", "but")

    def test_another_kv_type_fits(self):
        """It is converted on the way: test_tensor_parallel looks at the tokens."""
        model = make_model(self.home.path / "c", "--layers", "2")
        cluster = Cluster(self, model, model, "--dtype", "float32")
        cluster.wait_ready()
        self.assertNotIn("KV schema", cluster.processes["gateway"].log())

    def test_another_protocol_version(self):
        """A worker of the test's own, which speaks a newer protocol."""
        model = make_model(self.home.path / "d", "--layers", "2")
        cluster = Cluster(self, model, model)
        cluster.wait_ready()
        status = get(cluster.ports["d0"], "/internal/status").json()
        cluster.processes["d0"].process.kill()
        cluster.processes["d0"].process.wait()
        with socket.create_server(("127.0.0.1", cluster.ports["d0"])) as listener:
            listener.settimeout(0.2)
            body = json.dumps({"protocol": status["protocol"] + 1, "name": "d0", "something": "new"}).encode()
            wanted = f"speaks protocol {status['protocol'] + 1}, this gateway speaks {status['protocol']}"
            deadline = time.monotonic() + 20
            while wanted not in cluster.processes["gateway"].log():
                self.assertLess(time.monotonic(), deadline, cluster.logs())
                try:
                    c, _ = listener.accept()
                    with c:
                        c.settimeout(2)
                        c.recv(1 << 16)
                        c.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                except OSError:
                    pass
        self.assertEqual(cluster.answers().status, 200, "what is left of it serves")
