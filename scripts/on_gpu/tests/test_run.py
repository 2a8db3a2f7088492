"""The script itself, from the command line to the summary."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import time

from .fakes import FLASHTILE_ALONE, SCRIPTS, Scene, program


class RunTest(Scene):
    def make_run(self, **bundle):
        self.make_bundle(**bundle)
        shutil.copy(SCRIPTS / "on-gpu", self.bundle / "run")
        ignored = shutil.ignore_patterns("tests", "__pycache__")
        shutil.copytree(SCRIPTS / "on_gpu", self.bundle / "on_gpu", ignore=ignored)
        self.command = [sys.executable, str(self.bundle / "run"), str(self.folder / "out")]

    def run_it(self, **environment):
        return subprocess.run(
            self.command,
            env=dict(os.environ, **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def steps(self):
        """Result by step, from the summary."""
        summary = (self.folder / "out/summary.txt").read_text().splitlines()
        return {line.split()[0]: line.split()[1] for line in summary[:8]}

    def test_without_a_gpu_everything_is_absent_and_nothing_failed(self):
        self.make_run(flashtile=FLASHTILE_ALONE)
        done = self.run_it()
        self.assertEqual(done.returncode, 0, done.stdout)
        steps = self.steps()
        self.assertEqual(steps.pop("devices"), "passed")
        self.assertEqual(set(steps.values()), {"absent"})
        self.assertEqual(len(steps), 7)

    def test_with_a_gpu(self):
        self.make_run()
        self.add_gpu()
        program(self.folder / "path/compute-sanitizer", "print('ERROR SUMMARY: 0 errors')")
        done = self.run_it()
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(set(self.steps().values()), {"passed"}, done.stdout)
        # All cases by torch and by CUDA, and those that are not bf16 by wgpu.
        [results] = (self.folder / "out").glob("made-up-1-*.json")
        self.assertEqual(len(results.read_text().splitlines()), 1 + 45 + 45 + 33)
        self.assertIn("| tables |", (self.folder / "out/summary.txt").read_text())
        self.assertIn(str(results), done.stdout)
        self.assertEqual(list(self.bundle.glob("**/__pycache__")), [])

    def test_one_step_that_fails_stops_no_other(self):
        self.make_run(conformance="import sys; sys.exit('a crash')")
        done = self.run_it()
        self.assertEqual(done.returncode, 1)
        steps = self.steps()
        self.assertEqual((steps["cuda"], steps["vulkan"]), ("FAILED", "FAILED"))
        self.assertEqual((steps["bench"], steps["example"]), ("passed", "passed"))

    def test_steps_that_the_time_does_not_reach_are_absent(self):
        self.make_run()
        done = self.run_it(FLASHTILE_GPU_SECONDS="1")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(set(self.steps().values()), {"absent"})
        self.assertIn("no time is left", done.stdout)

    def test_ended_from_outside_it_ends_its_children_and_keeps_the_summary(self):
        pid = self.folder / "pid"
        body = f"""
            import os, sys, time
            if "--list" in sys.argv:
                print("cuda a: test\\ncuda b: test\\ncuda c: test\\ncuda d: test\\ncuda e: test")
            else:
                open({str(pid)!r}, "w").write(str(os.getpid()))
                time.sleep(60)
        """
        self.make_run(conformance=body)
        running = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(200):
            if pid.exists() and pid.read_text():
                break
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        self.assertEqual(running.wait(10), 143)
        with self.assertRaises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
        self.assertIn("devices", (self.folder / "out/summary.txt").read_text())

    def test_outside_of_a_bundle_it_says_so(self):
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / "on-gpu")], stderr=subprocess.PIPE, encoding="utf-8"
        )
        self.assertEqual(done.returncode, 2)
        self.assertIn("scripts/gpu-check makes", done.stderr)

    def test_old_pythons_understand_it(self):
        files = [SCRIPTS / "on-gpu", SCRIPTS.parent / "benches/torch_sdpa.py"]
        files += (SCRIPTS / "on_gpu").glob("*.py")
        for file in files:
            with self.subTest(file=file.name):
                ast.parse(file.read_text(), feature_version=(3, 8))
