"""`baton bench serve` against a scripted server, whose side of the story is the oracle, and against a real one."""

import json
import signal
import statistics
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import harness
from harness import ALIAS, wait_until


class ScriptedServer:
    """An OpenAI server that does what `script(n, body)` says for its n-th request: a list of what to send one after the other (events as
    objects, an Event to wait for), or (status, body)."""

    def __init__(self, script=None, port=0, models=({"id": "stub", "root": None},)):
        outer = self
        self.script = script or (lambda n, body: answer(2))
        self.requests, self.lock = [], threading.Lock()
        self.open, self.most_open = 0, 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def whole(self, status, body):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.whole(200, json.dumps({"data": list(models)}).encode())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    n = len(outer.requests)
                    outer.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                    outer.open += 1
                    outer.most_open = max(outer.most_open, outer.open)
                try:
                    self.act(outer.script(n, body))
                except OSError:
                    pass  # the client went away

            def leave(self):  # before the client can know
                with outer.lock:
                    outer.open -= 1

            def act(self, what):
                if isinstance(what, tuple):
                    self.leave()
                    return self.whole(what[0], json.dumps(what[1]).encode())
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream; charset=utf-8")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for item in what:
                    if isinstance(item, threading.Event):
                        item.wait(60)
                        continue
                    data = f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode()
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                    self.wfile.flush()
                self.leave()
                self.wfile.write(b"0\r\n\r\n")

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def chunk(text):
    return {"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": None}]}


def answer(tokens, prompt_tokens=5):
    return [chunk("ab") for _ in range(tokens)] + [{"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}}, "[DONE]"]


class BenchClientTest(harness.BatonTest):
    def bench(self, server, *args, **options):
        return self.baton("bench", "serve", "--port", server.port, "--random-input-len", 4, "--random-output-len", 3, "--disable-tqdm", *args, **options)

    def result_of(self, server, *args, **options):
        path = self.home.path / "detailed.json"
        result = self.bench(server, "--save-result", "--save-detailed", "--result-filename", path, *args, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("saved", result.stderr)
        return json.loads(path.read_text())

    def test_what_is_sent(self):
        with ScriptedServer() as server:
            result = self.bench(server, "--num-prompts", 3, "--max-concurrency", 1, "--request-id-prefix", "night-", "--header", "x-team=a=b", "--temperature", 0, "--top-k", 7,
                                "--extra-body", '{"seed": 3}', env={"OPENAI_API_KEY": "from-env"})
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual([h["x-request-id"] for _, h, _ in server.requests], ["night-0", "night-1", "night-2"])
            path, headers, body = server.requests[0]
            self.assertEqual((path, headers["x-team"], headers["authorization"]), ("/v1/completions", "a=b", "Bearer from-env"))
            self.assertEqual({k: v for k, v in body.items() if k != "prompt"},
                             {"model": "stub", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3, "ignore_eos": True, "temperature": 0.0, "top_k": 7, "seed": 3})
            self.assertEqual([len(b["prompt"]) for _, _, b in server.requests], [4, 4, 4])
        with ScriptedServer() as server:
            dataset = self.home.path / "one.jsonl"
            dataset.write_text('{"prompt": "Say 1."}\n')
            result = self.bench(server, "--backend", "openai-chat", "--dataset-name", "custom", "--dataset-path", dataset, "--header", "Authorization=Basic x", "--api-key", "k")
            self.assertEqual(result.returncode, 0, result.stderr)
            path, headers, body = server.requests[0]
            self.assertEqual((path, headers["authorization"]), ("/v1/chat/completions", "Basic x"))
            self.assertEqual(body["messages"], [{"role": "user", "content": [{"type": "text", "text": "Say 1."}]}])
            self.assertEqual((body["max_completion_tokens"], "ignore_eos" in body), (256, False))

    def test_figures_follow_from_each_request(self):
        """The statistics of the saved file, computed again from its own arrays by Python's statistics."""

        def script(n, body):
            return (503, {"error": {"message": f"worker d{n} is gone"}}) if n % 5 == 4 else answer(1 + n % 4)

        with ScriptedServer(script) as server:
            r = self.result_of(server, "--num-prompts", 25, "--max-concurrency", 4, "--request-rate", 400, "--metric-percentiles", "50,90,99", "--goodput", "ttft:60000", "tpot:60000")
        ok = [not e for e in r["errors"]]
        self.assertEqual((r["completed"], r["failed"], r["num_prompts"]), (20, 5, 25))
        pick = lambda key: [v for v, good in zip(r[key], ok) if good]  # noqa: E731
        ttft, latency, output = pick("ttfts"), pick("latencies"), pick("output_lens")
        series = {"ttft": ttft, "itl": [g for itl in pick("itls") for g in itl], "e2el": latency, "client_queue_time": pick("queue_times"),
                  "tpot": [(l - t) / (n - 1) for l, t, n in zip(latency, ttft, output) if n > 1],
                  "e2el_including_client_queue": [l + q for l, q in zip(latency, pick("queue_times"))]}
        for name, values in series.items():
            cuts = statistics.quantiles(values, n=100, method="inclusive")
            for key, expected in (("mean", statistics.fmean(values)), ("median", statistics.median(values)), ("std", statistics.pstdev(values)), ("p50", cuts[49]), ("p90", cuts[89]), ("p99", cuts[98])):
                self.assertAlmostEqual(r[f"{key}_{name}_ms"], 1e3 * expected, delta=1e-6, msg=f"{key} {name}")
        self.assertEqual((r["total_output_tokens"], r["total_input_tokens"]), (sum(output), 5 * 20))
        self.assertAlmostEqual(r["request_throughput"], 20 / r["duration"])
        self.assertAlmostEqual(r["request_goodput"], 20 / r["duration"])
        self.assertAlmostEqual(r["total_token_throughput"], (sum(output) + 100) / r["duration"])
        self.assertEqual(list(r["error_counts"].values()), [5])
        self.assertEqual([t for t, good in zip(r["generated_texts"], ok) if good][0], "ab" * output[0])

    def test_nothing_leaves_before_its_time(self):
        trace = self.home.path / "trace.csv"
        trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.0,3,1\n2023-11-16 18:15:46.5,4,2\n2023-11-16 18:15:47.2,5,3\n")
        with ScriptedServer() as server:
            r = self.result_of(server, "--dataset-name", "azure", "--dataset-path", trace, "--trace-scale", 4)
            self.assertEqual([len(b["prompt"]) for _, _, b in server.requests], [3, 4, 5])
            self.assertEqual([b["max_tokens"] for _, _, b in server.requests], [1, 2, 3])
        for start, due in zip(r["start_times"], (0, 0.125, 0.3)):
            self.assertGreaterEqual(start, due - 1e-6)
        self.assertEqual((r["request_rate"], r["trace_scale"], r["dataset_name"]), ("inf", 4, "azure"))
        with ScriptedServer() as server:
            r = self.result_of(server, "--num-prompts", 4, "--ramp-up-strategy", "linear", "--ramp-up-start-rps", 10, "--ramp-up-end-rps", 40, "--burstiness", "inf")
        for start, due in zip(r["start_times"], (1 / 10, 1 / 10 + 1 / 20, 1 / 10 + 1 / 20 + 1 / 30, 1 / 10 + 1 / 20 + 1 / 30 + 1 / 40)):
            self.assertGreaterEqual(start, due - 1e-5)
        self.assertEqual([e["rps"] for e in r["rps_change_events"]], list(range(10, 41)))

    def test_no_more_open_than_allowed(self):
        with ScriptedServer() as server:
            r = self.result_of(server, "--num-prompts", 40, "--max-concurrency", 3)
            self.assertLessEqual(server.most_open, 3)
            self.assertGreater(max(r["queue_times"]), 0)
            self.assertEqual(r["completed"], 40)
            self.assertLessEqual(r["max_concurrent_requests"], 3)

    def test_errors_come_first_and_by_kind(self):
        def script(n, body):
            return answer(2) if n % 4 == 0 else [chunk("a"), {"error": {"message": f"lost at token {n}"}}, "[DONE]"] if n % 4 == 1 else (429, {"error": {"message": f"full; retry after {n} s"}})

        with ScriptedServer(script) as server:
            result = self.bench(server, "--num-prompts", 8, "--max-concurrency", 1)
            self.assertEqual(result.returncode, 0, result.stderr)
            lines = result.stdout.splitlines()
            self.assertEqual(lines[0], "6 of 8 requests failed:")
            self.assertEqual(lines[1], "       4 x HTTP 429: full; retry after 2 s")
            self.assertEqual(lines[2], "       2 x lost at token 1")
            self.assertEqual(lines[3], " Serving Benchmark Result ".center(50, "="))
            result = self.bench(server, "--num-prompts", 1, "--json")  # the 9th: an answer
            self.assertEqual((result.returncode, json.loads(result.stdout)["completed"]), (0, 1))
        with ScriptedServer(lambda n, body: (500, {"error": {"message": "broken"}})) as server:
            result = self.bench(server, "--num-prompts", 3)
            self.assertEqual(result.returncode, 1)
            self.assertTrue(result.stdout.startswith("3 of 3 requests failed:\n       3 x HTTP 500: broken\n"), result.stdout)
            self.assertIn("no request succeeded", result.stderr)
            result = self.bench(server, "--num-prompts", 3, "--num-warmups", 2)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertIn("a warm-up request failed: HTTP 500: broken", result.stderr)

    def test_answers_of_other_servers(self):
        """Null where text or numbers are expected, no usage, comments: counted, not fatal."""
        odd = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}, {"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": None},
               {"choices": [{"index": 0, "text": None}], "usage": {"completion_tokens": None}}, {"choices": None}, "[DONE]"]
        with ScriptedServer(lambda n, body: odd, models=({"id": "other", "root": None}, {"id": "second"})) as server:
            r = self.result_of(server, "--num-prompts", 1, "--model", "second")
            self.assertEqual(server.requests[0][2]["model"], "second")
        self.assertEqual((r["completed"], r["output_lens"], r["input_lens"], r["generated_texts"], r["tokenizer_id"]), (1, [3], [4], ["x"], None))

    def test_interrupted_it_keeps_what_there_is(self):
        never = threading.Event()
        self.addCleanup(never.set)
        path = self.home.path / "interrupted.json"
        with ScriptedServer(lambda n, body: answer(2) if n < 3 else [chunk("a"), never]) as server:
            process = subprocess.Popen([harness.PROGRAM, "bench", "serve", "--port", str(server.port), "--num-prompts", "10", "--max-concurrency", "5", "--random-input-len", "4",
                                        "--append-result", "--save-detailed", "--result-filename", str(path)], env=harness.environment(self.home), stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=harness._die_with_parent)
            self.addCleanup(process.kill)
            wait_until(lambda: len(server.requests) == 8, 20, lambda: f"five are stuck; {len(server.requests)} came")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 1, err)
        self.assertIn("interrupted when 3 of 10 requests had ended", err)
        self.assertIn("Successful requests:                     3", out)
        r = json.loads(path.read_text())
        self.assertEqual((r["interrupted"], r["completed"], r["failed"], r["num_prompts"], len(r["ttfts"])), (True, 3, 0, 10, 3))

    def test_the_result_file_is_tried_before_the_run(self):
        file = self.home.path / "a-file"
        file.write_text("")
        with ScriptedServer() as server:
            for place in (self.home.path, file / "r.json"):
                result = self.bench(server, "--num-prompts", 1, "--save-result", "--result-filename", place)
                self.assertEqual(result.returncode, 1)
                self.assertIn(str(place if place == self.home.path else file), result.stderr)
            self.assertEqual(server.requests, [])
            path = self.home.path / "sub" / "many.json"
            for _ in range(2):
                self.assertEqual(self.bench(server, "--num-prompts", 1, "--append-result", "--result-dir", path.parent, "--result-filename", path.name).returncode, 0)
            self.assertEqual([json.loads(line)["completed"] for line in path.read_text().splitlines()], [1, 1])
            self.assertEqual(self.bench(server, "--num-prompts", 2, "--save-result", "--result-filename", path).returncode, 0)
            self.assertEqual(json.loads(path.read_text())["completed"], 2, "replaced")
            # A file that takes nothing: the figures are not lost.
            result = self.bench(server, "--num-prompts", 1, "--save-result", "--result-filename", "/dev/full")
            self.assertEqual(result.returncode, 1)
            self.assertIn('"completed": 1', result.stderr)

    def test_waits_until_the_server_is_ready(self):
        port = harness.free_port()
        process = subprocess.Popen([harness.PROGRAM, "bench", "serve", "--port", str(port), "--num-prompts", "2", "--max-concurrency", "1", "--random-input-len", "4",
                                    "--ready-check-timeout-sec", "30", "--json"], env=harness.environment(self.home), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, preexec_fn=harness._die_with_parent)
        self.addCleanup(process.kill)
        with ScriptedServer(lambda n, body: (503, {"error": {"message": "loading"}}) if n < 2 else answer(2), port=port) as server:
            out, err = process.communicate(timeout=40)
            self.assertEqual(process.returncode, 0, err)
            self.assertEqual(json.loads(out)["completed"], 2)
            self.assertEqual(len(server.requests), 2 + 1 + 2, "refused, accepted, measured")
        with ScriptedServer(lambda n, body: (404, {"error": {"message": "no such model"}})) as server:
            result = self.bench(server, "--num-prompts", 2, "--ready-check-timeout-sec", 60, timeout=30)
            self.assertEqual((result.returncode, len(server.requests)), (1, 1), "what will not change is not asked for again")
            self.assertIn("no such model", result.stderr)
        result = self.baton("bench", "serve", "--port", port, "--num-prompts", 1)
        self.assertEqual(result.returncode, 1, "nobody there and no wait")

    def test_bad_data_is_found_before_the_run(self):
        trace = self.home.path / "bad.jsonl"
        with ScriptedServer() as server:
            for row, message in (('{"timestamp": -1, "input_length": 4, "output_length": 1, "hash_ids": [1]}', "bad.jsonl:1: `timestamp`: expected milliseconds"),
                                 ('{"timestamp": 5', "bad.jsonl:1: expected a JSON object")):
                trace.write_text(row + "\n")
                result = self.bench(server, "--dataset-name", "mooncake", "--dataset-path", trace)
                self.assertEqual(result.returncode, 1)
                self.assertIn(message, result.stderr)
            self.assertEqual(server.requests, [])


class BenchTraceTest(harness.BatonTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.start_shared("--prefill", 1, "--decode", 1)

    def bench(self, *args):
        result = self.baton("bench", "serve", "--port", self.server.port, "--json", *args, timeout=120)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def test_mooncake_prefixes_are_found_in_the_cache(self):
        trace = self.home.path / "trace.jsonl"
        rows = [(0, 700, [1, 2]), (10, 1100, [1, 3, 4]), (20, 600, [5, 6]), (30, 1100, [1, 3, 7])]
        trace.write_text("".join(json.dumps({"timestamp": t, "input_length": n, "output_length": 4, "hash_ids": h}) + "\n" for t, n, h in rows))
        r = self.bench("--dataset-name", "mooncake", "--dataset-path", trace, "--max-concurrency", 1, "--request-id-prefix", "trace-")
        self.assertEqual((r["completed"], r["total_input_tokens"], r["total_output_tokens"]), (4, 700 + 1100 + 600 + 1100, 16))
        cached = [self.cached_tokens(f"trace-{i}") for i in range(4)]
        self.assertEqual([c // 512 * 512 for c in cached], [0, 512, 0, 1024], cached)

    def cached_tokens(self, request_id):
        return self.server.record(request_id)["cached_tokens"]

    def test_azure_window(self):
        r = self.bench("--dataset-name", "azure", "--trace-start", 4, "--trace-duration", 6, "--trace-scale", 4, "--trace-max-len", 700)
        rows = (harness.ROOT / "bench" / "data" / "azure_conv_2023.csv").read_text().splitlines()[1:]
        seconds = lambda row: sum(float(x) * m for x, m in zip(row.split(",")[0].split(" ")[1].split(":"), (3600, 60, 1)))  # noqa: E731
        lengths = [tuple(map(int, row.split(",")[1:])) for row in rows if 4 <= seconds(row) - seconds(rows[0]) < 10]
        lengths = [(i, o) for i, o in lengths if i + o <= 700]
        self.assertGreater(len(lengths), 2)
        self.assertEqual((r["completed"], r["total_input_tokens"], r["total_output_tokens"]), (len(lengths), sum(i for i, _ in lengths), sum(o for _, o in lengths)))

    def test_sonnet_and_sampling(self):
        r = self.bench("--dataset-name", "sonnet", "--num-prompts", 4, "--sonnet-input-len", 300, "--sonnet-prefix-len", 150, "--sonnet-output-len", 8, "--ignore-eos",
                       "--temperature", 0.5, "--top-p", 0.9, "--top-k", 20, "--min-p", 0.01, "--frequency-penalty", 0.1, "--presence-penalty", 0.1, "--repetition-penalty", 1.1)
        self.assertEqual((r["completed"], r["total_output_tokens"]), (4, 32))
        self.assertLessEqual(r["total_input_tokens"], 4 * 300)
        self.assertGreater(r["total_input_tokens"], 4 * 230)
        self.assertIn(ALIAS.split("-")[0], r["tokenizer_id"].lower())
