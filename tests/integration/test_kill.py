"""kill -9 of each process: what ran there gets an error or goes on, the others do not notice, and it comes back."""

import json
import os
import signal
import threading
import time

import harness
from harness import Connection, alive, get, open_stream, post, request_bytes, wait_until

STORY = {"prompt": "Once upon a time there was a king who", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


def open_stream_unanswered(port, body):
    """Sends a streaming request and waits for nothing."""
    connection = Connection(port)
    connection.send(request_bytes("POST", "/v1/completions", {**body, "stream": True}))
    return connection


class Reader:
    """Reads one stream in a thread, with the time of each event."""

    def __init__(self, port, body, path="/v1/completions"):
        self.open(open_stream(port, path, body, timeout=60))
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    @classmethod
    def of(cls, connection):
        """Reads an open stream here and now."""
        reader = cls.__new__(cls)
        reader.open(connection)
        reader.read()
        return reader

    def open(self, connection):
        self.connection = connection
        self.worker = self.connection.headers.get("x-baton-decode-worker")
        self.prefiller = self.connection.headers.get("x-baton-prefill-worker")
        self.events, self.times, self.broken = [], [], None

    def read(self):
        try:
            for event in self.connection.events():
                self.times.append(time.monotonic())
                self.events.append(event)
        except (OSError, AssertionError, ValueError) as error:
            self.times.append(time.monotonic())
            self.broken = error

    def finish(self, timeout=60):
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"the stream hangs after {len(self.events)} events"
        self.connection.close()
        return self

    @property
    def error(self):
        return next((json.loads(e)["error"] for e in self.events if e.startswith('{"error"')), None)

    @property
    def text(self):
        return "".join(json.loads(e)["choices"][0]["text"] for e in self.events if e != "[DONE]" and '"choices"' in e)

    @property
    def whole(self):
        return not self.broken and not self.error and self.events[-1:] == ["[DONE]"]


class KillTest(harness.BatonTest):
    def started(self, readers, events=3):
        wait_until(lambda: all(len(r.events) >= events for r in readers), 20, "all streams run")

    def kill(self, server, name):
        pid = server.child(name)
        os.kill(pid, signal.SIGKILL)
        return pid, time.monotonic()

    def back(self, server, name, old_pid):
        wait_until(lambda: server.state()["children"].get(name) not in (old_pid, -1), 5, f"{name} is started again")
        wait_until(lambda: server.ready() and server.workers().get(name, {"ready": True})["ready"], 20, lambda: f"{name} is ready again\n{server.log()}")
        answer = post(server.port, "/v1/completions", {**STORY, "prompt": f"{time.time_ns()}", "max_tokens": 4})
        self.assertEqual(answer.status, 200, answer.body)
        return answer

    def assert_settled(self, readers, killed_at, reference):
        """Each stream went on with the same tokens or got an error event within a second or so, ended by [DONE]."""
        for r in readers:
            r.finish()
            self.assertIsNone(r.broken, f"cut without an error event: {r.broken}")
            self.assertEqual(r.events[-1], "[DONE]")
            if r.error:
                self.assertLess(r.times[-1] - killed_at, 2.0, r.error)
                self.assertTrue(reference.startswith(r.text))
            else:
                self.assertEqual(r.text, reference)

    def reference(self, server):
        return post(server.port, "/v1/completions", STORY).json()["choices"][0]["text"]

    def test_decode_worker_of_one_and_one(self):
        server = self.start("--prefill", 1, "--decode", 1)
        reference = self.reference(server)
        readers = [Reader(server.port, STORY) for _ in range(3)]
        self.started(readers)
        pid, at = self.kill(server, "d0")
        self.assert_settled(readers, at, reference)
        answer = self.back(server, "d0", pid)
        self.assertEqual(answer.headers["x-baton-disaggregated"], "true", "the pair hands over again")

    def test_prefill_worker_of_one_and_one(self):
        server = self.start("--prefill", 1, "--decode", 1)
        reference = self.reference(server)
        readers = [Reader(server.port, STORY) for _ in range(3)]
        self.started(readers, 20)
        pid, at = self.kill(server, "p0")
        # While it is away the decode worker takes prompts itself.
        answer = post(server.port, "/v1/completions", {**STORY, "prompt": "While the other is away,", "max_tokens": 4})
        self.assertIn(answer.status, (200, 503), answer.body)
        for r in readers:
            r.finish()
            self.assertTrue(r.whole, "streams that decode do not notice")
            self.assertEqual(r.text, reference)
        answer = self.back(server, "p0", pid)
        self.assertEqual(answer.headers["x-baton-disaggregated"], "true", "the pair hands over again")

    def test_prefill_worker_while_it_computes(self):
        server = self.start("--prefill", 2, "--decode", 1, "--threads", 1)
        prompt = "The moon rises over the river, and the fox waits. " * 120
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0}
        reference = post(server.port, "/v1/completions", {**body, "prompt": prompt}).json()["choices"][0]["text"]
        answers = []
        thread = threading.Thread(target=lambda: answers.append(post(server.port, "/v1/completions", {**body, "prompt": "Now: " + prompt})), daemon=True)
        thread.start()
        busy = wait_until(lambda: next((n for n, w in server.workers().items() if n[0] == "p" and w["running"] + w["waiting"]), None), 10, "a prefill runs")
        pid, at = self.kill(server, busy)
        thread.join(30)
        self.assertTrue(answers, "the request hangs")
        self.assertEqual(answers[0].status, 200, answers[0].body)
        self.assertTrue(reference)
        self.back(server, busy, pid)

    def test_decode_worker_of_two_and_two(self):
        self.kill_one_of_two_decode_workers("--prefill", 2, "--decode", 2, "--threads", 1)

    def test_decode_worker_of_two_ranks(self):
        self.kill_one_of_two_decode_workers("--prefill", "1xTP2", "--decode", "2xTP2")

    def kill_one_of_two_decode_workers(self, *topology):
        server = self.start(*topology, "--kv-cache-memory-bytes", "256MiB")
        reference = self.reference(server)
        readers = [Reader(server.port, STORY) for _ in range(6)]
        self.started(readers)
        self.assertEqual({r.worker for r in readers}, {"d0", "d1"})
        pid, at = self.kill(server, "d1")
        hit, others = [r for r in readers if r.worker == "d1"], [r for r in readers if r.worker == "d0"]
        for r in others:
            r.finish()
            self.assertTrue(r.whole, f"{r.broken} {r.error}")
            self.assertEqual(r.text, reference)
        self.assert_settled(hit, at, reference)
        self.back(server, "d1", pid)
        report = json.loads(self.baton("status", "--port", server.port, "--json").stdout)
        self.assertTrue(all(w["ready"] for w in report["workers"]))

    def test_decode_worker_that_waits_for_its_kv(self):
        """The other one claims what the prefill worker computes, or has computed: the prompt is computed once."""
        server = self.start("--prefill", 1, "--decode", 2, "--threads", 1, "--kv-cache-memory-bytes", "256MiB")
        for moment in ("send_prefill", "prefill_started"):
            body = {"prompt": f"{moment}: " + "The moon rises over the river, and the fox waits. " * 120, "max_tokens": 24, "ignore_eos": True, "temperature": 0}
            before = server.workers()["p0"]["prompt_tokens_computed"]
            answers = []
            thread = threading.Thread(target=lambda: answers.append(post(server.port, "/v1/completions", body, {"x-request-id": moment})), daemon=True)
            thread.start()

            def record():
                answer = get(server.port, f"/debug/requests/{moment}")
                return answer.json() if answer.status == 200 else {"events": []}

            def happened():
                return [e["event"] for e in record()["events"]]

            wait_until(lambda: moment in happened(), 10, lambda: f"{moment} of {record()}")
            victim = record()["decode_worker"]
            pid, _ = self.kill(server, victim)
            thread.join(40)
            self.assertTrue(answers, f"the request hangs: {record()}")
            self.assertEqual(answers[0].status, 200, answers[0].body)
            events = server.record(moment)["events"]
            names = [e["event"] for e in events]
            self.assertEqual((names.count("send_prefill"), names.count("claim_missed")), (1, 0), events)
            self.assertIn("claimed", names)
            self.assertNotEqual(server.record(moment)["decode_worker"], victim)
            prompt_tokens = answers[0].json()["usage"]["prompt_tokens"]
            self.assertGreater(prompt_tokens, 1000)
            # What a worker says of itself is up to a poll old, and it warms up with some tokens of its own.
            computed = wait_until(lambda: (c := server.workers()["p0"]["prompt_tokens_computed"] - before) >= prompt_tokens and c, 5, "p0 says what it computed")
            self.assertLess(computed, 1.5 * prompt_tokens, "computed once")
            self.back(server, victim, pid)
            undisturbed = post(server.port, "/v1/completions", body)
            self.assertEqual(answers[0].json()["choices"][0]["text"], undisturbed.json()["choices"][0]["text"])

    def test_gateway_while_prompts_compute(self):
        """What the dead gateway had reserved and under way is given back; the new one learns the workers from themselves."""
        server = self.start("--prefill", 1, "--decode", 1)
        prompt = "The moon rises over the river, and the fox waits. " * 60
        for i in range(4):
            connection = open_stream_unanswered(server.port, {"prompt": f"{i}: {prompt}", "max_tokens": 40, "ignore_eos": True})
            self.addCleanup(connection.close)
        wait_until(lambda: (w := server.workers())["p0"]["running"] and w["p0"]["waiting"] + w["p0"]["running"] >= 3, 10, lambda: f"prompts wait and run: {server.workers()}")
        before = {n: w["incarnation"] for n, w in server.workers().items()}
        pid, _ = self.kill(server, "gateway")
        self.back(server, "gateway", pid)
        self.assertEqual({n: w["incarnation"] for n, w in server.workers().items()}, before, "the workers were not touched")
        wait_until(lambda: all(w["running"] + w["waiting"] == 0 and w["blocks_free"] + w["blocks_cached"] == w["blocks_total"] for w in server.workers().values()), 5,
                   lambda: f"leases and prompts of the dead gateway are gone: {server.workers()}")

    def test_again_and_again(self):
        server = self.start("--prefill", 1, "--decode", 1)
        for name in ("d0", "p0", "d0"):
            pid, _ = self.kill(server, name)
            self.back(server, name, pid)

    def test_a_worker_that_hangs(self):
        """Alive as a process, but without progress: its requests go on elsewhere."""
        server = self.start("--prefill", 1, "--decode", 2, "--threads", 1, "--kv-cache-memory-bytes", "256MiB")
        reference = self.reference(server)
        readers = [Reader(server.port, STORY) for _ in range(4)]
        self.started(readers)
        self.assertEqual({r.worker for r in readers}, {"d0", "d1"})
        pid = server.child("d0")
        self.addCleanup(os.kill, pid, signal.SIGCONT)
        os.kill(pid, signal.SIGSTOP)
        for r in readers:
            r.finish(30)
            self.assertTrue(r.whole, f"{r.broken} {r.error}")
            self.assertEqual(r.text, reference)
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: server.workers().get("d0", {}).get("ready"), 10, "d0 is taken back")
        wait_until(lambda: all(w["running"] == 0 and w["blocks_free"] + w["blocks_cached"] == w["blocks_total"] for w in server.workers().values()), 5,
                   lambda: f"what hung there is gone: {server.workers()}")

    def test_a_worker_that_was_asked_to_end_starts_again_at_once(self):
        server = self.start("--prefill", 1, "--decode", 1)
        for _ in range(3):
            pid = server.child("d0")
            os.kill(pid, signal.SIGTERM)
            self.back(server, "d0", pid)
        self.assertEqual(server.log().count("d0 exited with code 0; restarting in 0.0 s"), 3, server.log())

    def test_a_worker_dies_while_the_server_drains(self):
        server = self.start("--prefill", 1, "--decode", 1)
        reference = self.reference(server)
        reader = Reader(server.port, STORY)
        self.started([reader])
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not server.ready(), 5, "it drains")
        refused = post(server.port, "/v1/completions", STORY)
        self.assertEqual((refused.status, refused.headers.get("retry-after")), (503, "1"))
        _, at = self.kill(server, "d0")
        self.assert_settled([reader], at, reference)
        self.assertEqual(server.process.wait(30), 0)

    def test_a_second_signal_stops_at_once(self):
        server = self.start("--prefill", 1, "--decode", 1)
        children = list(server.state()["children"].values())
        reader = Reader(server.port, {**STORY, "max_tokens": 4000})
        self.started([reader])
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not server.ready(), 5, "it drains")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(2)
        self.assertEqual([p for p in children if alive(p)], [])

    def test_gateway(self):
        server = self.start("--prefill", 1, "--decode", 1)
        reader = Reader(server.port, STORY)
        self.started([reader])
        workers = {n: server.child(n) for n in ("p0", "d0")}
        pid, _ = self.kill(server, "gateway")
        reader.finish()
        self.assertFalse(reader.whole)
        self.back(server, "gateway", pid)
        self.assertEqual({n: server.child(n) for n in ("p0", "d0")}, workers, "the workers were not touched")
        wait_until(lambda: all(w["running"] == 0 and w["blocks_free"] + w["blocks_cached"] == w["blocks_total"] for w in server.workers().values()), 5,
                   lambda: f"what the dead gateway had running is gone: {server.workers()}")
        self.assertEqual(self.baton("check", "--port", server.port).returncode, 0)

    def test_supervisor(self):
        server = self.start("--prefill", 1, "--decode", 1)
        children = list(server.state()["children"].values())
        reader = Reader(server.port, STORY)
        self.started([reader])
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(5)
        wait_until(lambda: not any(alive(p) for p in children), 1, "all children are gone")
        reader.finish()
        self.assertIn("no server runs", self.baton("stop", "--port", server.port).stdout)
        again = self.start("--prefill", 1, "--decode", 1, port=server.port)
        self.assertEqual(self.baton("check", "--port", again.port).returncode, 0)

    def test_a_stale_record_does_not_stop_a_stranger(self):
        server = self.start()
        state = server.state()
        stranger = harness.subprocess.Popen(["sleep", "60"])
        self.addCleanup(stranger.wait)
        self.addCleanup(stranger.kill)
        server.kill()
        record = self.home.path / "run" / f"serve-{server.port}.json"
        record.write_text(json.dumps({**state, "pid": stranger.pid}))
        self.assertIn("no server runs", self.baton("stop", "--port", server.port).stdout)
        self.assertIsNone(stranger.poll())
