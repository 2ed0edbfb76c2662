"""Requests that cannot be served: each gets OpenAI's error, with the status and code that clients know."""

import openai

from harness import COLORS, MODEL, Case, Cell, Stream, curl, eventually, free_port, real_model, shoal, temporary_folder


class BadRequests(Case):
    @classmethod
    def setUpClass(cls):
        cls.cell = Cell.local("--ctx", "256").start(cls)
        cls.client = cls.cell.client()

    def refused(self, kind, **options):
        options = {"model": MODEL, "messages": COLORS, "max_tokens": 4, **options}
        with self.assertRaises(kind) as caught:
            self.client.chat.completions.create(**options)
        self.assertEqual(set(caught.exception.body), {"message", "type", "param", "code"})
        return caught.exception

    def posted(self, body):
        reply = self.cell.post("/v1/chat/completions", body)
        return reply.status, reply.json()["error"]

    def test_values_out_of_range_name_the_field(self):
        for field, value in (("temperature", 9), ("top_p", 2), ("n", 2), ("presence_penalty", 3), ("max_tokens", 0)):
            with self.subTest(field=field):
                error = self.refused(openai.BadRequestError, **{field: value})
                self.assertEqual((error.param, error.type), (field, "invalid_request_error"))

    def test_empty_messages(self):
        self.assertEqual(self.refused(openai.BadRequestError, messages=[]).param, "messages")

    def test_wrong_types_name_the_field(self):
        self.assertEqual(self.refused(openai.BadRequestError, messages="hello").param, "messages")
        self.assertEqual(self.refused(openai.BadRequestError, extra_body={"seed": "x"}).param, "seed")

    def test_meanings_that_are_not_supported_are_refused_by_name(self):
        tools = [{"type": "function", "function": {"name": "weather"}}]
        self.assertEqual(self.refused(openai.BadRequestError, tools=tools).param, "tools")

    def test_a_prompt_longer_than_the_context(self):
        long = [{"role": "user", "content": "word " * 600}]
        error = self.refused(openai.BadRequestError, messages=long)
        self.assertEqual(error.code, "context_length_exceeded")
        self.assertTrue(error.body["message"].startswith("This model's maximum context length is 256 tokens."))
        self.assertRegex(error.body["message"], r"\b[67]\d\d\b")

    def test_an_unknown_model(self):
        error = self.refused(openai.NotFoundError, model="no-such-model")
        self.assertEqual(error.code, "model_not_found")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("no-such-model")

    def test_malformed_json(self):
        status, error = self.posted(b'{"model": "smollm2", "messages": [')
        self.assertEqual((status, error["type"]), (400, "invalid_request_error"))
        self.assertEqual(self.posted(b"[]")[0], 400)
        self.assertEqual(self.posted(b"\xff\xfe")[0], 400)

    def test_a_body_over_the_limit(self):
        reply = self.cell.post("/v1/chat/completions", b'{"x": "' + b"x" * (5 << 20) + b'"}')
        self.assertEqual(reply.status, 413)

    def test_an_unknown_route_and_a_wrong_method(self):
        self.assertEqual(self.cell.get("/v1/no-such-route").status, 404)
        self.assertEqual(self.cell.get("/v1/chat/completions").status, 405)

    def test_the_cell_still_serves_after_all_of_it(self):
        for _ in range(3):
            self.posted(b"{")
        self.assert_names_colors(self.cell.chat())


class Keys(Case):
    def test_every_route_but_liveness_needs_the_key(self):
        key_file = temporary_folder(self) / "key"
        key_file.write_text("correct horse\n")
        cell = Cell.local("--api-key-file", key_file, nodes=1, key="correct horse").start(self)
        for path in ("/", "/health", "/queue", "/v1/models"):
            reply = curl(cell.url + path)
            self.assertEqual((path, reply.status), (path, 401))
            self.assertEqual(reply.json()["error"]["code"], "invalid_api_key")
        self.assertEqual(curl(cell.url + "/health/live").status, 200)
        with self.assertRaises(openai.AuthenticationError):
            cell.client(api_key="wrong").models.list()
        self.assert_names_colors(cell.chat())

    def test_listening_beyond_loopback_needs_a_key(self):
        done = shoal("serve", "--model", MODEL, "--host", "0.0.0.0", "--port", free_port())
        self.assert_refused(done, "--api-key-file")


class Queue(Case):
    def test_a_full_queue_refuses_and_says_when_to_come_back(self):
        cell = Cell.local("--batch", "1", "--queue", "1").start(self)
        first = Stream(self, cell)
        first.wait_events(1)
        second = Stream(self, cell)
        eventually(lambda: cell.get("/queue").json()["waiting"] == 1, "the second request waits")
        with self.assertRaises(openai.RateLimitError) as caught:
            cell.client().chat.completions.create(model=MODEL, messages=COLORS)
        self.assertGreater(int(caught.exception.response.headers["retry-after"]), 0)

        first.disconnect()
        second.wait_events(1)
        second.disconnect()
        eventually(lambda: cell.running() == 0, "the queue drains")
        self.assert_names_colors(cell.chat())


class BadFiles(Case):
    def test_a_truncated_model_is_refused_with_a_clear_line(self):
        folder = temporary_folder(self)
        whole = real_model()
        for size in (0, 3, 20, 4096, 2_000_000, whole.stat().st_size - 1):
            with self.subTest(size=size):
                cut = folder / "cut.gguf"
                with whole.open("rb") as source:
                    cut.write_bytes(source.read(size))
                self.assert_refused(shoal("run", "--model", cut, "--nodes", "2", "hello"), "cut.gguf")


class Ports(Case):
    def test_a_port_in_use(self):
        cell = Cell.local(nodes=1).start(self)
        done = shoal("serve", "--model", MODEL, "--port", cell.port)
        self.assert_refused(done, str(cell.port), "in use")
        self.assertEqual(cell.health().status, 200)
