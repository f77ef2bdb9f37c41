"""Keys with names, weights and limits, from a file."""

import json
import os

import harness
from harness import get, open_stream, post, wait_until

SECRETS = {"alice": "sk-alice-3Tq", "bob": "sk-bob-9fW", "carol": "sk-carol-Kp2"}
BODY = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}


def bearer(name):
    return {"authorization": f"Bearer {SECRETS[name]}"}


class KeyFileTest(harness.BatonTest):
    def write(self, *lines):
        path = self.home.path / "keys.jsonl"
        path.write_text("# who may come in\n\n" + "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        os.chmod(path, 0o644)
        return path

    def ask(self, name):
        return post(self.server.port, "/v1/completions", BODY, bearer(name))

    def test_each_key_has_its_limits_and_its_metrics_and_no_secret_is_seen(self):
        path = self.write({"key": SECRETS["alice"], "name": "alice", "max_requests": 1}, {"key": SECRETS["bob"], "name": "bob", "max_tokens_per_minute": 10},
                          {"key": SECRETS["carol"], "name": "carol", "weight": 4})
        self.server = server = self.start("--prefill", "1", "--decode", "1", "--api-key-file", path, "--log-level", "debug")
        self.assertEqual(post(server.port, "/v1/completions", BODY).status, 401)

        with open_stream(server.port, "/v1/completions", {**BODY, "max_tokens": 1500, "stream": True, "ignore_eos": True}, headers=bearer("alice")) as stream:
            next(stream.events())
            refused = self.ask("alice")
            self.assertEqual(refused.status, 429, refused.body)
            self.assertIn("key alice has 1 requests in flight", refused.error())
            self.assertGreaterEqual(int(refused.headers["retry-after"]), 1)
            self.assertEqual(self.ask("carol").status, 200)
        wait_until(lambda: self.ask("alice").status == 200, 5, "the place of the stream that was left")

        self.assertEqual(self.ask("bob").status, 200)
        refused = self.ask("bob")
        self.assertEqual(refused.status, 429, refused.body)
        self.assertIn("key bob has used its 10 tokens a minute", refused.error())

        metrics = get(server.port, "/metrics").body.decode()
        self.assertRegex(metrics, r'baton:key_requests_total\{key="bob",[^}]*\} 1\n')
        self.assertRegex(metrics, r'baton:key_requests_rejected_total\{key="bob",[^}]*\} 1\n')
        self.assertRegex(metrics, r'baton:key_tokens_total\{key="carol",[^}]*\} \d\d')

        self.assertIn("can be read by other users", server.log())
        seen = [server.log(), metrics]
        for pid in [server.process.pid, *server.state()["children"].values()]:
            with open(f"/proc/{pid}/cmdline", encoding="utf-8") as cmdline:
                seen.append(cmdline.read())
        for text in seen:
            for secret in SECRETS.values():
                self.assertNotIn(secret, text)

    def test_a_file_that_is_wrong_is_refused_before_anything_starts(self):
        path = self.write({"key": SECRETS["alice"], "name": "alice"}, {"key": SECRETS["bob"], "name": "bob", "wait": 1})
        result = self.baton("serve", harness.ALIAS, "--port", harness.free_port(), "--api-key-file", path)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(f"{path}:4: an unknown field", result.stdout + result.stderr)
        self.assertNotIn("sk-", result.stdout + result.stderr)
