"""`baton pull ORG/NAME` from a hub of the test's own, then the model is served."""

import hashlib
import json
import re
import subprocess
import sys
import threading
import time
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import harness
from harness import ROOT

try:
    import numpy
except ImportError:
    numpy = None

MODEL = "acme/tiny"


class Hub:
    """As much of a Hugging Face endpoint as pull needs; `trouble` makes it misbehave."""

    def __init__(self, files):
        self.files = files  # name -> bytes
        self.token = None
        self.cut_after = {}  # name -> bytes after which the connection is cut, once
        self.corrupt = set()
        self.wrong_sha = set()
        self.no_range = set()
        self.errors = {}  # name -> statuses to answer first
        self.delay = 0.0
        self.requests = []  # (path, Range, Authorization)
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, status, body=b"", headers=()):
                self.send_response(status)
                for k, v in headers:
                    self.send_header(k, v)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                with hub.lock:
                    hub.requests.append((self.path, self.headers["Range"], self.headers["Authorization"]))
                if hub.token and not self.path.startswith("/cdn/") and self.headers["Authorization"] != f"Bearer {hub.token}":
                    return self.reply(401, b'{"error":"gated"}')
                if self.path == f"/api/models/{MODEL}/revision/main?blobs=true":
                    return self.reply(200, json.dumps({"id": MODEL, "siblings": [hub.entry(n) for n in hub.files]}).encode())
                if match := re.fullmatch(rf"/{MODEL}/resolve/main/(.+)", self.path):
                    name = match[1]
                    if name not in hub.files:
                        return self.reply(404)
                    if name.endswith(".safetensors"):  # large files live elsewhere
                        return self.reply(302, headers=[("Location", f"http://localhost:{hub.port}/cdn/{name}")])
                    return self.send_file(name)
                if self.path.startswith("/cdn/"):
                    return self.send_file(self.path[5:])
                return self.reply(404, b'{"error":"Repository not found"}')

            def send_file(self, name):
                with hub.lock:
                    hub.open += 1
                    hub.most_open = max(hub.most_open, hub.open)
                    status = hub.errors.get(name) and hub.errors[name].pop(0)
                try:
                    time.sleep(hub.delay)
                    if status:
                        return self.reply(status)
                    data = hub.files[name]
                    if name in hub.corrupt:
                        data = data[:-1] + bytes([data[-1] ^ 1])
                    first = 0
                    wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
                    if wanted and name not in hub.no_range:
                        first = int(wanted[1])
                        if first >= len(data):
                            return self.reply(416)
                    body = data[first:]
                    self.send_response(206 if first else 200)
                    self.send_header("Content-Length", str(len(body)))
                    if first:
                        self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                    self.end_headers()
                    if name in hub.cut_after:
                        self.wfile.write(body[: hub.cut_after.pop(name)])
                        self.wfile.flush()
                        self.close_connection = True
                        self.connection.close()
                        return None
                    self.wfile.write(body)
                except OSError:
                    pass
                finally:
                    with hub.lock:
                        hub.open -= 1

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # cut connections are part of the tests
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def entry(self, name):
        entry = {"rfilename": name, "size": len(self.files[name])}
        if name.endswith((".safetensors", ".gguf")):
            entry["lfs"] = {"sha256": hashlib.sha256(b"other" if name in self.wrong_sha else self.files[name]).hexdigest(), "size": len(self.files[name])}
        return entry

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@unittest.skipUnless(numpy, "numpy is not installed; ./test.sh installs it")
class PullTest(harness.BatonTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.home.path / "made"
        subprocess.run([sys.executable, ROOT / "tools" / "make_model.py", folder, "--layers", "2"], check=True, timeout=60, capture_output=True)
        cls.files = {f.name: f.read_bytes() for f in folder.iterdir()}
        assert "model.safetensors" in cls.files

    def setUp(self):
        self.hub = Hub({**self.files, "README.md": b"not wanted", "onnx/model.onnx": b"not wanted", "pytorch_model.bin": b"not wanted"})
        self.addCleanup(self.hub.close)
        self.folder = self.home.path / "models" / MODEL
        harness.shutil.rmtree(self.folder, ignore_errors=True)

    def pull(self, *args, model=MODEL, **env):
        return self.baton("pull", model, *args, env={"HF_ENDPOINT": f"http://127.0.0.1:{self.hub.port}/", **env}, timeout=90)

    def assert_complete(self):
        self.assertEqual({f.name: f.read_bytes() for f in self.folder.iterdir()}, self.files, "exactly the wanted files, whole")

    def test_pull_then_serve_and_chat(self):
        result = self.pull()
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assert_complete()
        self.assertIn(str(self.folder), result.stdout)
        self.assertRegex(result.stderr, r"100 %")
        before = len(self.hub.requests)
        self.assertEqual(self.pull().returncode, 0)
        self.assertEqual(len(self.hub.requests), before + 1, "a second pull only lists")
        server = self.start("--prefill", 1, "--decode", 1, model=MODEL)
        answer = self.baton("chat", "-q", "hello", "--max-tokens", 8, "--port", server.port)
        self.assertEqual(answer.returncode, 0, answer.stderr)
        self.assertEqual(harness.get(server.port, "/v1/models").json()["data"][0]["id"], MODEL)
        check = self.baton("check", "--port", server.port, "--max-tokens", 12)
        self.assertEqual(check.returncode, 0, check.stdout + check.stderr)

    def test_a_cut_connection_is_resumed(self):
        size = len(self.files["model.safetensors"])
        self.hub.cut_after["model.safetensors"] = size // 2
        result = self.pull()
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assert_complete()
        self.assertEqual([r[1] for r in self.hub.requests if r[0] == "/cdn/model.safetensors"], [None, f"bytes={size // 2}-"])

    def test_what_an_earlier_run_left_is_used(self):
        size = len(self.files["model.safetensors"])
        self.folder.mkdir(parents=True)
        (self.folder / "model.safetensors.part").write_bytes(self.files["model.safetensors"][: size // 3])
        self.assertEqual(self.pull().returncode, 0)
        self.assert_complete()
        self.assertEqual([r[1] for r in self.hub.requests if r[0] == "/cdn/model.safetensors"], [f"bytes={size // 3}-"])

    def test_a_server_that_cannot_resume(self):
        self.hub.no_range.add("model.safetensors")
        self.hub.cut_after["model.safetensors"] = 1000
        result = self.pull()
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assert_complete()

    def test_a_leftover_that_is_too_long(self):
        self.folder.mkdir(parents=True)
        (self.folder / "model.safetensors.part").write_bytes(b"x" * (len(self.files["model.safetensors"]) + 5))
        self.assertEqual(self.pull().returncode, 0)
        self.assert_complete()

    def test_a_leftover_where_the_size_is_not_told(self):
        size = len(self.files["config.json"])
        entry = self.hub.entry
        self.hub.entry = lambda name: {"rfilename": name} if name == "config.json" else entry(name)
        for leftover in (self.files["config.json"][:7], b"x" * (size + 5)):
            harness.shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (self.folder / "config.json.part").write_bytes(leftover)
            result = self.pull()
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assert_complete()

    def test_a_corrupt_file(self):
        self.hub.corrupt.add("model.safetensors")
        result = self.pull()
        self.assertEqual(result.returncode, 1)
        for words in ("model.safetensors", "SHA-256", "run this again"):
            self.assertIn(words, result.stderr)
        self.assertFalse((self.folder / "model.safetensors").exists())
        self.hub.corrupt.clear()
        self.assertEqual(self.pull().returncode, 0)
        self.assert_complete()

    def test_a_gated_model(self):
        self.hub.token = "secret"
        result = self.pull()
        self.assertEqual(result.returncode, 1)
        self.assertIn("HF_TOKEN", result.stderr)
        result = self.pull(HF_TOKEN="secret")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assert_complete()
        self.assertTrue(all(r[2] is None for r in self.hub.requests if r[0].startswith("/cdn/")), "the token went to another host")

    def test_no_such_model(self):
        result = self.pull(model="acme/none")
        self.assertEqual(result.returncode, 1)
        self.assertIn("404", result.stderr)
        self.assertIn("is the name right", result.stderr)

    def test_passing_trouble_is_retried_and_lasting_trouble_named(self):
        self.hub.errors["config.json"] = [503, 429]
        self.assertEqual(self.pull().returncode, 0)
        self.assert_complete()
        harness.shutil.rmtree(self.folder)
        self.hub.errors["config.json"] = [500] * 100
        result = self.pull()
        self.assertEqual(result.returncode, 1)
        self.assertIn("config.json: HTTP 500", result.stderr)

    def test_files_come_in_parallel(self):
        self.hub.delay = 0.3
        self.assertEqual(self.pull("--parallel", 3).returncode, 0)
        self.assertGreater(self.hub.most_open, 1)
        self.assertLessEqual(self.hub.most_open, 3)
        harness.shutil.rmtree(self.folder)
        self.hub.most_open = 0
        self.assertEqual(self.pull("--parallel", 1).returncode, 0)
        self.assertEqual(self.hub.most_open, 1)

    def test_offline(self):
        result = self.pull(HF_HUB_OFFLINE="1")
        self.assertEqual(result.returncode, 1)
        self.assertIn("HF_HUB_OFFLINE", result.stderr)
        self.assertEqual(self.hub.requests, [])

    def test_names_that_would_leave_the_folder(self):
        self.hub.files["../../evil.safetensors"] = b"evil"
        self.pull()
        self.assertEqual(list(self.home.path.rglob("evil*")), [])

    def test_several_gguf_files(self):
        gguf = {"tiny.Q4_0.gguf": b"GGUF four", "tiny.Q8_0.gguf": b"GGUF eight"}
        self.hub.files = {**gguf, "README.md": b""}
        result = self.pull()
        self.assertEqual(result.returncode, 1)
        self.assertIn("tiny.Q8_0.gguf", result.stderr)
        self.assertEqual(self.pull("--file", "Q8_0").returncode, 0)
        self.assertEqual([f.name for f in self.folder.iterdir()], ["tiny.Q8_0.gguf"])
        self.assertEqual(self.pull("--file", "Q9").returncode, 1)
