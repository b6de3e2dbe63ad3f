"""A policy gradient on attacked prompts: GRPO with and without an adversarial view, from one SFT checkpoint per seed.

`general_points` with two cards and every target from 1 to 100, a causal LM of two layers from scratch (characters). Every arm goes on from
the same weights with the same draws of 16 prompts x 8 responses, eight updates a draw, the same learning rate and clip:

    grpo            grpo(hands)
    robust r        + grpo(hands | pgd)                   one delta of radius r per prompt, shared by its group, two steps
    consistency r   + consistency(hands; clean, pgd)      the tokens of the rollouts, the clean side held still
    noise r         + grpo(hands | noise)                 the same ball, nobody looks
    augmented       grpo(noisy_hands) instead: prompts with noise in the text, of the very kinds measured below (a control that knows them)

Measured on hands whose numbers never occur in training: greedy and sampled answers on clean prompts, under each kind of noise in the
text, out of distribution (faces are 11, 12, 13); and greedy answers with a delta added to the prompt's embeddings that was climbed on
the loss of the model's own right answer. A right answer survives radius r if no delta of a radius up to r made it wrong; radii are in
mean embedding norms of the START of the seed, the same numbers for every arm. Nothing is chosen by these numbers: learning rate and
weights are fixed, both radii are shown. The setting (cards, SFT steps, draws) was made by looking at GRPO with seed 0, which is not used.

    python benchmarks/adv_rl.py               two seeds; resumable run by run; writes benchmarks/results/adv_rl.json
    python benchmarks/adv_rl.py --seeds 3     one more
    python benchmarks/adv_rl.py --seeds 1 --only grpo,"robust 0.1"      these arms alone, without the timing
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import about, cpu_hours, mean_sd, once, paired, save

from advalign import config as configuration
from advalign import data as loading
from advalign.adversaries import PGD, Noise
from advalign.attacks import Embedding
from advalign.metrics.run_log import read
from advalign.models import Network, load
from advalign.rollout.hf import HF
from advalign.targets import GeneratorTarget
from advalign.training.evaluate import verified
from advalign.types import Budget, Example, Sampling

OUT = Path("out/bench/adv_rl")
CONFIG = "configs/robust_points.yaml"
SEEDS = (1, 2, 3)
DRAWS = 40
NOISE = ("typos", "distractors", "format", "order")
RADII = (0.01, 0.03, 0.1, 0.2)
UPDATES, NEW_TOKENS = 8, 10

# name: objectives of the second stage, and dotted values
ARMS: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    "grpo": (("policy",), {}),
    "robust 0.03": (("policy", "robust"), {"adversaries.pgd.radius": 0.03}),
    "robust 0.1": (("policy", "robust"), {"adversaries.pgd.radius": 0.1}),
    "consistency 0.03": (("policy", "consistent"), {"adversaries.pgd.radius": 0.03}),
    "consistency 0.1": (("policy", "consistent"), {"adversaries.pgd.radius": 0.1}),
    "noise 0.1": (("policy", "noisy"), {"adversaries.noise.radius": 0.1}),
    "augmented": (("augmented",), {}),
}

# ------------------------------------------------------------------------------------------------------- training


def base(seed: int) -> Path:
    """The first stage of the configuration: SFT. Its weights are every arm's start."""
    folder = OUT / f"base-{seed}"

    def train() -> dict[str, Any]:
        config = configuration.read(CONFIG, [f"args.seed={seed}", f"args.output_dir={folder}", "args.eval_steps=0"])
        config["stages"] = config["stages"][:1]
        return {"nll": configuration.trainer(config).train(overwrite=True, progress=False)[-1]["imitate/nll"]}

    once(OUT / f"base-{seed}.json", train)
    return folder / "policy"


def described(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """The second stage of the configuration with the objectives of an arm, from the start of its seed."""
    objectives, values = ARMS[arm]
    given = {"args.seed": seed, "args.output_dir": folder, "args.eval_steps": 0} | values
    config = configuration.read(CONFIG, [f"{path}={value}" for path, value in given.items()])
    del config["schedules"], config["learners"]["policy"]["tokenizer"]
    config["learners"]["policy"]["model"] = str(base(seed))
    config["stages"] = [config["stages"][1] | {"steps": DRAWS, "objectives": list(objectives)}]
    return config


def run(arm: str, seed: int, folder: Path, examples: dict[str, list[Example]]) -> dict[str, Any]:
    """Train an arm ("start": nothing) and measure it."""
    network, log, spent = load(str(base(seed))), [], 0.0
    unit = network.mean_embedding_norm()
    if arm != "start":
        trainer = configuration.trainer(described(arm, seed, folder))
        trainer.start()
        begin = time.process_time()
        trainer.train(overwrite=True, progress=False)
        spent, network, log = time.process_time() - begin, trainer.model, read(folder)
    found = measured(network, examples, unit) | {
        "training_cpu_seconds": round(spent, 1),
        "embedding_norm": network.mean_embedding_norm() / unit,
    }
    rewards = [row[key] for row in log for key in ("hands/reward", "noisy_hands/reward") if key in row]
    gains = [row["pgd/gain"] for row in log if "pgd/gain" in row]
    tenth = max(1, len(rewards) // 10)
    if rewards:
        found |= {"first_rewards": sum(rewards[:tenth]) / tenth, "last_rewards": sum(rewards[-tenth:]) / tenth}
    return found | ({"attack_gain": sum(gains) / len(gains)} if gains else {})


# ------------------------------------------------------------------------------------------------------ measuring


def held_out() -> dict[str, list[Example]]:
    """{kind of prompt: every hand that the configuration holds out}; "ood" has its own hands and its own rule."""
    task = configuration.read(CONFIG)["sources"]["demos"]["data"]["task"]

    def asked(split: str, **more: Any) -> list[Example]:
        return loading.examples({"task": task | more, "number": 10**6}, split=split)

    return {"clean": asked("test")} | {kind: asked("test", noise=[kind]) for kind in NOISE} | {"ood": asked("ood")}


def measured(network: Network, examples: dict[str, list[Example]], unit: float) -> dict[str, Any]:
    """Numbers of one model, and for every prompt whether it was answered."""
    texts = {kind: greedy(network, asked) for kind, asked in examples.items()}
    right = {kind: [e.verify(text) for e, text in zip(examples[kind], texts[kind], strict=True)] for kind in examples}
    begin = time.process_time()
    pgd = PGD(radius=1.0, steps=20, step_size=0.25, where="prompt", relative_to="absolute")
    noise = Noise(radius=1.0, where="prompt", relative_to="absolute")
    for name, adversary in {"pgd": pgd, "ball noise": noise}.items():
        survived = attacked(network, examples["clean"], texts["clean"], adversary, unit)
        right |= {f"{name}@{radius}": scores for radius, scores in zip(RADII, survived, strict=True)}
    attack = time.process_time() - begin
    groups = HF().generate(network, examples["clean"], 8, Sampling(max_new_tokens=NEW_TOKENS), torch.Generator().manual_seed(0))
    right["sampled"] = [sum(g.example.verify(r.text) for r in g.rollouts) / 8 for g in groups]
    rates = {kind: sum(row) / len(row) for kind, row in right.items()} | {"pass@8": verified(groups)["pass@8"]}
    return {"rates": rates, "right": right, "attack_cpu_seconds": round(attack, 1)}


def greedy(network: Network, examples: Sequence[Example]) -> list[str]:
    sampling = Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0)
    return [g.rollouts[0].text for g in HF().generate(network, examples, 1, sampling, torch.Generator())]


def attacked(network: Network, examples: Sequence[Example], texts: Sequence[str], adversary: Any, unit: float) -> list[list[float]]:
    """For each of RADII, whether every prompt is still answered; prompts that fail without a delta fail throughout."""
    target = GeneratorTarget(network)
    still = [e.verify(text) for e, text in zip(examples, texts, strict=True)]
    found = []
    for radius in RADII:
        alive = [i for i, score in enumerate(still) if score]
        victims = [replace(examples[i], meta=examples[i].meta | {"response": texts[i]}) for i in alive]
        if victims:
            attack = Embedding(adversary=replace(adversary, radius=radius * unit), restarts=1)
            edits = [p.edits for p in attack.propose(target, victims, Budget(), random.Random(0))]
            answers = target.continue_edited(victims, edits, NEW_TOKENS)
            for i, answer in zip(alive, answers, strict=True):
                still[i] = examples[i].verify(answer)
        found.append(list(still))
    return found


def side_by_side(seed: int, rounds: int = 3) -> dict[str, Any]:
    """CPU seconds of a draw and its updates, the arms taking turns in one process; forwards of the trainer, sampling not counted."""
    trainers = {arm: configuration.trainer(described(arm, seed, OUT / f"cost-{arm}")) for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for trainer in trainers.values():
        trainer.start()
        trainer.training_step()  # warms up, and is not counted
        trainer.model.num_forwards = trainer.model.num_rows = 0
    for _ in range(rounds):
        for arm, trainer in trainers.items():
            begin = time.process_time()
            trainer.training_step()
            seconds[arm].append(time.process_time() - begin)
    updates = UPDATES * rounds
    rows = 16 * 8 * rounds
    return {
        arm: {
            "cpu_seconds_per_draw": median(seconds[arm]),
            "forwards_per_update": trainer.model.num_forwards / updates,
            "forwards_per_rollout": trainer.model.num_rows / rows,
            "plan": trainer.step_plan().plans["policy"].forwards(),
        }
        for arm, trainer in trainers.items()
    }


# -------------------------------------------------------------------------------------------------------- summing


def over_prompts(first: list[dict[str, Any]], second: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """first - second, paired over prompts, each averaged over seeds; and seed by seed."""
    by_prompt = [[sum(scores) / len(scores) for scores in zip(*(r["right"][kind] for r in side), strict=True)] for side in (first, second)]
    by_seed = [a["rates"][kind] - b["rates"][kind] for a, b in zip(first, second, strict=True)]
    return paired(*by_prompt) | {"by_seed": by_seed}


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Per arm: every rate over seeds, and its difference to `grpo`."""
    table: dict[str, Any] = {}
    for arm, found in runs.items():
        table[arm] = {"rates": {kind: mean_sd([r["rates"][kind] for r in found]) for kind in found[0]["rates"]}}
        for key in ("training_cpu_seconds", "first_rewards", "last_rewards", "attack_gain", "embedding_norm"):
            if key in found[0]:
                table[arm][key] = mean_sd([r[key] for r in found])
        if arm != "grpo":
            table[arm]["minus_grpo"] = {kind: over_prompts(found, runs["grpo"], kind) for kind in found[0]["right"]}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="arms, separated by commas, `grpo` among them; nothing is timed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    hands, seeds = held_out(), SEEDS[: args.seeds]
    arms = args.only.split(",") if args.only else list(ARMS)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("start", *arms)}
    for seed in seeds:
        for name in runs:
            folder = OUT / f"{name}-{seed}"
            runs[name].append(once(OUT / f"{folder.name}.json", lambda n=name, s=seed, f=folder: run(n, s, f, hands)))
    timed = [] if args.only else [once(OUT / "cost.json", lambda: side_by_side(seeds[0]))]
    command = "make bench-adv-rl"
    if args.only or seeds != SEEDS[:2]:
        command = f"python benchmarks/adv_rl.py --seeds {len(seeds)}" + (f' --only "{args.only}"' if args.only else "")
    bases = [once(OUT / f"base-{seed}.json", dict) for seed in seeds]
    spent = [*bases, *timed, *(r for found in runs.values() for r in found)]
    save(
        "benchmarks/results/adv_rl.json",
        about(command)
        | {"config": CONFIG, "seeds": list(seeds), "draws": DRAWS, "radii": RADII}
        | {"prompts": {kind: len(asked) for kind, asked in hands.items()}, "cost": {arm: cost[arm] for cost in timed for arm in arms}}
        | {"arms": summary(runs), "cpu_hours": cpu_hours(spent)},
    )


if __name__ == "__main__":
    main()
