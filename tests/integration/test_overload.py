"""More than the cluster can do: who waits, who is told at once to come again, and when."""

import json

import harness
from harness import Connection, get, open_stream, post, request_bytes, wait_until

BODY = {"prompt": "The capital of France is", "max_tokens": 48, "temperature": 0, "ignore_eos": True}


def counter(port, name):
    for line in get(port, "/metrics").body.decode().splitlines():
        if line.startswith(f"baton:{name}_total"):
            return float(line.rsplit(" ", 1)[1])
    return 0


class OverloadTest(harness.BatonTest):
    def test_a_queue_that_is_too_long_is_refused_at_once_with_the_time_to_come_again(self):
        server = self.start("--prefill", "1", "--decode", "1", "--max-num-seqs", "1", "--max-queue-wait", "0.02")
        answer = post(server.port, "/v1/completions", BODY)  # how long one takes is known from now on
        self.assertEqual(answer.status, 200, answer.body)
        with open_stream(server.port, "/v1/completions", {**BODY, "max_tokens": 1500}) as running:
            next(running.events())
            refused = post(server.port, "/v1/completions", BODY)
            self.assertEqual(refused.status, 429, refused.body)
            self.assertIn("(--max-queue-wait); retry after", refused.error())
            self.assertTrue(1 <= int(refused.headers["retry-after"]) <= 60)
            late = post(server.port, "/v1/completions", {**BODY, "timeout": 0.002})
            self.assertEqual(late.status, 429, late.body)
            self.assertIn("its time-out is 2 ms", late.error())
        self.assertEqual(counter(server.port, "gateway_requests_rejected"), 2)
        wait_until(lambda: post(server.port, "/v1/completions", BODY).status == 200, 10, "its place is free")

    def test_who_waits_gets_the_place(self):
        server = self.start("--max-num-seqs", "1")
        expected = post(server.port, "/v1/completions", BODY).json()["choices"]
        with open_stream(server.port, "/v1/completions", {**BODY, "max_tokens": 1500}) as running, Connection(server.port, 60) as waiting:
            next(running.events())
            waiting.send(request_bytes("POST", "/v1/completions", BODY))
            wait_until(lambda: counter(server.port, "gateway_runs_queued") == 1, 10, "one waits for the place of the one that runs")
            running.close()
            waiting.read_head()
            self.assertEqual(waiting.status, 200)
            self.assertEqual(json.loads(b"".join(waiting.chunks()))["choices"], expected)
