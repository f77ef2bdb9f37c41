"""Workers die at random under mixed load: every answer is right or a clear error, and at the end nothing is held."""

import json
import os
import random
import signal
import threading
import time

import harness
from harness import open_stream, post, wait_until

PROMPTS = ["Once upon a time there was a king who", "The three largest rivers of Europe are", "def fibonacci(n):", "A long list of numbers: " + ", ".join(map(str, range(150)))]
BODY = {"max_tokens": 48, "ignore_eos": True, "temperature": 0}


class ChaosTest(harness.BatonTest):
    SECONDS = 12

    def setUp(self):
        self.server = self.start("--prefill", 2, "--decode", 2, "--threads", 1, "--kv-cache-memory-bytes", "256MiB", "--max-model-len", 2048)
        self.right = {p: post(self.server.port, "/v1/completions", {**BODY, "prompt": p}).json()["choices"][0]["text"] for p in PROMPTS}
        self.counts = {"right": 0, "error": 0, "left": 0}
        self.wrong = []
        self.stop = time.monotonic() + self.SECONDS

    def client(self, seed):
        rng = random.Random(seed)
        while time.monotonic() < self.stop:
            prompt, how = rng.choice(PROMPTS), rng.choice(["plain", "stream", "stream", "leave"])
            try:
                self.one(prompt, how, rng)
            except Exception as error:  # noqa: BLE001: any is a finding
                self.wrong.append(f"{how}: {error!r}")

    def one(self, prompt, how, rng):
        body = {**BODY, "prompt": prompt}
        if how == "plain":
            answer = post(self.server.port, "/v1/completions", body, timeout=40)
            if answer.status == 200:
                self.count("right", answer.json()["choices"][0]["text"], prompt)
            else:
                self.error(answer.status, answer.json()["error"])
            return
        with open_stream(self.server.port, "/v1/completions", body, timeout=40) as c:
            if c.status != 200:
                return self.error(c.status, json.loads(b"".join(c.chunks()))["error"])
            text, leave_after = "", rng.randrange(30)
            for i, event in enumerate(c.events()):
                if how == "leave" and i == leave_after:
                    self.counts["left"] += 1
                    return None
                if event == "[DONE]":
                    return self.count("right", text, prompt)
                chunk = json.loads(event)
                if "error" in chunk:
                    self.assertTrue(self.right[prompt].startswith(text))
                    return self.error(None, chunk["error"])
                text += "".join(choice["text"] for choice in chunk["choices"])
            self.wrong.append("a stream without [DONE]")

    def count(self, kind, text, prompt):
        self.counts[kind] += 1
        if text != self.right[prompt]:
            self.wrong.append(f"{text!r} instead of {self.right[prompt]!r}")

    def error(self, status, error):
        self.counts["error"] += 1
        if status not in (None, 429, 500, 502, 503) or not error["message"]:
            self.wrong.append(f"{status} {error}")

    def test_nobody_gets_a_wrong_answer(self):
        seed = int(os.environ.get("BATON_TEST_SEED", time.time_ns() % 100_000))
        print(f"BATON_TEST_SEED={seed}", flush=True)
        rng = random.Random(seed)
        clients = [threading.Thread(target=self.client, args=(seed * 100 + i,), daemon=True) for i in range(8)]
        for c in clients:
            c.start()
        killed = []
        while time.monotonic() < self.stop - 2:
            time.sleep(rng.uniform(0.5, 1.5))
            name = rng.choice(["p0", "p1", "d0", "d1"])
            pid = self.server.child(name)
            if pid > 0:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:  # gone since the last look
                    continue
                killed.append(name)
        for c in clients:
            c.join(60)
            self.assertFalse(c.is_alive(), "a request hangs")
        print(f"killed {' '.join(killed)}: {self.counts}", flush=True)
        self.assertEqual(self.wrong, [], f"seed {seed}")
        self.assertGreater(self.counts["right"], 10)
        wait_until(lambda: len(self.server.workers()) == 4 and all(
            w["ready"] and w["running"] + w["waiting"] == 0 and w["blocks_free"] + w["blocks_cached"] == w["blocks_total"] for w in self.server.workers().values()),
            30, lambda: f"all are back and hold nothing: {json.dumps(self.server.workers(), indent=0)}\n{self.server.log()[-3000:]}")
        self.assertIn("baton:", metrics := harness.get(self.server.port, "/metrics").body.decode())
        conflicts = [line for line in metrics.splitlines() if "conflict" in line and not line.startswith("#")]
        self.assertTrue(conflicts and all(float(line.split()[-1]) == 0 for line in conflicts), conflicts)
        self.assertEqual(self.baton("check", "--port", self.server.port).returncode, 0)


class ChaosCommandTest(harness.BatonTest):
    """`baton chaos` on real processes: every token of every stream against an undisturbed run, whatever dies."""

    SEED = int(os.environ.get("BATON_TEST_SEED", 4))
    STREAMS = 180  # a minute on two cores

    def test_nothing_is_lost(self):
        self.chaos("2", "2", self.STREAMS, "--threads", 1)

    def test_nothing_is_lost_by_groups_of_two_ranks(self):
        self.chaos("1xTP2", "2xTP2", 40)

    def chaos(self, prefill, decode, streams, *flags):
        harness.need_model()
        path = self.home.path / "chaos.json"
        result = self.baton("chaos", harness.ALIAS, "--prefill", prefill, "--decode", decode, "--streams", streams, "--kill-every", 4, "--fault-every", 6, "--seed", self.SEED,
                            "--kv-cache-memory-bytes", "256MiB", "--max-model-len", 2048, "--json", path, *flags, timeout=600)
        print(result.stdout, flush=True)
        self.assertTrue(path.exists(), result.stderr)
        figures = json.loads(path.read_text())
        told = f"seed {self.SEED}\n{result.stdout}\n{json.dumps(figures['problems'], indent=0)}"
        self.assertEqual((figures["model"], figures["prefill"], figures["decode"], figures["seed"]), (harness.ALIAS, prefill, decode, self.SEED))
        self.assertEqual((figures["right"], figures["lost"], figures["wrong"]), (streams, 0, 0), told)
        self.assertEqual((figures["unbalanced"], figures["crashes"]), ({}, []), told)
        self.assertGreater(figures["faults_by_kind"]["kill"], 1, told)
        self.assertEqual(result.returncode, 0, told)
        self.assertIn("nothing was lost", result.stdout)

    def test_refuses_what_it_does_not_know(self):
        for flags, words in ((("--faults", "kill,flood"), "`flood`"), (("--kill-every", 0), "--kill-every"), (("--streams", 0), "--streams")):
            result = self.baton("chaos", harness.ALIAS, *flags)
            self.assertEqual(result.returncode, 2, flags)
            self.assertIn(words, result.stderr)
