"""How fast, beside what a user would pick instead; each part is one file under out/bench/speed, so a killed run goes on.

grpo       one GRPO step against TRL and against a plain loop, three settings                        (speed_grpo.py)
memory     peak memory of log-probabilities for vocabularies up to 128k, against the naive form      (speed_memory.py)
mixed      the mixed step against three trainers; the cost of a step as G, T, K and the terms grow; torch.compile   (speed_mixed.py)
floor      what this machine can do at most: products of matrices and copies, measured; and which share of it sampling reaches

    python benchmarks/speed.py                    make bench-speed: about 0.4 CPU-hours; writes benchmarks/results/speed.json
    python benchmarks/speed.py --only memory      one part
    python benchmarks/speed.py --device cuda      make bench-gpu: the GRPO step and the floor with a 0.5B-shaped model in bfloat16, and
                                                  sampling against transformers -> benchmarks/results/gpu.json
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import speed_grpo
import speed_memory
import speed_mixed
import torch
from common import about, cpu_hours, once, save

OUT = Path("out/bench/speed")


def floor(device: str) -> dict[str, float]:
    """FLOP/s of a product of matrices, and bytes/s of a copy (read and written)."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size, number = (8192, 2**29) if device == "cuda" else (1024, 2**26)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(number, device=device, dtype=dtype)
    y = torch.empty_like(x)
    product = _seconds(lambda: torch.mm(a, b), device)
    copied = _seconds(lambda: y.copy_(x), device)
    return {"flops_per_second": 2 * size**3 / product, "bytes_per_second": 2 * x.numel() * x.element_size() / copied}


def sampling(device: str, repeats: int) -> dict[str, Any]:
    """The embedded engine beside its bounds: the operations of the model at the speed of a product of matrices, and its weights and
    cache at the speed of a copy. The ceilings are measured again before every run."""
    import generation

    from advalign.models.model_cost import model_cost

    net = generation.network(device)
    shape = model_cost(net.model, head="policy", dtype=net.dtype)
    found: dict[str, Any] = {}
    for name in ("short prompts, long responses", "long prompts, short responses"):
        lengths, new, _ = generation.SETTINGS[name]
        rows, prompt = len(lengths) * generation.SIZE, lengths[0]
        generator = torch.Generator().manual_seed(1)
        prompts = [torch.randint(3, 8000, (n,), generator=generator).tolist() for n in lengths]
        needed = shape.forward(len(lengths) * prompt, len(lengths), prompt) + shape.forward(rows * new, rows * new, 2 * prompt + new)
        moved = new * shape.parameters * shape.bytes + rows * new * (prompt + new / 2) * shape.cache_bytes
        shares = []
        for _ in range(repeats):
            limits = floor(device)
            took, _ = generation.timed(lambda p=prompts, n=new, r=rows: generation.ours(net, p, n, torch.full((r,), n)), device)
            bounds = {"compute": needed / limits["flops_per_second"], "bandwidth": moved / limits["bytes_per_second"]}
            shares.append({"seconds": took, **bounds, "share": max(bounds.values()) / took})
        found[name] = sorted(shares, key=lambda s: s["share"])[len(shares) // 2] | {"all": [s["share"] for s in shares]}
    return found


def _seconds(run: Callable[[], Any], device: str, repeats: int = 9) -> float:
    times = []
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if repeat > 1:
            times.append(time.perf_counter() - start)
    return median(times)


def parts(device: str, repeats: int) -> dict[str, Callable[[], dict[str, Any]]]:
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        f"grpo {name}": lambda name=name: speed_grpo.compare(name, device, repeats) for name in speed_grpo.SETTINGS
    }
    if device == "cuda":
        import generation

        net = generation.network(device)
        against = {f"sampling {n}": lambda n=n: generation.setting(net, n, device, repeats) for n in generation.SETTINGS}
        share = {"floor": lambda: floor(device), "share": lambda: sampling(device, repeats)}
        return share | steps | against
    return {
        "floor": lambda: floor(device),
        "share": lambda: sampling(device, repeats),
        **steps,
        "memory": speed_memory.table,
        "mixed": lambda: speed_mixed.together(repeats),
        "growth": lambda: speed_mixed.growth(repeats),
        "compiled": lambda: speed_mixed.compiled(repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", default="", help="parts whose names begin so")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--collect", action="store_true", help="start nothing; write the results of what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    folder = OUT / args.device
    found = {}
    for name, measure in parts(args.device, args.repeats).items():
        path = folder / f"{name.replace(' ', '_')}.json"
        if name.startswith(args.only) and not args.collect:
            once(path, measure)
        if path.exists():
            found[name] = once(path, measure)
    target, command = ("gpu", "make bench-gpu") if args.device == "cuda" else ("speed", "make bench-speed")
    spent = {"cpu_hours": cpu_hours(list(found.values())), "repeats": args.repeats}
    save(f"benchmarks/results/{target}.json", {**about(command, "trl", "peft"), "parts": found, **spent})


if __name__ == "__main__":
    main()
