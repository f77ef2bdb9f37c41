"""Bad input over the wire and bad clients: each gets a clear answer or is dropped, and nothing is lost for the others."""

import asyncio
import json
import random
import socket
import time

import harness
from harness import Connection, get, open_stream, post, request_bytes, wait_until

MB = 1 << 20


class BadInputTest(harness.BatonTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.start_shared("--prefill", 1, "--decode", 1, "--max-model-len", 1024)
        cls.port = cls.server.port

    def tearDown(self):
        # Whatever was sent, the server serves on and holds nothing.
        answer = post(self.port, "/v1/completions", {"prompt": "2 + 2 =", "max_tokens": 2, "temperature": 0})
        self.assertEqual(answer.status, 200, answer.body)
        self.wait_idle(5)

    def idle(self):
        return all(w["running"] == 0 and w["waiting"] == 0 and w["blocks_free"] + w["blocks_cached"] == w["blocks_total"] for w in self.server.workers().values())

    def wait_idle(self, timeout):
        wait_until(self.idle, timeout, lambda: f"nothing runs and all blocks are free: {self.server.workers()}")

    def refused(self, body, *words, path="/v1/completions", status=400, headers=None):
        answer = post(self.port, path, body, headers)
        self.assertEqual(answer.status, status, answer.body[:500])
        error = answer.json()["error"]
        self.assertEqual({"message", "type", "param", "code"} - set(error), set(), error)
        for word in words:
            self.assertIn(word, error["message"])
        return error

    def test_not_json(self):
        for body in (b"{", b"", b"[]", b"\"x\"", b"{\"prompt\": \"x\",}", b"\xff\xfe{}", b"[" * 100_000):
            self.refused(body)
            self.refused(body, path="/v1/chat/completions")

    def test_invalid_utf8(self):
        self.refused(b'{"prompt": "\xff\xfe broken", "max_tokens": 1}', "UTF-8")
        self.refused(b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}', "UTF-8", path="/v1/chat/completions")
        # A lone surrogate is no character either; either refuse it or answer, but do not fall over.
        self.assertIn(post(self.port, "/v1/completions", b'{"prompt": "\\ud800", "max_tokens": 1}').status, (200, 400))

    def test_unknown_model_lists_the_served(self):
        self.refused({"model": "gpt-4", "prompt": "x"}, "gpt-4", harness.ALIAS, status=404)

    def test_longer_than_the_context(self):
        self.refused({"prompt": "word " * 2000, "max_tokens": 1}, "maximum context length", "1024")
        self.refused({"prompt": "x", "max_tokens": 5000}, "maximum context length", "1024")
        self.refused({"messages": [{"role": "user", "content": "word " * 2000}]}, "maximum context length", path="/v1/chat/completions")

    def test_what_does_not_exist(self):
        self.assertEqual(get(self.port, "/v1/nothing").status, 404)
        self.assertIn(get(self.port, "/v1/chat/completions").status, (404, 405))
        self.assertEqual(get(self.port, "/debug/requests/none").status, 404)

    def test_not_http(self):
        for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\r\n" * 1000, b"POST / HTTP/9.9\r\n\r\n", random.Random(1).randbytes(10_000)):
            with Connection(self.port, timeout=10) as c:
                c.send(garbage)
                c.sock.shutdown(socket.SHUT_WR)
                while c._fill():
                    pass
                self.assertTrue(c.buffer == b"" or c.buffer.startswith(b"HTTP/1.1 4") or c.buffer.startswith(b"HTTP/1.1 5"), c.buffer[:100])

    def test_large_header(self):
        answer = get_with(self.port, {"x-large": "a" * 200_000})
        self.assertIn(answer.status, (400, 431))

    def test_64_megabytes_are_refused_at_the_announcement(self):
        with Connection(self.port, timeout=10) as c:
            c.send(request_bytes("POST", "/v1/completions", headers={"Content-Length": str(64 * MB), "Content-Type": "application/json"}))
            self.assertEqual(c.read_head(), 413)
            self.assertIn("error", json.loads(b"".join(c.chunks())))

    def test_64_megabytes_sent_whole_before_reading(self):
        body = b'{"prompt": "' + b"a" * (64 * MB) + b'"}'
        with Connection(self.port, timeout=30) as c:
            c.send(request_bytes("POST", "/v1/completions", body))
            self.assertEqual(c.read_head(), 413)
            self.assertIn("error", json.loads(b"".join(c.chunks())))

    def test_64_megabytes_in_chunks(self):
        with Connection(self.port, timeout=30) as c:
            c.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(64):
                c.send(b"100000\r\n" + b"a" * MB + b"\r\n")
            c.send(b"0\r\n\r\n")
            self.assertEqual(c.read_head(), 413)

    def test_a_client_that_vanishes_mid_stream(self):
        for how in ("close", "reset"):
            c = open_stream(self.port, "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True})
            events = c.events()
            for _ in range(3):
                next(events)
            wait_until(lambda: not self.idle(), 2, "it is seen to run")
            if how == "reset":
                c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            c.close()
            self.wait_idle(1)

    def test_a_client_that_vanishes_during_the_prompt(self):
        for stream in (False, True):
            with Connection(self.port) as c:
                c.send(request_bytes("POST", "/v1/completions", {"prompt": f"{time.time_ns()} " + "word " * 800, "max_tokens": 100, "ignore_eos": True, "stream": stream}))
                wait_until(lambda: not self.idle(), 5, "the request runs")
            self.wait_idle(1)

    def test_a_client_that_leaves_while_it_waits_for_a_plain_answer(self):
        with Connection(self.port) as c:
            c.send(request_bytes("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 900, "ignore_eos": True}))
            wait_until(lambda: self.server.workers()["d0"]["running"] == 1, 5, "it decodes")
        self.wait_idle(1)

    def test_a_slow_reader_does_not_slow_the_others(self):
        slow = socket.socket()
        self.addCleanup(slow.close)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", self.port))
        slow.sendall(request_bytes("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True, "logprobs": 5}))
        started = time.monotonic()
        events = harness.stream(self.port, "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 50, "ignore_eos": True})
        self.assertGreaterEqual(len(events), 50)
        self.assertLess(time.monotonic() - started, 20)
        # The slow one's tokens wait for it: it still gets all of them.
        slow.settimeout(60)
        data = b""
        while piece := slow.recv(1 << 16):
            data += piece
            if data.endswith(b"0\r\n\r\n"):
                break
        self.assertIn(b"data: [DONE]", data)
        self.assertGreaterEqual(data.count(b"data: "), 901)

    def test_a_slow_sender(self):
        body = json.dumps({"prompt": "2 + 2 =", "max_tokens": 2, "temperature": 0}).encode()
        data = request_bytes("POST", "/v1/completions", body)
        with Connection(self.port) as c:
            for i in range(0, len(data), 16):
                c.send(data[i : i + 16])
                time.sleep(0.005)
            self.assertEqual(c.read_head(), 200)

    def test_half_sent_requests(self):
        """Many at once: the server lives on, and cuts them when their time is over."""
        head = request_bytes("POST", "/v1/completions", b"x" * 1000)[:-900]
        with_body = [Connection(self.port, timeout=60) for _ in range(50)]
        without = [Connection(self.port, timeout=60) for _ in range(50)]
        for c in with_body:
            self.addCleanup(c.close)
            c.send(head)
        for c in without:
            self.addCleanup(c.close)
            c.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConte")
        self.assertEqual(post(self.port, "/v1/completions", {"prompt": "2 + 2 =", "max_tokens": 2}).status, 200)
        for c in with_body + without:
            while c._fill():  # ends, with or without a 408
                pass
            self.assertTrue(c.buffer == b"" or c.buffer.startswith(b"HTTP/1.1 408"), c.buffer[:100])

    def test_a_template_that_fails(self):
        template = self.home.path / "bad.jinja"
        template.write_text("{% if messages[0]['role'] != 'system' %}{{ raise_exception('the first message must be a system message') }}{% endif %}x")
        server = self.start("--chat-template", template)
        answer = post(server.port, "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        self.assertEqual(answer.status, 400)
        self.assertIn("the first message must be a system message", answer.error())


def get_with(port, headers):
    return harness.http(port, "GET", "/health", headers=headers)


class ManyStreamsTest(harness.BatonTest):
    def test_a_thousand_streams_at_once(self):
        server = self.start("--prefill", 1, "--decode", 1, "--max-model-len", 256)

        async def all_of_them():
            body = {"prompt": [11, 12, 13, 14], "max_tokens": 4, "ignore_eos": True, "temperature": 0}
            return await asyncio.gather(*(harness.async_stream(server.port, "/v1/completions", body, timeout=100) for _ in range(1000)))

        answers = asyncio.run(all_of_them())
        failed = [a for status, a in answers if status != 200 or b"data: [DONE]\n\n" not in a or b'"error"' in a]
        self.assertEqual(len(failed), 0, failed[:1])
        texts = {tuple(json.loads(line[6:])["choices"][0]["text"] for line in a.split(b"\n") if line.startswith(b"data: {")) for _, a in answers}
        self.assertEqual(len(texts), 1, "the same request, the same tokens")
        wait_until(lambda: all(w["running"] + w["waiting"] == 0 for w in server.workers().values()), 3, "nothing runs")


class BadStartTest(harness.BatonTest):
    def serve(self, model, *flags, timeout=60):
        for detach in ((), ("--detach",)):
            port = harness.free_port()
            result = self.baton("serve", model, "--port", port, *flags, *detach, timeout=timeout)
            self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
            self.assertFalse((self.home.path / "run" / f"serve-{port}.json").exists())
            with self.assertRaises(OSError):
                get(port, "/health", timeout=2)
        return result.stdout + result.stderr

    def test_no_such_model(self):
        message = self.serve("nothing-here")
        self.assertIn("nothing-here", message)
        self.assertIn("baton pull", message)

    def test_no_memory_for_the_kv_cache(self):
        harness.need_model()
        message = self.serve(harness.ALIAS, "--kv-cache-memory-bytes", "900GiB")
        self.assertIn("900", message)
        self.assertRegex(message, r"--kv-cache-memory-bytes \d+ would fit")
        fits = message.split("--kv-cache-memory-bytes ")[1].split()[0]
        server = self.start("--kv-cache-memory-bytes", fits)
        self.assertEqual(post(server.port, "/v1/completions", {"prompt": "x", "max_tokens": 1}).status, 200)

    def test_too_little_kv_cache_for_the_length(self):
        harness.need_model()
        message = self.serve(harness.ALIAS, "--kv-cache-memory-bytes", "16MiB", "--max-model-len", 8192)
        self.assertIn("largest that fits: --max-model-len", message)
        length = message.split("largest that fits: --max-model-len ")[1].split(",")[0]
        server = self.start("--kv-cache-memory-bytes", "16MiB", "--max-model-len", length)
        self.assertEqual(get(server.port, "/v1/models").json()["data"][0]["max_model_len"], int(length))

    def test_a_truncated_gguf(self):
        harness.need_model()
        path = self.home.path / "truncated.gguf"
        data = harness.MODEL.read_bytes()
        for size in (3, 100, 100_000, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:size])
            message = self.serve(path) if size == len(data) // 2 else self.baton("serve", path, "--port", harness.free_port()).stdout
            self.assertIn("truncated.gguf", message)
            self.assertIn("error", message)

    def test_a_safetensors_header_that_lies(self):
        folder = self.home.path / "lying"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256}))

        def write(header, body=b"\0" * 64, length=None):
            text = header if isinstance(header, bytes) else json.dumps(header).encode()
            (folder / "model.safetensors").write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)

        tensor = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
        for case in ({"x": {**tensor, "data_offsets": [0, 1 << 60]}}, {"x": {**tensor, "data_offsets": [64, 0]}}, {"x": {**tensor, "shape": [1 << 40, 1 << 40]}},
                     {"x": {**tensor, "shape": [5, 5]}}, {"x": {**tensor, "dtype": "F99"}}, {"x": tensor, "y": tensor}, b"not json"):
            write(case)
            result = self.baton("serve", folder, "--port", harness.free_port())
            self.assertEqual(result.returncode, 1, case)
            self.assertIn("model.safetensors", result.stdout + result.stderr)
        write({"x": tensor}, length=1 << 62)
        message = self.serve(folder)
        self.assertIn("model.safetensors", message)

    def test_an_unknown_architecture(self):
        folder = self.home.path / "unknown"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": 64}))
        message = self.serve(folder)
        self.assertIn("MambaForCausalLM", message)
        self.assertIn("Qwen2", message, "what is supported")

    def test_one_role_alone(self):
        harness.need_model()
        self.assertIn("--prefill and --decode go together", self.serve(harness.ALIAS, "--prefill", 1))
        self.assertIn("expected how many", self.serve(harness.ALIAS, "--prefill", "0", "--decode", 1))
