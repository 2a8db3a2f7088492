"""benches/torch_sdpa.py on a torch that is made up: there is no other without an NVIDIA GPU."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import unittest
from textwrap import dedent

from .fakes import SCRIPTS, Scene

SCRIPT = SCRIPTS.parent / "benches/torch_sdpa.py"

TORCH = """
    import types

    __version__ = "2.99"
    float16, bfloat16, float32 = "float16", "bfloat16", "float32"
    version = types.SimpleNamespace(cuda="13.0")
    backends = types.SimpleNamespace(cudnn=types.SimpleNamespace(version=lambda: 91900))
    log = []

    class Tensor:
        def mul_(self, _): return self
        def sub_(self, _): return self
        def to(self, dtype): return self
        def element_size(self): return 2

    class Generator:
        def __init__(self, device): pass
        def manual_seed(self, seed): return self

    class Event:
        def __init__(self, enable_timing): pass
        def record(self): pass
        def elapsed_time(self, end): return 2.0

    def rand(*_, **__): return Tensor()

    def inference_mode(): return torch_attention.sdpa_kernel(None)

    def zeros(*_, **__): return types.SimpleNamespace(copy_=lambda _: None)

    empty_like, uint8 = zeros, "uint8"

    def attend(q, k, v, is_causal, enable_gqa=False):
        if torch_attention.chosen == "CUDNN_ATTENTION":
            import warnings
            warnings.warn("cuDNN wants sm_80 (Triggered internally)")
            raise RuntimeError("No available kernel")

    nn = types.SimpleNamespace(functional=types.SimpleNamespace(
        scaled_dot_product_attention=attend))

    def empty_cache():
        import sys
        print("emptied", file=sys.stderr)

    cuda = types.SimpleNamespace(
        is_available=lambda: True, init=lambda: None, Event=Event, synchronize=lambda: None,
        memory_allocated=lambda: 100, max_memory_allocated=lambda: 700, empty_cache=empty_cache,
        reset_peak_memory_stats=lambda: None, get_device_name=lambda: "Made Up 1")
    from . import torch_attention
    import sys
    sys.modules["torch.nn"] = types.ModuleType("torch.nn")
    sys.modules["torch.nn.attention"] = torch_attention
"""

ATTENTION = """
    import contextlib
    chosen = None

    class SDPBackend:
        FLASH_ATTENTION, MATH = "FLASH_ATTENTION", "MATH"
        CUDNN_ATTENTION = "CUDNN_ATTENTION"

    @contextlib.contextmanager
    def sdpa_kernel(kernel):
        global chosen
        chosen = kernel or chosen
        yield
"""


class TorchTest(Scene):
    def ask(self, *arguments, text="", torch=TORCH):
        package = self.folder / "site/torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(dedent(torch))
        (package / "torch_attention.py").write_text(dedent(ATTENTION))
        return subprocess.run(
            [sys.executable, "-B", str(SCRIPT), *arguments],
            input=text,
            env=dict(os.environ, PYTHONPATH=str(package.parent)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def test_questions_and_answers(self):
        text = "versions\n2x3x8192x64,f16,causal\nnonsense\n1x2x8193x64,f16\n"
        text += "copy\n1x4/2x1/9000x64,f16\n1x4/2x1/9000x64,f16,causal\n"
        done = self.ask("--seconds", "0", "-", text=text)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        ends = [n for n, line in enumerate(lines) if line == {}]
        self.assertEqual(len(ends), 7, "one for each question")
        self.assertEqual(lines[0]["torch"], "2.99")
        first = lines[ends[0] + 1 : ends[1]]
        self.assertEqual([row["kernel"] for row in first], ["flash_attention", "math"])
        row = first[0]
        self.assertEqual((row["case"], row["dtype"], row["causal"]), ("2x3x8192x64", "f16", True))
        self.assertEqual((row["ms"], row["peak_bytes"]), (2.0, 600))
        flops = 4 * 2 * 3 * 64 * (8192 * 8193 // 2)
        self.assertAlmostEqual(row["gflops"], flops / 2e-3 / 1e9)
        self.assertIn("expected BxHxSxD", done.stderr)

        # Beyond 8k keys, MATH is left out.
        last = lines[ends[2] + 1 : ends[3]]
        self.assertEqual([row["kernel"] for row in last], ["flash_attention"])
        self.assertIn("skipped 1x2x8193x64 f16, math: its scores take too much", done.stderr)
        self.assertIn("cudnn_attention: cuDNN wants sm_80\n", done.stderr)
        self.assertIn("efficient_attention: this torch does not have it", done.stderr)
        # 2 ms for each copy of a GiB, which is read and written.
        [copy] = lines[ends[3] + 1 : ends[4]]
        self.assertAlmostEqual(copy["copy_gbps"], 2 * 2**30 / 2e-3 / 1e9)
        decode = lines[ends[4] + 1 : ends[5]]
        self.assertEqual([row["case"] for row in decode], ["1x4/2x1/9000x64"] * 2)
        self.assertEqual(lines[ends[5] :], [{}, {}], "no answer to the last question")
        self.assertIn("causal, flash_attention: its causal masks begin at", done.stderr)

        # Four kernels in four cases, whether they ran or refused, and the copy.
        self.assertEqual(done.stderr.count("emptied"), 17)

    def test_without_torch_it_is_absent(self):
        done = self.ask("-", torch="raise ImportError('broken')")
        self.assertEqual(done.returncode, 77)
        self.assertIn("no torch: broken", done.stderr)

    def test_without_a_gpu_it_is_absent(self):
        done = self.ask("-", torch=TORCH.replace("lambda: True", "lambda: False"))
        self.assertEqual(done.returncode, 77)
        self.assertIn("sees no GPU", done.stderr)

    def test_a_wrong_case_is_a_usage_error(self):
        done = self.ask("1x2x3,f16")
        self.assertEqual(done.returncode, 2)
        self.assertIn("but got `1x2x3,f16`", done.stderr)


class CaseTest(unittest.TestCase):
    def test_cases_are_read_or_refused(self):
        spec = importlib.util.spec_from_file_location("torch_sdpa", SCRIPT)
        torch_sdpa = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(torch_sdpa)
        shape, dtype, causal = torch_sdpa.parse_case(" 1x2x3x4,bf16,causal\n")
        self.assertEqual((str(shape), dtype, causal), ("1x2x3x4", "bf16", True))
        self.assertEqual((shape.q, shape.kv), ((1, 2, 3, 4), (1, 2, 3, 4)))
        shape, dtype, causal = torch_sdpa.parse_case("1x32/8x1/4096x128,f32")
        self.assertEqual((str(shape), dtype, causal), ("1x32/8x1/4096x128", "f32", False))
        self.assertEqual((shape.q, shape.kv), ((1, 32, 1, 128), (1, 8, 4096, 128)))
        flops, size = torch_sdpa.cost(shape, 2, False)
        self.assertEqual((flops, size), (4 * 32 * 4096 * 128, 4 * 128 * (32 + 8 * 4096)))
        for case in (
            *["1x2x3,f16", "1x2x3x4", "1x2x3x4,f8", "1x2x3x4,f16,acausal", "1x0x3x4,f16"],
            *["1x2/1/1x3x4,f16", "1x2/0x3x4,f16", "1/1x2x3x4,f16", "1x2-1x3x4,f16"],
        ):
            with self.subTest(case), self.assertRaisesRegex(argparse.ArgumentTypeError, case):
                torch_sdpa.parse_case(case)
