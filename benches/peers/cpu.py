"""Attention on the CPU: flashtile beside onnxruntime (and candle and torch, where they are there).

One run, same shapes, same numbers, as many threads as there are cores. The libraries take turns,
and the best round of each counts, because other programs may use the machine too. Every output is
compared with flashtile's.

    python3 -m venv target/peers-venv
    target/peers-venv/bin/pip install numpy onnx onnxruntime
    cargo build --release
    cargo build --release --manifest-path benches/peers/candle/Cargo.toml   # optional
    target/peers-venv/bin/python benches/peers/cpu.py
"""

import argparse
import json
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPES = ["1x4x1024x64", "1x4x2048x64", "1x4x1024x128", "4x12x1024x64"]
# Two correct f32 results differ by less than this, for normally distributed inputs.
TOLERANCE = 2e-5


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", help=f"BxHxSxD [default: {' '.join(SHAPES)}]")
    parser.add_argument("--flashtile", type=pathlib.Path, default=ROOT / "target/release/flashtile")
    parser.add_argument("--seconds", type=float, default=0.15, help="per library, case and round")
    parser.add_argument("--rounds", type=int, default=20)
    return parser.parse_args()


def median_ms(run, seconds):
    """The median time of a call in milliseconds, over `seconds` and at least 3 calls."""
    run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def session(node, inputs, output, opsets):
    """An onnxruntime session of one node, with a thread per core."""
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, output)],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets], ir_version=10
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def onnx_attention(b, h, s, d, causal):
    """The operator Attention of opset 23, on (B, H, S, D)."""
    shape = [b, h, s, d]
    node = helper.make_node("Attention", ["q", "k", "v"], ["out"], is_causal=int(causal))
    return session(node, dict.fromkeys("qkv", shape), shape, [("", 23)])


def microsoft_attention(b, h, s, d, causal):
    """com.microsoft MultiHeadAttention, on (B, S, H * D)."""
    shape = [b, s, h * d]
    node = helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v"],
        ["out"],
        domain="com.microsoft",
        num_heads=h,
        unidirectional=int(causal),
    )
    return session(node, dict.fromkeys("qkv", shape), shape, [("", 21), ("com.microsoft", 1)])


def peers(shape, causal, tensors):
    """Every library as (name, function that returns the output in (B, H, S, D))."""
    b, h, s, d = shape
    packed = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(b, s, h * d) for x in tensors]
    unpack = lambda x: x.reshape(b, s, h, d).transpose(0, 2, 1, 3)
    found = []
    for name, make, inputs, view in [
        ("onnx Attention", onnx_attention, tensors, lambda x: x),
        ("ort MultiHeadAttention", microsoft_attention, packed, unpack),
    ]:
        try:
            made = make(b, h, s, d, causal)
        except Exception as error:  # An operator that this version does not have.
            print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        feed = dict(zip("qkv", inputs))
        found.append((name, lambda made=made, feed=feed: made.run(None, feed)[0], view))
    try:
        import torch
    except ImportError:
        return found
    torch.set_num_threads(os.cpu_count())
    given = [torch.from_numpy(x) for x in tensors]
    attention = torch.nn.functional.scaled_dot_product_attention

    def run():
        with torch.no_grad():
            return attention(*given, is_causal=causal)

    return found + [("torch", run, lambda x: x.numpy())]


class Candle:
    """candle's flash attention, a program of its own. It measures itself."""

    PROGRAM = ROOT / "benches/peers/candle/target/release/flashtile-peer-candle"

    def __init__(self, tensors, causal):
        self.folder = tempfile.TemporaryDirectory()
        self.given = pathlib.Path(self.folder.name, "in")
        self.written = pathlib.Path(self.folder.name, "out")
        self.causal = causal
        write_safetensors(self.given, dict(zip("qkv", tensors)))

    def measure(self, seconds):
        """The median time of a call in milliseconds."""
        command = [self.PROGRAM, self.given, self.written, str(seconds)]
        command += ["causal"] * self.causal
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return float(done.stdout)

    def output(self):
        """(B, H, S, D), of the last measurement."""
        return read_safetensors(self.written, "out")


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": x.shape, "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for x in tensors.values():
            file.write(np.ascontiguousarray(x).tobytes())


def read_safetensors(path, name):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + length])[name]
    start, end = entry["data_offsets"]
    return np.frombuffer(data[8 + length + start : 8 + length + end], np.float32).reshape(
        entry["shape"]
    )


def flashtile_output(program, tensors, causal):
    """flashtile's output on the same numbers."""
    with tempfile.TemporaryDirectory() as folder:
        given, written = pathlib.Path(folder, "in"), pathlib.Path(folder, "out")
        write_safetensors(given, dict(zip("qkv", tensors)))
        command = [program, "run", given, "--output", written, "--layout", "bhsd"]
        command += ["--backend", "cpu"] + ["--causal"] * causal
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return read_safetensors(written, "out")


class Flashtile:
    """The program, which stays open and measures one case per question."""

    def __init__(self, program, seconds):
        command = [program, "bench", "--json", "--cases", "-", "--seconds", str(seconds)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measure(self, shape, dtype, causal):
        """The median time of a call in milliseconds."""
        case = f"{shape},{dtype}{',causal' if causal else ''} cpu:flash\n"
        self.process.stdin.write(case)
        self.process.stdin.flush()
        rows = []
        while (line := json.loads(self.process.stdout.readline())) != {}:
            rows.append(line)
        (row,) = rows
        if "ms" not in row:
            sys.exit(f"flashtile did not measure {case}: {row}")
        return row["ms"]


def main():
    arguments = parse_arguments()
    ours = Flashtile(arguments.flashtile, arguments.seconds)
    rng = np.random.default_rng(1)
    print(f"{os.cpu_count()} threads; onnxruntime {ort.__version__}; "
          f"load {os.getloadavg()[0]:.1f} at the start")
    print("| case | flashtile f32 | f16 | bf16 | the fastest other | times as fast | others |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.shape or SHAPES:
        shape = [int(n) for n in name.split("x")]
        b, h, s, d = shape
        for causal in [False, True]:
            tensors = [rng.standard_normal(shape, dtype=np.float32) for _ in "qkv"]
            expected = flashtile_output(arguments.flashtile, tensors, causal)
            others = peers(shape, causal, tensors)
            for other, run, view in others:
                difference = float(np.abs(view(run()) - expected).max())
                if not difference <= TOLERANCE:
                    sys.exit(f"{other}, {name}, causal {causal}: off by {difference}")
            candle = Candle(tensors, causal) if Candle.PROGRAM.exists() else None
            best = {}
            for _ in range(arguments.rounds):
                for dtype in ["f32", "f16", "bf16"]:
                    ms = ours.measure(name, dtype, causal)
                    best[dtype] = min(best.get(dtype, ms), ms)
                for other, run, _ in others:
                    ms = median_ms(run, arguments.seconds)
                    best[other] = min(best.get(other, ms), ms)
                if candle:
                    ms = candle.measure(arguments.seconds)
                    best["candle"] = min(best.get("candle", ms), ms)
            if candle:
                difference = float(np.abs(candle.output() - expected).max())
                if not difference <= TOLERANCE:
                    sys.exit(f"candle, {name}, causal {causal}: off by {difference}")
            flops = 4 * b * h * d * (s * (s + 1) // 2 if causal else s * s)
            speed = lambda key: f"{best[key]:.1f} ms, {flops / best[key] / 1e6:.0f} GFLOP/s"
            names = [other for other, _, _ in others] + ["candle"] * bool(candle)
            fastest = min(names, key=best.get)
            print(
                f"| {name}{', causal' if causal else ''} | {speed('f32')} "
                f"| {best['f16']:.1f} ms | {best['bf16']:.1f} ms | {fastest}: {speed(fastest)} "
                f"| {best[fastest] / best['f32']:.2f} "
                f"| {', '.join(f'{n}: {best[n]:.1f} ms' for n in names if n != fastest)} |",
                flush=True,
            )
    ours.process.stdin.close()
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
