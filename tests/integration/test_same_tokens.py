"""A request's tokens do not depend on how it is served: aggregated or disaggregated, alone or among others."""

import json

import harness
from harness import in_parallel, post, ROOT

PROMPTS = [json.loads(line) for line in (ROOT / "tests" / "golden" / "prompts.jsonl").read_text().splitlines()]
LONG = "The quick brown fox jumps over the lazy dog, and the moon rises over the river. " * 70


def generate(server, messages, **options):
    answer = post(server.port, "/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 64, "return_token_ids": True, **options}, timeout=120)
    assert answer.status == 200, f"HTTP {answer.status}: {answer.body[:500]!r}"
    body = answer.json()
    return body["choices"][0]["token_ids"], answer.headers, body["usage"]


class SameTokensTest(harness.BatonTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        core = ("--cores", harness.cores()[0], "--max-model-len", 4096, "--kv-cache-memory-bytes", "512MiB")
        cls.aggregated = cls.start_shared(*core)
        cls.split = cls.start_shared("--prefill", 1, "--decode", 1, *core[:1], harness.cores()[-1], *core[2:])
        cls.requests = [p["messages"] for p in PROMPTS] + [[{"role": "user", "content": LONG}]]
        # What one server alone says, one request after the other; each of the other runs must equal it.
        cls.expected = [ids for ids, _, _ in (generate(cls.aggregated, m) for m in cls.requests)]

    def assert_same(self, got):
        different = [i for i, (a, b) in enumerate(zip(self.expected, got, strict=True)) if a != b]
        self.assertEqual(different, [], [(self.expected[i], got[i]) for i in different[:1]])

    def test_there_is_something_to_compare(self):
        self.assertEqual(len(PROMPTS), 50)
        self.assertTrue(all(1 <= len(ids) <= 64 for ids in self.expected))
        self.assertGreater(sum(map(len, self.expected)), 50 * 32)
        self.assertGreater(len({tuple(ids) for ids in self.expected}), 40)

    def test_disaggregated_alone(self):
        answers = [generate(self.split, m) for m in self.requests]
        self.assert_same([ids for ids, _, _ in answers])
        self.assertTrue(all(headers["x-baton-disaggregated"] == "true" for _, headers, _ in answers))
        self.assertGreater(answers[-1][2]["prompt_tokens"], 1000)

    def under_load(self, server, requests, **options):
        results = [None] * len(requests)
        queue = list(enumerate(requests))

        def worker():
            while queue:
                try:
                    i, messages = queue.pop()
                except IndexError:
                    return
                results[i] = generate(server, messages, **options)[0]

        in_parallel([worker] * 16)
        return results

    def test_disaggregated_under_load(self):
        self.assert_same(self.under_load(self.split, self.requests))

    def test_aggregated_under_load(self):
        self.assert_same(self.under_load(self.aggregated, self.requests))

    def test_sampled_with_a_seed(self):
        some = self.requests[::5]
        options = {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 1234, "repetition_penalty": 1.1, "max_tokens": 32}
        alone = [generate(self.aggregated, m, **options)[0] for m in some]
        self.assertEqual([generate(self.split, m, **options)[0] for m in some], alone)
        self.assertEqual(self.under_load(self.split, some, **options), alone)
        self.assertNotEqual([generate(self.aggregated, m, **{**options, "seed": 4321})[0] for m in some], alone)


class ChoicesAndPressureTest(harness.BatonTest):
    def test_eight_choices_are_one_prefill_and_the_same_everywhere(self):
        body = {"prompt": "Invent a name for a cat:", "n": 8, "max_tokens": 24, "temperature": 1.0, "seed": 5, "return_token_ids": True}
        said = []
        for flags in (("--prefill", 1, "--decode", 1), ()):
            server = self.start(*flags)
            answer = post(server.port, "/v1/completions", body).json()
            said.append([c["token_ids"] for c in answer["choices"]])
            computed = harness.wait_until(lambda: sum(w["prompt_tokens_computed"] for w in server.workers().values()), 3, "the workers' counters")
            self.assertEqual(computed, answer["usage"]["prompt_tokens"])
            server.stop()
        self.assertEqual(said[0], said[1])
        self.assertEqual(len({tuple(ids) for ids in said[0]}), 8)

    def test_a_full_kv_cache_changes_nothing(self):
        """More requests than the cache holds: some wait, some are preempted, all say what they say alone."""
        bodies = [{"prompt": f"Story {i}: " + "the fox and the moon and the river " * (20 + i), "max_tokens": 150, "ignore_eos": True, "temperature": 0} for i in range(14)]
        alone = None
        for roles in (("--prefill", 1, "--decode", 1), ()):
            server = self.start(*roles, "--max-model-len", 1000, "--kv-cache-memory-bytes", "48MiB", "--no-enable-prefix-caching")

            def ask(body, port=server.port):
                answer = post(port, "/v1/completions", body, timeout=120)
                self.assertEqual(answer.status, 200, answer.body)
                return answer.json()

            alone = alone or [ask(b)["choices"][0]["text"] for b in bodies[:4]]
            together = in_parallel([lambda b=b: ask(b) for b in bodies])
            self.assertEqual([a["choices"][0]["text"] for a in together[:4]], alone)
            w = server.workers().popitem()[1]
            self.assertGreater(sum(a["usage"]["total_tokens"] for a in together), 2 * w["blocks_total"] * w["block_tokens"], "the test is too small to press")
            harness.wait_until(lambda: all(w["blocks_free"] == w["blocks_total"] for w in server.workers().values()), 3, lambda: f"all blocks are free: {server.workers()}")
            server.stop()


class ManyWorkersTest(harness.BatonTest):
    """Two prefill and two decode workers, a thread each."""

    def test_same_tokens_and_everyone_works(self):
        flags = ("--threads", 1, "--max-model-len", 4096, "--kv-cache-memory-bytes", "256MiB")
        split = self.start("--prefill", 2, "--decode", 2, *flags)
        requests = [p["messages"] for p in PROMPTS[::3]] + [[{"role": "user", "content": LONG}]]
        got = in_parallel([lambda m=m: generate(split, m, max_tokens=32) for m in requests])
        self.assertEqual({h["x-baton-prefill-worker"] for _, h, _ in got}, {"p0", "p1"})
        self.assertEqual({h["x-baton-decode-worker"] for _, h, _ in got}, {"d0", "d1"})
        split.stop()
        aggregated = self.start(*flags)
        self.assertEqual([ids for ids, _, _ in got], [generate(aggregated, m, max_tokens=32)[0] for m in requests])


class EarlyBytesTest(harness.BatonTest):
    def test_most_of_a_long_prompts_bytes_are_across_before_its_end(self):
        server = self.start("--prefill", 1, "--decode", 1)
        for i in range(2):
            messages = [{"role": "user", "content": f"{i}: " + LONG}]
            ids, headers, usage = generate(server, messages, max_tokens=4)
            self.assertGreater(usage["prompt_tokens"], 1000)
            record = server.record(headers["x-request-id"])
            self.assertEqual(record["kv_bytes"], (usage["prompt_tokens"] - record["cached_tokens"]) * 2 * 30 * 3 * 64 * 2)
            self.assertGreaterEqual(record["kv_bytes_early"], 0.8 * record["kv_bytes"], record)
            self.assertLess(record["committed_ms"] - record["prefill_end_ms"], 1000)
