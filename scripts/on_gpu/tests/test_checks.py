from unittest import mock

from on_gpu import checks
from on_gpu.processes import Deadline
from on_gpu.session import Absent, Failed

from .fakes import CONFORMANCE, FLASHTILE_ALONE, Scene, program

# Stands for compute-sanitizer in front of a program that it is given.
SANITIZER = """
    import sys
    case = sys.argv[-1]
    print("ERROR SUMMARY: 0 errors")
"""


class DevicesTest(Scene):
    def test_a_gpu_that_cuda_does_not_open_is_a_failure(self):
        self.make_bundle(flashtile=FLASHTILE_ALONE)
        self.add_gpu()
        with self.assertRaisesRegex(Failed, "does not find it by CUDA"):
            checks.devices(self.make_session())

    def test_without_a_gpu_there_is_none_to_open(self):
        self.make_bundle(flashtile=FLASHTILE_ALONE)
        self.assertEqual(checks.devices(self.make_session()), "no GPU")


class ConformanceTest(Scene):
    def conformance(self, body, seconds=60.0):
        self.make_bundle(conformance=body)
        return self.make_session(seconds)

    def test_each_test_is_a_process_that_must_find_a_gpu(self):
        session = self.conformance(
            CONFORMANCE
            + """
        import os
        assert os.environ["FLASHTILE_REQUIRE_CUDA"] == "1"
        print("process", sys.argv[1:])
            """.replace("\n        ", "\n    ")
        )
        self.assertEqual(checks.conformance_cuda(session), "2 passed, 4 ignored")

    def test_a_failure_is_logged_whole_and_a_crash_by_its_signal(self):
        session = self.conformance(
            """
            import os, signal, sys
            if "--list" in sys.argv:
                print("cuda a: test\\ncuda b: test\\ncuda c: test")
            elif "cuda a" in sys.argv:
                print("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured")
            elif "cuda b" in sys.argv:
                print("out is at 3.1 of the bound")
                print("test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured")
                sys.exit(101)
            else:
                sys.stdout.flush()
                os.kill(os.getpid(), signal.SIGABRT)
            """
        )
        with self.assertRaisesRegex(Failed, "2 of 3 tests failed: cuda [bc]: .*, cuda [bc]: "):
            checks.conformance_cuda(session)
        self.assertIn("cuda c: it died of signal 6", self.log())
        self.assertIn("3.1 of the bound", self.log())

    def test_the_time_limit_says_how_many_are_missing(self):
        session = self.conformance(
            """
            import sys, time
            if "--list" in sys.argv:
                print("cuda quick: test\\ncuda slow: test\\ncuda slower: test")
            elif "cuda quick" not in sys.argv:
                time.sleep(60)
            print("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured")
            """
        )
        session.deadline = Deadline(1)
        with self.assertRaisesRegex(Failed, "time limit before 2 of 3 tests ended"):
            checks.conformance_cuda(session)

    def test_where_all_are_ignored_nothing_was_tested(self):
        ignored = CONFORMANCE.replace("1 passed", "0 passed")
        session = self.conformance(ignored)
        for step in (checks.conformance_cuda, checks.conformance_vulkan):
            with self.assertRaisesRegex(Absent, "ignored"):
                step(session)

    def test_a_program_without_cuda_tests_is_a_mistake(self):
        with self.assertRaisesRegex(Failed, "lists no CUDA test"):
            checks.conformance_cuda(self.conformance(""))

    def test_a_program_that_says_nothing_has_failed(self):
        with self.assertRaises(Failed):
            checks.conformance_vulkan(self.conformance(""))

    def test_vulkan_leaves_out_what_runs_on_cuda_or_on_the_cpu(self):
        others = "['--skip', 'cuda', '--skip', 'cpu']"
        session = self.conformance(CONFORMANCE + f"    assert sys.argv[1:] == {others}\n")
        self.assertEqual(checks.conformance_vulkan(session), "1 passed, 2 ignored")

    def test_vulkan_that_hangs_fails_at_its_time_limit(self):
        body = "import time; print('test a (b) ... ok', flush=True); time.sleep(60)"
        session = self.conformance(body)
        session.deadline = Deadline(1)
        with self.assertRaisesRegex(Failed, "time limit when 1 tests had passed"):
            checks.conformance_vulkan(session)
        self.assertIn("test a (b) ... ok", self.log())


class ExampleTest(Scene):
    def test_both_backends_run_it(self):
        self.make_bundle()
        self.assertEqual(checks.example(self.make_session()), "cuda, wgpu")

    def test_the_last_line_says_why_it_failed(self):
        self.make_bundle(
            flashtile="""
            import sys
            if "--json" in sys.argv:
                print('{"backend":"wgpu","index":0,"name":"Made Up"}')
            else:
                sys.exit("flashtile: out is at 3.1 of the bound")
            """
        )
        with self.assertRaisesRegex(Failed, "flashtile: out is at 3.1 of the bound"):
            checks.example(self.make_session())


class SanitizerTest(Scene):
    def sanitizer(self, body):
        self.make_bundle()
        program(self.bundle / "sanitizer/compute-sanitizer", body)
        return self.make_session()

    def test_every_case_runs(self):
        note = checks.memcheck(self.sanitizer(SANITIZER))
        self.assertEqual(note, "7 of 7 cases, no complaint")

    def test_the_systems_own_comes_first(self):
        session = self.sanitizer("import sys; sys.exit(1)")
        program(self.folder / "path/compute-sanitizer", SANITIZER)
        self.assertIn("7 of 7", checks.racecheck(session))

    def test_a_complaint_is_a_failure(self):
        session = self.sanitizer(SANITIZER + "    sys.exit(97 if 'dtype=f32' in case else 0)\n")
        with self.assertRaisesRegex(Failed, "dtype=f32 .*: complained"):
            checks.memcheck(session)

    def test_where_it_does_not_run_it_is_absent(self):
        for body in ("import sys; sys.exit(1)", SANITIZER + "    print('Device not supported')\n"):
            with self.subTest(body), self.assertRaisesRegex(Absent, "does not run on this host"):
                checks.memcheck(self.sanitizer(body))
            (self.folder / "work/lent").rmdir()

    def test_the_time_ends_it_without_a_failure(self):
        session = self.sanitizer(SANITIZER)
        with mock.patch.object(session, "deadline", Deadline(10)):
            self.assertEqual(checks.memcheck(session), "1 of 7 cases, no complaint")

    def test_without_one_it_is_absent(self):
        self.make_bundle()
        with mock.patch("shutil.which", return_value=None):
            with self.assertRaisesRegex(Absent, "no compute-sanitizer"):
                checks.find_sanitizer(self.make_session())
