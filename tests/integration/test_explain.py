"""One id from the client to the logs of every process, and to the request's record."""

import json
import re

import harness
from harness import post, wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
BODY = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}


class OneIdTest(harness.BatonTest):
    def test_a_request_is_found_in_the_json_logs_of_all_processes_and_in_its_record(self):
        server = self.start("--prefill", "1", "--decode", "1", "--log-format", "json", "--log-level", "debug")
        headers = {"x-request-id": "find-me", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        answer = post(server.port, "/v1/completions", BODY, headers)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.headers["x-request-id"], "find-me")
        record = server.record("find-me")
        self.assertEqual(record["trace_id"], TRACE)
        self.assertRegex(record["traceparent"], f"^00-{TRACE}-[0-9a-f]{{16}}-01$")
        self.assertNotIn("00f067aa0ba902b7", record["traceparent"], "the client's span is not the gateway's")

        def lines():
            # Of stderr every line is JSON; what `serve` prints on its start is not.
            parsed = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
            return [line for line in parsed if line.get("request_id") == "find-me"]

        wait_until(lambda: {"gateway", "p0", "d0"} <= {line["component"] for line in lines()}, 5, lambda: f"lines of all processes in\n{server.log()}")
        for line in lines():
            self.assertEqual(line["trace_id"], TRACE)
            self.assertRegex(line["ts"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")
        said = {(line["component"], re.split("[:,]", line["msg"])[0]) for line in lines()}
        self.assertLessEqual({("gateway", "arrived"), ("gateway", "first_token"), ("p0", "prefill leg"), ("d0", "decode leg")}, said)

    def test_a_trace_context_that_is_not_valid_is_ignored(self):
        server = self.start("--log-format", "json")
        answer = post(server.port, "/v1/completions", BODY, {"x-request-id": "untraced", "traceparent": f"00-{TRACE}-0000000000000000-01"})
        self.assertEqual(answer.status, 200, answer.body)
        self.assertNotIn("trace_id", server.record("untraced"))
