"""`shoal run`: one prompt, one answer, over every number of nodes; and the chat on a terminal."""

import os
import pty
import subprocess

from harness import HOME, MODEL, READY_S, SHOAL, Case, eventually, shoal

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
    def test_a_chat_with_its_commands(self):
        controller, terminal = pty.openpty()
        self.addCleanup(os.close, controller)
        line = [SHOAL, "run", "--model", MODEL, "--nodes", "1", "--temperature", "0", "--max-tokens", "40"]
        chat = subprocess.Popen(
            line,
            env={**os.environ, "SHOAL_HOME": HOME, "TERM": "xterm"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.addCleanup(chat.wait, 10)
        self.addCleanup(lambda: chat.poll() is None and chat.kill())
        os.set_blocking(controller, False)
        shown = ""

        def shows(text, timeout=READY_S):
            """Waits for `text` on the terminal, and goes on after it."""
            nonlocal shown

            def found():
                nonlocal shown
                try:
                    shown += os.read(controller, 65536).decode(errors="replace")
                except (BlockingIOError, OSError):
                    pass
                return text in shown.lower()

            eventually(found, f"the terminal shows {text!r}", timeout)
            shown = shown[shown.lower().index(text) + len(text) :]

        def say(line, answer):
            # What is typed before the prompt is there may be dropped by the terminal.
            shows("> ")
            os.write(controller, line.encode() + b"\r")
            shows(answer)

        say("/help", "/quit")
        say("Name three primary colors.", "yellow")
        say("/stats", "tokens")
        say("/clear", "anew")
        say("/stats", "nothing was said")
        shows("> ")
        os.write(controller, b"/quit\r")
        self.assertEqual(chat.wait(20), 0)
