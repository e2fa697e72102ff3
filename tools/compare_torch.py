#!/usr/bin/env python3
"""Times orthogonalizations and whole steps here and in PyTorch on the CPU, alternating in one run.

    cargo build --release --example compare_server
    python tools/compare_torch.py --server target/release/examples/compare_server
    python tools/compare_torch.py --server target/release/examples/compare_server --step 1

For every shape: torch.optim.Muon's own Newton-Schulz (Jordan, bf16), the same five iterations in
torch f32, our cheapest accurate schedule in f32, and the same polynomial (Jordan) on both sides.
Medians of interleaved runs, their ratio to the faster torch variant, and relative Frobenius errors to
the exact polar factor on Gaussian input and on three decaying spectra. Exit status 1 if a bar is missed.

With --step LAYERS: whole steps over that many layers of GPT-2 small (4 matrices of 768x768, one of
768x3072, one of 3072x768, f32), torch.optim.Muon against ours.

A timed call follows an untimed one of the same side: threads of the other side go on spinning for a
while after their last product, and would slow the first call after it.
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
from torch.optim import _muon
from torch.optim._muon import _zeropower_via_newtonschulz

# Seconds from which on torch's bf16 is timed once and left out of the decaying spectra: without
# AVX512-BF16 it takes up to a minute a call.
SLOW = 3.0

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
        seconds, method = self.ask(
            f"orthogonalize {shape[0]} {shape[1]} {schedule} f32 {file} {output}"
        )
        result = None
        if keep:
            data = bytearray(self.output.read_bytes())
            result = torch.frombuffer(data, dtype=torch.float32).view(shape)
        return seconds, method, result

    def step(self, layers, schedule):
        return self.ask(f"step {layers} {schedule}")[0]

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if len(answer) != 3:
            sys.exit("the server ended; its message is above")
        return float(answer[0]), answer[1]


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


def alternate(contenders, rounds):
    """Lists of times by name; a contender is called and returns its own seconds.

    One that takes longer than SLOW is timed once.
    """
    times = {}
    for name, call in contenders.items():
        times[name] = [call()]
    slow = {name for name, (seconds,) in times.items() if seconds > SLOW}
    for name in contenders.keys() - slow:
        times[name].clear()
    for _ in range(rounds):
        for name, call in contenders.items():
            if name not in slow:
                call()
                times[name].append(call())
    return times


def timed(call):
    def run():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def report(title, times, notes):
    """Prints medians and their ratio to the faster torch variant; returns both by name."""
    medians = {name: statistics.median(t) for name, t in times.items()}
    best = min(seconds for name, seconds in medians.items() if name.startswith("torch"))
    ratios = {name: seconds / best for name, seconds in medians.items()}
    print(f"\n{title}")
    for name, seconds in medians.items():
        note = "timed once" if len(times[name]) == 1 else notes.get(name, "")
        print(f"  {name:14} {seconds * 1e3:9.2f} ms  {ratios[name]:6.3f} x  {note}", flush=True)
    return medians, ratios


def compare(server, shape, folder, rounds, schedule, bf16):
    file = folder / f"{shape[0]}x{shape[1]}.bin"
    x = matrix(shape, None)
    file.write_bytes(x.numpy().tobytes())
    methods = {}

    def ours(name, preset):
        def run():
            seconds, methods[name], _ = server.run(shape, preset, file)
            return seconds

        return run

    contenders = {
        "torch bf16": timed(lambda: torch_muon(x)),
        "torch f32": timed(lambda: torch_f32(x)),
        "ours": ours("ours", schedule),
        "ours, jordan": ours("ours, jordan", "jordan"),
    }
    if not bf16:
        del contenders["torch bf16"]
    times = alternate(contenders, rounds)
    medians, ratios = report(f"{shape[0]} x {shape[1]}", times, methods)
    return medians.get("torch bf16", 0.0) > SLOW, ratios["ours"]


def steps(server, layers, rounds, schedule):
    """Whole steps of torch.optim.Muon, as it is and with its iterations in f32, and of ours."""
    layer = [(768, 768)] * 4 + [(768, 3072), (3072, 768)]

    def optimizer():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in layer * layers]
        for p in params:
            p.grad = torch.randn_like(p)
        return torch.optim.Muon(params, lr=0.02, weight_decay=0.01)

    def torch_step(muon, orthogonalize):
        def run():
            _muon._zeropower_via_newtonschulz = orthogonalize
            try:
                muon.step()
            finally:
                _muon._zeropower_via_newtonschulz = _zeropower_via_newtonschulz

        return timed(run)

    contenders = {
        "torch f32": torch_step(optimizer(), lambda x, *_: torch_f32(x)),
        "ours": lambda: server.step(layers, schedule),
        "ours, jordan": lambda: server.step(layers, "jordan"),
    }
    one = matrix((768, 768), None)
    if timed(lambda: torch_muon(one))() * 16 * layers > 10 * SLOW:
        print("torch bf16 is left out: it would take over half a minute a step on this CPU")
    else:
        contenders["torch bf16"] = torch_step(optimizer(), _zeropower_via_newtonschulz)
    report(f"step over {layers} layer(s) of GPT-2 small", alternate(contenders, rounds), {})


def errors(server, shape, folder, schedule, bf16, slow):
    """Errors by spectrum; returns those on Gaussian input."""
    gaussian = None
    for name, spectrum in SPECTRA.items():
        x = matrix(shape, spectrum)
        file = folder / f"{shape[0]}x{shape[1]}-{name.replace('/', '_').replace(' ', '_')}.bin"
        file.write_bytes(x.numpy().tobytes())
        polar = polar_factor(x)
        row = {}
        if bf16 and not (slow and gaussian):
            row["torch bf16"] = error(torch_muon(x), polar)
        row |= {
            "torch f32": error(torch_f32(x), polar),
            "ours": error(server.run(shape, schedule, file, keep=True)[2], polar),
            "ours, jordan": error(server.run(shape, "jordan", file, keep=True)[2], polar),
        }
        gaussian = gaussian or row
        print(f"  error, {name:12}", ", ".join(f"{k} {v:.4f}" for k, v in row.items()), flush=True)
    return gaussian


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", required=True, help="the built example compare_server")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--schedule", default="nonic3_band12")
    parser.add_argument("--shapes", nargs="*", help="such as 768x3072; default all four")
    parser.add_argument("--no-errors", action="store_true", help="times only")
    parser.add_argument(
        "--no-bf16", action="store_true", help="times torch f32 alone, where bf16 takes seconds a call"
    )
    parser.add_argument("--step", type=int, metavar="LAYERS", help="whole steps instead")
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
        if options.step:
            steps(server, options.step, options.rounds, options.schedule)
            return 0
        for shape in shapes:
            bf16 = not options.no_bf16
            slow, ratio = compare(server, shape, folder, options.rounds, options.schedule, bf16)
            if ratio > BARS.get(shape, float("inf")):
                missed.append(f"{shape}: {ratio:.3f} > {BARS[shape]}")
            if not options.no_errors:
                e = errors(server, shape, folder, options.schedule, bf16, slow)
                if e["ours"] > min(e[name] for name in e if name.startswith("torch")):
                    missed.append(f"{shape}: error {e['ours']:.4f} on Gaussian input")
    print("\n" + ("missed: " + "; ".join(missed) if missed else "every bar is met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
