import json
from unittest import mock

from on_gpu import tuning
from on_gpu.session import Absent, Failed

from .fakes import FLASHTILE, FLASHTILE_ALONE, Scene

# Twice as fast with a table, and no matrix units for f32.
TUNED = FLASHTILE.replace(
    '"ms": 1.0', '"ms": 1.0 if "off" in arguments[arguments.index("--tuning"):][:2] else 0.5'
).replace(
    'case.split(",")\n',
    """case.split(",")
            if dtype == "f32" and "require" in arguments:
                print('{"error": "no f32", "refused": true}')
                continue
""",
)


class TuningTest(Scene):
    def start(self, body=TUNED, seconds=60.0):
        self.make_bundle(flashtile=body)
        self.add_gpu()
        return self.make_session(seconds)

    def kept(self, ending):
        [file] = (self.folder / "out").glob(f"made-up-1-*{ending}")
        return file.read_text()

    def test_the_table_is_kept_and_compared_with_the_planner(self):
        session = self.start()
        note = tuning.tune(session)
        self.assertEqual(note, "2.00 to 2.00 times as fast as planned")
        self.assertEqual(self.kept(".tuning"), "a table\n")
        rows = [json.loads(line) for line in self.kept(".variants").splitlines()]
        # Each case in four ways; matrix units do not compute f32.
        f32 = sum("f32" in case for case in tuning.CASES)
        self.assertEqual(len(rows), 4 * len(tuning.CASES) - f32)
        self.assertEqual({row["adapter"] for row in rows}, {"1"}, "the GPU that CUDA uses")
        ways = "planned | tuned | matrix units off | matrix units required"
        self.assertIn(f"| {ways} |", session.tables)
        self.assertIn("| 4x32x4096x64,f32,causal | 1 | 0.5 | 1 |  |", session.tables)
        self.assertIn("| 1x32/8x1/32768x128,f16 | 1 | 0.5 | 1 | 1 |", session.tables)

    def test_a_search_that_takes_too_long_leaves_time_to_compare(self):
        wrote = 'print("a table", file=table)\n'
        slow = FLASHTILE.replace(wrote, f"{wrote}        import time; time.sleep(60)\n")
        session = self.start(slow)
        with mock.patch("on_gpu.tuning.SEARCH_SHARE", 0.02):
            self.assertEqual(tuning.tune(session), "1.00 to 1.00 times as fast as planned")
        self.assertIn("no time was left for further cases", self.log())

    def test_without_a_table_the_planner_is_measured_and_the_failure_reported(self):
        body = FLASHTILE.replace(
            'with open(arguments[arguments.index("--tuning") + 1], "w") as table:',
            "if sys.exit('flashtile: a wrong result'):",
        ).replace('print("a table", file=table)', "pass")
        session = self.start(body)
        with self.assertRaisesRegex(Failed, "tune: flashtile: a wrong result"):
            tuning.tune(session)
        self.assertEqual(len(self.kept(".variants").splitlines()), 3 * len(tuning.CASES))
        self.assertNotIn("tuned", session.tables)

    def test_a_wrong_result_is_a_failure_and_the_rest_is_kept(self):
        body = FLASHTILE.replace('"ms": 1.0', '("error" if "require" in arguments else "ms"): 1.0')
        session = self.start(body)
        with self.assertRaisesRegex(Failed, "matrix units required: 4x16x4096x128: 1.0"):
            tuning.tune(session)
        self.assertEqual(len(self.kept(".variants").splitlines()), 3 * len(tuning.CASES))

    def test_a_program_that_ends_early_is_a_failure(self):
        body = FLASHTILE.replace('elif "--cases" in arguments:', "elif sys.exit('a panic'):")
        with self.assertRaisesRegex(Failed, "planned: a panic"):
            tuning.tune(self.start(body))

    def test_a_software_adapter_gets_small_cases(self):
        self.make_bundle(flashtile=FLASHTILE.replace("DiscreteGpu", "Cpu"))
        session = self.make_session()
        tuning.tune(session)
        self.assertIn("| 1x8/2x1/1024x64,f32 |", session.tables)

    def test_without_an_adapter_it_is_absent(self):
        self.make_bundle(flashtile=FLASHTILE_ALONE)
        with self.assertRaisesRegex(Absent, "no adapter"):
            tuning.tune(self.make_session())
