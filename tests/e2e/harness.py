"""Starts, watches and ends real `shoal` processes, and talks to them as users do: with curl and the openai package.

Every wait is bounded, and every process that a test starts is ended by its own id, also when the test fails. A mark
in the environment, which children inherit, tells which processes belong to which test; it is read from /proc, so
these tests run on Linux.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

import openai

SHOAL = os.environ["SHOAL_BIN"]
HOME = os.environ["SHOAL_HOME"]
MODEL = "smollm2"
# A cold cell reads 90 MB and starts two processes; the rest of the bound is for a busy machine.
READY_S = 90

COLORS = [{"role": "user", "content": "Name three primary colors."}]

_numbers = itertools.count()


def eventually(check, what, timeout=10.0):
    """Returns the first true value of `check()`; fails with `what` when there is none within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what} (last: {value!r})")
        time.sleep(0.02)


def free_port():
    """Returns a port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lives(pid):
    """Whether process `pid` runs; one that has ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def children(pid):
    """Returns the process ids of the children of process `pid`."""

    def parent(process):
        try:
            return int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return None

    processes = (process for process in Path("/proc").iterdir() if process.name.isdigit())
    return [int(process.name) for process in processes if parent(process) == pid]


def temporary_folder(case):
    """Returns a new folder that goes away with the test `case`."""
    folder = tempfile.TemporaryDirectory(prefix="shoal-")
    case.addCleanup(folder.cleanup)
    return Path(folder.name)


def real_model():
    """Returns the path of the model's file in the store."""
    return next(Path(HOME, "models").rglob("*.gguf"))


class Process:
    """One `shoal` process with all that it starts, in a session of its own, as under a terminal."""

    def __init__(self, *arguments, home=HOME, **options):
        self.mark = f"SHOAL_E2E_MARK={os.getpid()}.{next(_numbers)}."
        name, _, value = self.mark.partition("=")
        self.popen = subprocess.Popen(
            [SHOAL, *map(str, arguments)],
            env={**os.environ, "SHOAL_HOME": str(home), name: value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self.out, self.log = [], []
        pipes = ((self.popen.stdout, self.out), (self.popen.stderr, self.log))
        self._readers = [threading.Thread(target=self._read, args=pipe, daemon=True) for pipe in pipes]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream, lines):
        with stream:
            for line in stream:
                lines.append(line.rstrip("\n"))

    @property
    def pid(self):
        return self.popen.pid

    def family(self):
        """Returns the ids of the living processes that this one started, itself included."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if self.mark.encode() in environment and lives(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def rank_pids(self):
        """Returns the process ids of the ranks in the family, by rank."""
        pids = {}
        for pid in self.family():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            except OSError:
                continue
            if "rank" in words:
                pids[int(words[words.index("--rank") + 1])] = pid
        return pids

    def wait(self, timeout=20):
        """Waits for the process to end by itself and returns its exit code."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s\n{self.logs()}") from None

    def wait_dead(self):
        """Waits for the process that a test killed, so that nothing of it is left but its children."""
        self.popen.wait(10)

    def interrupt(self):
        """Does what Ctrl-C does: the terminal signals the whole foreground group."""
        os.killpg(self.pid, signal.SIGINT)

    def wait_gone(self, timeout=10):
        """Waits until nothing of the family is left."""
        eventually(lambda: self.family() == [], f"processes left: {self.family()}\n{self.logs()}", timeout)

    def end(self):
        """Kills what is left of the family, each by its own id."""
        # A supervisor may start a process between the listing and its own end.
        for _ in range(3):
            for pid in self.family():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.popen.wait(10)
        for reader in self._readers:
            reader.join(10)

    def logs(self):
        return "\n".join(["--- stdout", *self.out, "--- stderr", *self.log[-60:]])


class Cell(Process):
    """A front under test, with its address."""

    def __init__(self, *arguments, command="serve", home=HOME, key=None):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = key
        super().__init__(command, *arguments, "--port", self.port, home=home)

    @classmethod
    def local(cls, *arguments, nodes=2, **options):
        """A cell of `nodes` ranks on this machine."""
        return cls("--model", MODEL, "--nodes", nodes, *arguments, **options)

    def start(self, case):
        """Waits until the cell is ready, and ends it with `case`, a test or a test class."""
        cleanup = case.addClassCleanup if isinstance(case, type) else case.addCleanup
        cleanup(self.end)
        self.wait_ready()
        ready = f"ready {self.url} "
        eventually(lambda: any(line.startswith(ready) for line in self.out), f"the line {ready!r}\n{self.logs()}")
        return self

    def wait_ready(self, timeout=READY_S):
        def ready():
            if self.popen.poll() is not None:
                raise AssertionError(f"the front ended with {self.popen.returncode}\n{self.logs()}")
            return self.health().status == 200

        try:
            eventually(ready, "the cell is ready", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def health(self):
        return self.get("/health")

    def running(self):
        return self.get("/queue").json()["running"]

    def get(self, path, **options):
        return curl(self.url + path, key=self.key, **options)

    def post(self, path, body, **options):
        return curl(self.url + path, body, key=self.key, **options)

    def client(self, **options):
        """Returns an OpenAI client that reports the first error instead of retrying."""
        options = {"max_retries": 0, "timeout": 60, "api_key": self.key or "none", **options}
        return openai.OpenAI(base_url=self.url + "/v1", **options)

    def chat(self, **options):
        """Asks for three primary colors, greedily, and returns the answer's text."""
        options = {"model": MODEL, "messages": COLORS, "temperature": 0, "max_tokens": 40, **options}
        return self.client().chat.completions.create(**options).choices[0].message.content


class Reply:
    """What curl got: status, headers (names in lower case), body."""

    def __init__(self, raw):
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split()[1]) if lines[0] else 0
        pairs = (line.partition(":") for line in lines[1:])
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}

    def json(self):
        return json.loads(self.body)

    def events(self):
        """Returns the payloads of a server-sent event stream, parsed, `[DONE]` as it is."""
        lines = [line for line in self.body.decode().split("\n") if line.startswith("data: ")]
        payloads = [line.removeprefix("data: ") for line in lines]
        return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def curl(url, body=None, *, key=None, method=None, headers=(), timeout=60):
    """Runs curl and returns its `Reply`; status 0 means that nobody answered."""
    line = ["curl", "-sS", "-i", "--max-time", str(timeout), "-H", "Expect:", url]
    if method:
        line += ["-X", method]
    if body is not None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        line += ["-H", "content-type: application/json", "--data-binary", "@-"]
    if key:
        line += ["-H", f"authorization: Bearer {key}"]
    for header in headers:
        line += ["-H", header]
    done = subprocess.run(line, input=body, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout + 10)
    return Reply(done.stdout)


class Stream:
    """A streamed completion over curl, read event by event while it comes; ending it is a client that disconnects."""

    def __init__(self, case, cell, **options):
        # Far longer than any test that interrupts it.
        body = {"model": MODEL, "prompt": "Once", "max_tokens": 3000, "ignore_eos": True, "stream": True, **options}
        line = ["curl", "-sS", "-N", "--max-time", "120", cell.url + "/v1/completions"]
        line += ["-H", "content-type: application/json", "-d", json.dumps(body)]
        self.popen = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.events, self.ended_at = [], None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        case.addCleanup(self.disconnect)

    def _read(self):
        with self.popen.stdout as lines:
            for line in lines:
                if line.startswith("data: "):
                    payload = line.removeprefix("data: ").strip()
                    self.events.append(payload if payload == "[DONE]" else json.loads(payload))
        self.ended_at = time.monotonic()

    def wait_events(self, count, timeout=30):
        eventually(lambda: len(self.events) >= count, f"{count} events of a stream", timeout)

    def wait_end(self, timeout):
        """Waits until the server closed the stream and returns its last event before any `[DONE]`."""
        eventually(lambda: self.ended_at, "the end of a stream", timeout)
        return [event for event in self.events if event != "[DONE]"][-1]

    def disconnect(self):
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)
        self._reader.join(10)


def shoal(*arguments, home=HOME, input="", env=None, timeout=READY_S):
    """Runs a command to its end and returns it with `returncode`, `stdout` and `stderr`."""
    line = [SHOAL, *map(str, arguments)]
    environment = {**os.environ, "SHOAL_HOME": str(home), **(env or {})}
    return subprocess.run(line, env=environment, input=input, capture_output=True, text=True, timeout=timeout)


class Case(unittest.TestCase):
    """A test case that shows long differences whole."""

    maxDiff = None

    def assert_names_colors(self, text):
        for color in ("red", "blue", "yellow"):
            self.assertIn(color, text.lower())

    def assert_refused(self, done, *parts):
        """The command failed with one clear `error:` line that holds all `parts`, and printed no result."""
        self.assertNotEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertNotIn("panicked", done.stderr)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, done.stderr)
        for part in parts:
            self.assertIn(part.lower(), errors[0].lower())
