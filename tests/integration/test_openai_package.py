"""The `openai` package against the server, as users call it. Skipped where the package is not installed."""

import unittest

import harness

try:
    import openai
except ImportError:
    openai = None


@unittest.skipUnless(openai, "the openai package is not installed; ./test.sh installs it")
class OpenAIPackageTest(harness.BatonTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.start_shared("--prefill", 1, "--decode", 1, "--max-model-len", 2048)
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.server.port}/v1", api_key="none", max_retries=0, timeout=60)
        cls.addClassCleanup(cls.client.close)

    def chat(self, text="What is the capital of Germany?", **options):
        options = {"temperature": 0, "max_tokens": 24, **options}
        return self.client.chat.completions.create(model=harness.ALIAS, messages=[{"role": "user", "content": text}], **options)

    def test_chat(self):
        answer = self.chat()
        self.assertIn("Berlin", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertLessEqual(answer.usage.completion_tokens, 24)
        self.assertEqual(answer.model, harness.ALIAS)

    def test_streamed_chat_says_the_same(self):
        plain = self.chat()
        text, usage, finish = "", None, None
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            if chunk.usage:
                usage = chunk.usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        self.assertEqual(text, plain.choices[0].message.content)
        self.assertEqual(finish, plain.choices[0].finish_reason)
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens), (plain.usage.prompt_tokens, plain.usage.completion_tokens))

    def test_completions(self):
        answer = self.client.completions.create(model=harness.ALIAS, prompt=["The capital of France is", "One, two, three,"], max_tokens=6, temperature=0)
        self.assertEqual([c.index for c in answer.choices], [0, 1])
        self.assertIn("Paris", answer.choices[0].text)
        self.assertIn("four", answer.choices[1].text)
        streamed = {0: "", 1: ""}
        for chunk in self.client.completions.create(model=harness.ALIAS, prompt=["The capital of France is", "One, two, three,"], max_tokens=6, temperature=0, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        self.assertEqual(streamed, {0: answer.choices[0].text, 1: answer.choices[1].text})
        echo = self.client.completions.create(model=harness.ALIAS, prompt="The capital of France is", max_tokens=2, temperature=0, echo=True)
        self.assertTrue(echo.choices[0].text.startswith("The capital of France is"))

    def test_models(self):
        models = list(self.client.models.list())
        self.assertEqual([m.id for m in models], [harness.ALIAS])
        self.assertEqual(self.client.models.retrieve(harness.ALIAS).id, harness.ALIAS)

    def test_three_samples(self):
        request = dict(text="Invent a name for a cat.", n=3, temperature=1.0, seed=7, max_tokens=20)
        first, again = self.chat(**request), self.chat(**request)
        texts = [c.message.content for c in first.choices]
        self.assertEqual([c.index for c in first.choices], [0, 1, 2])
        self.assertEqual(len(set(texts)), 3, texts)
        self.assertEqual(texts, [c.message.content for c in again.choices], "the same seed")
        self.assertEqual(first.usage.completion_tokens, again.usage.completion_tokens)
        streamed = {0: "", 1: "", 2: ""}
        for chunk in self.chat(**request, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
        self.assertEqual([streamed[i] for i in range(3)], texts)

    def test_n_with_temperature_zero_is_refused(self):
        with self.assertRaises(openai.BadRequestError):
            self.chat(n=3, temperature=0)

    def test_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=3)
        content = answer.choices[0].logprobs.content
        self.assertEqual(len(content), answer.usage.completion_tokens, "one entry for each token, the end of the turn included")
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual("".join(t.token for t in content[:-1]), answer.choices[0].message.content)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.top_logprobs[0].token, token.token, "greedy takes the likeliest")
            self.assertEqual([t.logprob for t in token.top_logprobs], sorted((t.logprob for t in token.top_logprobs), reverse=True))
        completion = self.client.completions.create(model=harness.ALIAS, prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=2)
        logprobs = completion.choices[0].logprobs
        self.assertEqual("".join(logprobs.tokens), completion.choices[0].text)
        self.assertEqual(len(logprobs.token_logprobs), len(logprobs.tokens))
        self.assertTrue(all(len(t) in (2, 3) for t in logprobs.top_logprobs))

    def test_stop_strings(self):
        whole = self.client.completions.create(model=harness.ALIAS, prompt="One, two, three,", max_tokens=24, temperature=0).choices[0].text
        stop = whole[5:9]  # within tokens and across them
        expected = whole[: whole.index(stop)]
        answer = self.client.completions.create(model=harness.ALIAS, prompt="One, two, three,", max_tokens=24, temperature=0, stop=["#never#", stop])
        self.assertEqual((answer.choices[0].text, answer.choices[0].finish_reason), (expected, "stop"))
        self.assertLess(answer.usage.completion_tokens, 24)
        streamed = ""
        for chunk in self.client.completions.create(model=harness.ALIAS, prompt="One, two, three,", max_tokens=24, temperature=0, stop=stop, stream=True):
            streamed += chunk.choices[0].text
        self.assertEqual(streamed, expected)

    def test_errors_are_openais(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "hi"}])
        self.assertIn(harness.ALIAS, str(caught.exception), "the served models are listed")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat("word " * 3000)
        self.assertIn("maximum context length", str(caught.exception))
        for bad in ({"temperature": -1}, {"max_tokens": 0}, {"top_p": 2}):
            with self.assertRaises(openai.BadRequestError):
                self.chat(**bad)
        with self.assertRaises(openai.BadRequestError):
            self.client.chat.completions.create(model=harness.ALIAS, messages=[])

    def test_a_client_that_leaves_the_stream(self):
        with self.chat("Tell me a long story.", stream=True, max_tokens=1500, extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))
        harness.wait_until(lambda: all(w["running"] == 0 for w in self.server.workers().values()), 3, "nothing runs after the client left")


@unittest.skipUnless(openai, "the openai package is not installed; ./test.sh installs it")
class ApiKeyTest(harness.BatonTest):
    def test_only_who_has_a_key_may_enter(self):
        server = self.start("--api-key", "first-key", "second-key")
        url = f"http://127.0.0.1:{server.port}/v1"
        for key in ("first-key", "second-key"):
            with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
                self.assertEqual(len(list(client.models.list())), 1)
        for key in ("third-key", "first-key,second-key", "first"):
            with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client, self.assertRaises(openai.AuthenticationError):
                client.models.list()
        self.assertEqual(harness.post(server.port, "/v1/completions", {"prompt": "x", "max_tokens": 1}).status, 401)
        self.assertEqual(harness.get(server.port, "/health").status, 200)
        self.assertEqual(self.baton("check", "--port", server.port).returncode, 1)
        self.assertEqual(self.baton("check", "--port", server.port, "--api-key", "first-key").returncode, 0)
        self.assertEqual(self.baton("chat", "-q", "hi", "--max-tokens", 4, "--port", server.port, env={"OPENAI_API_KEY": "second-key"}).returncode, 0)
        for pid in [server.process.pid, *server.state()["children"].values()][1:]:
            self.assertNotIn(b"first-key", open(f"/proc/{pid}/cmdline", "rb").read())


@unittest.skipUnless(openai, "the openai package is not installed; ./test.sh installs it")
class AggregatedServerTest(harness.BatonTest):
    def test_chat_and_stream(self):
        server = self.start("--served-model-name", "first", "second")
        with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
            for name in ("first", "second"):
                answer = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hello"}], max_tokens=8, temperature=0)
                self.assertEqual(answer.model, "first")
                chunks = list(client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hello"}], max_tokens=8, temperature=0, stream=True))
                self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks), answer.choices[0].message.content)
            raw = client.chat.completions.with_raw_response.create(model="first", messages=[{"role": "user", "content": "hello"}], max_tokens=2)
            self.assertEqual(raw.headers["x-baton-disaggregated"], "false")
