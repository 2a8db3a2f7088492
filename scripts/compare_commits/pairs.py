"""Runs in turns, their ratios, and the table."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field

# Seconds for one run: it measures for about one second, and may compile and verify for longer.
PATIENCE = 180.0


class Failed(Exception):
    """Why a run has no time."""


@dataclass
class Result:
    """The pairs of one case."""

    case: object
    times: list = field(default_factory=list)  # (A's milliseconds, B's)
    failures: dict = field(default_factory=dict)  # "A" or "B": why

    def ratios(self):
        """How fast B was in each pair, with A's speed as 1."""
        return [a / b for a, b in self.times]

    def ratio(self):
        """The median of the pairs; None without any."""
        return statistics.median(self.ratios()) if self.times else None

    def passes(self, floor):
        """Whether B ran, and reaches `floor`, if there is one. A may fail: it is the past."""
        if "B" in self.failures:
            return False
        ratio = self.ratio()
        return floor is None or ratio is None or ratio >= floor

    def row(self, floor):
        """Cells: the case, both times, the ratio, its spread, and a remark."""
        ratio = self.ratio()
        if ratio is None:
            failed = " and ".join(sorted(self.failures))
            return [str(self.case), "", "", "", "", f"{failed} failed"]
        a, b = (statistics.median(times) for times in zip(*self.times))
        lowest, highest = min(self.ratios()), max(self.ratios())
        return [
            *[str(self.case), f"{a:.3g} ms", f"{b:.3g} ms", f"{ratio:.3f}"],
            *[f"{lowest:.3f} to {highest:.3f}", "" if self.passes(floor) else "below the floor"],
        ]


class Comparison:
    """Two programs on some cases."""

    def __init__(self, commands, processes, pairs, backend, kernel, say):
        """`commands`: what starts the program, by "A" and "B". `say`: takes progress."""
        self._commands = commands
        self._processes = processes
        self._pairs = pairs
        self._target = (backend, kernel)
        self._say = say

    def run(self, case):
        """All pairs of one case: A, B, A, B, and so on. The first failure ends the case."""
        result = Result(case)
        for pair in range(self._pairs):
            times = {}
            for name in ("A", "B"):
                try:
                    times[name] = self._time(name, case)
                except Failed as why:
                    result.failures[name] = str(why)
                    self._say(f"{case}: {name} failed: {why}")
            if result.failures:
                # A part of the pairs would look like a whole result.
                result.times.clear()
                break
            result.times.append((times["A"], times["B"]))
            ratio = times["A"] / times["B"]
            self._say(
                f"{case}: pair {pair + 1} of {self._pairs}: "
                f"{times['A']:.3g} and {times['B']:.3g} ms, ratio {ratio:.3f}"
            )
        return result

    def _time(self, name, case):
        command = self._commands[name] + case.arguments(*self._target)
        done = self._processes.run(command, PATIENCE)
        if done.status != 0:
            lines = done.output.strip().splitlines()
            raise Failed(lines[-1] if lines and not done.timed_out else done.why())
        for line in done.output.splitlines():
            try:
                value = json.loads(line)
            except ValueError:  # What the program says on stderr.
                continue
            if isinstance(value, dict) and value.get("case") == case.shape:
                time = value.get("ms")
                if isinstance(time, (int, float)) and time > 0:
                    return float(time)
        raise Failed("it measured nothing")


def table(results, floor):
    """Markdown, aligned."""
    rows = [["case", "A", "B", "ratio", "spread", ""]]
    rows += [result.row(floor) for result in results]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells):
        padded = [
            cell.rjust(width) if 1 <= column <= 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths))
        ]
        return f"| {' | '.join(padded)} |"

    dashes = [
        "-" * (width - 1) + ":" if 1 <= column <= 3 else "-" * width
        for column, width in enumerate(max(width, 3) for width in widths)
    ]
    widths = [max(width, 3) for width in widths]
    return "\n".join([line(rows[0]), f"| {' | '.join(dashes)} |", *map(line, rows[1:])])
