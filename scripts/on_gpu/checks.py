"""The steps that ask whether the results are right."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed

from .processes import Finished
from .session import Absent, Failed, TimeIsUp, last_line

# Conformance tests that run at once at most: each takes some of the GPU's memory.
MOST_WORKERS = 16
# The name of a conformance test says what it needs: those on CUDA and on the CPU begin with these.
CUDA_PREFIX = "cuda"
CPU_PREFIX = "cpu"

# Seconds for one small case under a sanitizer. Where one does not work it often hangs.
SANITIZER_PATIENCE = 60.0
# Exit status of the sanitizer if it complains; the program's own failures have another.
COMPLAINT = 97

# Small, and together they use every option: an access out of bounds or a race shows in small
# problems as in large ones.
EVERY_OPTION = (
    "hkv=2 skv=141 dv=57 causal=yes align=2 window_left=90 window_right=4 softcap=5.0 "
    "mask=f32:b11k:blocks kv_lens=random dropout=0.25"
)
SANITIZER_CASES = [
    f"shape=2x4x39x24 dtype=f16 {EVERY_OPTION}",
    f"shape=2x4x39x24 dtype=f32 {EVERY_OPTION}",
    "shape=1x2x130x128 dtype=bf16 causal=yes",
    "shape=1x1x70x64 dtype=f16",
    f"shape=2x4x39x24 dtype=bf16 {EVERY_OPTION}",
    "shape=1x2x130x128 dtype=f32 causal=yes",
    "shape=1x1x37x33 skv=77 dtype=f16",
]


def devices(session):
    """What is here. A GPU that nvidia-smi lists and CUDA does not open is a failure."""
    machine = session.machine
    if session.command(["nvidia-smi"], 30).status != 0:
        session.say("no nvidia-smi that works: no NVIDIA GPU, or no driver")
    session.flashtile("devices")
    session.say(f"Vulkan driver: {machine.vulkan_driver}")
    session.say(f"NVRTC: {machine.own.get('FLASHTILE_NVRTC', 'what flashtile finds')}")
    cuda = machine.first("cuda")
    if machine.has_nvidia_gpu and cuda is None:
        raise Failed("nvidia-smi lists a GPU, and flashtile does not find it by CUDA")
    gpus = [device for device in machine.devices if device.get("backend") in ("cuda", "wgpu")]
    names = {device["name"] for device in gpus}
    return ", ".join(sorted(names)) or "no GPU"


def example(session):
    """A real model's tensors, compared with the oracle."""
    ran = [backend for backend in ("cuda", "wgpu") if session.machine.first(backend)]
    if not ran:
        raise Absent("no GPU that CUDA or wgpu can use")
    for backend in ran:
        session.flashtile(
            *["run", session.bundle / "real_qkv.safetensors"],
            *["--output", session.work / "out.safetensors", "--layout", "bhsd"],
            *["--lse", "--verify", "--backend", backend],
        )
    return ", ".join(ran)


# ---- Conformance --------------------------------------------------------------------------------


class Tests:
    """How many tests had which result, by the lines that end the output of a test program."""

    RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.M)

    def __init__(self):
        self.passed = self.failed = self.ignored = 0

    def add(self, output):
        """Whether the output has such a line."""
        match = self.RESULT.search(output)
        if match is not None:
            self.passed += int(match.group(1))
            self.failed += int(match.group(2))
            self.ignored += int(match.group(3))
        return match is not None

    def note(self):
        return f"{self.passed} passed, {self.ignored} ignored"


def conformance_cuda(session):
    """Each test in a process of its own, several at once.

    NVRTC compiles one kernel at a time in a process, and compiling is what takes long. What one
    process has compiled, the others find on the disk.
    """
    if session.machine.first("cuda") is None:
        raise Absent("no GPU that CUDA can use")
    program = str(session.bundle / "bin/conformance")
    env = session.machine.environment(FLASHTILE_REQUIRE_CUDA="1")
    listed = session.processes.run([program, "--list"], 30, env=env, with_errors=False).output
    names = re.findall(rf"^({CUDA_PREFIX}.*): test$", listed, re.M)
    if not names:
        raise Failed("the conformance program lists no CUDA test")

    def run(name):
        left = session.deadline.left()
        if left == 0.0:
            return Finished(0, "", timed_out=True)
        return session.processes.run([program, "--exact", name], left, env=env)

    tests, failures, unfinished = Tests(), [], 0
    with ThreadPoolExecutor(min(MOST_WORKERS, len(os.sched_getaffinity(0)))) as pool:
        try:
            started = {pool.submit(run, name): name for name in names}
            for future in as_completed(started):
                name, finished = started[future], future.result()
                if finished.timed_out:
                    unfinished += 1
                    continue
                counted = tests.add(finished.output)
                if finished.status != 0 or not counted:
                    failures.append(f"{name}: {finished.why() or 'no result'}\n{finished.output}")
                else:
                    lines = re.findall(r"^test .* \.\.\. .*$", finished.output, re.M)
                    session.say("\n".join(lines))
        except (KeyboardInterrupt, SystemExit):
            session.processes.close()  # So that the pool's threads end.
            raise
    for failure in failures:
        session.say(failure)
    if failures:
        names = ", ".join(failure.split("\n")[0] for failure in failures[:3])
        raise Failed(f"{len(failures)} of {len(started)} tests failed: {names}")
    if unfinished:
        raise Failed(f"it reached its time limit before {unfinished} of {len(started)} tests ended")
    return some(tests)


def conformance_vulkan(session):
    """In one process: drivers compile its pipelines on several threads.

    Tests on the CPU always pass something, so they would hide that all others were ignored.
    """
    if session.machine.first("wgpu") is None:
        raise Absent("no adapter that wgpu can use")
    others = ["--skip", CUDA_PREFIX, "--skip", CPU_PREFIX]
    try:
        finished = session.command([session.bundle / "bin/conformance", *others])
    except TimeIsUp as up:
        passed = len(re.findall(r"^test .* \.\.\. ok$", up.output, re.M))
        raise Failed(f"it reached its time limit when {passed} tests had passed") from None
    tests = Tests()
    counted = tests.add(finished.output)
    if finished.status != 0 or not counted:
        raise Failed(f"{tests.failed} tests failed" if tests.failed else finished.why())
    return some(tests)


def some(tests):
    """Where every test was ignored, nothing was tested."""
    if tests.passed == 0:
        raise Absent("every test was ignored")
    return tests.note()


# ---- Sanitizers ---------------------------------------------------------------------------------


def memcheck(session):
    return sanitize(session, "memcheck")


def racecheck(session):
    return sanitize(session, "racecheck")


def sanitize(session, tool):
    """compute-sanitizer on small cases.

    It does not work on every host. It did run if it printed a summary, whatever that says.
    """
    if session.machine.first("cuda") is None:
        raise Absent("no GPU that CUDA can use")
    sanitizer = find_sanitizer(session)
    done = 0
    for case in SANITIZER_CASES:
        if done and session.deadline.left() < 20:
            session.say(f"no time is left for: {case}")
            continue
        try:
            finished = session.command(
                [
                    *[sanitizer, "--tool", tool, "--report-api-errors", "no"],
                    *["--error-exitcode", str(COMPLAINT), session.bundle / "bin/flashtile"],
                    *["check", "--backend", "cuda", "--case", case],
                ],
                SANITIZER_PATIENCE,
            )
        except TimeIsUp:
            session.say(f"no time was left for: {case}")
            break
        if "SUMMARY" not in finished.output or "Device not supported" in finished.output:
            if not done:
                raise Absent(f"{sanitizer} does not run on this host")
            session.say(f"{finished.why() or 'no summary'}: {case}")
            continue
        if finished.status != 0:
            what = "complained" if finished.status == COMPLAINT else last_line(finished.output)
            raise Failed(f"{case}: {what}")
        done += 1
    if not done:
        raise Absent("no case ended within the time limit")
    return f"{done} of {len(SANITIZER_CASES)} cases, no complaint"


def find_sanitizer(session):
    """The machine's own, which fits its driver, or else ours."""
    ours = str(session.bundle / "sanitizer/compute-sanitizer")
    for path in ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer", ours):
        found = shutil.which(path, path=session.machine.own.get("PATH"))
        if found:
            return found
    raise Absent("no compute-sanitizer")
