"""`shoal bench`: the fields of its report, and that each of two nodes holds about half of the model."""

import json

from harness import MODEL, Case, shoal

SHORT = ["--threads", "1", "--prompt-tokens", "64", "--gen-tokens", "16", "--runs", "2", "--json"]


class Bench(Case):
    def bench(self, nodes):
        done = shoal("bench", "--model", MODEL, "--nodes", nodes, *SHORT)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_the_report_and_the_halves(self):
        one, two = self.bench(1), self.bench(2)
        for report, nodes in ((one, 1), (two, 2)):
            self.assertGreater(report["load_seconds"], 0)
            for rate in ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_ms"):
                spread = report[rate]
                self.assertGreater(spread["min"], 0)
                self.assertTrue(spread["min"] <= spread["median"] <= spread["max"])
            self.assertEqual([rank["rank"] for rank in report["ranks"]], list(range(nodes)))

        # A process of this program takes some memory before any weight; the slices come on top.
        whole = one["ranks"][0]["peak_memory_bytes"]
        for rank in two["ranks"]:
            self.assertLess(rank["peak_memory_bytes"], 0.65 * whole)
        weights = sum(rank["weight_bytes"] for rank in two["ranks"])
        self.assertLess(weights, 1.1 * one["ranks"][0]["weight_bytes"])

    def test_a_prompt_that_does_not_fit_is_refused(self):
        done = shoal("bench", "--model", MODEL, "--ctx", "64", "--prompt-tokens", "60", "--gen-tokens", "16")
        self.assert_refused(done, "context of 64")
