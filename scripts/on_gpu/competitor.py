"""A program that stays in memory and measures one case per line.

The protocol of `flashtile bench --json --cases -` and of `torch_sdpa.py -`: a case is one line on
stdin. The answer is lines on stdout, one JSON object each, and then the line `{}`:

    {"case":"1x8x1024x64","ms":0.21,...}                     a measurement
    {"case":"1x8x1024x64","error":"out of device memory"}    what could not be measured, and why;
                                  with "refused":true if a kernel declared beforehand that it cannot

Starting takes longer than measuring, so one process measures all cases. Lines that are no JSON are
ignored, since libraries print where they like. The programs explain themselves on stderr.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from dataclasses import dataclass, field

from .processes import Deadline, ending


class Gone(Exception):
    """The program ended, or does not answer. It has been stopped."""


@dataclass
class Answer:
    """What a program said about one case."""

    rows: list = field(default_factory=list)  # measurements, as they came
    errors: list = field(default_factory=list)  # texts
    refusals: list = field(default_factory=list)  # texts


class Competitor:
    """A running program."""

    def __init__(self, processes, command, errors, env=None):
        """`errors`: the open file that takes what the program writes to stderr."""
        self._processes = processes
        self._process = processes.start(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env
        )
        # A thread reads, because a pipe cannot be read with a time limit.
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def ask(self, question, seconds, answer=None):
        """Sends a line and waits for the whole answer.

        Raises Gone if it does not come within `seconds`. What came before that is in `answer`.
        """
        answer = Answer() if answer is None else answer
        deadline = Deadline(seconds)
        try:
            self._process.stdin.write(f"{question}\n".encode())
            self._process.stdin.flush()
        except (OSError, ValueError):  # Its end is closed, or ours.
            self._give_up()
        while True:
            try:
                line = self._lines.get(timeout=deadline.left())
            except queue.Empty:
                self.stop()
                raise Gone(f"no answer within {seconds:.3g} s") from None
            if line is None:
                self._give_up()
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if value == {}:
                return answer
            # A measured row may have `error` too: there it is a number, the error of the result.
            if not isinstance(value, dict):
                continue
            if not isinstance(value.get("error"), str):
                answer.rows.append(value)
            elif value.get("refused") is True:
                answer.refusals.append(value["error"])
            else:
                answer.errors.append(value["error"])

    def _give_up(self):
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            status = None
        self.stop()
        raise Gone("it closed its output" if status is None else f"it ended: {ending(status)}")

    def stop(self):
        self._processes.stop(self._process)
        try:
            self._process.stdin.close()
        except OSError:  # A line that nobody took.
            pass
