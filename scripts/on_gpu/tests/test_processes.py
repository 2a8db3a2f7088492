import os
import sys
import time
import unittest
from unittest import mock

from on_gpu import processes
from on_gpu.processes import Deadline, RunIsOver

from .fakes import Scene, program


class DeadlineTest(unittest.TestCase):
    def test_an_inner_deadline_never_exceeds_the_outer_one(self):
        outer = Deadline(10)
        self.assertLessEqual(Deadline(100, within=outer).left(), 10)
        self.assertLessEqual(Deadline(1, within=outer).left(), 1)

    def test_nothing_is_left_afterwards(self):
        self.assertEqual(Deadline(-5).left(), 0.0)


class ProcessesTest(Scene):
    def test_output_and_status(self):
        script = (
            "import sys; print('out'); sys.stdout.flush(); sys.stderr.write('err'); sys.exit(3)"
        )
        finished = self.processes.run([sys.executable, "-c", script], 10)
        self.assertEqual((finished.status, finished.output), (3, "out\nerr"))
        self.assertEqual(finished.why(), "exit status 3")
        alone = self.processes.run([sys.executable, "-c", script], 10, with_errors=False)
        self.assertEqual(alone.output, "out\n")

    def test_a_program_that_does_not_exist(self):
        finished = self.processes.run(["/nowhere/program"], 10)
        self.assertEqual(finished.status, 127)
        self.assertIn("No such file", finished.output)

    def test_a_signal_is_named(self):
        finished = self.processes.run(["sh", "-c", "kill -SEGV $$"], 10)
        self.assertEqual(finished.why(), "it died of signal 11")

    def test_grandchildren_end_at_the_time_limit_and_output_is_kept(self):
        # The grandchild ignores the polite signal and holds the output open.
        pid = self.folder / "pid"
        body = f"""
            import os, signal, time
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                open({str(pid)!r}, "w").write(str(os.getpid()))
                time.sleep(60)
            print("before", flush=True)
            time.sleep(60)
        """
        begin = time.monotonic()
        with mock.patch.object(processes, "GRACE", 0.2):
            finished = self.processes.run([str(program(self.folder / "parent", body))], 0.5)
        self.assertLess(time.monotonic() - begin, 5)
        self.assertTrue(finished.timed_out)
        self.assertEqual(finished.output, "before\n")
        self.assertEqual(finished.why(), "it reached its time limit")
        self.assertTrue(ended(int(pid.read_text())))

    def test_nothing_starts_after_the_end(self):
        running = self.processes.start(["sleep", "60"])
        self.processes.close()
        self.assertIsNotNone(running.returncode)
        with self.assertRaises(RunIsOver):
            self.processes.run(["true"], 10)


def ended(pid):
    """Whether a process that is nobody's child here ends soon; a zombie has ended."""
    for _ in range(50):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
