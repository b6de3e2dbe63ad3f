"""RL with a verifiable reward on SmolLM2-135M-Instruct: word problems, clean and asked worse, against SFT.

One-operation problems of MAWPS (prepare_smollm_rl.py); an answer is an equation of about ten tokens, and `exact_answer` reads its last
number. The published model explains at length and is right on about one problem in ten, so every arm but `base` starts from 16 SFT steps
on 95 worked problems; `start` is that model. From it, 48 steps of SFT on the worked train problems, or 48 draws of 128 answers (GRPO,
DAPO, SAPO, GRPO with half of its loss under PGD on the user's turn, GRPO with a consistency objective on its rollouts, GRPO on noisy
problems), two updates each.

Measured per cell: greedy answers on test problems, as they are and under every kind of noise (smollm_rl_noise.py), on ASDiv and the easiest
of GSM8K; pass@k and entropy of eight samples at temperature 1; the same noise on validation problems; perplexity of plain text.

Rule, written before any run:
* Rate and size of a draw were set by one pilot of `grpo`, on train problems alone, and are those of all arms.
* "Best" is the arm of sft, grpo, dapo, sapo, grpo_pgd, grpo_consistency with the most validation problems solved (both seeds, greedy).
  "Robust" is the arm of grpo_pgd and grpo_consistency with the highest validation accuracy under noise (mean over families).
* Confirmed on test problems, which nothing above reads: grpo minus start is at least 10 points; robust loses at most half of what grpo
  loses under noise (clean minus mean over typos, distractors, reformatting).

Budget: 17 cells of about 15 CPU-minutes.

    python benchmarks/smollm_rl.py [--workers N] [--only "grpo-*"] [--smoke] [--summary]
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import smollm_measure
import smollm_rl_arms as arms
from prepare_smollm_rl import prepare
from smollm_cells import Cell, run, smoke, trained
from smollm_rl_summary import summarise

from advalign import data as loading
from advalign.functional import answers
from advalign.models import Network
from advalign.targets import GeneratorTarget
from advalign.types import Conversation, Example, Message, RolloutGroup, Sampling

SEEDS = (0, 1)
NEW_TOKENS = 16
BASE_TOKENS = 48
"""Of the published model, which does not answer in one equation."""
SHOTS = 3
"""Worked problems in the prompt of the published model, as turns of the conversation."""
VALID = 40
"""Validation problems under each kind of noise."""
SAMPLES = 8


def cell(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains an arm and measures it."""
    prepare_data()
    trained(folder, partial(arms.train, arm, seed))
    curve = json.loads((folder / "curve.json").read_text(encoding="utf-8"))
    return {"arm": arm, "seed": seed} | curve | measured(arms.trained_network(folder), seed)


def prepare_data() -> None:
    """The files of problems; cells that begin at the same time write the same."""
    prepare(Path(os.environ["ADVALIGN_DATA"]), arms.DATA)


def base(folder: Path) -> dict[str, Any]:
    """The published model: three worked problems in its prompt, and without them."""
    prepare_data()
    network = smollm_measure.base()
    worked = examples("warm")[:SHOTS]
    plain = outcomes(greedy(network, examples("test"), BASE_TOKENS))
    shots = [turn for e in worked for turn in (user_turn(e), Message("assistant", e.reference))]
    return {"arm": "base", "seed": 0, "right_without_shots": plain} | measured(network, 0, shots)


def measured(network: Network, seed: int, shots: Sequence[Message] = ()) -> dict[str, Any]:
    """Every number of one model; outcomes are 0 or 1 per problem, in the order of the files."""
    right, clean = {}, []
    for name in ("test", "valid", "asdiv", "gsm8k", *(f"{split}_{kind}" for split in ("test", "valid") for kind in arms.KINDS)):
        asked = examples(name)[: VALID if name.startswith("valid_") else None]
        groups = greedy(network, [with_turns(e, shots) for e in asked], NEW_TOKENS)
        right[name] = outcomes(groups)
        clean = groups if name == "test" else clean
    sampling = Sampling(max_new_tokens=NEW_TOKENS, temperature=1.0)
    drawn = [with_turns(e, shots) for e in examples("test")]
    sampled = GeneratorTarget(network).generate(drawn, SAMPLES, sampling, ("samples", seed))
    logprobs = [p for group in sampled for rollout in group.rollouts for p in rollout.sampler_logprobs]
    return {
        "right": right,
        "solved_of_8": [sum(is_right(g.example, r.text) for r in g.rollouts) for g in sampled],
        "entropy": -sum(logprobs) / len(logprobs),
        "text_nll": smollm_measure.text_nll(network),
        "sample_answers": [{"question": g.example.text, "answer": g.rollouts[0].text, "reference": g.example.answer} for g in clean[:10]],
    }


def examples(name: str) -> list[Example]:
    return list(loading.examples(str(arms.DATA / f"{name}.jsonl")))[: 2 if smoke() else None]


def with_turns(example: Example, shots: Sequence[Message]) -> Example:
    """The example with worked problems between its system prompt and its question."""
    assert isinstance(example.prompt, Conversation)
    system, *rest = example.prompt.messages
    return replace(example, prompt=replace(example.prompt, messages=(system, *shots, *rest)))


def user_turn(example: Example) -> Message:
    assert isinstance(example.prompt, Conversation)
    return example.prompt.messages[-1]


def greedy(network: Network, asked: Sequence[Example], tokens: int) -> list[RolloutGroup]:
    return GeneratorTarget(network).generate(asked, 1, Sampling(max_new_tokens=tokens, temperature=0.0), ("greedy",))


def outcomes(groups: Sequence[RolloutGroup]) -> list[int]:
    return [int(is_right(g.example, g.rollouts[0].text)) for g in groups]


def is_right(example: Example, text: str) -> bool:
    """What the reward `exact_answer` says with `engine: numeric`."""
    assert example.answer is not None
    answer = answers.final_answer(text, example.answer)
    return answer is not None and answers.same(answer, example.answer, 1e-6)


CELLS: dict[str, Cell] = {"base-0": base} | {f"{arm}-{seed}": partial(cell, arm, seed) for seed in SEEDS for arm in arms.ARMS}

if __name__ == "__main__":
    run("rl", CELLS, summarise, description=__doc__)
