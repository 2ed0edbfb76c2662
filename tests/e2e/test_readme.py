"""The documents keep to what the program has: examples run, and every subcommand and flag they show exists."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from harness import Case, Cell, shoal

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SUBCOMMANDS = "up|run|serve|node|pull|models|cp|bench|fabric test|fabric discover"


@cache
def help_of(subcommand):
    return shoal(*subcommand.split(), "--help").stdout


class Documents(Case):
    def test_commands_and_flags_exist(self):
        seen = 0
        for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
            text = document.read_text().replace("\\\n", " ")
            for subcommand, words in re.findall(rf"(?:shoal|--release --) ({SUBCOMMANDS})\b([^`\n#]*)", text):
                for flag in re.findall(r"--[a-z-]+", words):
                    with self.subTest(document=document.name, line=subcommand + words):
                        self.assertIn(flag, help_of(subcommand))
                        seen += 1
        self.assertGreater(seen, 10)

    def test_the_examples_of_the_readme_answer(self):
        cell = Cell.local().start(self)
        address = f"127.0.0.1:{cell.port}"

        (example,) = re.findall(r"```sh\n(curl .*?)```", README, re.DOTALL)
        line = ["bash", "-c", example.replace("127.0.0.1:8080", address)]
        self.assert_names_colors(subprocess.run(line, capture_output=True, text=True, timeout=60).stdout)

        (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        line = [sys.executable, "-c", example.replace("127.0.0.1:8080", address)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("color", done.stdout.lower())
