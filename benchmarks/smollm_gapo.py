"""A discriminator as reward on SmolLM2-135M-Instruct: instructions under constraints that no reward sees, and few demonstrations.

Where does it pay to go on training the discriminator? 50, 200 and 1,000 demonstrations; from one warm start per number and seed, every arm
makes 50 steps. Target, stated before any run: GAPO ahead of the frozen discriminator with imitation in one regime, with a 95 % interval
above zero, or the finding that there is none.

Settings are those of configs/smollm2/gapo.yaml; none was chosen by an arm's score. The length of the discriminator's warm-up was, by
its AUC on 100 of the 1,000 demonstrations, with 200 others: 0.64 after 640 rows of each kind, 0.70 after 1,280. `dev` prompts (40) say
which arm is called best in a regime; `test` prompts (120, half of them with pairs of constraints that training never shows) confirm it,
on both seeds.

    make bench-smollm-gapo       all missing cells; then the same command writes the summary -> benchmarks/results/smollm_gapo.json
    python benchmarks/smollm_gapo.py --only "*-200-0"
    python benchmarks/smollm_gapo.py --smoke --only gapo-50-0 base-0

Cost in CPU-seconds, measured on two busy cores: 3.6 per step of SFT (16 rows), 1.0 of the discriminator alone, 10.3 of GAPO; 9 for 80
answers. A cell that samples takes about 11 minutes, one of SFT 5; the six warm starts 4 minutes each, within the first cell that needs one.
28 cells: about 4.6 hours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from prepare_smollm_gapo import HELD_OUT, prepared
from smollm_cells import run, smoke
from smollm_gapo_arms import ARMS, SIZES, discriminator, game, started, untrained, warm
from smollm_gapo_summary import summarise
from smollm_measure import answer_nll, text_nll

from advalign import data as loading
from advalign.functional import instructions
from advalign.metrics import diversity, run_log, utility
from advalign.models import Network
from advalign.rollout.hf import HF
from advalign.training import evaluate
from advalign.types import RolloutGroup, Sampling

SEEDS = 2
SAMPLES = {"test": 4, "dev": 2}
SAMPLING = Sampling(max_new_tokens=40, temperature=0.7)
CURVE = {
    "reward": "write/rewards/discriminator/mean",
    "verified": "write/instructions/strict/prompt",
    "unique": "write/unique",
    "length": "write/completions/mean_length",
    "accuracy": "discriminator/accuracy",
    "accuracy_generated": "discriminator/accuracy/generated",
}
"""{name in the results: what the log calls it}, step by step."""


def answered(network: Network, part: str, seed: int) -> list[RolloutGroup]:
    """A policy's answers to the prompts of a part."""
    examples = loading.examples(str(prepared(Path("out/smollm_gapo")) / f"{part}.jsonl"))[:: 30 if smoke() else 1]
    return HF().generate(network, examples, SAMPLES[part], SAMPLING, torch.Generator().manual_seed(seed))


def outcomes(group: RolloutGroup) -> list[list[bool]]:
    """Per answer, whether each constraint holds."""
    parts = instructions.of_example(group.example.meta, group.example.id, False)
    return [instructions.outcomes(parts, rollout.text) for rollout in group.rollouts]


def by_prompt(groups: Sequence[RolloutGroup]) -> dict[str, list[float]]:
    """Everything by prompt, so that arms can be compared prompt by prompt."""
    held_out = {"+".join(sorted(pair)) for pair in HELD_OUT}
    return {
        "held_out": [float(group.example.meta["families"] in held_out) for group in groups],
        "passed": [mean([float(all(row)) for row in outcomes(group)]) for group in groups],
        "constraints": [mean([float(held) for row in outcomes(group) for held in row]) for group in groups],
        "unique": [utility.unique_fraction([[rollout.text for rollout in group.rollouts]]) for group in groups],
        "self_bleu": [diversity.self_bleu([[rollout.text for rollout in group.rollouts]]) for group in groups],
        "words": [mean([float(len(rollout.text.split())) for rollout in group.rollouts]) for group in groups],
        "finished": [mean([float(rollout.finished) for rollout in group.rollouts]) for group in groups],
    }


def scored(network: Network, groups: Sequence[RolloutGroup]) -> list[float]:
    """The discriminator's scores of all answers."""
    rows = [(group.example.prompt, rollout.text, rollout.finished) for group in groups for rollout in group.rollouts]
    values = []
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            tokens = network.encoder.scored_pairs(*(list(column) for column in zip(*rows[start : start + 64], strict=True)))
            scores = network.forward(tokens, {"scores"}).scores
            assert scores is not None
            values += scores.float().tolist()
    return values


def fluency(groups: Sequence[RolloutGroup]) -> list[float]:
    """Nats per token of the first answer to each prompt under the model as it is published: what is no English is unlikely."""
    base = untrained()
    rows = [(group.example, group.rollouts[0].text) for group in groups]
    return [evaluate.nll(base, [example], [text or " "], 4096) for example, text in rows]


def measured(networks: Mapping[str, Network], seed: int) -> dict[str, Any]:
    """What a policy does on dev and test prompts, what a discriminator says about it, and what it has kept of its language."""
    policy = networks["policy"]
    dev, test = answered(policy, "dev", seed), answered(policy, "test", seed)
    result: dict[str, Any] = {"dev": by_prompt(dev)["passed"], "test": by_prompt(test) | {"nll": fluency(test)}}
    if "discriminator" in networks:
        scores = torch.tensor(scored(networks["discriminator"], test))
        right = torch.tensor([all(row) for group in test for row in outcomes(group)])
        result |= {"score": float(scores.mean()), "auc": utility.auc(scores[right], scores[~right])}
    kept = {"text_nll": mean(text_nll(policy)), "answer_nll": mean(answer_nll(policy))}
    said = [{"prompt": g.example.prompt, "text": g.rollouts[0].text, "passed": all(outcomes(g)[0])} for g in test[:: len(test) // 10 or 1]]
    return rounded(result | kept | {"said": said[:10]})


def trained(name: str, size: int, seed: int, folder: Path) -> dict[str, Any]:
    """The cell of an arm."""
    networks = game(name, size, seed, folder / "run")
    curve = {short: [row.get(long) for row in run_log.read(folder / "run")] for short, long in CURVE.items()}
    return rounded({"curve": curve if ARMS[name].samples else None}) | measured(networks, seed)


def begun(size: int, seed: int, folder: Path) -> dict[str, Any]:
    """The cell of a warm start, before any arm."""
    start = warm(size, seed)
    return measured({"policy": started(start), "discriminator": discriminator(start)}, seed)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def rounded(value: Any) -> Any:
    """Numbers to four places, so that a cell stays small."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return (round(value, 4) if math.isfinite(value) else None) if isinstance(value, float) else value


def cells() -> dict[str, Callable[[Path], dict[str, Any]]]:
    """The 28 cells, the comparison that the target names first."""
    order: dict[str, Callable[[Path], dict[str, Any]]] = {}
    for size in SIZES:
        for seed in range(SEEDS):
            arms = [name for name, arm in ARMS.items() if size in arm.sizes]
            order |= {f"{name}-{size}-{seed}": partial(trained, name, size, seed) for name in arms}
    order["base-0"] = lambda folder: measured({"policy": untrained()}, 0)
    return order | {"start-200-0": partial(begun, 200, 0)}


if __name__ == "__main__":
    run("gapo", cells(), summarise, hours=5.0, description=__doc__)
