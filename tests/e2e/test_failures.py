"""A rank that dies mid-stream: its requests fail at once and name it, and the cell comes back by itself."""

import os
import signal
import time

import openai

from harness import COLORS, MODEL, Case, Cell, Stream, eventually, free_port, shoal, temporary_folder

NOTICED_S = 5


class KilledRank(Case):
    def lose(self, rank):
        """Kills `rank` while two streams run, and holds what must follow."""
        cell = Cell.local().start(self)
        before = cell.rank_pids()
        self.assertEqual(sorted(before), [0, 1])
        streams = [Stream(self, cell), Stream(self, cell)]
        for stream in streams:
            stream.wait_events(2)

        statuses = []

        def health():
            reply = cell.health()
            statuses.append((reply.status, reply.body.decode()))
            return reply

        os.kill(before[rank], signal.SIGKILL)
        killed_at = time.monotonic()
        eventually(lambda: health().status == 503, "/health tells of the loss", NOTICED_S)
        for stream in streams:
            error = stream.wait_end(NOTICED_S)["error"]
            self.assertLess(stream.ended_at - killed_at, NOTICED_S)
            self.assertIn(f"rank {rank}", error["message"])
            self.assertEqual(set(error), {"message", "type", "param", "code"})

        eventually(lambda: health().status == 200, f"the cell is back\n{cell.logs()}", 60)
        # Why it is down is told from the loss on, at least once before the cell is back.
        self.assertIn(f"rank {rank}", "".join(body for status, body in statuses if status == 503))
        self.assertIsNone(cell.popen.poll(), "the front went on")
        self.assert_names_colors(cell.chat())
        after = cell.rank_pids()
        self.assertEqual(sorted(after), [0, 1])
        self.assertNotEqual(after[rank], before[rank])

    def test_of_a_worker(self):
        self.lose(1)

    def test_of_rank_0(self):
        self.lose(0)


class WhileDown(Case):
    def test_requests_are_refused_with_503_and_streams_raise_in_the_openai_client(self):
        cell = Cell.local().start(self)
        chunks = cell.client().completions.create(
            model=MODEL, prompt="Once", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
        )
        next(chunks)
        os.kill(cell.rank_pids()[1], signal.SIGKILL)
        with self.assertRaises(openai.APIError) as caught:
            list(chunks)
        self.assertIn("rank 1", str(caught.exception))

        # The cell may be back before this is asked; then it answers.
        try:
            reply = cell.client().chat.completions.create(model=MODEL, messages=COLORS, max_tokens=1)
            self.assertEqual(len(reply.choices), 1)
        except openai.InternalServerError as error:
            self.assertEqual(error.status_code, 503)
        cell.wait_ready()

    def test_an_idle_cell_notices_too(self):
        cell = Cell.local().start(self)
        before = cell.rank_pids()[1]
        os.kill(before, signal.SIGKILL)
        eventually(lambda: cell.rank_pids().get(1, before) != before, "rank 1 is started again", 30)
        cell.wait_ready()
        self.assert_names_colors(cell.chat())


class LostFront(Case):
    """The front may die without taking the loaded model along."""

    def test_a_new_front_attaches_without_loading_again(self):
        old = Cell.local("--orphan-timeout", "60").start(self)
        ranks = old.rank_pids()
        stream = Stream(self, old)
        stream.wait_events(2)
        os.kill(old.pid, signal.SIGKILL)
        old.wait_dead()

        new = Cell("--attach").start(self)
        self.assert_names_colors(new.chat())
        self.assertEqual(old.rank_pids(), ranks)
        self.assertEqual(new.rank_pids(), {})
        eventually(lambda: new.running() == 0, "the dead front's stream is dropped")

        new.interrupt()
        self.assertEqual(new.wait(), 0)
        old.wait_gone()

    def test_a_front_that_attached_forms_the_cell_again_after_a_loss(self):
        old = Cell.local("--orphan-timeout", "60").start(self)
        os.kill(old.pid, signal.SIGKILL)
        old.wait_dead()
        new = Cell("--attach").start(self)

        os.kill(old.rank_pids()[1], signal.SIGKILL)
        eventually(lambda: sorted(new.rank_pids()) == [0, 1], "the new front starts ranks of its own", 30)
        new.wait_ready()
        self.assert_names_colors(new.chat())
        old.wait_gone()

    def test_ranks_without_a_front_exit_in_time(self):
        cell = Cell.local("--orphan-timeout", "2").start(self)
        os.kill(cell.pid, signal.SIGKILL)
        cell.wait_dead()
        cell.wait_gone(15)

    def test_nothing_to_attach_to(self):
        home = temporary_folder(self)
        self.assert_refused(shoal("serve", "--attach", "--port", free_port(), home=home), "no running cell")


class Stop(Case):
    def test_ctrl_c_leaves_no_process_even_mid_stream(self):
        cell = Cell.local().start(self)
        stream = Stream(self, cell)
        stream.wait_events(2)
        cell.interrupt()
        self.assertEqual(cell.wait(), 0)
        cell.wait_gone()

    def test_sigterm_to_the_front_alone_does_too(self):
        cell = Cell.local().start(self)
        os.kill(cell.pid, signal.SIGTERM)
        self.assertEqual(cell.wait(), 0)
        cell.wait_gone()

    def test_ctrl_c_while_loading(self):
        cell = Cell.local()
        self.addCleanup(cell.end)
        eventually(lambda: len(cell.family()) > 1, "a rank is started", 20)
        cell.interrupt()
        cell.wait()
        cell.wait_gone()
