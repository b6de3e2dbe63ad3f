"""What does one step buy over three stages? SmolLM2-135M-Instruct on word problems: solve, in the form asked for, also when attacked.

Every arm begins with the same short SFT (24,000 tokens) and ends at the same number of tokens, sampled and trained on, as the library
counts them (160,000; `tokens` of a stage). In between, on the same problems, in updates of as many rows (32: 32 demonstrations, 4 prompts
with 8 answers, or half of each):

    sft            sft(demos)                                    worked answers in the form asked for
    rl             grpo(problems)                                rewards: the right number, the form
    adv_sft        sft(demos | pgd)                              an embedding attack on the user's turn, two steps
    adv_then_rl    half adv_sft, then half rl                    }
    rl_then_adv    half rl, then half adv_sft                    } the two terms, apart
    alternating    one update of each in turn                    }
    mixed          grpo(problems) + sft(demos | pgd)             in one step; cosines between their gradients, every fourth step

Measured on validation and on test problems, greedy: right, in the form, solved (both); solved still under embedding PGD (four steps, away
from the worked answer; the kind that was trained on) and under three attacks that no arm was trained on (an injected instruction, a
distractor, typos); nats per token on held-out answers of Alpaca and on Wikipedia; CPU seconds and tokens. A problem is robust to an attack
where it is solved without and with it; `robust` is the mean over the four attacks.

Target, stated beforehand: mixed is ahead of the best sequence in solved + robust on the test problems, with an interval above zero, or it
is not. The best sequence (adv_then_rl, rl_then_adv or alternating) is the one with the largest mean over seeds of solved + robust on the
VALIDATION problems; the test problems are read only for what is reported. Radii, rates and batch sizes were set with short pilots on
validation problems.

    python benchmarks/smollm_headline.py       make bench-smollm-headline: resumable cell by cell -> benchmarks/results/smollm_headline.json

Cells: the model as it is (`base`), after the short SFT (`start`), and the seven arms, two seeds each. An update took 5 CPU-seconds (rl), 16
(adv_sft), 11 to 17 (mixed), so a cell trains for 5 to 14 CPU-minutes and is measured in about 6: 4 to 5 CPU-hours in all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from prepare_smollm_headline import prepare
from smollm_cells import MODEL, Cell, run, smoke, trained
from smollm_headline_measure import measured
from smollm_headline_summary import SEQUENCES, summary
from smollm_measure import base

from advalign import config as configuration
from advalign.metrics.run_log import read
from advalign.models import load

CONFIG = "configs/smollm2/headline.yaml"
DATA = Path("out/smollm_headline")  # the one the configuration reads
SEEDS = (0, 1)
TERMS: dict[str, tuple[str, ...]] = {"sft": ("imitate",), "rl": ("policy",), "adv_sft": ("robust",), "mixed": ("policy", "robust")}
HALVES = {"adv_then_rl": ("robust", "policy"), "rl_then_adv": ("policy", "robust")}
ARMS = ("sft", "rl", "adv_sft", *SEQUENCES, "mixed")
PAIRS = 60
"""Most updates of each kind of the alternating arm; its tokens end it before."""


def described(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """The configuration with the stages of an arm; "start": the short SFT alone."""
    values = {"args.seed": seed, "args.output_dir": folder, "args.save_steps": 10, "args.save_total_limit": 1}
    config = configuration.read(CONFIG, [f"{path}={value}" for path, value in values.items()])
    config["learners"]["policy"]["model"] = MODEL
    start, mixed = config["stages"]
    first, total, shared = start["tokens"], mixed["tokens"], {"set": mixed["set"]}
    if arm != "mixed":  # one term in a step: as many rows in an update
        config["args"]["measure_every"] = 0
        for name in ("demos", "problems"):
            config["sources"][name]["batch_size"] *= 2
    config["stages"] = [start, *(stage | shared for stage in stages(arm, first, total))]
    if smoke():
        for stage in config["stages"]:
            stage["steps"] = 1
        config["stages"] = config["stages"][:3]
        config["sources"]["problems"] |= {"batch_size": 2, "group_size": 2}
        for name in ("first", "demos"):
            config["sources"][name]["batch_size"] = 2
    return config


def stages(arm: str, first: int, total: int) -> list[dict[str, Any]]:
    """What follows the short SFT, which ends at `first` tokens; the run ends at `total`."""
    last = {"steps": 999, "tokens": total}
    if arm == "start":
        return []
    if arm in TERMS:
        return [{"name": arm, "objectives": list(TERMS[arm])} | last]
    if arm in HALVES:
        half = {"steps": 999, "tokens": first + (total - first) // 2}
        return [{"name": name, "objectives": [name]} | end for name, end in zip(HALVES[arm], (half, last), strict=True)]
    turns = [(f"{name}-{i}", name) for i in range(PAIRS) for name in ("robust", "policy")]
    return [{"name": name, "objectives": [term], "steps": 1, "tokens": total} for name, term in turns]


def cell(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains an arm and measures it."""
    prepare(Path(os.environ.get("ADVALIGN_DATA", "data")), DATA)
    if arm == "base":
        return measured(base(), DATA)
    output = folder / "run"
    seconds = trained(folder, lambda f: configuration.trainer(described(arm, seed, output)).train(resume=True, progress=False))
    numbers = measured(load(str(output / "policy")), DATA)
    return numbers | {"training_seconds": seconds} | spent(output)


def spent(output: Path) -> dict[str, Any]:
    """Tokens and steps of a run as its own logs have them, and its curves."""
    speed = [json.loads(line) for line in (output / "speed.jsonl").read_text(encoding="utf-8").splitlines()]
    log = read(output)
    curves = {name: [round(row[key], 4) for row in log if key in row] for name, key in CURVES.items()}
    sums = {name: round(sum(row[name] for row in speed)) for name in ("sampled_tokens", "trained_tokens")}
    return {"steps": len(log), **sums, "curves": {name: values for name, values in curves.items() if values}}


CURVES = {
    "reward": "problems/reward",
    "entropy": "policy/entropy",
    "nll": "imitate/nll",
    "nll under attack": "robust/nll",
    "gain of the attack": "pgd/gain",
    "cosine": "cosine/policy~robust",
    "gradient norm of grpo": "policy/gradient_norm",
    "gradient norm of adversarial sft": "robust/gradient_norm",
}


def cells() -> Mapping[str, Cell]:
    """What is compared comes first, should the budget end."""
    names = [("base", 0), *((arm, seed) for arm in ("mixed", *SEQUENCES, "start", "rl", "adv_sft", "sft") for seed in SEEDS)]
    return {arm if arm == "base" else f"{arm}-{seed}": partial(cell, arm, seed) for arm, seed in names}


if __name__ == "__main__":
    run("headline", cells(), summary, hours=5.0, description=__doc__)
