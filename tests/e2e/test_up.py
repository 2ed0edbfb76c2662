"""README's first command: `shoal up`."""

import json
import re
import subprocess

from harness import Case, Cell, eventually


class Up(Case):
    def test_it_says_ready_and_how_to_try_it_and_ctrl_c_ends_all(self):
        cell = Cell(command="up").start(self)
        ready = f"ready {cell.url} model=smollm2 nodes=2"
        eventually(lambda: ready in cell.out, f"the line {ready!r} on stdout\n{cell.logs()}")
        self.assertEqual(len(cell.rank_pids()), 2)

        # The line it offers is run as a newcomer would paste it.
        offered = eventually(lambda: [line for line in cell.out + cell.log if "curl " in line], "a curl line")[0]
        line = offered[offered.index("curl ") :]
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
        self.assertTrue(json.loads(done.stdout)["choices"], done.stderr)

        cell.interrupt()
        self.assertEqual(cell.wait(), 0)
        cell.wait_gone()

    def test_the_start_up_log_tells_bounds_instructions_split_and_memory(self):
        cell = Cell("--threads", "1", "--ctx", "512", command="up").start(self)
        self.assert_names_colors(cell.chat())
        log = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(cell.log))
        for part in ("512", "heads", "vocabulary", "isa", "threads"):
            self.assertIn(part, log)
