#!/usr/bin/env python3
"""Times one orthogonalization here and in PyTorch on the CPU, alternating in one run.

    cargo build --release --example orthogonalize_server
    python tools/compare_torch.py --server target/release/examples/orthogonalize_server

For every shape: torch.optim.Muon's own Newton-Schulz (Jordan, bf16), the same five iterations in
torch f32, our cheapest accurate schedule in f32, and the same polynomial (Jordan) on both sides.
Medians of interleaved runs, their ratio to the faster torch variant, and relative Frobenius errors to
the exact polar factor on Gaussian input and on three decaying spectra. Exit status 1 if a bar is missed.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.optim._muon import _zeropower_via_newtonschulz

JORDAN = (3.4445, -4.775, 2.0315)
SHAPES = [(256, 256), (768, 768), (768, 3072), (1024, 4096)]
BARS = {(768, 768): 0.7, (768, 3072): 0.5, (1024, 4096): 0.5}
SPECTRA = {
    "gaussian": None,
    "k^-1/2": lambda n: torch.arange(1, n + 1, dtype=torch.float64) ** -0.5,
    "k^-1": lambda n: torch.arange(1, n + 1, dtype=torch.float64) ** -1.0,
    "exp to 1e-3": lambda n: torch.logspace(0, -3, n, dtype=torch.float64),
}


def torch_muon(x):
    """What torch.optim.Muon.step calls."""
    return _zeropower_via_newtonschulz(x, JORDAN, 5, 1e-7)


def torch_f32(x):
    """The same five iterations, composed in f32."""
    a, b, c = JORDAN
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if transposed else x


class Server:
    """Our side: a process that answers one request at a time."""

    def __init__(self, path, folder):
        self.process = subprocess.Popen(
            [path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.output = folder / "output.bin"

    def run(self, shape, schedule, file, keep=False):
        output = self.output if keep else "-"
        self.process.stdin.write(f"{shape[0]} {shape[1]} {schedule} f32 {file} {output}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if len(answer) != 3:
            sys.exit("the server ended; its message is above")
        seconds, method, _ = answer
        result = None
        if keep:
            data = bytearray(self.output.read_bytes())
            result = torch.frombuffer(data, dtype=torch.float32).view(shape)
        return float(seconds), method, result


def matrix(shape, spectrum, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64)
    if spectrum is None:
        return x.float()
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return (u * spectrum(min(shape)) @ v).float()


def polar_factor(x):
    u, _, v = torch.linalg.svd(x.double(), full_matrices=False)
    return u @ v


def error(x, polar):
    return ((x.double() - polar).norm() / polar.norm()).item()


def cpu():
    """Model and the features that decide which matrix products are fast."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    fields = dict(
        (k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in info.split("\n"))
    )
    flags = fields.get("flags", "").split()
    wanted = ("fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return f"{fields.get('model name')}, {' '.join(f for f in wanted if f in flags)}"


def compare(server, shape, folder, rounds, schedule):
    file = folder / f"{shape[0]}x{shape[1]}.bin"
    x = matrix(shape, None)
    file.write_bytes(x.numpy().tobytes())
    times = {"torch bf16": [], "torch f32": [], "ours": [], "ours, jordan": []}
    calls = {"torch bf16": lambda: torch_muon(x), "torch f32": lambda: torch_f32(x)}
    methods = {}
    slow = set()
    for i in range(rounds + 1):
        for name, call in calls.items():
            if name in slow and i > 2:
                continue
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            if i:
                times[name].append(seconds)
            elif seconds > 3.0:
                slow.add(name)
        for name, preset in (("ours", schedule), ("ours, jordan", "jordan")):
            seconds, methods[name], _ = server.run(shape, preset, file)
            if i:
                times[name].append(seconds)
    medians = {name: statistics.median(t) for name, t in times.items()}
    best = min(medians["torch bf16"], medians["torch f32"])
    print(f"\n{shape[0]} x {shape[1]}")
    for name, seconds in medians.items():
        method = methods.get(name, "")
        print(f"  {name:14} {seconds * 1e3:9.2f} ms  {seconds / best:6.3f} x  {method}")
    return medians["ours"] / best


def errors(server, shape, folder, schedule):
    """Errors by spectrum; returns those on Gaussian input."""
    gaussian = None
    for name, spectrum in SPECTRA.items():
        x = matrix(shape, spectrum)
        file = folder / f"{shape[0]}x{shape[1]}-{name.replace('/', '_').replace(' ', '_')}.bin"
        file.write_bytes(x.numpy().tobytes())
        polar = polar_factor(x)
        row = {
            "torch bf16": error(torch_muon(x), polar),
            "torch f32": error(torch_f32(x), polar),
            "ours": error(server.run(shape, schedule, file, keep=True)[2], polar),
            "ours, jordan": error(server.run(shape, "jordan", file, keep=True)[2], polar),
        }
        gaussian = gaussian or row
        print(f"  error, {name:12}", ", ".join(f"{k} {v:.4f}" for k, v in row.items()), flush=True)
    return gaussian


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", required=True, help="the built example orthogonalize_server")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--schedule", default="nonic3_band12")
    parser.add_argument("--shapes", nargs="*", help="such as 768x3072; default all four")
    parser.add_argument("--no-errors", action="store_true", help="times only")
    options = parser.parse_args()
    shapes = SHAPES
    if options.shapes:
        shapes = [tuple(int(n) for n in s.split("x")) for s in options.shapes]
    print(f"{cpu()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"ours: {options.schedule} in f32; torch: jordan; medians of {options.rounds} rounds")
    missed = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        folder = Path(folder)
        server = Server(options.server, folder)
        for shape in shapes:
            ratio = compare(server, shape, folder, options.rounds, options.schedule)
            if ratio > BARS.get(shape, float("inf")):
                missed.append(f"{shape}: {ratio:.3f} > {BARS[shape]}")
            if not options.no_errors:
                e = errors(server, shape, folder, options.schedule)
                if e["ours"] > min(e["torch bf16"], e["torch f32"]):
                    missed.append(f"{shape}: error {e['ours']:.4f} on Gaussian input")
    print("\n" + ("missed: " + "; ".join(missed) if missed else "every bar is met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
