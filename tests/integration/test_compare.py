"""`baton bench compare`: arms are started, loaded with the same requests and stopped, one after another; nothing stays behind."""

import json
import os
import pathlib
import re
import signal
import subprocess
import unittest

import harness
from harness import ALIAS, alive, wait_until

SMALL = ("--dataset-name", "random", "--random-input-len", 24, "--random-output-len", 12, "--random-range-ratio", 0.5, "--num-warmups", 2, "--kv-cache-memory-bytes", "128MiB",
         "--max-model-len", 512)


def descendants(pid):
    """All processes below `pid`."""
    found = []
    try:
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    except OSError:  # gone since
        pass
    return found


class CompareTest(harness.BatonTest):
    def compare(self, *args, timeout=300):
        return self.baton("bench", "compare", ALIAS, *args, timeout=timeout)

    def runs(self, figures, purpose):
        return [run for arm in figures["arms"] for run in arm["runs"] if run["purpose"] == purpose]

    def test_auto_rate_on_one_device(self):
        harness.need_model()
        folder = self.home.path / "out" / "deep"
        result = self.compare("--devices", 1, "--num-prompts", 16, "--repeats", 2, "--search-runs", 3, "--seed", 5, "--goodput", "ttft:60000", "tpot:60000", "--sweep-rates", "8,20",
                              "--output-dir", folder, *SMALL)
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        figures = json.loads((folder / "compare.json").read_text())
        self.assertEqual([arm["name"] for arm in figures["arms"]], ["tp1-prefill-first", "tp1"])
        self.assertEqual([left["name"] for left in figures["left_out"]], ["dp", "pd"])
        self.assertAlmostEqual(figures["request_rate"], 1.23 * figures["arms"][0]["saturation"]["requests_per_s"], places=6)
        measured = self.runs(figures, "measure")
        self.assertEqual([run["repeat"] for run in measured], [0, 1, 0, 1])
        self.assertEqual({run["request_rate"] for run in measured}, {figures["request_rate"]})
        self.assertEqual([run["request_rate"] for run in self.runs(figures, "sweep")], [8, 20, 8, 20])
        told = re.findall(r"^sweep +(\S+)", result.stderr, re.M)
        self.assertEqual(told, ["tp1-prefill-first", "tp1", "tp1", "tp1-prefill-first"], "each rate on all arms before the next")
        self.assertTrue(all(run["request_rate"] == "inf" for run in [arm["runs"][0] for arm in figures["arms"]]))
        everything = [run for arm in figures["arms"] for run in arm["runs"]]
        self.assertEqual({run["failed"] for run in everything}, {0})
        self.assertEqual(len({(run["total_input_tokens"], run["total_output_tokens"]) for run in everything}), 1, "all runs have the same requests")
        self.assertEqual(figures["seed"], 5)
        self.assertTrue(figures["finished"])
        for arm in figures["arms"]:
            runs = [run for run in arm["runs"] if run["purpose"] == "measure"]
            self.assertAlmostEqual(arm["figures"]["mean_tpot"]["median"], sum(run["mean_tpot_ms"] for run in runs) / 2, places=6)
        self.assertIn("--no-enable-chunked-prefill", figures["arms"][0]["command"])
        lines = result.stdout.splitlines()
        for words in ("tp1-prefill-first ", "  vs tp1-prefill-first", "  spread, n=2"):
            self.assertTrue(any(line.startswith(words) for line in lines), words)
        self.assertIn(figures["advice"], result.stdout)
        self.assertRegex(result.stderr, r"plan +about \d+ runs")
        page = (folder / "compare.html").read_text()
        self.assertGreaterEqual(page.count("<svg"), 6)
        for words in (figures["advice"].replace("'", "&#39;"), "seed 5", figures["machine"]["cpu"], "bench compare"):
            self.assertIn(words, page)
        self.assertIn("| &nbsp;&nbsp;vs tp1-prefill-first |", (folder / "compare.md").read_text())

    def test_every_arm_on_two_devices(self):
        harness.need_model()
        path = self.home.path / "all.json"
        result = self.compare("--devices", 2, "--request-rate", 8, "--repeats", 2, "--num-prompts", 10, "--json", path, *SMALL)
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        figures = json.loads(path.read_text())
        self.assertEqual([arm["name"] for arm in figures["arms"]], ["tp2-prefill-first", "tp2", "dp", "pd"])
        runs = self.runs(figures, "measure")
        self.assertEqual({(run["completed"], run["total_input_tokens"], run["total_output_tokens"]) for run in runs}, {(10, runs[0]["total_input_tokens"], runs[0]["total_output_tokens"])})
        told = re.findall(r"^measure +(\S+)", result.stderr, re.M)
        self.assertEqual(told, ["tp2-prefill-first", "tp2", "dp", "pd", "tp2", "dp", "pd", "tp2-prefill-first"], "the order rotates")
        for words in ("--tensor-parallel-size 2", "--data-parallel-size 2", "--prefill 1 --decode 1"):
            self.assertTrue(any(words in arm["command"] for arm in figures["arms"]), words)
        self.assertIn("Disaggregation", figures["advice"])

    @unittest.skipIf(len(harness.cores()) < 2, "two cores are needed")
    def test_disaggregated_under_a_mix(self):
        harness.need_model()
        path = self.home.path / "mix.json"
        result = self.compare("--arms", "pd", "--devices", 2, "--request-rate", 6, "--repeats", 1, "--num-prompts", 10, "--json", path, "--dataset-name", "mix", "--mix-chat-output-len", 12,
                              "--mix-long-input-len", 300, "--mix-long-output-len", 4, "--mix-long-every", 0.5, "--max-model-len", 512, "--kv-cache-memory-bytes", "128MiB")
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        figures = json.loads(path.read_text())
        run, = self.runs(figures, "measure")
        self.assertEqual(figures["requests"], run["completed"])
        self.assertEqual(figures["rates_count"], "chats")
        self.assertIn("6.00 chats/s, as given", result.stdout)
        self.assertEqual(run["by_kind"]["chat"]["completed"], 10)
        self.assertEqual(run["by_kind"]["long"]["total_input_tokens"], 300 * run["by_kind"]["long"]["completed"])
        self.assertRegex(result.stdout, r"pd +chat ")

    def test_prompts_are_those_of_bench_serve(self):
        harness.need_model()
        custom, path = self.home.path / "custom.jsonl", self.home.path / "custom.json"
        custom.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(4)))
        dataset = ("--dataset-name", "custom", "--dataset-path", custom, "--custom-output-len", 3, "--num-prompts", 4)
        with_server = self.start("--kv-cache-memory-bytes", "128MiB", "--max-model-len", "512")
        sent = json.loads(self.baton("bench", "serve", "--port", with_server.port, *dataset, "--json").stdout)
        with_server.stop()
        result = self.compare("--devices", 1, "--arms", "tp1", "--request-rate", 8, "--repeats", 1, "--json", path, *dataset, "--kv-cache-memory-bytes", "128MiB", "--max-model-len", 512)
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        run, = self.runs(json.loads(path.read_text()), "measure")
        self.assertGreater(sent["total_input_tokens"], 4 * 15, "the chat template is in it")
        self.assertEqual(run["total_input_tokens"], sent["total_input_tokens"])

    def test_an_arm_that_does_not_start_is_an_error_first(self):
        harness.need_model()
        result = self.compare("--devices", 1, "--request-rate", 5, "--max-model-len", 100000)
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stdout.splitlines()[0], r"^ERROR  tp1-prefill-first: .*at most 8192")
        self.assertIn("no advice", result.stdout)

    def test_bad_input_is_found_before_anything_runs(self):
        harness.need_model()
        (self.home.path / "file").write_text("")
        logs = lambda: sorted((self.home.path / "run").glob("compare-*.log"))  # noqa: E731
        before = logs()
        for args, words in ((("--devices", 3, "--arms", "pd"), "3 devices are not two equal halves"), (("--arms", "tp9", "--devices", 2), "`tp9` is not an arm"),
                            (("--cores", "0,0"), "core 0 is named twice"), (("--cores", "0:0", "--devices", 2), "overlap"), (("--no-enable-chunked-prefill",), "tpN-prefill-first"), (("--cores", "4000"), "core 4000"), (("--request-rate", "-1"), "--request-rate -1"), (("--goodput", "ttft"), "ttft:300"),
                            (("--html", self.home.path / "file" / "page.html"), "--html"), (("--json", self.home.path), "is a folder"), (("--json", self.home.path / "one", "--html", self.home.path / "one"), "the same file"),
                            (("--output-dir", self.home.path / "file"), "--output-dir"), (("--devices", 64, "--arms", "tpN"), "64"), (("-tp", 2), "--devices"), (("--threads", 2), "--cores"),
                            (("--dataset-name", "custom"), "--dataset-path")):
            result = self.compare(*args, timeout=30)
            self.assertEqual(result.returncode, 1, args)
            self.assertIn(words, result.stderr, args)
            self.assertNotIn("plan", result.stderr, args)
        self.assertEqual(logs(), before)

    def begin(self):
        """A comparison that has an arm under load."""
        harness.need_model()
        log = open(self.home.path / "compare.err", "wb")
        self.addCleanup(log.close)
        process = subprocess.Popen([harness.PROGRAM, "bench", "compare", ALIAS, "--devices", "1", "--request-rate", "2", "--num-prompts", "6", "--repeats", "50", "--json", str(self.home.path / "so-far.json"), *map(str, SMALL)],
                                   env=harness.environment(self.home), stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=harness._die_with_parent)
        self.addCleanup(process.kill)
        wait_until(lambda: re.search(r"^measure +tp1-", (self.home.path / "compare.err").read_text(), re.M), 120, "a first run")
        wait_until(lambda: len(descendants(process.pid)) >= 3, 60, "serve, gateway and worker")
        return process, descendants(process.pid)

    def test_interrupted_it_shows_what_there_is_and_leaves_nothing(self):
        process, children = self.begin()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertIn("NOTE   interrupted", out)
        self.assertRegex(out, r"(?m)^tp1-prefill-first +\d")
        self.assertEqual([pid for pid in children if alive(pid)], [])

    def test_killed_it_leaves_nothing(self):
        process, children = self.begin()
        process.kill()
        process.communicate(timeout=10)
        figures = json.loads((self.home.path / "so-far.json").read_text())
        self.assertFalse(figures["finished"])
        self.assertGreaterEqual(len(self.runs(figures, "measure")), 1, "what had ended is saved")
        wait_until(lambda: not any(alive(pid) for pid in children), 10, "all of its processes are gone")

    def test_a_worker_that_is_started_again_ends_its_arm(self):
        process, _ = self.begin()

        log = self.home.path / "run" / f"compare-{process.pid}.log"

        def kill_under_load():
            ports = re.findall(r"(?s)ready    after.*?http://127\.0\.0\.1:(\d+)", log.read_text())
            try:
                workers = harness.get(int(ports[-1]), "/debug/workers", timeout=2).json() if ports else []
                if not any(worker["running"] > 0 and worker["generation_tokens"] > 2 * 18 for worker in workers):  # beyond the warm-up
                    return False
                killed = [pid for pid in descendants(process.pid) if pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [b"worker"]]
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
            except OSError:  # it has been stopped since
                return False
            return killed

        wait_until(kill_under_load, 60, "a worker under load")
        told = r"^ERROR +tp1.*worker \S+ ended and was started again during a run, which does not count"
        wait_until(lambda: re.search(told, (self.home.path / "compare.err").read_text(), re.M), 60, "the error of the arm")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        self.assertRegex(out.splitlines()[0], r"^ERROR  tp1.*worker")

    def test_a_server_that_dies_ends_its_arm_only(self):
        process, _ = self.begin()

        def kill_until_it_is_told():  # one that was about to be stopped anyway is not missed
            for pid in descendants(process.pid):
                if pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [b"serve"]:
                    os.kill(pid, signal.SIGKILL)
            return re.search(r"^ERROR +tp1.*baton serve killed by signal 9", (self.home.path / "compare.err").read_text(), re.M)

        wait_until(kill_until_it_is_told, 60, "the error of the arm")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        self.assertRegex(out.splitlines()[0], r"^ERROR  tp1")
