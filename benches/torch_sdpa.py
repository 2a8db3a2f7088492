#!/usr/bin/env python3
"""Times torch's scaled_dot_product_attention, each of its kernels by itself, and prints the lines of `flashtile bench --json`.

    benches/torch_sdpa.py 4x16x4096x128,f16,causal 1x8x8192x64,f32
    benches/torch_sdpa.py --kernel flash_attention --seconds 1 4x16x4096x128,bf16
    benches/torch_sdpa.py --versions
    benches/torch_sdpa.py -         cases from stdin, one a line; a line of `{}` ends the answer to each

A case is BxHxSxD,dtype[,causal]. What flashtile does, this does: inputs spread evenly over -1..1 from one seed, (B, H, S, D) in memory,
the forward pass alone, warmed up, the median of as many repetitions as --seconds holds. Times are those of CUDA events. Nothing flushes
the caches, neither here nor there: shapes of which that matters are smaller than the L2 cache, and are so for both.

A kernel that refuses a case is a line on stderr. Exit status 77: there is no torch, or no card that it sees.
"""

import argparse
import json
import statistics
import sys
import time
import warnings

ABSENT = 77
KERNELS = ["flash_attention", "cudnn_attention", "efficient_attention", "math"]
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
MOST_RUNS = 200
FEWEST_RUNS = 5
SEED = 7


def complain(message):
    print("torch_sdpa:", " ".join(str(message).split()), file=sys.stderr, flush=True)


def parse_case(text):
    """`BxHxSxD,dtype[,causal]`."""
    shape, *words = text.strip().split(",")
    try:
        shape = tuple(int(n) for n in shape.split("x"))
    except ValueError:
        shape = ()
    dtype, causal = (words + [""])[0], words[1:] == ["causal"]
    if len(shape) != 4 or min(shape) < 1 or dtype not in DTYPES or len(words) - causal != 1:
        raise argparse.ArgumentTypeError(f"expected BxHxSxD,dtype[,causal], such as 4x16x4096x128,f16,causal, but got `{text}`")
    return shape, dtype, causal


def cost(shape, size, causal):
    """FLOP of the pairs that a query sees, and bytes of q, k, v and out, each once: flashtile's own count."""
    batch, heads, seq, head_dim = shape
    pairs = seq * (seq + 1) // 2 if causal else seq * seq
    return 4 * batch * heads * pairs * head_dim, 4 * batch * heads * seq * head_dim * size


def repeat(torch, run, budget):
    """Milliseconds of each of as many runs as `budget` seconds hold."""
    times = []
    begin = time.monotonic()
    while len(times) < MOST_RUNS and (len(times) < FEWEST_RUNS or time.monotonic() - begin < budget):
        # A few at a time, so that the card does not wait for the host between them.
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(FEWEST_RUNS)]
        for start, end in events:
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) for start, end in events]
    return times


def measure(torch, case, kernel, budget):
    """One line, or RuntimeError where the kernel refuses."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shape, dtype, causal = case
    if not hasattr(SDPBackend, kernel.upper()):
        raise RuntimeError("this torch does not have it")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    generator = torch.Generator("cuda").manual_seed(SEED)
    q, k, v = (
        torch.rand(shape, generator=generator, device="cuda", dtype=torch.float32).mul_(2).sub_(1).to(getattr(torch, DTYPES[dtype]))
        for _ in range(3)
    )
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()

    def run():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    with torch.inference_mode(), sdpa_kernel(getattr(SDPBackend, kernel.upper())):
        begin = time.monotonic()
        run()
        torch.cuda.synchronize()
        first_ms = (time.monotonic() - begin) * 1e3
        repeat(torch, run, 0)
        ms = statistics.median(repeat(torch, run, budget))
    flops, size = cost(shape, q.element_size(), causal)
    return {
        "backend": "torch",
        "case": "x".join(map(str, shape)),
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
    for kernel in kernels:
        what = f"{'x'.join(map(str, case[0]))} {case[1]}{' causal' if case[2] else ''}, {kernel}"
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                print(json.dumps(measure(torch, case, kernel, budget)), flush=True)
            except RuntimeError as error:  # Out of memory is one too.
                # torch warns of each reason and then says that there is no kernel.
                reasons = [str(warning.message).split(" (Triggered")[0] for warning in told]
                complain(f"skipped {what}: {'; '.join(reasons[:3]) or error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="BxHxSxD,dtype[,causal], or - for stdin")
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="only this one; may be repeated")
    parser.add_argument("--seconds", type=float, default=1.0, help="that the repetitions of one case may take together [default: 1]")
    parser.add_argument("--versions", action="store_true", help="print what would run, as JSON, and nothing else")
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
        complain(f"torch {torch.__version__} sees no card")
        return ABSENT
    if args.versions:
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
        print(json.dumps(versions | {"gpu": torch.cuda.get_device_name()}))
        return 0
    # Memory cannot be asked about before.
    torch.cuda.init()
    kernels = args.kernel or KERNELS
    for case in cases:
        answer(torch, case, kernels, args.seconds)
    if "-" in args.cases:
        for line in sys.stdin:
            try:
                answer(torch, parse_case(line), kernels, args.seconds)
            except argparse.ArgumentTypeError as error:
                complain(error)
            print("{}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
