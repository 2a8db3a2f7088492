#!/usr/bin/env python3
"""Times torch's scaled_dot_product_attention, each of its kernels by itself.

Prints the lines of `flashtile bench --json`.

    benches/torch_sdpa.py 4x16x4096x128,f16,causal 1x8x8192x64,f32
    benches/torch_sdpa.py --kernel flash_attention --seconds 1 4x16x4096x128,bf16
    benches/torch_sdpa.py -         questions from stdin, one per line

A case is BxHxSxD,dtype[,causal]. Where k and v have other heads or another length than q, H is
H/Hkv and S is Sq/Skv: 1x32/8x1/4096x128 is a decode step. A question is a case; or `versions`: what
runs here; or `copy`: how fast torch copies device memory. A line of `{}` ends the answer to each;
`flashtile bench --json --cases -` answers cases in the same way.

The method is that of flashtile: inputs spread evenly over -1..1 from one seed, (B, H, S, D) in
memory, the forward pass alone, warmed up, and the median of as many repetitions as --seconds holds.
Times are those of CUDA events. Nothing flushes the caches, neither here nor in flashtile: shapes
for which that matters are smaller than the L2 cache for both.

A kernel that refuses a case is a line on stderr. Exit status 77: there is no torch, or no GPU that
it sees.
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings

ABSENT = 77
# MATH comes last: it stores all scores, 70 GB of them at 16k keys.
KERNELS = ["flash_attention", "cudnn_attention", "efficient_attention", "math"]
# Keys beyond which MATH is left out.
MOST_MATH_KEYS = 8192
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
MOST_RUNS = 200
FEWEST_RUNS = 5
SEED = 7
# Bytes of the tensor that is copied: far more than the L2 cache holds.
COPY_BYTES = 1 << 30


def complain(message):
    print("torch_sdpa:", " ".join(str(message).split()), file=sys.stderr, flush=True)


class Shape:
    """(B, H, Sq, D) of q and (B, Hkv, Skv, D) of k and v."""

    def __init__(self, text):
        """From `BxHxSxD`, where H may be `H/Hkv` and S `Sq/Skv`. Raises ValueError."""
        batch, heads, seq, head_dim = text.split("x")
        self.batch, self.head_dim = int(batch), int(head_dim)
        (self.heads, self.kv_heads), (self.seq_q, self.seq_kv) = map(self.both, (heads, seq))
        if min(self.q + self.kv) < 1:
            raise ValueError("sizes must be positive")

    @staticmethod
    def both(text):
        sizes = [int(n) for n in text.split("/")]
        one, other = sizes if len(sizes) == 2 else sizes * 2
        return one, other

    @property
    def q(self):
        return self.batch, self.heads, self.seq_q, self.head_dim

    @property
    def kv(self):
        return self.batch, self.kv_heads, self.seq_kv, self.head_dim

    def __str__(self):
        def name(one, other):
            return str(one) if one == other else f"{one}/{other}"

        heads, seq = name(self.heads, self.kv_heads), name(self.seq_q, self.seq_kv)
        return f"{self.batch}x{heads}x{seq}x{self.head_dim}"


def parse_case(text):
    """`BxHxSxD,dtype[,causal]`, with the sizes of Shape."""
    shape, *words = text.strip().split(",")
    try:
        shape = Shape(shape)
    except ValueError:
        shape = None
    dtype, causal = (words + [""])[0], words[1:] == ["causal"]
    if shape is None or dtype not in DTYPES or len(words) - causal != 1:
        raise argparse.ArgumentTypeError(
            f"expected BxHxSxD,dtype[,causal], such as 4x16x4096x128,f16,causal, but got `{text}`"
        )
    return shape, dtype, causal


def cost(shape, size, causal):
    """FLOP and bytes, as flashtile counts them.

    FLOP of the pairs of a query and a key that it sees; bytes of q, k, v and out, each once.
    """
    pairs = shape.seq_q * (shape.seq_q + 1) // 2 if causal else shape.seq_q * shape.seq_kv
    numbers = 2 * (math.prod(shape.q) + math.prod(shape.kv))
    return 4 * shape.batch * shape.heads * pairs * shape.head_dim, numbers * size


def repeat(torch, run, budget):
    """Milliseconds of each of as many runs as `budget` seconds hold."""
    times = []
    started = time.monotonic()
    while len(times) < MOST_RUNS and (
        len(times) < FEWEST_RUNS or time.monotonic() - started < budget
    ):
        # A few at a time, so that the GPU does not wait for the host between them.
        events = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(FEWEST_RUNS)
        ]
        for start, end in events:
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) for start, end in events]
    return times


def measure(torch, case, kernel, budget):
    """One measurement, or RuntimeError if the kernel refuses."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shape, dtype, causal = case
    if not hasattr(SDPBackend, kernel.upper()):
        raise RuntimeError("this torch does not have it")
    if kernel == "math" and min(shape.seq_q, shape.seq_kv) > MOST_MATH_KEYS:
        raise RuntimeError(f"its scores take too much memory beyond {MOST_MATH_KEYS} keys")
    if causal and shape.seq_q != shape.seq_kv:
        raise RuntimeError("its causal masks begin at the first key, not at the last")
    # Older versions of torch know no groups of heads.
    options = {"enable_gqa": True} if shape.heads != shape.kv_heads else {}
    before = torch.cuda.memory_allocated()
    generator = torch.Generator("cuda").manual_seed(SEED)

    def tensor(sizes):
        values = torch.rand(sizes, generator=generator, device="cuda", dtype=torch.float32)
        return values.mul_(2).sub_(1).to(getattr(torch, DTYPES[dtype]))

    q, k, v = tensor(shape.q), tensor(shape.kv), tensor(shape.kv)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()

    def run():
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(q, k, v, is_causal=causal, **options)

    with torch.inference_mode(), sdpa_kernel(getattr(SDPBackend, kernel.upper())):
        started = time.monotonic()
        run()
        torch.cuda.synchronize()
        first_ms = (time.monotonic() - started) * 1e3
        repeat(torch, run, 0)
        ms = statistics.median(repeat(torch, run, budget))
    flops, size = cost(shape, q.element_size(), causal)
    return {
        "backend": "torch",
        "case": str(shape),
        "causal": causal,
        "clock": "gpu",
        "device": torch.cuda.get_device_name(),
        "dtype": dtype,
        "first_ms": first_ms,
        "gbps": size / ms / 1e6,
        "gflops": flops / ms / 1e6,
        "kernel": kernel,
        "ms": ms,
        "peak_bytes": torch.cuda.max_memory_allocated() - before,
    }


def answer(torch, case, kernels, budget):
    """Measures one case by each of `kernels`."""
    shape, dtype, causal = case
    for kernel in kernels:
        what = f"{shape} {dtype}{' causal' if causal else ''}, {kernel}"
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            try:
                print(json.dumps(measure(torch, case, kernel, budget)), flush=True)
            except RuntimeError as error:  # Out of memory is one too.
                # torch warns of each reason and then says that there is no kernel.
                reasons = [str(warning.message).split(" (Triggered")[0] for warning in given]
                complain(f"skipped {what}: {'; '.join(reasons[:3]) or error}")
        # torch keeps memory that was freed, and the other competitors need it. Not in `except`:
        # there the error still holds the tensors.
        torch.cuda.empty_cache()


def versions(torch):
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "cudnn": str(torch.backends.cudnn.version()),
                "gpu": torch.cuda.get_device_name(),
            }
        )
    )


def copy(torch, budget):
    """Prints how many bytes per second a copy reads and writes."""
    source = torch.zeros(COPY_BYTES, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    repeat(torch, lambda: target.copy_(source), 0)
    ms = statistics.median(repeat(torch, lambda: target.copy_(source), budget))
    print(json.dumps({"copy_gbps": 2 * COPY_BYTES / ms / 1e6}))
    del source, target
    torch.cuda.empty_cache()


def serve(torch, questions, kernels, budget):
    """Answers lines until there are no more."""
    for line in questions:
        if line.strip() == "versions":
            versions(torch)
        elif line.strip() == "copy":
            try:
                copy(torch, budget)
            except RuntimeError as error:
                complain(f"skipped copy: {error}")
        else:
            try:
                answer(torch, parse_case(line), kernels, budget)
            except argparse.ArgumentTypeError as error:
                complain(error)
        print("{}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help="BxHxSxD,dtype[,causal], or - for stdin"
    )
    parser.add_argument(
        "--kernel", action="append", choices=KERNELS, help="only this one; may be repeated"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="time for the repetitions of one case [default: 1]",
    )
    args = parser.parse_args()
    try:
        cases = [parse_case(text) for text in args.cases if text != "-"]
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    try:
        import torch
        import torch.nn.attention
    except ImportError as error:
        complain(f"no torch: {error}")
        return ABSENT
    if not torch.cuda.is_available():
        complain(f"torch {torch.__version__} sees no GPU")
        return ABSENT
    # Before this, torch does not know how much memory is in use.
    torch.cuda.init()
    kernels = args.kernel or KERNELS
    for case in cases:
        answer(torch, case, kernels, args.seconds)
    if "-" in args.cases:
        serve(torch, sys.stdin, kernels, args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
