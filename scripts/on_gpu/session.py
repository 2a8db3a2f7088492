"""Steps: their time limits, what they print, and the summary."""

from __future__ import annotations

import sys
import time
import traceback

from .processes import Deadline

# A step that has less time than this is not started: it would only fail.
SHORTEST = 15.0
# Lines of a failed step that are printed; the log holds the rest.
TAIL = 25


class Absent(Exception):
    """What the step needs is not on this machine, which is no failure."""


class Failed(Exception):
    """The step found something wrong."""


class TimeIsUp(Failed):
    """The step's time limit came first."""

    def __init__(self, output=""):
        super().__init__("it reached its time limit")
        self.output = output  # of the program that ran at that moment


class Session:
    """One run of all steps."""

    def __init__(self, bundle, out, work, machine, processes, ends):
        self.bundle = bundle  # the folder with programs and libraries
        self.out = out  # where results, summary and log go
        self.work = work  # a folder that goes away with the run
        self.machine = machine
        self.processes = processes
        self.ends = ends  # the deadline of the whole run
        self.deadline = self.ends  # of the step that runs
        self.started = time.monotonic()
        self.summary = []
        self.tables = ""  # the measurements, for people
        self.results = None  # the file of measurements
        self.failed = False
        self._log = open(out / "log.txt", "w", encoding="utf-8")
        self._lines = []  # of this step

    # ---- What a step may use --------------------------------------------------------------------

    def say(self, text):
        """Puts `text` into the log, with a line end if it lacks one."""
        if not text:
            return
        text = text if text.endswith("\n") else text + "\n"
        self._log.write(text)
        self._log.flush()
        self._lines += text.splitlines()

    def command(self, command, seconds=None, env=None):
        """Runs a program with flashtile's libraries and logs what it prints.

        At most `seconds`, and never beyond the step's deadline, which raises TimeIsUp.
        """
        left = self.deadline.left()
        finished = self.processes.run(
            [str(part) for part in command],
            left if seconds is None else min(seconds, left),
            env=self.machine.environment(**(env or {})),
        )
        self.say(finished.output)
        if finished.timed_out and self.deadline.left() == 0.0:
            raise TimeIsUp(finished.output)
        return finished

    def flashtile(self, *arguments):
        """Runs the program. Raises Failed with its last line if it fails."""
        finished = self.command([self.bundle / "bin/flashtile", *arguments])
        if finished.status != 0:
            raise Failed(last_line(finished.output) or finished.why())
        return finished

    # ---- The run --------------------------------------------------------------------------------

    def step(self, name, seconds, action):
        """Runs `action`, which may return a note, raise Absent or raise Failed."""
        begin = time.monotonic()
        self.deadline = Deadline(seconds, within=self.ends)
        self._lines = []
        self._log.write(f"\n==== {name}\n")
        try:
            if self.deadline.left() < SHORTEST:
                raise Absent("no time is left")
            result, note = "passed", action(self)
        except Absent as why:
            result, note = "absent", str(why)
        except Failed as why:
            result, note = "FAILED", str(why)
        except Exception as error:  # A mistake of ours must not stop the other steps.
            self.say(traceback.format_exc())
            result, note = "FAILED", f"{type(error).__name__}: {error}"
        took = time.monotonic() - begin
        line = f"{name:<10} {result:<7} {took:4.0f} s  {note or ''}".rstrip()
        if result == "FAILED":
            self.failed = True
            print("\n".join(self._lines[-TAIL:]))
        self.say(line)
        self.summary.append(line)
        print(line, flush=True)

    def finish(self):
        """Writes and prints the summary."""
        took = time.monotonic() - self.started
        lines = self.summary + [f"{'total':<18} {took:4.0f} s", "", self.tables.rstrip()]
        text = "\n".join(lines).rstrip() + "\n"
        (self.out / "summary.txt").write_text(text, encoding="utf-8")
        print(f"\n{text}")
        if self.results is not None:
            print(f"results: {self.results}")
        sys.stdout.flush()

    def close(self):
        self._log.close()


def last_line(text):
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
