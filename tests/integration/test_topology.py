"""The flags that lay out a cluster: degrees of tensor parallelism, engines side by side, the devices that each rank gets, and what is refused before anything starts."""

import harness
from harness import ALIAS, get, in_parallel, need_model, post, stream, stream_text, wait_until

SMALL = ("--max-model-len", 2048, "--kv-cache-memory-bytes", "128MiB")
# Longer than a step of chunked prefill.
LONG = "The river runs through the valley, past the old mill and the church. " * 60
PROMPTS = ("Once upon a time, in a small village by the sea,", LONG + "In the evening")


def complete(port, prompt, salt, tokens=24, **more):
    answer = post(port, "/v1/completions", {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "cache_salt": salt, **more})
    assert answer.status == 200, answer.body
    return answer.json()["choices"][0]["text"]


class DataParallelTest(harness.BatonTest):
    """Two engines of both roles behind the gateway."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.start_shared("--data-parallel-size", 2, *SMALL)
        cls.port = cls.server.port

    def test_both_serve_and_say_the_same(self):
        bodies = [{"prompt": PROMPTS[0], "max_tokens": 200, "temperature": 0, "ignore_eos": True, "cache_salt": str(i)} for i in range(6)]
        answers = in_parallel([lambda b=b: post(self.port, "/v1/completions", b) for b in bodies])
        self.assertEqual({a.status for a in answers}, {200})
        self.assertEqual(len({a.json()["choices"][0]["text"] for a in answers}), 1)
        workers = self.server.workers()
        self.assertEqual({name: (w["role"], w["tensor_parallel_size"]) for name, w in workers.items()}, {"w0": ("both", 1), "w1": ("both", 1)})
        wait_until(lambda: all(w["generation_tokens"] >= 200 for w in self.server.workers().values()), 5, self.server.workers)

    def test_check_knows_who_should_be_there(self):
        result = self.baton("check", "--port", self.port, "-dp", 2)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("w0 (both), w1 (both)", result.stdout)
        for flags, expected in ((("--prefill", 1, "--decode", 1), "p0 (prefill), d0 (decode)"), (("-tp", 2), "w0 (both, TP=2)")):
            result = self.baton("check", "--port", self.port, *flags)
            self.assertEqual(result.returncode, 1)
            self.assertIn(f"workers are w0 (both), w1 (both); expected: {expected}", result.stderr)


class TensorParallelTest(harness.BatonTest):
    """One engine of two ranks. Its text may differ from one rank's, so that it is compared with itself."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.start_shared("-tp", 2, *SMALL)
        cls.port = cls.server.port

    def test_says_what_it_is(self):
        worker = self.server.workers()["w0"]
        self.assertEqual(worker["tensor_parallel_size"], 2)
        self.assertTrue(worker["numerics_id"].endswith("/tp2"), worker)
        cores = harness.cores()
        devices = f"{cores[0]}; {cores[1]}" if len(cores) == 2 else ";"
        self.assertRegex(self.server.log(), f"worker   w0: prefill and decode, TP=2, cores .*{devices}")
        self.assertRegex(self.baton("status", "--port", self.port).stdout, r"(?m)^w0 +both +ready +2 ")
        result = self.baton("check", "--port", self.port, "--tensor-parallel-size", 2)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_the_same_again_alone_in_company_streamed_and_in_whole_prompts(self):
        alone = [complete(self.port, p, "first") for p in PROMPTS]
        self.assertTrue(all(alone))
        together = in_parallel([lambda p=p, i=i: complete(self.port, p, f"again {i}") for i in range(3) for p in PROMPTS])
        self.assertEqual(together, alone * 3)
        streamed = [stream_text(stream(self.port, "/v1/completions", {"prompt": p, "max_tokens": 24, "temperature": 0})) for p in PROMPTS]
        self.assertEqual(streamed, alone)
        whole = self.start("-tp", 2, "--no-enable-chunked-prefill", *SMALL)
        self.assertEqual(in_parallel([lambda p=p: complete(whole.port, p, "") for p in PROMPTS]), alone)


class HandOffTest(harness.BatonTest):
    def test_serve_takes_a_degree_for_each_role(self):
        for prefill, decode in (("1xTP3", "1"), ("1", "1xTP2")):
            server = self.start("--prefill", prefill, "--decode", decode, *SMALL)
            result = self.baton("check", "--port", server.port, "--prefill", prefill, "--decode", decode)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("of KV handed over", result.stdout)
            server.stop()


class RefusedTest(harness.BatonTest):
    """What cannot work ends `serve` with one error, before any process or port is there."""

    def refused(self, *args):
        need_model()
        port = harness.free_port()
        result = self.baton("serve", ALIAS, "--port", port, *args)
        self.assertEqual(result.returncode, 1, result.stdout)
        errors = [line for line in (result.stdout + result.stderr).splitlines() if "error" in line]
        self.assertEqual(len(errors), 1, errors)
        with self.assertRaises(OSError):
            get(port, "/health")
        self.assertNotIn("[w0]", result.stderr)
        return errors[0]

    def test_degrees_that_the_model_does_not_allow(self):
        for args in (("-tp", 640), ("--prefill", "1xTP64", "--decode", 1), ("--prefill", "1xTP2", "--decode", "1,1xTP10"), ("-dp", 2, "-tp", 13)):
            self.assertIn("tensor-parallel degrees that work: 1, 2, 3, 4, 5, 6, 7, 8, 9", self.refused(*args))

    def test_topologies_that_mean_nothing(self):
        self.assertIn("--prefill 1xTP: expected", self.refused("--prefill", "1xTP", "--decode", 1))
        self.assertIn("go together", self.refused("--decode", "1xTP2"))
        self.assertIn("--data-parallel-size 2", self.refused("--prefill", 1, "--decode", 1, "-dp", 2))

    def test_devices_that_overlap_or_are_too_few(self):
        core = harness.cores()[0]
        self.assertIn(f"device 0 ({core}) and device 1 ({core}) overlap", self.refused("-tp", 2, "--cores", f"{core}:{core}"))
        self.assertIn("3 are wanted", self.refused("--prefill", "1xTP2", "--decode", 1, "--cores", f"{core}:{harness.cores()[-1]}"))


class StartTest(harness.BatonTest):
    def test_a_rank_that_cannot_start_ends_the_server(self):
        need_model()
        result = self.baton("serve", ALIAS, "--port", harness.free_port(), "-tp", 2, "--max-model-len", 512, "--kv-cache-memory-bytes", "900000GiB")
        self.assertEqual(result.returncode, 1)
        errors = [line for line in result.stderr.splitlines() if "error" in line]  # of the worker: its ranks speak with one voice
        self.assertEqual(len(errors), 1, errors)
        self.assertIn("would fit", errors[0])
        self.assertIn("error: w0 exited with code 1 while starting; its message is above", result.stdout)

    def test_more_ranks_than_cores_is_one_notice(self):
        ranks = len(harness.cores()) + 1
        if ranks > 9:
            self.skipTest("the model has nine query heads")
        server = self.start("-tp", ranks, *SMALL)
        self.assertEqual(server.log().count(" share "), 1, server.log())
        self.assertIn(f"notice   {ranks} devices share {ranks - 1} core", server.log())
        self.assertTrue(complete(server.port, PROMPTS[0], "", tokens=4))
