import json
import unittest
from unittest import mock

from on_gpu import bench
from on_gpu.bench import Bench, Contest
from on_gpu.processes import Deadline
from on_gpu.session import Absent, Failed

from .fakes import FLASHTILE, FLASHTILE_ALONE, TORCH, Scene

CONTESTS = [
    Contest("2x16x8192x128,f16,causal", ["cuda:auto", "wgpu:flash"]),
    Contest("1x16x16384x128,f16", ["cuda:flash"]),
]

# Answers the first three questions, `versions`, `copy` and the one that warms up, and one case.
TORCH_THAT_HANGS = TORCH.replace(
    "for line in sys.stdin:",
    """for number, line in enumerate(sys.stdin):
        if number == 4:
            import time
            time.sleep(60)""",
)


class PlanTest(unittest.TestCase):
    def test_the_sizes_are_those_of_the_papers(self):
        found = bench.contests()
        self.assertEqual(len(found), len({contest.case for contest in found}))
        curves = found[: -2 * len(bench.NAMED) - 1]
        for contest in curves:
            batch, heads, seq, dim = map(int, contest.case.split(",")[0].split("x"))
            self.assertEqual((batch * seq, heads * dim), (16384, 2048))
        self.assertEqual(found[0].case, "2x16x8192x128,f16")
        self.assertIn(Contest("4x32x4096x64,bf16,causal", ["cuda:flash"]), found)
        self.assertEqual(found[len(curves)].case, "1x32/8x1/32768x128,f16")
        self.assertIn(Contest("1x8x8192x64,f32,causal", ["cuda:auto", "wgpu:auto"]), found)

    def test_all_cases_fit_the_time_that_the_step_has(self):
        # Torch tries four kernels and flashtile at most four, for the time that each measures,
        # a fifth more for the warm-up and a second for tensors and the first run.
        kernels = sum(4 + len(contest.kernels) for contest in bench.contests())
        self.assertLess(kernels * bench.MEASURE * 1.2, 220 - 2 * bench.CASE)

    def test_names_of_files(self):
        for gpu, name in [
            ("NVIDIA H200", "h200"),
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
            ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
            ("llvmpipe (LLVM 15.0.6, 256 bits)", "llvmpipe"),
            ("", "gpu"),
        ]:
            self.assertEqual(bench.results_name(gpu, "2026-01-02"), f"{name}-2026-01-02.json")

    def test_the_clock_is_that_under_load(self):
        samples = "345, 0\n1755, 99\n1980, 100\n1740, 60\n[N/A], [N/A]\n1980, 49\n17"
        self.assertEqual(bench.median_clock(samples), 1755)
        self.assertIsNone(bench.median_clock("345, 0\n"))


class BenchTest(Scene):
    def make_bench(self, seconds=60.0, **bundle):
        self.make_bundle(**bundle)
        self.add_gpu()
        self.session = self.make_session(seconds)
        measured = Bench(self.session)
        self.addCleanup(measured.stop)
        return measured

    def who(self, rows):
        return [(row["case"], row["backend"]) for row in rows]

    def results(self):
        return [json.loads(line) for line in self.session.results.read_text().splitlines()]

    def test_all_competitors_measure_case_by_case(self):
        measured = self.make_bench()
        measured.run(CONTESTS)
        self.assertEqual(measured.failures, [])
        first, second = "2x16x8192x128", "1x16x16384x128"
        expected = [(first, "torch"), (first, "cuda"), (first, "wgpu")]
        expected += [(second, "torch"), (second, "cuda")]
        self.assertEqual(self.who(measured.rows), expected)
        # CUDA sees one GPU of several, and wgpu is given the same by its number.
        adapters = [row["adapter"] for row in measured.rows if "adapter" in row]
        self.assertEqual(adapters, ["0", "1", "0"])
        header, *rows = self.results()
        self.assertEqual(rows, measured.rows)
        del header["date"], header["host"]
        self.assertEqual(
            header,
            {
                "gpu": "NVIDIA Made Up 1",
                "driver": "580.1",
                "cuda": "13.0",
                "nvrtc": "12.9",
                "clocks": "1755 MHz under load, 1980 MHz at most",
                "memory": "81559 MiB",
                "power_limit": "[N/A]",
                "flashtile": "1.2.3 (abc123)",
                "copy": "4013 GB/s",
                "torch": "2.0",
                "cudnn": "9",
            },
        )

    def test_results_are_on_the_disk_after_every_case(self):
        measured = self.make_bench()
        with mock.patch.object(measured, "ask_torch"):
            measured.measure(CONTESTS[0])
            self.assertEqual(len(self.results()), 3)
            measured.measure(CONTESTS[1])
        self.assertEqual(len(self.results()), 4)
        self.assertEqual(len(list(self.session.out.glob("*.partial"))), 0)

    def test_torch_that_hangs_is_left_out_and_flashtile_goes_on(self):
        measured = self.make_bench(torch=TORCH_THAT_HANGS)
        with mock.patch("on_gpu.bench.PATIENCE", 1.0):
            measured.run([CONTESTS[0], CONTESTS[1], CONTESTS[1]])
        second = "1x16x16384x128"
        self.assertEqual(
            self.who(measured.rows)[3:], [(second, "cuda"), (second, "cuda")], "and no torch"
        )
        self.assertEqual(measured.failures, [f"{second},f16, torch: no answer within 1 s"])

    def test_torch_that_is_absent_is_no_failure(self):
        body = "import sys; sys.exit('torch_sdpa: no torch: No module named torch')"
        measured = self.make_bench(torch=body)
        measured.run(CONTESTS)
        self.assertEqual(measured.failures, [])
        self.assertEqual({row["backend"] for row in measured.rows}, {"cuda", "wgpu"})
        self.assertIn("flashtile is measured alone: torch_sdpa: no torch", self.log())
        self.assertNotIn("torch", self.results()[0])

    def test_a_case_that_fails_costs_no_other(self):
        # A fresh process answers one question and is broken afterwards, as a CUDA context is.
        body = FLASHTILE.replace(
            'print("{}", flush=True)',
            """if "128,f16,causal" in line:
                print('{"case":"", "error":"an illegal address"}')
            print("{}", flush=True)""",
        ).replace(
            "backend, kernel = kernel", "pid = os.getpid()\n            backend, kernel = kernel"
        )
        body = body.replace('"ms": 1.0', '"ms": 1.0, "pid": pid')
        measured = self.make_bench(flashtile=body)
        measured.run([CONTESTS[0], CONTESTS[1], CONTESTS[1]])
        self.assertEqual(
            measured.failures,
            [f"{CONTESTS[0].case} {kernel}: an illegal address" for kernel in CONTESTS[0].kernels],
        )
        pids = [row["pid"] for row in measured.rows if row["backend"] == "cuda"]
        self.assertNotEqual(pids[0], pids[1], "started again after the error")
        self.assertEqual(pids[1], pids[2], "one process for the others")

    def test_a_refusal_is_no_failure(self):
        body = FLASHTILE.replace('"ms": 1.0', '"error": "head_dim is 1024", "refused": True')
        measured = self.make_bench(flashtile=body)
        measured.run(CONTESTS)
        self.assertEqual(measured.failures, [])
        self.assertEqual({row["backend"] for row in measured.rows}, {"torch"})
        self.assertIn("refused: 1x16x16384x128,f16 cuda:flash: head_dim is 1024", self.log())

    def test_a_crash_is_a_failure_and_the_program_starts_again(self):
        crash = "sys.stderr.write('a panic\\n'); sys.exit(9)"
        body = FLASHTILE.replace("case, kernel = line.split()", crash)
        measured = self.make_bench(flashtile=body)
        measured.run(CONTESTS)
        self.assertEqual(len(measured.failures), 3)
        for failure in measured.failures:
            self.assertRegex(failure, ": it ended: exit status 9: a panic$")

    def test_cases_that_the_time_does_not_reach_are_left_out(self):
        measured = self.make_bench(seconds=bench.CASE / 2)
        with mock.patch.object(measured, "measure") as measure:
            measured.run(CONTESTS, with_torch=False)
        measure.assert_not_called()
        self.assertEqual(measured.left_out, 2)

    def test_a_program_that_our_own_time_limit_stops_has_not_failed(self):
        body = FLASHTILE.replace(
            "for line in lines:", "import time; time.sleep(60)\n        if 0:"
        )
        measured = self.make_bench(flashtile=body)
        self.session.deadline = Deadline(bench.CASE / 3 + 0.5)
        measured.ask_flashtile("cuda", "1x1x1x1,f16 cuda:flash")
        self.assertEqual((measured.failures, measured.left_out), ([], 1))

    def test_no_question_outlives_the_step(self):
        measured = self.make_bench(seconds=20.0)
        self.assertLess(measured.patience(60.0), 20.0)
        self.session.deadline = Deadline(0)
        self.assertGreater(measured.patience(60.0), 0)


class StepTest(Scene):
    def test_with_a_gpu(self):
        self.make_bundle()
        self.add_gpu()
        session = self.make_session()
        self.assertEqual(len(bench.contests()), 45)
        with mock.patch("on_gpu.bench.contests", return_value=CONTESTS):
            self.assertEqual(bench.bench(session), "5 measurements")
        self.assertEqual(session.tables, "| tables |\n")

    def test_what_failed_is_counted_and_named(self):
        self.make_bundle(flashtile=FLASHTILE.replace('"ms": 1.0', '"error": "wrong"'))
        session = self.make_session()
        with mock.patch("on_gpu.bench.contests", return_value=CONTESTS):
            with self.assertRaisesRegex(Failed, "3 failures, first: 2x16.* cuda:auto: wrong"):
                bench.bench(session)
        self.assertIn("FAILED 1x16x16384x128,f16 cuda:flash: wrong", self.log())

    def test_results_that_cannot_be_read_are_a_failure(self):
        self.make_bundle(flashtile=FLASHTILE.replace('print("| tables |")', "sys.exit('line 2')"))
        session = self.make_session()
        with mock.patch("on_gpu.bench.contests", return_value=CONTESTS[1:]):
            with self.assertRaisesRegex(Failed, "cannot be read again: line 2"):
                bench.bench(session)

    def test_without_a_gpu(self):
        self.make_bundle(flashtile=FLASHTILE_ALONE)
        with self.assertRaisesRegex(Absent, "no GPU that CUDA or wgpu can use"):
            bench.bench(self.make_session())
