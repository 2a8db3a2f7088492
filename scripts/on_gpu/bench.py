"""The step that measures, and the file of results.

One case after the other, and in each case all competitors: so the GPU's clocks and temperature are
the same for them.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections import namedtuple
from datetime import datetime, timezone

from .competitor import Answer, Competitor, Gone
from .session import Absent, Failed, last_line

# Seconds of measuring for each kernel in a case.
MEASURE = 0.3
# A case takes a few seconds. With less than this left none is started.
CASE = 15.0
# Seconds for one answer: torch tries four kernels, and a first call may compile.
PATIENCE = 60.0
# Seconds for a program's first answer, which includes its start: torch loads gigabytes.
FIRST_PATIENCE = 90.0
# How often flashtile is started again. After an error a CUDA context may be of no more use.
RESTARTS = 3

# The same sizes for every length, as in FlashAttention's benchmark.
BATCH_TIMES_SEQ = 16384
HEADS_TIMES_DIM = 2048
# The plain ones of the repository's named shapes, smallest first.
NAMED = [
    "2x12x89x32",
    "1x4x256x64",
    "8x12x197x64",
    "4x12x1024x64",
    "1x32x2048x128",
    "1x8x8192x64",
]

# A decode step: one query over a long cache, 32 heads over 8.
DECODE = "1x32/8x1/32768x128"

# One case, and the BACKEND:KERNEL of flashtile that compete in it; `auto` is every kernel.
Contest = namedtuple("Contest", "case kernels")


def contests():
    """What is measured on an NVIDIA GPU, the most telling first: time may run out."""
    found = []
    for seq in (8192, 16384, 4096):
        for head_dim in (128, 64):
            for causal in ("", ",causal"):
                for dtype in ("f16", "bf16", "f32"):
                    # One length is enough for f32 beside a shorter one, for the unfused kernel,
                    # and for bf16 by wgpu, which computes it as it computes f16.
                    if dtype == "f32" and seq == 16384:
                        continue
                    kernels = ["cuda:auto" if seq == 8192 else "cuda:flash"]
                    if dtype != "bf16":
                        kernels.append("wgpu:flash")
                    batch, heads = BATCH_TIMES_SEQ // seq, HEADS_TIMES_DIM // head_dim
                    shape = f"{batch}x{heads}x{seq}x{head_dim}"
                    found.append(Contest(f"{shape},{dtype}{causal}", kernels))
    found.append(Contest(f"{DECODE},f16", ["cuda:flash", "wgpu:flash"]))
    for shape in NAMED:
        for dtype in ("f16", "f32"):
            found.append(Contest(f"{shape},{dtype},causal", ["cuda:auto", "wgpu:auto"]))
    return found


def contests_without_cuda(software):
    """What is measured on another maker's GPU, or on a software adapter: there, what is quick."""
    shapes, kernel = (NAMED[:3], "wgpu:flash") if software else (NAMED, "wgpu:auto")
    return [Contest(f"{shape},f32,causal", [kernel]) for shape in shapes]


class Bench:
    """The competitors and what was measured of them."""

    def __init__(self, session):
        self.session = session
        self.rows = []
        self.failures = []
        self.left_out = 0
        self.torch = None
        self.versions = {}  # torch's, and of what it is built with
        self.clocks = None
        self._flashtile = {}  # by backend
        self._restarts = 0
        # What the programs write to stderr. They append, and this reads on where it stopped.
        self._errors = open(session.work / "stderr", "ab")
        self._new_errors = open(session.work / "stderr", "rb")
        self._flashtile_version = flashtile_version(session)
        self._results = session.out / results_name(gpu_name(session.machine), today())

    def run(self, wanted, with_torch=True):
        """Measures every contest for which time is left."""
        try:
            if with_torch:
                self.start_torch()
                self.clocks = Clocks(self.session)
            for contest in wanted:
                if self.session.deadline.left() < CASE:
                    self.left_out += 1
                else:
                    self.measure(contest)
            self.save()
        finally:
            self.stop()

    def measure(self, contest):
        self.session.say(contest.case)
        self.ask_torch(contest.case)
        for kernel in contest.kernels:
            backend = kernel.split(":")[0]
            if self.session.machine.first(backend) is not None:
                self.ask_flashtile(backend, f"{contest.case} {kernel}")
        self.log_errors()
        # After every case, so that nothing is lost if a later one hangs the machine.
        self.save()

    # ---- Competitors ----------------------------------------------------------------------------

    def start_torch(self):
        """torch brings its own libraries, and gets none of ours."""
        script = self.session.bundle / "torch_sdpa.py"
        command = [python(), str(script), "--seconds", str(MEASURE), "-"]
        try:
            self.torch = self.start(command, self.session.machine.system)
            answer = self.torch.ask("versions", self.patience(FIRST_PATIENCE))
            self.versions = answer.rows[0] if answer.rows else {}
            # What decode steps are compared with: they read K and V, and little else.
            answer = self.torch.ask("copy", self.patience(FIRST_PATIENCE))
            for row in answer.rows:
                self.versions["copy"] = f"{row['copy_gbps']:.0f} GB/s"
            # The first case loads libraries, so it is not counted.
            self.torch.ask("1x1x128x64,f16", self.patience(FIRST_PATIENCE))
        except (Gone, OSError) as error:
            self.torch = None
            why = self.log_errors() or str(error)
            self.session.say(f"torch is absent, and flashtile is measured alone: {why}")

    def ask_torch(self, case):
        if self.torch is None:
            return
        answer = Answer()
        try:
            self.torch.ask(case, self.patience(PATIENCE), answer)
        except Gone as why:
            self.session.say("torch is left out from here on")
            self.fail(f"{case}, torch", why)
            self.torch = None
        self.take(answer, f"{case}, torch")

    def ask_flashtile(self, backend, question):
        answer = Answer()
        try:
            if backend not in self._flashtile:
                self._flashtile[backend] = self.start(
                    [
                        *[str(self.session.bundle / "bin/flashtile"), "bench", "--json"],
                        *["--seconds", str(MEASURE), "--cases", "-"],
                        *["--adapter", str(self.session.machine.adapter(backend))],
                    ],
                    self.session.machine.own,
                )
            self._flashtile[backend].ask(question, self.patience(PATIENCE), answer)
        except (Gone, OSError) as why:
            self.fail(question, why)
            self._flashtile.pop(backend, None)
            self._restarts += 1
        self.take(answer, question)
        if answer.errors and backend in self._flashtile and self._restarts < RESTARTS:
            self._restarts += 1
            self._flashtile.pop(backend).stop()

    def fail(self, what, why):
        """Notes a program that ended or hangs, with the last line that it wrote."""
        text = ": ".join(filter(None, [what, str(why), self.log_errors()]))
        if self.session.deadline.left() < CASE / 2:
            # It was stopped because our own time is over, which says nothing about it.
            self.left_out += 1
            self.session.say(f"no time is left for {text}")
        else:
            self.failures.append(text)

    def start(self, command, env):
        return Competitor(self.session.processes, command, self._errors, env=env)

    def patience(self, seconds):
        """Never so long that the step could not end in time."""
        return max(1.0, min(seconds, self.session.deadline.left() - CASE / 3))

    def take(self, answer, what):
        self.rows += answer.rows
        self.failures += [f"{what}: {error}" for error in answer.errors]
        for refusal in answer.refusals:
            self.session.say(f"refused: {what}: {refusal}")

    def log_errors(self):
        """Copies what the programs wrote to stderr into the log; returns its last line."""
        text = self._new_errors.read().decode(errors="replace")
        self.session.say(text)
        return last_line(text)

    def stop(self):
        for competitor in [self.torch, self.clocks, *self._flashtile.values()]:
            if competitor is not None:
                competitor.stop()
        self._flashtile.clear()
        for file in (self._errors, self._new_errors):
            file.close()

    # ---- Results --------------------------------------------------------------------------------

    def save(self):
        """Writes the file of results, whole or not at all."""
        if not self.rows:
            return
        session = self.session
        session.results = self._results
        clocks = self.clocks.text() if self.clocks is not None else ""
        first = header(session.machine, self.versions, clocks, self._flashtile_version)
        partial = session.results.with_suffix(".partial")
        partial.write_text("".join(compact(line) for line in (first, *self.rows)), encoding="utf-8")
        partial.replace(session.results)


class Clocks:
    """The GPU's clock while it is at work."""

    def __init__(self, session):
        self._session = session
        self._file = session.work / "clocks"
        self._process = None
        with open(self._file, "w") as output:
            try:
                self._process = session.processes.start(
                    [
                        *["nvidia-smi", "-i", session.machine.gpu, "-l", "1"],
                        *["--query-gpu=clocks.sm,utilization.gpu"],
                        "--format=csv,noheader,nounits",
                    ],
                    stdout=output,
                    stderr=subprocess.DEVNULL,
                    env=session.machine.system,
                )
            except OSError:  # A GPU without nvidia-smi.
                pass

    def text(self):
        """`1980 MHz under load, 1980 MHz at most`; empty if nothing is known."""
        load = median_clock(self._file.read_text(errors="replace"))
        most = self._session.machine.gpu_value("clocks.max.sm")
        parts = [f"{load} MHz under load" if load else "", f"{most} at most" if most else ""]
        return ", ".join(part for part in parts if part)

    def stop(self):
        if self._process is not None:
            self._session.processes.stop(self._process)


def median_clock(samples):
    """MHz over the lines `MHz, percent` in which the GPU worked; None without such a line."""
    busy = []
    for line in samples.splitlines():
        match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", line)
        if match and int(match.group(2)) >= 50:
            busy.append(int(match.group(1)))
    return statistics.median_low(busy) if busy else None


def compact(value):
    """A line of JSON without blanks, as `flashtile bench --json` writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n"


def header(machine, versions, clocks, flashtile):
    """What the machine is: texts, without those that nobody knows."""
    cuda = machine.first("cuda") or {}
    known = {
        "gpu": gpu_name(machine),
        "date": today(),
        "driver": machine.gpu_value("driver_version"),
        "cuda": versions.get("cuda"),
        "nvrtc": cuda.get("nvrtc"),
        "clocks": clocks,
        "memory": machine.gpu_value("memory.total"),
        "power_limit": machine.gpu_value("power.limit"),
        "host": f"{platform.system()} {platform.release()}, {processor()}",
        "flashtile": flashtile,
        "copy": versions.get("copy"),
        "torch": versions.get("torch"),
        "cudnn": versions.get("cudnn"),
    }
    return {key: str(value) for key, value in known.items() if value}


def gpu_name(machine):
    device = machine.first("cuda") or machine.first("wgpu") or {}
    return device.get("name", "")


def results_name(gpu, date):
    """NVIDIA H200 is h200, NVIDIA GeForce RTX 4090 is rtx-4090."""
    name = re.sub(r"nvidia|geforce|\(.*", "", gpu.lower())
    name = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{name or 'gpu'}-{date}.json"


def today():
    return datetime.now(timezone.utc).date().isoformat()


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def flashtile_version(session):
    """Its version, and the commit that it was built from."""
    program = str(session.bundle / "bin/flashtile")
    finished = session.processes.run([program, "--version"], 10, env=session.machine.own)
    version = finished.output.split()[-1] if finished.output.split() else ""
    commit = session.bundle / "COMMIT"
    if commit.exists():
        version += f" ({commit.read_text(encoding='utf-8').strip()})"
    return version


# ---- The step -----------------------------------------------------------------------------------


def python():
    """The Python that may have torch."""
    return os.environ.get("FLASHTILE_PYTHON") or sys.executable


def read_torch_ahead(session):
    """Imports torch once and forgets it, so that its gigabytes are in memory when it is measured.

    Does not wait: earlier steps run meanwhile. From a cold disk an import can take a minute.
    """
    try:
        session.processes.start(
            [python(), "-c", "import torch"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=session.machine.system,
        )
    except OSError:  # The bench step says what is wrong with it.
        pass


def bench(session):
    """Measures what this machine has, and makes tables of it."""
    cuda, wgpu = session.machine.first("cuda"), session.machine.first("wgpu")
    if cuda is None and wgpu is None:
        raise Absent("no GPU that CUDA or wgpu can use")
    bench = Bench(session)
    if cuda is not None:
        bench.run(contests())
    else:
        software = wgpu.get("type") == "Cpu"
        bench.run(contests_without_cuda(software), with_torch=False)
    if session.results is not None:
        tables = session.processes.run(
            [str(session.bundle / "bin/flashtile"), "bench", "--from", str(session.results)],
            30,
            env=session.machine.own,
        )
        session.say(tables.output)
        if tables.status == 0:
            session.tables = tables.output
        else:
            bench.failures.append(f"the results cannot be read again: {last_line(tables.output)}")
    session.say("\n".join(f"FAILED {failure}" for failure in bench.failures))
    left_out = f", {bench.left_out} cases left out for want of time" if bench.left_out else ""
    if bench.failures:
        raise Failed(f"{len(bench.failures)} failures, first: {bench.failures[0]}{left_out}")
    if not bench.rows:
        raise Absent("no time was left for a case")
    return f"{len(bench.rows)} measurements{left_out}"
