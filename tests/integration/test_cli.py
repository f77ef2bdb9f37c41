"""The commands as people type them."""

import fcntl
import json
import os
import pty
import re
import select
import subprocess
import termios
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import harness
from harness import ALIAS, need_model

COMMANDS = [["serve"], ["chat"], ["check"], ["status"], ["stop"], ["pull"], ["bench"], ["bench", "serve"], ["bench", "engine"], ["bench", "compare"], ["chaos"], ["doctor"], ["gateway"], ["worker"]]


class CommandLineTest(harness.BatonTest):
    """No server needed."""

    def test_help_of_every_command(self):
        for command in [[], *COMMANDS]:
            result = self.baton(*command, "--help")
            self.assertEqual((result.returncode, result.stderr), (0, ""), command)
            self.assertGreater(len(result.stdout), 100, command)
            self.assertNotIn("terminate", result.stdout)
        overview = self.baton("--help").stdout
        for command in COMMANDS:
            self.assertIn(f"  {command[0]}", overview)
        self.assertEqual(self.baton().returncode, 2)
        self.assertRegex(self.baton("--version").stdout, r"^baton \d+\.\d+\.\d+\n$")

    def test_unknown_flags_and_commands(self):
        for args, hint in ((("serve", ALIAS, "--prefil", 1), "did you mean --prefill?"), (("serve", ALIAS, "--max-model-length", 1), "did you mean --max-model-len?"),
                           (("serve", ALIAS, "--servd_model_name", "x"), "did you mean --served-model-name?"), (("chek",), "did you mean 'check'?"),
                           (("bench", "server"), "no benchmark 'server'"), (("status", "--prot", 1), "did you mean --port?"), (("stop", "now"), "unexpected argument now")):
            result = self.baton(*args)
            self.assertEqual(result.returncode, 2, args)
            self.assertIn(hint, result.stderr)

    def test_bad_values(self):
        for args in (("serve",), ("serve", ALIAS, "--port", "99999"), ("serve", ALIAS, "--port", "x"), ("serve", ALIAS, "--dtype", "int3"), ("serve", ALIAS, "--max-num-seqs", "0"),
                     ("worker", ALIAS, "--role", "king"), ("serve", ALIAS, "--config", "/nonexistent.yaml"), ("chat", "--temperature", "hot"), ("bench",)):
            result = self.baton(*args)
            self.assertEqual(result.returncode, 2, args)
            self.assertIn("rror", result.stderr + ("error" if args == ("bench",) else ""))

    def test_bad_values_that_need_the_model(self):
        need_model()
        for args, words in ((("--max-model-len", "100000"), "at most 8192"), (("--max-model-len", "many"), "is not a size"), (("--cores", "0-"), "is not a list of cores"),
                            (("--cores", "4000"), "core 4000"), (("--kv-cache-memory-bytes", "-3"), "is not a size"), (("--chat-template", "/none"), "/none"),
                            (("--host", "256.1.1.1"), "256.1.1.1")):
            result = self.baton("serve", ALIAS, "--port", harness.free_port(), *args)
            self.assertEqual(result.returncode, 1, args)
            self.assertIn(words, result.stdout + result.stderr)

    def test_status_and_others_on_nothing(self):
        port = harness.free_port()
        for args in (("status",), ("status", "--json"), ("check",), ("chat", "-q", "hi"), ("bench", "serve", "--num-prompts", 1)):
            result = self.baton(*args, "--port", port)
            self.assertEqual(result.returncode, 1, args)
            self.assertIn("error", result.stderr)
        self.assertIn("no server", self.baton("status", "--port", port).stderr)
        self.assertIn("baton serve", self.baton("chat", "-q", "hi", "--port", port).stderr)

    def test_doctor(self):
        result = self.baton("doctor", "--json")
        findings = json.loads(result.stdout)
        findings = findings["findings"] if isinstance(findings, dict) else findings
        subjects = {f["subject"] for f in findings}
        for subject in ("cpu", "cores", "memory"):
            self.assertIn(subject, subjects)
        text = self.baton("doctor").stdout
        for subject in subjects:
            self.assertIn(subject, text)

    def test_pull_refuses_nonsense(self):
        for name in ("nothing", "a/b/c", "../x/y", "/a/b"):
            result = self.baton("pull", name)
            self.assertEqual(result.returncode, 1)
            self.assertIn("neither a known name", result.stderr)


class ServerCommandsTest(harness.BatonTest):
    """Commands against a running server, which was started from a --config file."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        need_model()
        config = cls.home.path / "serve.yaml"
        config.write_text("# as vLLM reads it\nprefill: 1\ndecode: 1\nserved_model_name: [from-file, other]\nmax-model-len: 2k\nenforce-eager: true\nmax-num-seqs: 3\n")
        cls.server = cls.start_shared("--config", config, "--max-num-seqs", 16, "--swap-space", 4)
        cls.port = cls.server.port

    def test_the_config_file_was_read_and_the_command_line_won(self):
        model = harness.get(self.port, "/v1/models").json()["data"]
        self.assertEqual(([m["id"] for m in model], model[0]["max_model_len"]), (["from-file", "other"], 2000))
        self.assertEqual(self.server.workers()["d0"]["max_num_seqs"], 16)
        self.assertIn("--swap-space has no effect here", self.server.log())

    def test_chat_with_one_question(self):
        result = self.baton("chat", "-q", "What is the capital of Germany?", "--temperature", 0, "--max-tokens", 24, "--port", self.port)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("Berlin", result.stdout)
        self.assertRegex(result.stdout, r"\[\d+ tokens, first after \d+ ms, [\d.]+ tok/s\]")

    def test_chat_over_a_pipe(self):
        lines = ["/help", "/set temperature 0", "/set max_tokens 12", "What is the capital of Germany?", "And of Italy?", "/show", "/new", "/show", "/system Answer in one word.",
                 "/show", "/nonsense", "", "What is 1 + 1?", "/set max_tokens 0", "This fails.", "/bye", "not reached"]
        result = self.baton("chat", "--port", self.port, text_input="\n".join(lines) + "\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("Berlin", result.stdout)
        self.assertIn('{"temperature":0,"max_tokens":12}', result.stdout)
        self.assertEqual(re.findall(r"(\d+) messages", result.stdout), ["4", "0", "1"])
        self.assertIn("system: Answer in one word.", result.stdout)
        self.assertEqual(result.stdout.count("tok/s]"), 3)
        self.assertIn("max_tokens", result.stderr, "the server's message about the bad setting")
        self.assertGreaterEqual(result.stdout.count("/system TEXT"), 2, "help for /help and for what is no command")

    def test_chat_keeps_the_conversation(self):
        with EchoServer() as echo:
            result = self.baton("chat", "--port", echo.port, "--system", "Be kind.", text_input="one\ntwo\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual([[m["content"] for m in r["messages"]] for r in echo.requests], [["Be kind.", "one"], ["Be kind.", "one", "echo", "two"]])
        self.assertTrue(all(r["stream"] for r in echo.requests))

    def test_chat_in_a_terminal(self):
        """Ctrl-C ends an answer, not the conversation; Ctrl-D leaves; the lines are kept for the next time."""
        with Terminal(self.home, "chat", "--port", self.port, "--temperature", "0") as terminal:
            terminal.expect(">>> ")
            for _ in range(2):
                terminal.type("Tell me a very long story about a king.\n")
                terminal.expect("king")
                terminal.expect(" the ")
                terminal.type("\x03")
                terminal.expect("(interrupted)")
                terminal.expect(">>> ")
            terminal.type("/set max_tokens 4\n")
            terminal.expect(">>> ")
            terminal.type("hello\n")
            terminal.expect("tok/s]")
            terminal.expect(">>> ")
            terminal.leave()
            self.assertEqual(terminal.process.wait(5), 0)
        self.assertIn("very\\040long\\040story", (self.home.path / "chat_history").read_text())

    def bench(self, *args):
        return self.baton("bench", "serve", "--port", self.port, "--num-prompts", 8, "--random-input-len", 16, "--random-output-len", 8, *args)

    def test_bench_serve_table(self):
        result = self.bench("--percentile-metrics", "ttft,tpot,itl,e2el", "--goodput", "e2el:60000", "--max-concurrency", 4, "--request-rate", 50)
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = result.stdout.splitlines()
        expected = ["Serving Benchmark Result", "Successful requests:", "Failed requests:", "Maximum request concurrency:", "Request rate configured (RPS):",
                    "Benchmark duration (s):", "Total input tokens:", "Total generated tokens:", "Request throughput (req/s):", "Request goodput (req/s):",
                    "Output token throughput (tok/s):", "Peak output token throughput (tok/s):", "Peak concurrent requests:", "Total token throughput (tok/s):",
                    "Time to First Token", "Mean TTFT (ms):", "Median TTFT (ms):", "P99 TTFT (ms):", "Time per Output Token (excl. 1st token)", "Mean TPOT (ms):",
                    "Median TPOT (ms):", "P99 TPOT (ms):", "Inter-token Latency", "Mean ITL (ms):", "Median ITL (ms):", "P99 ITL (ms):", "End-to-end Latency",
                    "Mean E2EL (ms):", "Median E2EL (ms):", "P99 E2EL (ms):"]
        lines = [line for line in lines if line.strip()]
        self.assertEqual(lines[0], " Serving Benchmark Result ".center(50, "="))
        self.assertEqual(lines[-1], "=" * 50)
        labels = []
        for line in lines[:-1]:
            if line[0] in "=-":
                labels.append(line.strip("=- "))
                self.assertEqual(len(line), 50)
            else:
                labels.append(line[:40].rstrip())
                self.assertRegex(line[41:].rstrip(), r"^\d+(\.\d\d)?$", line)
        self.assertEqual(labels, expected)
        values = {line[:40].rstrip(): line[41:].strip() for line in lines}
        self.assertEqual((values["Successful requests:"], values["Failed requests:"]), ("8", "0"))
        self.assertEqual(values["Total generated tokens:"], "64")

    def test_bench_serve_json(self):
        result = self.bench("--json", "--seed", 3)
        self.assertEqual(result.returncode, 0, result.stderr)
        figures = json.loads(result.stdout)
        self.assertEqual((figures["completed"], figures["failed"], figures["total_output_tokens"]), (8, 0, 64))
        for key in ("duration", "total_input_tokens", "request_throughput", "output_throughput", "total_token_throughput", "mean_ttft_ms", "median_ttft_ms", "std_ttft_ms",
                    "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "p99_itl_ms", "max_output_tokens_per_s", "max_concurrent_requests"):
            self.assertGreaterEqual(figures[key], 0, key)
        self.assertAlmostEqual(figures["output_throughput"], 64 / figures["duration"], delta=0.02 * figures["output_throughput"])

    def test_bench_serve_chat_and_saved_result(self):
        result = self.bench("--backend", "openai-chat", "--save-result", "--save-detailed", "--result-dir", self.home.path, "--result-filename", "r.json", "--metadata", "who=test")
        self.assertEqual(result.returncode, 0, result.stderr)
        saved = json.loads((self.home.path / "r.json").read_text())
        self.assertEqual((saved["who"], saved["request_rate"], saved["completed"], len(saved["ttfts"])), ("test", "inf", 8, 8))

    def test_bench_serve_datasets(self):
        custom = self.home.path / "custom.jsonl"
        custom.write_text("".join(json.dumps({"prompt": f"Say {i}.", "output_tokens": 3 + i}) + "\n" for i in range(4)))
        figures = json.loads(self.baton("bench", "serve", "--port", self.port, "--dataset-name", "custom", "--dataset-path", custom, "--custom-output-len", -1, "--ignore-eos", "--json").stdout)
        self.assertEqual((figures["completed"], figures["total_output_tokens"]), (4, 3 + 4 + 5 + 6))
        lengths = self.home.path / "lengths.csv"
        lengths.write_text("input_len,output_len\n20,5\n30,6\n")
        figures = json.loads(self.baton("bench", "serve", "--port", self.port, "--dataset-name", "lengths", "--dataset-path", lengths, "--json").stdout)
        self.assertEqual((figures["completed"], figures["total_input_tokens"], figures["total_output_tokens"]), (2, 50, 11))
        missing = self.baton("bench", "serve", "--port", self.port, "--dataset-name", "sharegpt", "--dataset-path", "/none.json")
        self.assertEqual(missing.returncode, 1)
        self.assertIn("/none.json", missing.stderr)

    def test_status_json(self):
        report = json.loads(self.baton("status", "--url", f"http://127.0.0.1:{self.port}", "--json").stdout)
        self.assertTrue(report["ready"])
        self.assertEqual(len(report["workers"]), 2)

    def test_check_json(self):
        report = json.loads(self.baton("check", "--port", self.port, "--json", "--prompt", "Say hello.", "--max-tokens", 8).stdout)
        self.assertLessEqual(report["completion_tokens"], 8)


class SeparateProcessesTest(harness.BatonTest):
    def test_workers_and_gateway_by_hand(self):
        need_model()
        ports = {name: harness.free_port() for name in ("p0", "d0", "gateway")}
        workers = [arg for name, role in (("p0", "prefill"), ("d0", "decode")) for arg in ("--worker", f"{name}={role}@127.0.0.1:{ports[name]}")]
        commands = [("worker", ALIAS, "--name", name, "--role", role, "--port", ports[name], "--peers", 2, "--kv-cache-memory-bytes", "256MiB")
                    for name, role in (("p0", "prefill"), ("d0", "decode"))]
        commands.append(("gateway", ALIAS, "--port", ports["gateway"], "--served-model-name", "by-hand", *workers))
        processes = []
        for command in commands:
            log = open(self.home.path / f"by-hand-{len(processes)}.log", "w")
            self.addCleanup(log.close)
            process = subprocess.Popen([harness.PROGRAM, *map(str, command)], env=harness.environment(self.home), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            processes.append(process)
        check = self.baton("check", "--port", ports["gateway"], "--json") if harness.wait_until(lambda: answers(ports["gateway"]), 30, "ready") else None
        self.assertEqual(check.returncode, 0, check.stderr)
        self.assertTrue(json.loads(check.stdout)["served"]["disaggregated"])
        for process in reversed(processes):
            process.terminate()
            self.assertEqual(process.wait(10), 0)


def answers(port):
    try:
        return harness.get(port, "/health/ready", timeout=2).status == 200
    except OSError:
        return False


class Terminal:
    """The program on a pseudo-terminal of its own."""

    def __init__(self, home, *args):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen([harness.PROGRAM, *map(str, args)], env={**harness.environment(home), "TERM": "xterm"}, stdin=slave, stdout=slave, stderr=slave,
                                        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text):
        os.write(self.master, text.encode())

    def leave(self):
        """Ctrl-D, which the kernel keeps to itself until the program takes keys one by one: a moment after the prompt is there."""
        harness.wait_until(lambda: not termios.tcgetattr(self.master)[3] & termios.ICANON, 20, lambda: "the line editor does not take over")
        self.type("\x04")

    def expect(self, words, timeout=20):
        """Waits until `words` appear after what was expected before."""
        deadline = time.monotonic() + timeout
        while words not in self.text:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"not seen within {timeout} s: {words!r}; seen: {self.text!r}")
            self.text += os.read(self.master, 1 << 16).decode(errors="replace")
        self.text = self.text.split(words, 1)[1]


class BenchEngineTest(harness.BatonTest):
    def test_quick_run(self):
        need_model()
        result = self.baton("bench", "engine", ALIAS, "--threads", 1, "-p", 64, "-n", 8, "-b", "1,2", "-r", 1, "--json", timeout=120)
        self.assertEqual(result.returncode, 0, result.stderr)
        json.loads(result.stdout)


class EchoServer:
    """An OpenAI chat server of another kind: null contents, usage without being a Baton."""

    def __enter__(self):
        outer = self
        self.requests = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, content_type, body):
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.answer("application/json", json.dumps({"data": [{"id": urllib.parse.quote(self.path)}]}).encode())

            def do_POST(self):
                outer.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                deltas = [{"role": "assistant", "content": None}, {"content": "ec"}, {"content": "ho"}, {}]
                events = [{"choices": [{"index": 0, "delta": d}]} for d in deltas] + [{"choices": [], "usage": {"completion_tokens": 2}}]
                body = b": comment\n\n" + b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events) + b"data: {}\n\ndata: [DONE]\n\n"
                self.answer("text/event-stream", body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
