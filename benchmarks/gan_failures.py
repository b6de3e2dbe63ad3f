"""Ways in which a game against a discriminator fails, each made to happen and each with its cure (constraints toy, 60 demonstrations).

length leak      Real texts are longer than what the policy writes, and nothing else sets them apart. A discriminator reads the length, and
                 the policy follows it. Cures: pairs of equal length (`lengths: 0`), a reward without its trend in length
                 (`length: residual`).
overpowered      The discriminator learns thirty times faster. Cures: a gate on its accuracy, a bound on its score, an average of it for
                 scoring, a rate that follows its accuracy.
hacked           A frozen discriminator and a policy that learns fast: the reward rises and compliance falls. Cure: it goes on learning.
collapse         The same run, seen by the metrics that a user would watch: unique answers, entropy, distinct n-grams, self-BLEU.

    python benchmarks/gan_failures.py              make bench-gan-failures; resumable run by run; benchmarks/results/gan_failures.json
    python benchmarks/gan_failures.py --collect    the results of what is there

What was tried before, on seed 100: rates of 1e-4, 3e-4, 3e-3 and 9e-3 without imitation (3e-3 does no harm), gates at 0.65 and 0.8.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import gan
import torch
from common import about, cpu_hours, mean_sd, once, save
from gan_arms import ALONE, ANCHORED, DISCRIMINATOR

from advalign import config as configuration
from advalign.metrics.run_log import read
from advalign.tasks.constraints import WORDS

OUT = Path("out/bench/gan_failures")
SEEDS = (10, 11)
EVERY = 50
CURVES = {
    "compliance": "heldout/accuracy", "unique": "heldout/unique", "entropy": "heldout/entropy", "distinct_2": "heldout/distinct_2",
    "self_bleu": "heldout/self_bleu", "reward": "write/reward", "saturation": "discriminator/saturation",
    "skipped": "discriminator/skipped", "discriminator_accuracy": "discriminator/accuracy", "length": "write/completions/mean_length",
}  # fmt: skip

FAST = {"learners.policy.learning_rate": 1e-3}
STRONG = {"learners.discriminator.learning_rate": 3e-2}
RATE, RUINED = {"learners.discriminator.learning_rate": 3e-4}, {"learners.discriminator.learning_rate": 9e-3}
FOLLOW = {"metric": "discriminator/accuracy", "target": 0.78, "start": 9e-3, "low": 1e-5, "high": 9e-3, "rate": 0.5, "raise_when": "above"}
GATE = {"discriminator": {"metric": "discriminator/accuracy", "above": 0.8, "max_skips": 10}}
SCORED = [{"kind": "discriminator", "learner": "discriminator", "soft_clip": 4.0}]

GAMES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {  # terms, values, sections
    "gapo": (ANCHORED | DISCRIMINATOR, {}, {}),
    "overpowered": (ANCHORED | DISCRIMINATOR, STRONG, {}),
    "overpowered + gate": (ANCHORED | DISCRIMINATOR, STRONG, {"gates": GATE}),
    "overpowered + bounded score": (ANCHORED | DISCRIMINATOR, STRONG | {"sources.write.rewards": SCORED}, {}),
    "alone": (ALONE | DISCRIMINATOR, RATE, {}),
    "alone, overpowered": (ALONE | DISCRIMINATOR, RUINED, {}),
    "alone, overpowered + gate": (
        ALONE | DISCRIMINATOR,
        RUINED,
        {"gates": {"discriminator": GATE["discriminator"] | {"metric": "discriminator/accuracy/generated"}}},
    ),
    "alone, overpowered + averaged scores": (
        ALONE | DISCRIMINATOR,
        RUINED | {"sources.write.rewards": [{"kind": "discriminator", "learner": "slow"}]},
        {"frozen": {"slow": {"learner": "discriminator", "ema": 0.97}}},
    ),
    "alone, overpowered + a rate that follows": (
        ALONE | DISCRIMINATOR,
        RUINED,
        {"schedules": {"learners.discriminator.learning_rate": FOLLOW}},
    ),
    "fast, frozen": (ALONE, FAST, {}),
    "fast, trained": (ALONE | DISCRIMINATOR, FAST, {}),
    "fast, trained, with imitation": (ANCHORED | DISCRIMINATOR, FAST, {}),
}


def game(name: str, seed: int) -> dict[str, Any]:
    """One run from the warm weights of benchmarks/gan.py, measured every few steps."""
    terms, values, more = GAMES[name]
    folder = OUT / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
    config = gan.prepared("scarce", seed, "gapo")
    config["objectives"] = dict(terms)
    config["args"] |= {"output_dir": str(folder), "eval_steps": EVERY}
    config["evaluations"]["heldout"] |= {"number": 45}
    for path, value in values.items():
        gan.put(config, path, value)
    configuration.trainer(config | more).train(overwrite=True, progress=False)
    return {"curves": curves(folder)}


def curves(folder: Path) -> dict[str, list[list[float]]]:
    """{name: [[step, value], ...]}; what is logged in every step is averaged over the steps since the last point."""
    rows, found = read(folder), {}
    for name, key in CURVES.items():
        points = []
        for end in range(EVERY, len(rows) + 1, EVERY):
            values = [row[key] for row in rows[end - EVERY : end] if key in row]
            if values:
                points.append([end, sum(values) / len(values)])
        if points:
            found[name] = points
    return found


# ------------------------------------------------------------------------------------------------ length leak

LEAKS: dict[str, dict[str, Any]] = {
    "no control": {},
    "pairs of equal length": {"sources.contrast.lengths": 0.0},
    "residual reward": {"sources.write.rewards": [{"kind": "discriminator", "learner": "discriminator", "length": "residual"}]},
}


def texts(lengths: range, number: int, seed: int) -> list[dict[str, str]]:
    """Words drawn uniformly, so that nothing but the length can be learned."""
    rng = random.Random(seed)
    return [{"prompt": "write :", "response": " ".join(rng.choice(WORDS[:10]) for _ in range(rng.choice(lengths)))} for _ in range(number)]


def leak(name: str, seed: int) -> dict[str, Any]:
    """A policy that writes 2 to 6 words against real texts of 4 to 8."""
    folder = OUT / f"leak_{name.replace(' ', '_')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for side, lengths in (("short", range(2, 7)), ("long", range(4, 9))):
        rows = texts(lengths, 2000, seed + 10 * (side == "long"))
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = gan.described("scarce", seed, folder)
    words = {"kind": "words", "data": str(folder / "long.jsonl")}
    for learner in config["learners"].values():
        learner["tokenizer"] = words
    sources = config["sources"]
    sources["short"] = {"kind": "demos", "data": str(folder / "short.jsonl"), "batch_size": 32}
    sources["demos"] = {"kind": "demos", "data": str(folder / "long.jsonl"), "batch_size": 32}
    sources["write"] |= {"data": str(folder / "long.jsonl")}
    sources["contrast"] = {"kind": "contrast", "real": "demos", "sampled": "write", "always": True, "batch_size": 32}
    config["objectives"] = {"imitate": {"kind": "sft", "source": "short"}, **ANCHORED, **DISCRIMINATOR}
    config["stages"] = [
        {"name": "imitate", "steps": 100, "objectives": ["imitate"], "set": {"learners.policy.learning_rate": 1e-3}},
        {"name": "discriminator", "steps": 150, "objectives": ["discriminator"]},
        {"name": "game", "steps": 150, "objectives": ["policy", "discriminator"]},
    ]
    config["evaluations"] = {}
    for path, value in LEAKS[name].items():
        gan.put(config, path, value)
    configuration.trainer(config).train(overwrite=True, progress=False)
    rows = read(folder)

    def mean(key: str, first: int, last: int) -> float:
        values = [row[key] for row in rows[first:last] if key in row]
        return sum(values) / len(values) if values else float("nan")

    return {
        "warm_discriminator_accuracy": mean("discriminator/accuracy", 200, 250),
        "length_before": mean("write/completions/mean_length", 250, 255),
        "length_after": mean("write/completions/mean_length", 390, 400),
        "matched": mean("contrast/length_matched", 200, 250),
    }


# ---------------------------------------------------------------------------------------------------- results


def collect() -> None:
    result: dict[str, Any] = about("make bench-gan-failures") | {"seeds": list(SEEDS)}
    runs = []
    for part, names in (("games", GAMES), ("leak", LEAKS)):
        result[part] = {}
        for name in names:
            files = [path(part, name, seed) for seed in SEEDS]
            found = [json.loads(f.read_text()) for f in files if f.exists()]
            if found:
                runs += found
                result[part][name] = {"runs": len(found)} | (average(found) if part == "games" else means(found))
    save("benchmarks/results/gan_failures.json", result | {"cpu_hours": cpu_hours(runs)})


def average(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Curves averaged over seeds, and the last point of every seed."""
    names = set.intersection(*(set(run["curves"]) for run in found))
    curves = {}
    for name in sorted(names):
        each = [dict(map(tuple, run["curves"][name])) for run in found]
        steps = sorted(set.intersection(*map(set, each)))
        curves[name] = [[step, sum(points[step] for points in each) / len(each)] for step in steps]
    return {"curves": curves, "last": {n: mean_sd([run["curves"][n][-1][1] for run in found]) for n in sorted(names)}}


def means(found: list[dict[str, Any]]) -> dict[str, Any]:
    """nan, which the file has as null, is left out: a control that is off has no fraction of matched pairs."""
    values = {key: [run[key] for run in found if run[key] is not None] for key in found[0] if not key.endswith("_seconds")}
    return {key: mean_sd(each) for key, each in values.items() if each}


def path(part: str, name: str, seed: int) -> Path:
    return OUT / f"{part}-{name.replace(' ', '_').replace(',', '')}-{seed}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true")
    parser.add_argument("--only", default="", help="games whose names begin with this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in () if args.collect else SEEDS:
        for name in () if args.only else LEAKS:
            once(path("leak", name, seed), lambda n=name, s=seed: leak(n, s))
        for name in (n for n in GAMES if n.startswith(args.only)):
            gan.warm("scarce", seed)
            once(path("games", name, seed), lambda n=name, s=seed: game(n, s))
    collect()


if __name__ == "__main__":
    main()
