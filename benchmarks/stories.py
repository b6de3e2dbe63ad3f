"""GAPO and GAD on real text: sentences of TinyStories with words that must be in them and a length they must not exceed.

GAPO: from one policy and one discriminator (a pretrained encoder) per seed, every arm makes the same number of steps. GAD: a smaller
student learns from what a larger teacher wrote (arXiv:2511.10643). Both are measured on combinations of words never asked for in
training, 8 answers each: does the answer comply, how alike are the answers, and how likely are they to a language model of other stories?

    python benchmarks/stories.py                  make bench-stories: what is missing; writes benchmarks/results/stories.json
    python benchmarks/stories.py --only gapo:frozen,gad:gad --first 100 --seeds 101      some arms, on the seed that settings are chosen on
    python benchmarks/stories.py --collect        the results of what is there

From seed 100 on, models are measured on prompts of the training split, on which settings are chosen.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import once
from gan import locked, put
from prepare_rule_lm import source
from prepare_stories import prepare, write
from stories_arms import ARMS, DISTILLED, SAMPLING, TASK
from stories_models import DISTIL, Run, described, nll, reader, trained
from stories_models import asked as taught
from stories_summary import collect

from advalign import data as loading
from advalign.metrics import diversity
from advalign.metrics.run_log import read
from advalign.models import Network, load
from advalign.rollout.hf import HF
from advalign.types import Example, Sampling

SEEDS = 2
DEV = 100  # from here on: settings are chosen
PROMPTS, SAMPLES = 96, 8
PARTS = ("words", "length", "sentence")

# ------------------------------------------------------------------------------------------------------- GAPO


def warm(seed: int) -> Path:
    """The policy after its demonstrations and the discriminator after its warm-up, once per seed."""
    folder = Run.out() / f"gapo-warm-{seed}"

    def train() -> dict[str, Any]:
        config = described(seed, folder, "imitate", "discriminator")
        config["learners"]["policy"] |= {"model": str(taught("base"))}
        return result(trained(config), folder, seed)

    with locked(Run.out() / f"lock-warm-{seed}"):
        once(Run.out() / f"gapo-sft-{seed}.json", train)
    return folder


def game(name: str, seed: int) -> dict[str, Any]:
    """One arm, from the models of its seed."""
    arm, folder, start = ARMS[name], Run.out() / f"gapo-{name}-{seed}", warm(seed)
    config = described(seed, folder, "game")
    for learner in ("policy", "discriminator"):
        config["learners"][learner] |= {"model": str(start / learner)}
    config["objectives"] = dict(arm.terms)
    config["stages"][0]["objectives"] = list(arm.terms)
    config["learners"]["policy"]["learning_rate"] = config["stages"][0].pop("set")["learners.policy.learning_rate"]
    for section, entries in arm.more.items():
        config[section] = {**config.get(section, {}), **entries}
    for path, value in arm.values.items():
        put(config, path, value)
    if not any(term["source"] in ("write", "contrast") for term in arm.terms.values()):
        del config["learners"]["discriminator"], config["sources"]["write"], config["sources"]["contrast"]
    return result(trained(config), folder, seed)


# -------------------------------------------------------------------------------------------------------- GAD


def teacher() -> tuple[Path, Path]:
    """The larger model, taught by every demonstration of the training split; and its own answers to training prompts, as a file."""
    folder, answers = Run.out() / "teacher", Run.out() / "answers.jsonl"

    def train() -> dict[str, Any]:
        config = described(0, folder, "imitate")
        config["learners"] = {"policy": config["learners"]["policy"] | {"model": str(taught("base"))}}
        config["sources"] = {"demos": config["sources"]["demos"] | {"limit": 1_000_000}}
        config["objectives"] = {"imitate": config["objectives"]["imitate"]}
        config["stages"][0]["steps"] = 300
        network = trained(config).learners["policy"].network
        examples = loading.examples({"task": TASK}, split="train", limit=6000, seed=2)
        groups = HF().generate(network, examples, 1, Sampling(**SAMPLING), torch.Generator().manual_seed(0))
        rows = [{"prompt": g.example.prompt, "response": g.rollouts[0].text} for g in groups if g.rollouts[0].finished or Run.smoke]
        answers.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return measured(network, 0, network)

    with locked(Run.out() / "lock-teacher"):
        once(Run.out() / "gad-teacher-0.json", train)
    return folder / "policy", answers


def apprentice(seed: int) -> Path:
    """Warm-up: the student imitates the teacher's answers, then a discriminator learns to tell them from the student's."""
    folder, (model, answers) = Run.out() / f"gad-warm-{seed}", teacher()

    def train() -> dict[str, Any]:
        config = distilling(seed, folder, answers, "imitate", "discriminator")
        config["learners"]["policy"]["model"] = str(taught("student"))
        return result(trained(config), folder, seed, load(str(model)))

    with locked(Run.out() / f"lock-apprentice-{seed}"):
        once(Run.out() / f"gad-warm-{seed}.json", train)
    return folder


def distilled(name: str, seed: int) -> dict[str, Any]:
    """One arm, from the student and the discriminator of its seed."""
    folder, start, (model, answers) = Run.out() / f"gad-{name}-{seed}", apprentice(seed), teacher()
    config = distilling(seed, folder, answers, "game")
    for learner in config["learners"]:
        config["learners"][learner]["model"] = str(start / learner)
    config["stages"][0]["objectives"] = list(DISTILLED[name][1])
    if name == "seqkd":
        del config["learners"]["discriminator"], config["sources"]["answer"], config["sources"]["contrast"]
        config["objectives"] = {"imitate": config["objectives"]["imitate"]}
    return result(trained(config), folder, seed, load(str(model)))


def distilling(seed: int, folder: Path, answers: Path, *stages: str) -> dict[str, Any]:
    config = described(seed, folder, *stages, path=DISTIL)
    for name in ("answers", "answer"):
        config["sources"][name]["data"] = str(answers)
    return config


# ------------------------------------------------------------------------------------------------ measurement


def result(trainer: Any, folder: Path, seed: int, master: Network | None = None) -> dict[str, Any]:
    """What the policy does, and how well the discriminator told the two sides apart in its last twenty steps."""
    last = read(folder)[-20:]
    names = {key for row in last for key in row if key.startswith("discriminator/accuracy") or key == "discriminator/saturation"}
    discriminator = {key: mean([row[key] for row in last if key in row]) for key in sorted(names)}
    return {"discriminator": discriminator} | measured(trainer.learners["policy"].network, seed, master)


def asked(seed: int) -> list[Example]:
    """The examples that models are measured on: the same prompts for every reported seed."""
    split = "train" if seed >= DEV else "test"
    return loading.examples({"task": TASK}, split=split, limit=4 if Run.smoke else PROMPTS, seed=1)


def measured(network: Network, seed: int, master: Network | None = None) -> dict[str, Any]:
    """A policy's answers, measured."""
    groups = HF().generate(network, asked(seed), SAMPLES, Sampling(**SAMPLING), torch.Generator().manual_seed(seed))
    return measures([(g.example, [r.text for r in g.rollouts]) for g in groups], master)


def real(seed: int) -> dict[str, Any]:
    """The sentences that people wrote, measured in the same way: one per prompt."""
    task = loading.task_of({"task": TASK})
    return measures([(e, [task.demonstrate(e, random.Random(e.id))]) for e in asked(seed)], None)


def measures(answers: Sequence[tuple[Example, Sequence[str]]], master: Network | None) -> dict[str, Any]:
    """Everything by prompt, so that models can be compared prompt by prompt."""
    task = loading.task_of({"task": TASK})
    broken = [[task.violations(example, text) for text in texts] for example, texts in answers]
    by_prompt: dict[str, list[Any]] = {
        "compliance": [mean([not any(b.values()) for b in row]) for row in broken],
        **{part: [mean([not b[part] for b in row]) for row in broken] for part in PARTS},
        "unique": [len(set(texts)) / len(texts) for _, texts in answers],
        "self_bleu": [diversity.self_bleu([texts]) for _, texts in answers],
        "num_words": [mean([len(t.split()) for t in texts]) for _, texts in answers],
    }
    flat, group = [text for _, texts in answers for text in texts], len(answers[0][1])
    by_prompt["nll"] = nll(load(str(reader("perplexity"))), ["story:"] * len(flat), flat, group)
    if master is not None:
        by_prompt["teacher_nll"] = nll(master, [e.prompt for e, texts in answers for _ in texts], flat, group)
    return {"by_prompt": by_prompt, "said": [{"prompt": e.prompt, "text": texts[0]} for e, texts in answers[:12]]}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------------------- runs


def run(family: str, name: str, seed: int) -> None:
    """One arm, unless it is there or another process is at it."""
    if name in ("sft", "warm"):
        (warm if family == "gapo" else apprentice)(seed)
        return
    try:
        with locked(Run.out() / f"lock-{family}-{name}-{seed}", wait=False):
            once(Run.out() / f"{family}-{name}-{seed}.json", lambda: (game if family == "gapo" else distilled)(name, seed))
    except BlockingIOError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="family:arm, separated by commas")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=0, help="the first seed to run")
    parser.add_argument("--collect", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="two steps of everything; nothing is written under benchmarks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    Run.smoke = args.smoke
    if not Path("out/stories/task.txt").exists():
        write(Path("out/stories"), prepare(source()))
    jobs = [job.partition(":")[::2] for job in filter(None, args.only.split(","))]
    jobs = jobs or [(family, name) for family, arms in (("gapo", ARMS), ("gad", DISTILLED)) for name in arms]
    for seed in () if args.collect else range(args.first, args.seeds):
        for family, name in jobs:
            run(family, name, seed)
    if args.collect or not args.only:
        once(Run.out() / "real.json", lambda: real(0))
        collect(args.seeds)


if __name__ == "__main__":
    main()
