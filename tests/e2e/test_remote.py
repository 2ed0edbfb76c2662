"""A cell over machines: `shoal node` waits, `shoal serve --peer` connects, and rank 0 sends each node its slice."""

import os
import signal
import socket
import threading

from harness import MODEL, Case, Cell, Process, Stream, eventually, free_port, shoal, temporary_folder


class Remote(Case):
    def setUp(self):
        folder = temporary_folder(self)
        self.token = folder / "token"
        self.token.write_text("a token of this test\n")
        self.wrong = folder / "wrong"
        self.wrong.write_text("another token\n")
        # The node's own store: empty, because a node needs no model files.
        self.node_home = folder / "node"
        self.node_home.mkdir()
        self.address = f"127.0.0.1:{free_port()}"

    def node(self, token=None):
        node = Process("node", "--listen", self.address, "--token-file", token or self.token, home=self.node_home)
        self.addCleanup(node.end)
        eventually(lambda: any("waiting for a front" in line for line in node.log), "the node listens", 20)
        return node

    def serve(self, *arguments):
        return Cell("--model", MODEL, "--peer", self.address, "--token-file", self.token, *arguments)

    def refuse(self, *arguments, peer=None):
        line = ["serve", "--model", MODEL, "--peer", peer or self.address, "--port", free_port(), *arguments]
        return shoal(*line, timeout=60)

    def test_a_node_without_model_files_serves_its_share(self):
        node = self.node()
        cell = self.serve().start(self)
        self.assert_names_colors(cell.chat())
        self.assertEqual(list(node.rank_pids()), [1])
        self.assertEqual(list(cell.rank_pids()), [0])
        self.assertEqual(list(self.node_home.rglob("*.gguf")), [])

        cell.interrupt()
        self.assertEqual(cell.wait(), 0)
        cell.wait_gone()
        eventually(lambda: node.rank_pids() == {}, "the node's rank ends with the cell")
        self.assertIsNone(node.popen.poll(), "the node waits for the next cell")

        again = self.serve().start(self)
        self.assert_names_colors(again.chat())

    def test_a_node_that_dies_is_awaited(self):
        node = self.node()
        cell = self.serve().start(self)
        stream = Stream(self, cell)
        stream.wait_events(2)
        for pid in node.family():
            os.kill(pid, signal.SIGKILL)
        node.popen.wait(10)
        self.assertIn("rank 1", stream.wait_end(5)["error"]["message"])
        eventually(lambda: cell.health().status == 503, "/health tells of the loss", 5)

        self.node()
        cell.wait_ready(60)
        self.assert_names_colors(cell.chat())

    def test_a_remote_rank_that_dies_is_started_again(self):
        node = self.node()
        cell = self.serve().start(self)
        before = node.rank_pids()[1]
        os.kill(before, signal.SIGKILL)
        eventually(lambda: node.rank_pids().get(1, before) != before, "rank 1 is started again", 30)
        cell.wait_ready()
        self.assert_names_colors(cell.chat())

    def test_a_second_cell_is_refused_and_the_first_goes_on(self):
        node = self.node()
        cell = self.serve().start(self)
        before = node.rank_pids()
        self.assert_refused(self.refuse("--token-file", self.token), "another cell")
        self.assertEqual(node.rank_pids(), before)
        self.assert_names_colors(cell.chat())

    def test_a_node_that_is_stopped_leaves_no_process(self):
        node = self.node()
        self.serve().start(self)
        node.interrupt()
        self.assertEqual(node.wait(), 0)
        node.wait_gone()

    def test_a_wrong_token_is_refused_and_the_node_goes_on(self):
        node = self.node()
        self.assert_refused(self.refuse("--token-file", self.wrong), "token", self.address)
        self.assertIsNone(node.popen.poll())
        self.assert_names_colors(self.serve().start(self).chat())

    def test_the_token_is_in_no_log_and_no_command_line(self):
        node = self.node()
        cell = self.serve("--log", "trace").start(self)
        secret = self.token.read_text().strip()
        for process in (node, cell):
            self.assertNotIn(secret, process.logs())
            for pid in process.family():
                with open(f"/proc/{pid}/cmdline", "rb") as line:
                    self.assertNotIn(secret.encode(), line.read())

    def test_an_unreachable_peer(self):
        self.assert_refused(self.refuse("--token-file", self.token), self.address)

    def test_a_peer_of_another_version(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def answer():
            peer, _ = listener.accept()
            with peer:
                # A conversation opens with a magic word and the version, the same from both sides.
                peer.sendall(peer.recv(64)[:-2] + (999).to_bytes(2, "little"))
                peer.recv(64)

        threading.Thread(target=answer, daemon=True).start()
        address = "127.0.0.1:%d" % listener.getsockname()[1]
        self.assert_refused(self.refuse("--token-file", self.token, peer=address), "version 999", "same release")

    def test_a_stranger_does_not_disturb_a_node(self):
        node = self.node()
        host, _, port = self.address.partition(":")
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(4096)):
            with socket.create_connection((host, int(port)), timeout=5) as stranger:
                stranger.sendall(words)
        self.assert_names_colors(self.serve().start(self).chat())
        self.assertIsNone(node.popen.poll())

    def test_a_peer_without_a_port(self):
        self.assert_refused(self.refuse("--token-file", self.token, peer="nowhere"), "nowhere")

    def test_a_missing_token_file(self):
        missing = self.token.with_name("missing")
        self.assert_refused(self.refuse("--token-file", missing), str(missing))

    def test_a_node_on_a_port_in_use(self):
        self.node()
        done = shoal("node", "--listen", self.address, "--token-file", self.token)
        self.assert_refused(done, self.address, "in use")
