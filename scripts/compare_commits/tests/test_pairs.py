"""Cases, runs in turns, ratios, and the table."""

import unittest

from compare_commits.cases import DEFAULT_CASES, Case
from compare_commits.pairs import Comparison, Result, table
from on_gpu.tests.fakes import Scene, program

CASE = Case.parse("1x2x3x4,f16,causal")

# Says its name in a file, and takes a time from another.
FLASHTILE = """
    import json, pathlib, sys
    folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    with (folder / "runs").open("a") as runs:
        runs.write(" ".join(sys.argv[2:]) + "\\n")
    times = (folder / name).read_text().split()
    (folder / name).write_text(" ".join(times[1:]))
    if times[0] == "fails":
        sys.exit("noise\\nthe reason")
    print("skipped something", file=sys.stderr)
    print(json.dumps({"case": "1x2x3x4", "ms": float(times[0])}))
"""


class CaseTest(unittest.TestCase):
    def test_text_and_arguments(self):
        self.assertEqual(CASE, Case("1x2x3x4", "f16", True))
        for case in DEFAULT_CASES:
            self.assertEqual(Case.parse(str(case)), case)
        decode = "1x32/8x1/4096x128"
        self.assertEqual(Case.parse(f"{decode},f32"), Case(decode, "f32", False))
        self.assertEqual(
            CASE.arguments("wgpu", "flash"),
            "bench --json --shape 1x2x3x4 --dtype f16 --backend wgpu --kernel flash "
            "--causal".split(),
        )
        for wrong in (
            *["", "1x2x3,f32", "1x2x3x4", "1x2x3x4,f64", "1x2x3x4,f32,casual"],
            *["1/1x2x3x4,f32", "1x2/x3x4,f32", "1x2/1/1x3x4,f32"],
        ):
            with self.assertRaises(ValueError, msg=wrong):
                Case.parse(wrong)


class ResultTest(unittest.TestCase):
    def test_the_ratio_is_the_median_of_pairs(self):
        # B is twice as fast in most pairs, although a slow phase made its median time the longer.
        result = Result(CASE, [(2.0, 1.0), (20.0, 10.0), (30.0, 10.0)])
        self.assertEqual(result.ratio(), 2.0)
        self.assertEqual(
            result.row(None),
            ["1x2x3x4,f16,causal", "20 ms", "10 ms", "2.000", "2.000 to 3.000", ""],
        )

    def test_the_floor(self):
        result = Result(CASE, [(1.0, 1.25)])
        self.assertTrue(result.passes(None) and result.passes(0.8))
        self.assertFalse(result.passes(0.81))
        self.assertEqual(result.row(0.81)[-1], "below the floor")

    def test_the_past_may_fail_and_the_present_may_not(self):
        self.assertTrue(Result(CASE, failures={"A": "?"}).passes(0.95))
        self.assertFalse(Result(CASE, failures={"B": "?"}).passes(None))
        both = Result(CASE, failures={"A": "?", "B": "?"})
        self.assertEqual(both.row(None)[-1], "A and B failed")

    def test_the_table_is_aligned(self):
        results = [Result(CASE, [(2.0, 1.0)]), Result(CASE, failures={"A": "?"})]
        lines = table(results, 0.95).splitlines()
        self.assertEqual(len(lines), 4)
        self.assertEqual({len(line) for line in lines}, {len(lines[0])})
        self.assertEqual(lines[1].count("---:"), 3)


class ComparisonTest(Scene):
    def compare(self, a, b, pairs=3):
        path = program(self.folder / "flashtile", FLASHTILE)
        self.said = []
        for name, times in (("A", a), ("B", b)):
            (self.folder / name).write_text(times)
        commands = {name: [str(path), str(self.folder), name] for name in "AB"}
        comparison = Comparison(
            *[commands, self.processes, pairs, "wgpu", "flash", self.said.append]
        )
        return comparison.run(CASE)

    def runs(self):
        return (self.folder / "runs").read_text().splitlines()

    def test_runs_take_turns(self):
        result = self.compare("2 4 6", "1 1 2")
        self.assertEqual(result.times, [(2.0, 1.0), (4.0, 1.0), (6.0, 2.0)])
        self.assertEqual("".join(run[0] for run in self.runs()), "ABABAB")
        self.assertEqual(self.runs()[0], "A " + " ".join(CASE.arguments("wgpu", "flash")))
        self.assertEqual(len(self.said), 3)

    def test_a_failure_ends_the_case_with_its_reason(self):
        result = self.compare("2 4 6", "1 fails 1")
        self.assertEqual((result.times, result.failures), ([], {"B": "the reason"}))
        self.assertEqual(len(self.runs()), 4)
        self.assertIn("B failed: the reason", self.said[-1])

    def test_a_time_of_nothing_is_a_failure(self):
        result = self.compare("0", "1")
        self.assertEqual(result.failures, {"A": "it measured nothing"})
        self.assertEqual(len(self.runs()), 2)
