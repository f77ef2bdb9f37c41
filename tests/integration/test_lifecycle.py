"""Start, serve, stop: what the two commands of the README promise."""

import json
import os
import signal
import time

import harness
from harness import alive, free_port, get, need_model, post, stream, stream_text, wait_until

CHAT = {"messages": [{"role": "user", "content": "Name three colours."}], "temperature": 0, "max_tokens": 24}


class DisaggregatedServerTest(harness.BatonTest):
    """1 prefill and 1 decode worker."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.start_shared("--prefill", 1, "--decode", 1)

    def test_check_exits_zero_and_saw_a_handover(self):
        result = self.baton("check", "--port", self.server.port, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertGreater(report["served"]["kv_bytes"], 0)
        self.assertEqual((report["served"]["prefill_worker"], report["served"]["decode_worker"]), ("p0", "d0"))
        self.assertTrue(report["answer"])

    def test_check_tells_people_how_it_was_served(self):
        result = self.baton("check", "--port", self.server.port)
        self.assertEqual(result.returncode, 0, result.stderr)
        for words in ("prompt on p0, answer on d0", "of KV handed over", "TTFT", "TPOT"):
            self.assertIn(words, result.stdout)

    def test_streamed_is_plain_at_temperature_zero(self):
        plain = post(self.server.port, "/v1/chat/completions", CHAT)
        self.assertEqual(plain.status, 200)
        events = stream(self.server.port, "/v1/chat/completions", CHAT)
        text = plain.json()["choices"][0]["message"]["content"]
        self.assertTrue(text)
        self.assertEqual(stream_text(events), text)

    def test_headers_and_record_say_who_served(self):
        answer = post(self.server.port, "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": f"A new prompt, {time.time_ns()}."}]})
        self.assertEqual(answer.headers["x-baton-prefill-worker"], "p0")
        self.assertEqual(answer.headers["x-baton-decode-worker"], "d0")
        self.assertEqual(answer.headers["x-baton-disaggregated"], "true")
        record = self.server.record(answer.headers["x-request-id"])
        self.assertTrue(record["disaggregated"])
        usage = answer.json()["usage"]
        self.assertEqual((record["prompt_tokens"], record["completion_tokens"]), (usage["prompt_tokens"], usage["completion_tokens"]))
        # bf16 keys and values: 30 layers, 3 KV heads of 64, of every prompt token that D did not have.
        self.assertEqual(record["kv_bytes"], (usage["prompt_tokens"] - record["cached_tokens"]) * 2 * 30 * 3 * 64 * 2)
        self.assertGreaterEqual(record["committed_ms"], record["reserved_ms"])

    def test_the_stream_is_what_the_protocol_says(self):
        with harness.open_stream(self.server.port, "/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}) as c:
            self.assertEqual(c.headers["content-type"], "text/event-stream; charset=utf-8")
            events = list(c.events())
        self.assertEqual(events.pop(), "[DONE]")
        chunks = [json.loads(e) for e in events]
        self.assertEqual(chunks[-1]["choices"], [])
        self.assertTrue(all(len(c["choices"]) == 1 for c in chunks[:-1]), "an empty choices list before the usage chunk")
        self.assertEqual(chunks[0]["choices"][0]["delta"]["role"], "assistant")
        tokens = chunks[-1]["usage"]["completion_tokens"]
        self.assertLessEqual(abs(len(chunks) - 1 - tokens), 1, "one event per token")
        self.assertTrue(chunks[-2]["choices"][0]["finish_reason"])

    def test_a_second_server_on_the_port_says_so(self):
        for more in ((), ("--detach",)):
            result = self.baton("serve", harness.ALIAS, "--port", self.server.port, *more)
            self.assertEqual(result.returncode, 1)
            output = result.stdout + result.stderr
            self.assertIn(f":{self.server.port} is already in use", output)
            self.assertIn("--port", output)
        self.assertTrue(self.server.ready())
        status = self.baton("status", "--port", self.server.port)
        self.assertEqual(status.returncode, 0, "the second start took the first one's record away: " + status.stdout)
        self.assertEqual(self.server.state()["pid"], self.server.process.pid)

    def test_status(self):
        result = self.baton("status", "--port", self.server.port, "--json")
        self.assertEqual(result.returncode, 0)
        report = json.loads(result.stdout)
        self.assertTrue(report["ready"])
        self.assertEqual({(w["name"], w["role"]) for w in report["workers"]}, {("p0", "prefill"), ("d0", "decode")})
        table = self.baton("status", "--port", self.server.port).stdout
        self.assertRegex(table, r"p0 +prefill +ready")
        self.assertRegex(table, r"d0 +decode +ready")

    def test_worker_ports_are_on_loopback_only(self):
        inodes = set()
        for pid in self.server.state()["children"].values():
            for fd in os.listdir(f"/proc/{pid}/fd"):
                try:
                    link = os.readlink(f"/proc/{pid}/fd/{fd}")
                except OSError:
                    continue
                if link.startswith("socket:["):
                    inodes.add(link[8:-1])
        listening = []
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in open(table).read().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    listening.append(fields[1])
        self.assertGreaterEqual(len(listening), 5, "the gateway's and two of each worker")
        self.assertEqual([a for a in listening if not a.startswith("0100007F:")], [f"00000000:{self.server.port:04X}"], listening)

    def test_operators_endpoints(self):
        port = self.server.port
        self.assertEqual((get(port, "/health").status, get(port, "/health").body), (200, b""))
        self.assertEqual(get(port, "/ping").status, 200)
        self.assertIn("version", get(port, "/version").json())
        model = get(port, "/v1/models").json()["data"][0]
        self.assertEqual((model["id"], model["max_model_len"]), (harness.ALIAS, 8192))
        self.assertTrue(model["root"].endswith(".gguf"))
        metrics = get(port, "/metrics").body.decode()
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:time_to_first_token_seconds_bucket", "baton:"):
            self.assertIn(name, metrics)
        ids = post(port, "/tokenize", {"prompt": "Hello, wörld 🙂"}).json()
        self.assertEqual(ids["count"], len(ids["tokens"]))
        self.assertEqual(post(port, "/detokenize", {"tokens": ids["tokens"]}).json()["prompt"], "Hello, wörld 🙂")


class StartStopTest(harness.BatonTest):
    def test_stop_leaves_nothing_behind(self):
        server = self.start("--prefill", 1, "--decode", 1)
        pids = [server.process.pid, *server.state()["children"].values()]
        self.assertEqual(len(pids), 4)
        result = self.baton("stop", "--port", server.port)
        self.assertEqual(result.returncode, 0, result.stderr)
        server.process.wait(5)
        self.assertEqual(server.process.returncode, 0)
        self.assertEqual([p for p in pids if alive(p)], [])
        self.assertEqual(list((self.home.path / "run").glob(f"serve-{server.port}.json")), [])
        self.assertIn("no server runs", self.baton("stop", "--port", server.port).stdout)
        self.assertEqual(self.baton("status", "--port", server.port).returncode, 1)
        leftovers = [name for name in os.listdir("/dev/shm") if any(str(p) in name for p in pids)]
        self.assertEqual(leftovers, [], "shared memory of the stopped workers")

    def test_readiness_turns_from_503_to_200(self):
        server = self.start("--prefill", 1, "--decode", 1, ready=False)
        seen = []

        def look():
            try:
                answer = get(server.port, "/health/ready", timeout=2)
            except OSError:
                return False
            if not seen or seen[-1] != answer.status:
                seen.append(answer.status)
                if answer.status == 503:
                    self.assertTrue(answer.json()["reason"])
                    self.assertEqual(get(server.port, "/v1/models").status, 503)
            return answer.status == 200

        wait_until(look, 60, "ready")
        self.assertEqual(seen, [503, 200])
        self.assertEqual(get(server.port, "/health").status, 200)

    def test_detach_returns_when_ready_and_says_what_next(self):
        need_model()
        port = free_port()
        self.addCleanup(self.baton, "stop", "--port", port, "--timeout", 5)
        result = self.baton("serve", harness.ALIAS, "--prefill", 1, "--decode", 1, "--port", port, "--detach")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(get(port, "/health/ready").status, 200)
        for words in ("ready    after", f"http://127.0.0.1:{port}", "curl ", f"baton stop --port {port}", "max concurrency at 8192 tokens"):
            self.assertIn(words, result.stdout)
        self.assertEqual(self.baton("check", "--port", port).returncode, 0)
        again = self.baton("serve", harness.ALIAS, "--port", port, "--detach")
        self.assertEqual(again.returncode, 1)
        log = (self.home.path / "run" / f"serve-{port}.log").read_text()
        self.assertIn("listens on", log, "the second start emptied the running server's log")
        stopped = self.baton("stop", "--port", port)
        self.assertIn("stopped the server", stopped.stdout)
        with self.assertRaises(OSError):
            get(port, "/health", timeout=2)

    def test_detach_with_any_port_names_it(self):
        need_model()
        result = self.baton("serve", harness.ALIAS, "--port", 0, "--detach")
        self.assertEqual(result.returncode, 0, result.stderr)
        port = int(result.stdout.split("http://127.0.0.1:")[1].split("/")[0].split("\n")[0])
        self.addCleanup(self.baton, "stop", "--port", port, "--timeout", 5)
        self.assertIn(f"baton stop --port {port}", result.stdout)
        self.assertIn(f"serve-{port}.log", result.stdout)
        self.assertEqual(self.baton("status", "--port", port).returncode, 0)
        self.assertEqual(self.baton("stop", "--port", port).returncode, 0)

    def test_stop_while_starting(self):
        for delay in (0.02, 0.2, 0.5):
            server = self.start("--prefill", 1, "--decode", 1, ready=False)
            time.sleep(delay)  # any moment of the start will do
            children = []
            try:
                children = list(server.state()["children"].values())
            except (OSError, KeyError):
                pass
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(10)
            self.assertEqual([p for p in children if alive(p)], [])
            self.assertFalse((self.home.path / "run" / f"serve-{server.port}.json").exists())

    def test_sigterm_lets_a_running_stream_finish(self):
        server = self.start("--prefill", 1, "--decode", 1)
        with harness.open_stream(server.port, "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 120, "ignore_eos": True, "temperature": 0}) as c:
            events = c.events()
            next(events)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: get(server.port, "/health/ready").status == 503, 5, "readiness turns 503 while draining")
            rest = list(events)
        self.assertEqual(rest[-1], "[DONE]")
        self.assertEqual(json.loads(rest[-2])["choices"][0]["finish_reason"], "length")
        self.assertEqual(server.process.wait(20), 0)

    def test_ctrl_c_stops_too(self):
        server = self.start()
        server.process.send_signal(signal.SIGINT)
        self.assertEqual(server.process.wait(20), 0)
