"""The main job, compared: SFT alone, a frozen discriminator as reward, and the mixed step in which it goes on learning.

Every seed draws its own 60 demonstrations. The policy is warmed up by SFT and the discriminator on real / perturbed pairs
once; `frozen` and `mixed` start from those same weights and differ in one thing: whether the discriminator is updated. The
benchmark has `frozen_alone` too: the frozen discriminator's reward and nothing beside it, as RL with a reward model is usually done.
Held-out compliance is the share of sampled answers that meet all constraints, on 90 combinations never trained on.

    python benchmarks/demo.py --seeds 1 --output out/demo     make demo: one seed, with report.html
    python benchmarks/demo.py                                 make bench-demo: six seeds -> benchmarks/results/demo.json

The settings of configs/demo.yaml were chosen on seeds 100 and 101 and on 90 other combinations, kept out of training there; the
benchmark's seeds begin at 10, and none of them was looked at before.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from common import about, cpu_hours, mean_sd, once, paired, save
from rich.console import Console

from advalign import config as configuration
from advalign.evaluation import Report, Suite
from advalign.metrics.run_log import read
from advalign.models import load

CONFIG = "configs/demo.yaml"
FIRST = 10  # of the benchmark's seeds; make demo runs seed 0
RADII = (0.02, 0.05, 0.1, 0.2, 0.4)
NAMES = {
    "sft": "SFT alone",
    "frozen_alone": "frozen discriminator, no adversarial SFT",
    "frozen": "frozen discriminator",
    "mixed": "mixed step",
}


def described(seed: int, folder: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """configs/demo.yaml for one seed: its own demonstrations, prompts order, initialisation and sampling."""
    return configuration.read(CONFIG, [f"args.seed={seed}", f"sources.demos.seed={seed}", f"args.output_dir={folder}", *overrides])


def warm_up(seed: int, out: Path, progress: bool) -> dict[str, Any]:
    """Both warm-up stages; what SFT alone is worth."""
    folder = out / f"warm-{seed}"
    config = described(seed, folder)
    config["stages"], config["schedules"] = config["stages"][:2], {}  # the schedule is that of the third stage
    config["args"]["eval_steps"] = 0
    trainer = configuration.trainer(config)
    trainer.train(overwrite=True, progress=progress)
    return _measured(trainer, folder) | {"heldout_pairs": read(folder)[-1].get("discriminator/accuracy")}


def arm(name: str, seed: int, out: Path, progress: bool) -> dict[str, Any]:
    """The third stage from the warmed-up weights, with or without updates of the discriminator."""
    warm, folder = out / f"warm-{seed}", out / f"{name}-{seed}"
    models = tuple(f"learners.{learner}.model={warm / learner}" for learner in ("policy", "discriminator"))
    config = described(seed, folder, models)
    config["stages"] = config["stages"][2:]
    if name != "mixed":
        config["stages"][0]["objectives"].remove("discriminator")
    if name == "frozen_alone":
        config["stages"][0]["objectives"].remove("robust")
    trainer = configuration.trainer(config)
    trainer.train(overwrite=True, progress=progress)
    return _measured(trainer, folder)


def _measured(trainer: Any, folder: Path) -> dict[str, Any]:
    found = trainer.evaluate()
    names = {"compliance": "accuracy", "unique": "unique", "entropy": "entropy", "pass@8": "pass@8"}
    return {ours: found[f"heldout/{theirs}"] for ours, theirs in names.items()} | {"under_attack": under_attack(folder / "policy")}


def under_attack(model: Path) -> list[float]:
    """Loss of held-out demonstrations under embedding PGD, at radius 0 and at RADII."""
    suite = {
        "data": {"task": "constraints", "split": "test"},
        "examples": 45,
        "radii": list(RADII),
        "sampling": {"max_new_tokens": 10},
        "attacks": {"pgd": {"kind": "embedding", "restarts": 1, "adversary": {"kind": "pgd", "steps": 8}, "loss": "cross_entropy"}},
    }
    result = Suite.load(suite).run(load(str(model)))
    return list(result.curves("nll")["pgd"][1])


def one_seed(seed: int, out: Path, progress: bool = False) -> dict[str, dict[str, Any]]:
    """{arm: its numbers} of one seed; every finished run is kept."""
    torch.set_num_threads(1)
    runs = {"sft": once(out / f"sft-{seed}.json", lambda: warm_up(seed, out, progress))}
    if progress:  # one seed alone: its arms side by side, the mixed one with its bar
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            frozen = pool.submit(finished, "frozen", seed, out)
            mixed = finished("mixed", seed, out, progress)
            return runs | {"frozen": frozen.result(), "mixed": mixed}
    return runs | {name: finished(name, seed, out) for name in ("frozen", "mixed", "frozen_alone")}


def finished(name: str, seed: int, out: Path, progress: bool = False) -> dict[str, Any]:
    """The numbers of an arm, now or from an earlier run."""
    torch.set_num_threads(1)
    return once(out / f"{name}-{seed}.json", lambda: arm(name, seed, out, progress))


def report(runs: list[dict[str, dict[str, Any]]], out: Path, first: int) -> Report:
    """What the run did, for people; the curves are those of the `first` seed."""
    trainer = configuration.trainer(described(first, out))
    names = [name for name in NAMES if name in runs[0]]
    page = Report("One mixed step", "GRPO with a co-trained discriminator, adversarial SFT and the discriminator's own loss, in one update")
    page.cards([(f"compliance, {NAMES[n]}", f"{_mean(runs, n, 'compliance'):.1%}", _note(runs)) for n in names])
    page.text("## The loss\n\n```\n" + trainer.formula() + "\n```")
    rows = [{"arm": NAMES[n]} | {k: _mean(runs, n, k) for k in ("compliance", "unique", "entropy", "pass@8")} for n in names]
    page.text("## Held out").table(
        rows, note="90 constraint combinations never trained on, 8 answers each; unique: distinct answers per prompt."
    )
    page.bars(
        [{"label": NAMES[n], "value": _mean(runs, n, k), "series": k} for k in ("compliance", "unique") for n in names],
        title="Compliance and diversity",
        x_label="share",
        limits=(0, 1),
    )
    logs = {name: read(out / f"{name}-{first}") for name in ("frozen", "mixed")}
    page.text(f"## During the run (seed {first})")
    page.lines(_curves(logs, "write/rewards/discriminator/mean"), title="Reward", x_label="step", y_label="mean score of the discriminator")
    page.lines(_curves(logs, "heldout/entropy"), title="Entropy", x_label="step", y_label="nats per token, held out")
    page.lines(_curves(logs, "heldout/accuracy"), title="Held-out compliance", x_label="step", y_label="share")
    kinds = {kind: _curve(logs["mixed"], f"discriminator/accuracy/{kind}") for kind in ("real", "perturbed", "generated")}
    page.lines(kinds, title="Discriminator accuracy", x_label="step", y_label="share called right", note="Training rows of the mixed run.")
    page.lines(_curves(logs, "pgd/gain"), title="Adversarial gap", x_label="step", y_label="loss gained by the inner loop")
    attacked = {NAMES[n]: ([0.0, *RADII], _means([run[n]["under_attack"] for run in runs])) for n in names}
    page.text("## Under embedding attack")
    page.lines(
        attacked, title="Loss under attack", x_label="radius (mean embedding norms)", y_label="nats per token, held-out demonstrations"
    )
    return page


def _curves(logs: dict[str, list[dict[str, Any]]], name: str) -> dict[str, tuple[list[float], list[float]]]:
    return {NAMES[arm]: _curve(log, name) for arm, log in logs.items()}


def _curve(log: list[dict[str, Any]], name: str, width: int = 10) -> tuple[list[float], list[float]]:
    """A running mean over `width` logged values, so that a plot shows the trend."""
    points = [(row["step"], row[name]) for row in log if row.get(name) is not None]
    values = [y for _, y in points]
    smooth = [sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
    return [x for x, _ in points], smooth if len(points) > 4 * width else values


def _mean(runs: list[dict[str, dict[str, Any]]], arm: str, metric: str) -> float:
    return sum(run[arm][metric] for run in runs) / len(runs)


def _means(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def _note(runs: list[Any]) -> str:
    return "one seed" if len(runs) == 1 else f"mean of {len(runs)} seeds"


def results(runs: list[dict[str, dict[str, Any]]], seeds: list[int]) -> dict[str, Any]:
    compliance = {name: [run[name]["compliance"] for run in runs] for name in NAMES}
    return (
        about("make bench-demo")
        | {name: [run[name] for run in runs] for name in NAMES}
        | {"seeds": seeds, "radii": [0.0, *RADII], "cpu_hours": cpu_hours([r for run in runs for r in run.values()])}
        | {"compliance": {name: mean_sd(values) for name, values in compliance.items()}}
        | {"mixed_minus_sft": paired(compliance["mixed"], compliance["sft"])}
        | {f"mixed_minus_{name}": paired(compliance["mixed"], compliance[name]) for name in ("frozen", "frozen_alone")}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("out/bench/demo"))
    parser.add_argument("--processes", type=int, default=2, help="seeds run side by side; one seed shows progress bars instead")
    args = parser.parse_args()
    console, seeds = Console(), [0] if args.seeds == 1 else list(range(FIRST, FIRST + args.seeds))
    console.print(configuration.trainer(described(0, args.output)).formula(), highlight=False, markup=False)
    if len(seeds) == 1:
        runs = [one_seed(0, args.output, progress=True)]
    else:
        with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
            runs = list(pool.map(one_seed, seeds, [args.output] * len(seeds)))
        save("benchmarks/results/demo.json", results(runs, seeds))
    page = report(runs, args.output, seeds[0])
    page.write(args.output / "report.html")
    (args.output / "report.md").write_text(page.markdown(), encoding="utf-8")
    for name in runs[0]:
        numbers = "  ".join(f"{k} {_mean(runs, name, k):.3f}" for k in ("compliance", "unique", "entropy"))
        console.print(f"{NAMES[name]:22s} {numbers}", highlight=False)
    console.print(f"report: {args.output / 'report.html'}", highlight=False)


if __name__ == "__main__":
    main()
