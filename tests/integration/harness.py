"""Starts the real program and talks to it over sockets of its own; everything has a deadline and everything is killed at the end.

Environment: BATON_PROGRAM (the program under test), BATON_TEST_MODEL (the default model's GGUF file). Tests whose model is missing are skipped.
"""

import asyncio
import ctypes
import dataclasses
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("BATON_PROGRAM", str(ROOT / "build" / "baton"))
ALIAS = "smollm2-135m"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = pathlib.Path(os.environ.get("BATON_TEST_MODEL") or pathlib.Path.home() / ".cache" / "baton" / "models" / ALIAS / MODEL_FILE)

resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


def need_model():
    if not MODEL.exists():
        raise unittest.SkipTest(f"no model at {MODEL}: run `baton pull {ALIAS}` or set BATON_TEST_MODEL")


def wait_until(condition, timeout, what):
    """The first true value of condition(); polls, and fails naming `what` at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what() if callable(what) else what}")
        time.sleep(0.01)


def alive(pid):
    """True while the process runs; a zombie does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def free_port():
    """Not one that the system gives to who asks for any: another process of the test might, before this one is used."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def cores():
    return sorted(os.sched_getaffinity(0))


# ---- HTTP over plain sockets


@dataclasses.dataclass
class Response:
    status: int
    headers: dict  # lower-case names
    body: bytes

    def json(self):
        return json.loads(self.body)

    def error(self):
        return self.json()["error"]["message"]


def request_bytes(method, path, body=b"", headers=None):
    if isinstance(body, (dict, list)):
        body = json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close"]
    names = {k.lower() for k in headers or {}}
    if body and "content-length" not in names:
        lines.append(f"Content-Length: {len(body)}")
    if body and "content-type" not in names:
        lines.append("Content-Type: application/json")
    lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection:
    """One request on one connection; the answer as it arrives."""

    def __init__(self, port, timeout=60):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.deadline = time.monotonic() + timeout
        self.buffer = b""
        self.status, self.headers = None, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def _fill(self):
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer is not whole at the deadline")
        self.sock.settimeout(left)
        data = self.sock.recv(1 << 16)
        self.buffer += data
        return bool(data)

    def _line(self):
        while b"\r\n" not in self.buffer:
            if not self._fill():
                raise ConnectionError(f"the connection ended inside a line: {self.buffer[:200]!r}")
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line.decode()

    def _exactly(self, n):
        while len(self.buffer) < n:
            if not self._fill():
                raise ConnectionError(f"the connection ended {n - len(self.buffer)} bytes early")
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def read_head(self):
        status_line = self._line()
        self.status = int(status_line.split()[1])
        while line := self._line():
            name, value = line.split(":", 1)
            self.headers[name.lower()] = value.strip()
        if self.status == 100:
            self.headers = {}
            return self.read_head()
        return self.status

    def chunks(self):
        """The pieces of the body: the chunks of a chunked one, one by one."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self._line(), 16):
                yield self._exactly(size)
                self._exactly(2)
            self._line()
        else:
            yield self._exactly(int(self.headers.get("content-length", 0)))

    def events(self):
        """The data of each server-sent event; each must be whole in its chunk, exactly `data: ` + one line + blank line."""
        for chunk in self.chunks():
            for event in chunk.decode().split("\n\n")[:-1]:
                assert event.startswith("data: ") and "\n" not in event and "\r" not in event, f"not one data line: {event!r}"
                yield event[6:]
            assert chunk.endswith(b"\n\n"), f"an event is split over chunks: {chunk!r}"


def http(port, method, path, body=b"", headers=None, timeout=60):
    with Connection(port, timeout) as c:
        c.send(request_bytes(method, path, body, headers))
        c.read_head()
        return Response(c.status, c.headers, b"".join(c.chunks()))


def get(port, path, timeout=10):
    return http(port, "GET", path, timeout=timeout)


def post(port, path, body, headers=None, timeout=60):
    return http(port, "POST", path, body, headers, timeout)


def open_stream(port, path, body, timeout=60, headers=None):
    """Sends a streaming request and reads the head of the answer."""
    c = Connection(port, timeout)
    c.send(request_bytes("POST", path, {**body, "stream": True}, headers))
    c.read_head()
    return c


def stream(port, path, body, timeout=60):
    """All events of a streamed answer, parsed; the last must be [DONE]."""
    with open_stream(port, path, body, timeout) as c:
        assert c.status == 200, f"HTTP {c.status}: {b''.join(c.chunks())!r}"
        events = list(c.events())
    assert events and events[-1] == "[DONE]", f"the stream does not end with [DONE]: {events[-1:]}"
    return [json.loads(e) for e in events[:-1]]


def stream_text(events):
    """The first choice's text of chat or completion chunks."""
    out = ""
    for event in events:
        for choice in event.get("choices", []):
            if choice["index"] == 0:
                out += choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
    return out


async def async_stream(port, path, body, timeout=120):
    """As `stream`, for a thousand at once: the status and the raw body."""

    async def run():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request_bytes("POST", path, {**body, "stream": True}))
            await writer.drain()
            return await reader.read(-1)
        finally:
            writer.close()

    answer = await asyncio.wait_for(run(), timeout)
    return int(answer.split(b" ", 2)[1]), answer


def in_parallel(functions):
    """Runs them in threads; their results in order, the first exception re-raised."""
    results = [None] * len(functions)

    def call(i, f):
        try:
            results[i] = (f(), None)
        except BaseException as e:  # noqa: BLE001: re-raised below
            results[i] = (None, e)

    threads = [threading.Thread(target=call, args=(i, f), daemon=True) for i, f in enumerate(functions)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for _, error in results:
        if error:
            raise error
    return [value for value, _ in results]


# ---- the program


class Home:
    """A temporary BATON_HOME in which the default model is pulled already."""

    def __init__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="baton-test-"))
        if MODEL.exists():
            folder = self.path / "models" / ALIAS
            folder.mkdir(parents=True)
            (folder / MODEL_FILE).symlink_to(MODEL.resolve())

    def remove(self):
        shutil.rmtree(self.path, ignore_errors=True)


def environment(home, extra=None):
    # What the tester has set for other programs must not leak in.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("BATON_", "HF_", "VLLM_", "OPENAI_"))}
    return {**env, "BATON_HOME": str(home.path), **(extra or {})}


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def baton(home, *args, timeout=60, text_input=None, env=None):
    """Runs a command to its end."""
    return subprocess.run([PROGRAM, *map(str, args)], env=environment(home, env), input=text_input, capture_output=True, text=True, timeout=timeout,
                          preexec_fn=_die_with_parent, **({} if text_input is not None else {"stdin": subprocess.DEVNULL}))


class Server:
    """`baton serve` in the foreground, its output in a file."""

    def __init__(self, home, *flags, model=ALIAS, env=None, port=None):
        self.home, self.port = home, port or free_port()
        self.log_path = home.path / f"server-{self.port}.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([PROGRAM, "serve", str(model), "--port", str(self.port), *map(str, flags)], env=environment(home, env), stdout=log,
                                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)

    def log(self):
        return self.log_path.read_text(errors="replace")

    def ready(self):
        try:
            return get(self.port, "/health/ready", timeout=2).status == 200
        except OSError:
            return False

    def wait_ready(self, timeout=60):
        def look():
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            return self.ready() and "ready    after" in self.log()  # all workers, not only one of each role

        wait_until(look, timeout, lambda: f"ready; its log:\n{self.log()}")
        return self

    def state(self):
        return json.loads((self.home.path / "run" / f"serve-{self.port}.json").read_text())

    def child(self, name):
        return self.state()["children"][name]

    def workers(self):
        return {w["name"]: w for w in get(self.port, "/debug/workers").json()}

    def record(self, request_id):
        """The finished record of a request."""
        return wait_until(lambda: (r := get(self.port, f"/debug/requests/{request_id}").json()).get("state") == "finished" and r, 5, f"a finished record of {request_id}")

    def stop(self, timeout=30):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"did not stop within {timeout} s of SIGTERM:\n{self.log()}") from None
        return self.process.returncode

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


class BatonTest(unittest.TestCase):
    """One home per class; servers started through `start` are killed at the end, and their logs shown where a test failed."""

    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        cls.home = Home()
        cls.addClassCleanup(cls.home.remove)

    @classmethod
    def start_shared(cls, *flags, **options):
        """A server for all tests of the class."""
        need_model()
        server = Server(cls.home, *flags, **options)
        cls.addClassCleanup(server.kill)
        return server.wait_ready()

    def start(self, *flags, ready=True, **options):
        """A server for this test."""
        if "model" not in options:
            need_model()
        server = Server(self.home, *flags, **options)
        self.addCleanup(server.kill)
        return server.wait_ready() if ready else server

    def baton(self, *args, **options):
        return baton(self.home, *args, **options)
