"""`shoal run`: one prompt, one answer, over every number of nodes; and the chat on a terminal."""

import os
import pty
import subprocess

from harness import HOME, MODEL, READY_S, SHOAL, Case, children, eventually, lives, shoal

CAPITAL = ["--raw", "--temperature", "0", "--max-tokens", "8", "The capital of France is"]
COLORS = ["--temperature", "0", "--max-tokens", "40", "Name three primary colors."]
SPLITS = [["--nodes", "1"], ["--nodes", "2"], ["--nodes", "3"], ["--nodes", "4"], ["--nodes", "2", "--share", "3,1"]]


class Run(Case):
    def run_shoal(self, *arguments):
        done = shoal("run", "--model", MODEL, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_a_raw_prompt_goes_on_the_same_over_every_split(self):
        for split in SPLITS:
            with self.subTest(split=split):
                self.assertTrue(self.run_shoal(*split, *CAPITAL).startswith(" Paris"))

    def test_a_chat_answers_over_every_split(self):
        for split in SPLITS:
            with self.subTest(split=split):
                self.assert_names_colors(self.run_shoal(*split, *COLORS))

    def test_stdout_holds_the_completion_and_nothing_else(self):
        quiet = self.run_shoal("--nodes", "1", *CAPITAL)
        self.assertEqual(self.run_shoal("--nodes", "1", "--log", "debug", *CAPITAL), quiet)
        self.assertLess(len(quiet.split()), 10)

    def test_a_prompt_may_come_from_a_pipe(self):
        done = shoal("run", "--model", MODEL, *CAPITAL[:-1], input=CAPITAL[-1])
        self.assertTrue(done.stdout.startswith(" Paris"), done.stderr)

    def test_a_seed_repeats(self):
        hot = ["--nodes", "1", "--raw", "--temperature", "1.5", "--max-tokens", "12"]
        first, again, other = (self.run_shoal(*hot, "--seed", seed, "Once upon a time") for seed in ("1", "1", "2"))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)


class Refusals(Case):
    def test_an_unknown_model(self):
        self.assert_refused(shoal("run", "--model", "no-such-model", "hello"), "no-such-model")

    def test_an_impossible_temperature(self):
        self.assert_refused(shoal("run", "--model", MODEL, "--temperature", "9", "hello"), "temperature")

    def test_no_nodes(self):
        self.assert_refused(shoal("run", "--model", MODEL, "--nodes", "0", "hello"), "--nodes")

    def test_no_prompt_without_a_terminal(self):
        self.assert_refused(shoal("run", "--model", MODEL), "prompt")


class Terminal(Case):
    def setUp(self):
        super().setUp()
        self.controller, terminal = pty.openpty()
        self.addCleanup(os.close, self.controller)
        line = [SHOAL, "run", "--model", MODEL, "--nodes", "1", "--temperature", "0", "--max-tokens", "40"]
        self.chat = subprocess.Popen(
            line,
            env={**os.environ, "SHOAL_HOME": HOME, "TERM": "xterm"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.addCleanup(self.chat.wait, 10)
        self.addCleanup(lambda: self.chat.poll() is None and self.chat.kill())
        os.set_blocking(self.controller, False)
        self.shown = ""

    def shows(self, text, timeout=READY_S):
        """Waits for `text` on the terminal, and goes on after it."""

        def found():
            try:
                self.shown += os.read(self.controller, 65536).decode(errors="replace")
            except (BlockingIOError, OSError):
                pass
            return text in self.shown.lower()

        eventually(found, f"the terminal shows {text!r}", timeout)
        self.shown = self.shown[self.shown.lower().index(text) + len(text) :]

    def say(self, line, answer):
        # What is typed before the prompt is there may be dropped by the terminal.
        self.shows("> ")
        os.write(self.controller, line + b"\r")
        self.shows(answer)

    def test_a_chat_with_its_commands(self):
        self.say(b"/help", "/quit")
        self.say(b"Name three primary colors.", "yellow")
        self.say(b"/stats", "tokens")
        self.say(b"/clear", "anew")
        self.say(b"/stats", "nothing was said")
        self.shows("> ")
        os.write(self.controller, b"/quit\r")
        self.assertEqual(self.chat.wait(20), 0)

    def test_bytes_that_are_no_text_do_not_end_a_chat(self):
        self.say(b"\xff\xfe", "not utf-8")
        self.say(b"/help", "/quit")

    def test_a_signal_ends_a_chat_at_its_prompt_and_its_ranks(self):
        self.shows("> ")
        ranks = children(self.chat.pid)
        self.assertEqual(len(ranks), 1)
        self.chat.terminate()
        self.assertEqual(self.chat.wait(20), 0)
        eventually(lambda: not any(map(lives, ranks)), "the rank has ended")

    def test_a_signal_ends_a_chat_within_a_reply(self):
        self.say(b"Count from one to a hundred.", "one")
        self.chat.terminate()
        self.assertEqual(self.chat.wait(20), 0)
