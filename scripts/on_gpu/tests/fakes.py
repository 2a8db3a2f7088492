"""Machines and programs that are made up."""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path
from unittest import mock

from on_gpu.machine import Machine
from on_gpu.processes import Deadline, Processes
from on_gpu.session import Session

SCRIPTS = Path(__file__).resolve().parents[2]

# Two devices, and a measurement for each BACKEND:KERNEL that is asked for.
FLASHTILE = """
    import json, os, sys
    arguments = sys.argv[1:]
    if arguments[0] == "devices":
        if "--json" in arguments:
            print(json.dumps({"backend": "cuda", "index": 0, "name": "NVIDIA Made Up 1",
                              "nvrtc": os.environ.get("FLASHTILE_NVRTC", "none")[-2:] + ".9"}))
            for index, bus in enumerate(["0000:01:00.0", "0000:3b:00.0"]):
                print(json.dumps({"backend": "wgpu", "index": index, "name": "NVIDIA Made Up 1",
                                  "type": "DiscreteGpu", "bus": bus}))
            print(json.dumps({"backend": "cpu", "name": "CPU"}))
            print(json.dumps({"backend": "reference", "name": "CPU"}))
    elif arguments[0] == "--version":
        print("flashtile 1.2.3")
    elif "--from" in arguments:
        print("| tables |")
    elif arguments[0] == "tune":
        with open(arguments[arguments.index("--tuning") + 1], "w") as table:
            print("a table", file=table)
    elif "--cases" in arguments:
        cases = arguments[arguments.index("--cases") + 1]
        lines = sys.stdin if cases == "-" else open(cases)
        for line in lines:
            case, kernel = line.split()
            backend, kernel = kernel.split(":")
            shape, dtype, *causal = case.split(",")
            print(json.dumps({"case": shape, "backend": backend, "kernel": kernel,
                              "dtype": dtype, "causal": causal == ["causal"],
                              "adapter": arguments[arguments.index("--adapter") + 1], "ms": 1.0}))
            print("{}", flush=True)
    elif arguments[0] == "run":
        print("error: 0.1 of the bound")
"""

# A machine without any device.
FLASHTILE_ALONE = """
    import sys
    if "--json" in sys.argv:
        print('{"backend":"cpu","name":"CPU"}')
        print('{"backend":"reference","name":"CPU"}')
"""

NVIDIA_SMI = """
    case "$*" in
        -L) echo "GPU 0: NVIDIA Made Up 1 (UUID: GPU-1)" ;;
        *pci.bus_id*) echo "00000000:3B:00.0, 580.1, 81559 MiB, [N/A], 1980 MHz" ;;
        *clocks.sm,utilization.gpu*) echo "1755, 99" && exec sleep 60 ;;
    esac
"""

CONFORMANCE = """
    import sys
    if "--list" in sys.argv:
        print("cuda flash: dropout: test\\ncuda flash: masks: test\\nfull flash: masks: test")
    else:
        print("test a test ... ok")
        print("test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out")
"""

TORCH = """
    import json, sys
    for line in sys.stdin:
        if line.strip() == "versions":
            print(json.dumps({"torch": "2.0", "cuda": "13.0", "cudnn": "9"}))
        elif line.strip() == "copy":
            print(json.dumps({"copy_gbps": 4012.6}))
        else:
            print(json.dumps({"case": line.split(",")[0], "backend": "torch", "ms": 1.0}))
        print("{}", flush=True)
"""


def program(path, body, interpreter=f"{sys.executable} -S"):
    """Writes a program in Python, or in another language."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{interpreter}\n{textwrap.dedent(body)}")
    path.chmod(0o755)
    return path


class Scene(unittest.TestCase):
    """A folder for each test, and processes that end with it."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.bundle = self.folder / "bundle"
        self.processes = Processes()
        self.addCleanup(self.processes.close)
        for name in ("out", "work", "path"):
            (self.folder / name).mkdir()
        # Of the environment nothing but what finds the system's own programs.
        path = f"{self.folder / 'path'}:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = mock.patch.dict(os.environ, {"PATH": path}, clear=True)
        environment.start()
        self.addCleanup(environment.stop)

    def make_bundle(self, flashtile=FLASHTILE, conformance=CONFORMANCE, torch=TORCH):
        program(self.bundle / "bin/flashtile", flashtile)
        program(self.bundle / "bin/conformance", conformance)
        program(self.bundle / "torch_sdpa.py", torch)
        for library in ("nvrtc/libnvrtc.so.12", "nvrtc/libnvrtc-builtins.so.12.9"):
            file = self.bundle / "lib" / library
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("")
        (self.bundle / "COMMIT").write_text("abc123\n")

    def add_gpu(self):
        program(self.folder / "path/nvidia-smi", NVIDIA_SMI, "/bin/sh")

    def make_machine(self):
        return Machine(self.bundle, self.folder / "work", self.processes)

    def make_session(self, seconds=60.0):
        """A session whose bundle was made before; the running step has `seconds`."""
        session = Session(
            *[self.bundle, self.folder / "out", self.folder / "work"],
            *[self.make_machine(), self.processes, Deadline(seconds)],
        )
        self.addCleanup(session.close)
        return session

    def log(self):
        return (self.folder / "out/log.txt").read_text()
