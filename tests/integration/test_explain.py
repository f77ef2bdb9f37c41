"""One id from the client to the logs of every process, to the request's record, and to whoever holds its KV; answers that say how they were served."""

import json
import os
import re
import signal
import subprocess

import harness
from harness import free_port, get, open_stream, post, wait_until

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


class TimelineTest(harness.BatonTest):
    def test_a_request_is_found_while_it_runs_and_afterwards_layer_by_layer(self):
        server = self.start("--prefill", "1", "--decode", "1", "--log-format", "json", "--log-level", "debug")
        layers = server.workers()["d0"]["kv"]["layers"]
        body = {"prompt": "Once upon a time there was a king who", "max_tokens": 300, "ignore_eos": True, "temperature": 0}
        with open_stream(server.port, "/v1/completions", body, headers={"x-request-id": "watched"}) as stream:
            self.assertEqual(stream.status, 200)
            events = stream.events()
            for _ in range(3):
                next(events)
            kv = get(server.port, "/debug/kv").json()
            running = get(server.port, "/debug/requests/watched").json()
            self.assertEqual(list(events)[-1], "[DONE]")
        self.assertEqual(running["state"], "running")
        self.assertTrue(kv["balanced"], kv)
        workers = {w["name"]: w for w in kv["workers"]}
        self.assertEqual({n: (w["role"], w["liveness"]) for n, w in workers.items()}, {"p0": ("prefill", "alive"), "d0": ("decode", "alive")})
        [hold] = [h for h in workers["d0"]["holds"] if h["request"] == "watched"]
        self.assertEqual((hold["owner"], hold["state"], hold["blocks"]), ("sequence", "running", workers["d0"]["held"]))
        for w in workers.values():
            self.assertEqual(w["free"] + w["cached"] + w["held"], w["total"])

        record = server.record("watched")
        [handoff] = record["handoffs"]
        self.assertEqual((handoff["prefill"]["worker"], handoff["decode"]["worker"]), ("p0", "d0"))
        by_layer = handoff["layers"]
        for name in ("ready_ms", "announced_ms", "verified_ms", "bytes"):
            self.assertEqual(len(by_layer[name]), layers, name)
        self.assertEqual(sum(by_layer["bytes"]), record["kv_bytes"])
        self.assertEqual(by_layer["ready_ms"], sorted(by_layer["ready_ms"]))
        for ready, announced in zip(by_layer["ready_ms"], by_layer["announced_ms"]):
            self.assertLessEqual(ready, announced)
        for name in ("ready_ms", "announced_ms", "verified_ms"):
            self.assertTrue(all(0 < ms < record["total_ms"] for ms in by_layer[name]), by_layer)
        self.assertEqual(handoff["prefill"]["chunks"][-1][0], record["prompt_tokens"])
        self.assertGreater(handoff["epoch"], 0)
        self.assertEqual(record["stalls"], [])

        def said():
            return [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]

        wait_until(lambda: {"gateway", "p0", "d0"} <= {line["component"] for line in said() if line.get("request_id") == "watched"}, 5, "all processes name it")
        idle = wait_until(lambda: (k := get(server.port, "/debug/kv").json()) and not any(w["holds"] for w in k["workers"]) and k, 5, "nothing is held")
        self.assertTrue(all(w["held"] == 0 for w in idle["workers"]))

    def test_a_killed_worker_is_a_stall_in_the_record_and_in_the_metrics(self):
        server = self.start("--prefill", "1", "--decode", "2", "--threads", "1", "--kv-cache-memory-bytes", "256MiB")
        body = {"prompt": "Once upon a time there was a king who", "max_tokens": 300, "ignore_eos": True, "temperature": 0}
        with open_stream(server.port, "/v1/completions", body, headers={"x-request-id": "stalled"}) as stream:
            events = stream.events()
            for _ in range(3):
                next(events)
            lost = stream.headers["x-baton-decode-worker"]
            os.kill(server.child(lost), signal.SIGKILL)
            self.assertEqual(list(events)[-1], "[DONE]")
        record = server.record("stalled")
        [stall] = record["stalls"]
        self.assertTrue(stall["resumed"])
        self.assertIn(lost, stall["cause"])
        self.assertEqual([r["event"] for r in record["retried"]], ["decode_failed"])
        self.assertEqual(len(record["handoffs"]), 2)
        self.assertEqual({h["decode"]["worker"] for h in record["handoffs"]}, {"d0", "d1"})
        metrics = get(server.port, "/metrics").body.decode()
        self.assertRegex(metrics, r"baton:client_stall_seconds_count\{[^}]*\} 1\n")
        self.assertRegex(metrics, r'baton:gateway_retries_total\{cause="lost",leg="decode",[^}]*\} 1\n')
        self.assertRegex(metrics, r'baton:kv_books_unbalanced\{engine="d[01]",[^}]*\} 0\n')
        self.assertRegex(metrics, r'baton:leases\{engine="d[01]",[^}]*state="receiving"\} 0\n')


class LostRoleTest(harness.BatonTest):
    """Processes without a supervisor: who dies stays dead."""

    def launch(self, *args):
        with open(self.home.path / f"{args[0]}-{free_port()}.log", "wb") as log:
            process = subprocess.Popen([harness.PROGRAM, *map(str, args)], env=harness.environment(self.home), stdout=log, stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL, preexec_fn=harness._die_with_parent)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_the_only_decode_worker_dies_for_good(self):
        harness.need_model()
        ports = {"p0": free_port(), "d0": free_port()}
        roles = {"p0": "prefill", "d0": "decode"}
        workers = {n: self.launch("worker", harness.ALIAS, "--name", n, "--role", roles[n], "--port", port, "--threads", 1, "--peers", 2,
                                  "--kv-cache-memory-bytes", "256MiB") for n, port in ports.items()}
        gateways = {}
        for fallback in ("local", "fail"):
            gateways[fallback] = free_port()
            self.launch("gateway", harness.ALIAS, "--port", gateways[fallback], "--fallback", fallback,
                        *(f"--worker={n}={roles[n]}@127.0.0.1:{port}" for n, port in ports.items()))

        def ready(port):
            try:
                return get(port, "/health/ready", timeout=2).status == 200
            except OSError:
                return False

        for port in gateways.values():
            wait_until(lambda: ready(port), 60, "the gateway and both workers are ready")
            whole = post(port, "/v1/completions", BODY)
            self.assertEqual((whole.status, whole.headers["x-baton-disaggregated"]), (200, "true"))
            self.assertNotIn("x-baton-fallback", whole.headers)
        workers["d0"].kill()
        for port in gateways.values():
            wait_until(lambda: {w["name"]: w for w in get(port, "/debug/workers").json()}["d0"]["ready"] is False, 10, "the gateway knows")
        alone = post(gateways["local"], "/v1/completions", BODY, {"x-request-id": "alone"})
        self.assertEqual(alone.status, 200, alone.body)
        self.assertEqual(alone.headers["x-baton-fallback"], "no live decode worker")
        self.assertEqual(alone.headers["x-baton-disaggregated"], "false")
        self.assertEqual(alone.json()["choices"][0]["text"], whole.json()["choices"][0]["text"])
        record = get(gateways["local"], "/debug/requests/alone").json()
        self.assertIn("d0", record["fallback"])
        self.assertEqual((record["handoffs"][0]["local"], record["handoffs"][0]["prefill"]["worker"]), (True, "p0"))
        refused = post(gateways["fail"], "/v1/completions", BODY)
        self.assertEqual(refused.status, 503, refused.body)
        self.assertIn("retry-after", refused.headers)
        self.assertNotIn("x-baton-fallback", refused.headers)
        kv = {w["name"]: w for w in get(gateways["local"], "/debug/kv").json()["workers"]}
        self.assertIn("error", kv["d0"])
        self.assertEqual((kv["p0"]["holds"], kv["p0"]["balanced"]), ([], True))
