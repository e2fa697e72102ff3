#!/usr/bin/env python3
"""Carries optimizer state between PyTorch and muon-cuda.

The safetensors form holds, for each named parameter, `NAME.momentum_buffer` (torch.optim.Muon), or `NAME.exp_avg`,
`NAME.exp_avg_sq` and `NAME.step` (torch.optim.AdamW), as `Muon::export_torch_state` writes it and
`Muon::import_torch_state` reads it. A parameter that has not stepped has none of them. PyTorch numbers parameters instead
of naming them, so this is a module:

    from torch_state import save_state, load_state
    save_state({muon: muon_names, adamw: adamw_names}, "state.safetensors")   # names in the optimizers' order
    load_state({muon: muon_names, adamw: adamw_names}, "state.safetensors")

where `muon_names = [name for name, p in model.named_parameters() if …]` in the order given to the optimizer.
Run as a script it checks itself; with `--record FILE` it writes what `tests/checkpoint.rs` goes on from: the state
after three steps (lr 0.02, decay 0.01), and parameters, gradients and result of the fourth.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BUFFERS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def named(optimizers):
    for optimizer, names in optimizers.items():
        params = parameters(optimizer)
        if len(names) != len(params):
            raise ValueError(f"expected {len(params)} names, found {len(names)}")
        for name, p in zip(names, params):
            yield optimizer, name, p


def as_pytorch_casts(key, value, p):
    """What `load_state_dict` makes of a state tensor: the dtype of its parameter, in which PyTorch's steps need it; step counts stay."""
    return value if key == "step" else value.to(device=p.device, dtype=p.dtype)


def save_state(optimizers, path):
    """Writes the state of {optimizer: names of its parameters in order}."""
    tensors = {}
    for optimizer, name, p in named(optimizers):
        for key, value in optimizer.state.get(p, {}).items():
            if key not in BUFFERS:
                raise ValueError(f"{name}: state `{key}` has no counterpart in muon-cuda")
            tensors[f"{name}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    save_file(tensors, str(path))


def load_state(optimizers, path):
    """Replaces the state of {optimizer: names of its parameters in order}; nothing changes on an error.

    A parameter without state in the file has none afterwards, as before its first step.
    """
    tensors = load_file(str(path))
    known = {name for _, name, _ in named(optimizers)}
    owners = {name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] in BUFFERS}
    states = []
    for optimizer, name, p in named(optimizers):
        state = {k: tensors[f"{name}.{k}"] for k in BUFFERS if f"{name}.{k}" in tensors}
        if not state and owners - known:
            raise KeyError(f"{path} has no state for {name}, and has state for {min(owners - known)}, which is no name")
        for key, value in state.items():
            if key != "step" and value.shape != p.shape:
                raise ValueError(f"{name}.{key}: expected {tuple(p.shape)}, found {tuple(value.shape)}")
            state[key] = as_pytorch_casts(key, value, p)
        states.append((optimizer, p, state))
    for optimizer, p, state in states:
        optimizer.state.pop(p, None)
        if state:
            optimizer.state[p] = state


def record(path, state, before, grads, opts, after):
    """One file: the state by name as in save_state, and `NAME.param`, `NAME.grad`, `NAME.expected`."""
    save_state(opts, path)
    tensors = dict(state)
    for name, p, g, e in zip(("w", "b"), before, grads, after):
        tensors |= {f"{name}.param": p, f"{name}.grad": g, f"{name}.expected": e.detach().clone()}
    for key, value in load_file(str(path)).items():
        tensors[f"after.{key}"] = value
    save_file(tensors, str(path))


def check_bf16_and_absent():
    """f32 state of bf16 parameters lets PyTorch step, and a parameter without state starts anew."""
    params = {name: torch.nn.Parameter(torch.full((3, 5), 0.5, dtype=torch.bfloat16)) for name in ("m", "a", "new")}
    optimizers = {
        torch.optim.Muon([params["m"], params["new"]], lr=0.02): ["m", "new"],
        torch.optim.AdamW([params["a"]], lr=0.02): ["a"],
    }
    moment, step = torch.full((3, 5), 0.25), torch.tensor(3.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        moments = {name: moment.clone() for name in ("m.momentum_buffer", "a.exp_avg", "a.exp_avg_sq")}
        save_file(moments | {"a.step": step}, str(path))
        load_state(optimizers, path)
        save_file({"m_.momentum_buffer": moment}, str(path))
        try:
            load_state(optimizers, path)
            raise AssertionError("a name that is none went unnoticed")
        except KeyError:
            pass
    for p in params.values():
        p.grad = torch.ones_like(p)
    for optimizer in optimizers:
        optimizer.step()
    (adamw,) = [o for o in optimizers if isinstance(o, torch.optim.AdamW)]
    assert adamw.state[params["a"]]["step"] == 4 and adamw.state[params["a"]]["exp_avg"].dtype == torch.bfloat16


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", metavar="FILE", help="write the recording of the tests")
    arguments = parser.parse_args()
    torch.manual_seed(0)

    def model():
        return [torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.randn(6))]

    def optimizers(params):
        return {
            torch.optim.Muon([params[0]], lr=0.02, weight_decay=0.01): ["w"],
            torch.optim.AdamW([params[1]], lr=0.02, weight_decay=0.01): ["b"],
        }

    def step(params, opts):
        for i, p in enumerate(params):
            p.grad = torch.sin(p.detach() + i)
        for optimizer in opts:
            optimizer.step()

    first = model()
    opts = optimizers(first)
    for _ in range(3):
        step(first, opts)
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    others = optimizers(second)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_state(opts, path)
        load_state(others, path)
        state = load_file(str(path))
    before = [p.detach().clone() for p in first]
    step(first, opts)
    step(second, others)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    check_bf16_and_absent()
    if arguments.record:
        grads = [p.grad.clone() for p in first]
        record(arguments.record, state, before, grads, opts, first)
    print("state goes out and comes back: the next step is equal bit for bit; bf16 parameters step")


if __name__ == "__main__":
    main()
