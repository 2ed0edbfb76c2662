"""What a user of the OpenAI API gets from a two-node cell: answers, streams, sampling, usage, models, status."""

import concurrent.futures

from harness import COLORS, MODEL, Case, Cell, Stream, eventually

CAPITAL = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}


class CellCase(Case):
    """Tests that share one two-node cell."""

    @classmethod
    def setUpClass(cls):
        cls.cell = Cell.local().start(cls)
        cls.client = cls.cell.client()

    def create(self, **options):
        options = {"model": MODEL, "messages": COLORS, "temperature": 0, "max_tokens": 40, **options}
        return self.client.chat.completions.create(**options)

    def post(self, **options):
        """Streams a chat over curl and returns its events."""
        body = {"model": MODEL, "messages": COLORS, "temperature": 0, "max_tokens": 40, **options}
        return self.cell.post("/v1/chat/completions", body)


class Answers(CellCase):
    def test_a_chat_names_the_colors(self):
        reply = self.create()
        self.assertTrue(reply.id.startswith("chatcmpl-"))
        self.assertEqual((reply.object, reply.model), ("chat.completion", MODEL))
        choice = reply.choices[0]
        self.assertEqual((choice.index, choice.message.role), (0, "assistant"))
        self.assertIn(choice.finish_reason, ("stop", "length"))
        self.assert_names_colors(choice.message.content)

    def test_a_raw_completion_goes_on(self):
        reply = self.client.completions.create(**CAPITAL)
        self.assertTrue(reply.id.startswith("cmpl-"))
        self.assertEqual(reply.object, "text_completion")
        self.assertTrue(reply.choices[0].text.startswith(" Paris.\n\nThe"))
        self.assertEqual(reply.choices[0].finish_reason, "length")

    def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(self):
        # The last one lies across four tokens.
        for stop, text in (("The", " Paris.\n\n"), (["nothing of the kind", "The"], " Paris.\n\n"), ("s.\n\nT", " Pari")):
            choice = self.client.completions.create(**CAPITAL, stop=stop).choices[0]
            self.assertEqual((choice.text, choice.finish_reason), (text, "stop"))

    def test_a_stop_string_holds_in_a_stream(self):
        chunks = self.client.completions.create(**CAPITAL, stop="s.\n\nT", stream=True)
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks), " Pari")

    def test_a_seed_repeats_and_another_differs(self):
        def ask(seed):
            return self.create(temperature=1.5, seed=seed, max_tokens=24).choices[0].message.content

        self.assertEqual(ask(1), ask(1))
        self.assertEqual(len({ask(1), ask(2), ask(3)}), 3)

    def test_usage_adds_up(self):
        usage = self.client.completions.create(**CAPITAL).usage
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens), (5, 8))
        self.assertEqual(usage.total_tokens, 13)
        self.assertEqual(usage.prompt_tokens_details.cached_tokens, 0)

    def test_performance_is_told(self):
        performance = self.create().performance
        for rate in ("prompt_tokens_per_second", "generation_tokens_per_second", "time_to_first_token_ms"):
            self.assertGreater(performance[rate], 0)
        self.assertEqual(performance["cached_tokens"], 0)

    def test_several_chats_at_once_get_the_same_answer(self):
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: self.create().choices[0].message.content, range(6)))
        for answer in answers:
            self.assert_names_colors(answer)

    def test_unknown_fields_are_ignored(self):
        self.assertTrue(self.create(extra_body={"of_no_known_meaning": {"a": 1}}, max_tokens=1).choices)

    def test_content_in_parts_is_one_text(self):
        parts = [{"type": "text", "text": "Name three primary"}, {"type": "text", "text": " colors."}]
        reply = self.create(messages=[{"role": "user", "content": parts}], max_tokens=5)
        self.assertTrue(reply.choices[0].message.content)


class Streaming(CellCase):
    def test_a_stream_says_what_the_whole_answer_says(self):
        whole = self.create().choices[0].message.content
        chunks = self.create(stream=True)
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), whole)

    def test_shapes_of_a_stream(self):
        reply = self.post(stream=True, max_tokens=6, stream_options={"include_usage": True})
        self.assertEqual(reply.headers["content-type"].split(";")[0], "text/event-stream")
        events = reply.events()
        self.assertEqual(events.pop(), "[DONE]")
        self.assertEqual({event["object"] for event in events}, {"chat.completion.chunk"})
        self.assertEqual(len({(event["id"], event["created"]) for event in events}), 1)

        usage = events.pop()
        self.assertEqual(usage["choices"], [])
        self.assertEqual(usage["usage"]["completion_tokens"], 6)
        self.assertTrue(all(event["usage"] is None for event in events))

        choices = [event["choices"][0] for event in events]
        self.assertEqual(choices[0]["delta"]["role"], "assistant")
        self.assertEqual((choices[-1]["delta"], choices[-1]["finish_reason"]), ({}, "length"))
        self.assertTrue(all(choice["finish_reason"] is None for choice in choices[:-1]))
        # One chunk a token; the role comes with the first of them, in a chunk of its own or in the same.
        texts = [choice["delta"]["content"] for choice in choices[:-1] if choice["delta"].get("content")]
        self.assertEqual(len(texts), 6)
        self.assertLessEqual(len(choices), 8)

    def test_no_usage_unless_asked(self):
        events = self.post(stream=True, max_tokens=3).events()
        self.assertEqual(events[-1], "[DONE]")
        self.assertTrue(all(len(event["choices"]) == 1 for event in events[:-1]))

    def test_a_completion_streams_too(self):
        chunks = list(self.client.completions.create(**CAPITAL, stream=True, stream_options={"include_usage": True}))
        self.assertEqual({chunk.object for chunk in chunks}, {"text_completion"})
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, 8)
        texts = [chunk.choices[0].text for chunk in chunks[:-1]]
        self.assertEqual("".join(texts), self.client.completions.create(**CAPITAL).choices[0].text)

    def test_a_client_that_goes_away_is_cancelled(self):
        stream = Stream(self, self.cell)
        stream.wait_events(3)
        self.assertEqual(self.cell.running(), 1)
        stream.disconnect()
        # The stream had thousands of tokens to go, far more than fit in this time.
        eventually(lambda: self.cell.running() == 0, "the abandoned request is cancelled", timeout=3)


class Routes(CellCase):
    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], [MODEL])
        model = self.client.models.retrieve(MODEL)
        self.assertEqual((model.id, model.object), (MODEL, "model"))

    def test_health(self):
        health = self.cell.get("/health").json()
        self.assertEqual((health["status"], health["world_size"]), ("ready", 2))
        self.assertEqual([(rank["rank"], rank["state"]) for rank in health["ranks"]], [(0, "ready"), (1, "ready")])
        self.assertEqual(self.cell.get("/health/live").status, 200)

    def test_queue(self):
        eventually(lambda: self.cell.running() == 0, "nothing runs")
        queue = self.cell.get("/queue").json()
        self.assertEqual((queue["waiting"], queue["running"]), (0, 0))
        self.assertEqual(queue["limits"]["running_max"], 8)

    def test_the_front_page_lists_the_routes(self):
        reply = self.cell.get("/")
        self.assertEqual(reply.status, 200)
        self.assertIn("/v1/chat/completions", reply.body.decode())

    def test_every_reply_has_a_request_id(self):
        replies = [self.cell.get(path) for path in ("/health", "/v1/models", "/no-such-route")]
        ids = {reply.headers["x-request-id"] for reply in replies}
        self.assertEqual(len(ids), 3)

    def test_browsers_of_other_origins_are_not_let_in(self):
        reply = self.cell.get("/v1/models", headers=["origin: http://elsewhere.example"])
        self.assertNotIn("access-control-allow-origin", reply.headers)
