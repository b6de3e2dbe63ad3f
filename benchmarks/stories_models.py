"""The language models behind benchmarks/stories.py, each trained once: what a policy starts from, what a student starts from, and the
discriminator of perplexity, which has read other stories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import once

from advalign import config as configuration
from advalign.metrics.run_log import read
from advalign.models import Network

CONFIG, DISTIL = "configs/gan/stories.yaml", "configs/gan/gad_stories.yaml"
SMALLER = "scratch:tiny?initializer_range=0.08"

# name: (what it reads, steps, model or that of the configuration, seed)
MODELS: dict[str, tuple[str, int, str | None, int]] = {
    "base": ("base", 700, None, 0),
    "student": ("half", 500, SMALLER, 0),
    "perplexity": ("discriminator", 500, None, 1),
}


class Run:
    """Where runs are kept; `smoke` runs make two steps each and are kept elsewhere."""

    smoke = False

    @classmethod
    def out(cls) -> Path:
        return Path("out/bench/stories_smoke" if cls.smoke else "out/bench/stories")


def described(seed: int, folder: Path, *stages: str, path: str = CONFIG) -> dict[str, Any]:
    """A configuration with some of its stages; what the models start from is left to be named."""
    config = configuration.read(path, [f"args.seed={seed}", f"args.output_dir={folder}"])
    config["stages"] = [stage for stage in config["stages"] if stage["name"] in stages]
    config["args"]["eval_steps"] = 0
    config["evaluations"] = {}
    if "base" not in stages:
        config["schedules"] = {}
        config["learners"]["policy"].pop("tokenizer", None)  # it comes with the model
    return config


def trained(config: dict[str, Any]) -> Any:
    """The trainer after its run."""
    if Run.smoke:
        config["stages"] = [stage | {"steps": 2} for stage in config["stages"]]
    trainer = configuration.trainer(config)
    trainer.train(overwrite=True, progress=False)
    return trainer


def reader(name: str) -> Path:
    """The folder of a model that has read its part of the stories."""
    text, steps, model, seed = MODELS[name]
    folder = Run.out() / f"model-{name}"

    def train() -> dict[str, Any]:
        config = described(seed, folder, "base")
        config["learners"] = {"policy": config["learners"]["policy"] | ({"model": model} if model else {})}
        config["sources"] = {"text": config["sources"]["text"] | {"data": f"out/stories/{text}.jsonl"}}
        config["objectives"] = {"read": config["objectives"]["read"]}
        config["schedules"]["learners.policy.learning_rate"]["steps"] = config["stages"][0]["steps"] = steps
        trainer = trained(config)
        parameters = sum(p.numel() for p in trainer.learners["policy"].network.parameters())
        last = [row["read/loss"] for row in read(folder)[-20:]]
        return {"steps": steps, "parameters": parameters, "train_nll": sum(last) / len(last)}

    once(Run.out() / f"{name}.json", train)
    return folder / "policy"


def asked(name: str) -> Path:
    """The folder of such a model after it has learned what a request is, from the text that it has read."""
    folder, texts = Run.out() / f"model-{name}-asked", {"base": "asked.txt", "student": "half.txt"}[name]

    def train() -> dict[str, Any]:
        config = described(MODELS[name][3], folder, "ask")
        config["learners"] = {"policy": config["learners"]["policy"] | {"model": str(reader(name))}}
        config["sources"]["asked"]["data"]["task"]["data"] = f"out/stories/{texts}"
        config["sources"] = {"asked": config["sources"]["asked"]}
        config["objectives"] = {"ask": config["objectives"]["ask"]}
        network = trained(config).learners["policy"].network
        last = [row["ask/loss"] for row in read(folder)[-20:]]
        return {"parameters": sum(p.numel() for p in network.parameters()), "train_nll": sum(last) / len(last)}

    once(Run.out() / f"{name}-asked.json", train)
    return folder / "policy"


def nll(discriminator: Network, prompts: Sequence[str], texts: Sequence[str], group: int) -> list[list[float]]:
    """[sum of -log p of the tokens, their number] of every `group` texts together. Ends are not counted: the discriminator has read stories
    that go on."""
    tokens = discriminator.encoder.scored_pairs(prompts, texts, [False] * len(texts))
    sums, counts = [], []
    with torch.no_grad():
        for rows in torch.arange(len(texts)).split(128):
            part = tokens.index(rows)
            logprobs = discriminator(part, {"logprobs"}).logprobs
            assert logprobs is not None
            sums.append(-(logprobs * part.target).sum(1))
            counts.append(part.target.sum(1))
    pairs = torch.stack([torch.cat(sums), torch.cat(counts)], 1).double().reshape(-1, group, 2).sum(1)
    return [[round(a, 3), b] for a, b in pairs.tolist()]
