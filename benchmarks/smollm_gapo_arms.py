"""The arms of benchmarks/smollm_gapo.py: what each changes in the last stage of configs/smollm2/gapo.yaml, and how it is trained.

Policy and discriminator of a seed and a number of demonstrations are warmed up once (stages `imitate` and `discriminator`); every arm goes
on from them for the same number of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from common import once
from prepare_smollm_gapo import prepared
from smollm_cells import DTYPE, MODEL, OUT, smoke

from advalign import config as configuration
from advalign import data as loading
from advalign.models import Network, load

CONFIG = "configs/smollm2/gapo.yaml"
SIZES = (200, 50, 1000)
SCORE = {"kind": "discriminator", "learner": "discriminator"}
ANCHOR = {"anchor": {"kind": "sft", "source": "anchor", "coef": 0.3}}
ALONE = {"policy": {"kind": "grpo", "source": "write"}}
DISCRIMINATOR = {"discriminator": {"kind": "discriminate", "learner": "discriminator", "source": "contrast"}}
GAPO = ALONE | ANCHOR | DISCRIMINATOR
VERIFIED = 2.0
"""Weight of the verifier as a reward: satisfied constraints count as much as two units of the discriminator's logit."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm."""

    label: str
    """Its name in the tables."""
    terms: Mapping[str, Any]
    """Objectives of the last stage."""
    sections: Mapping[str, Any] = field(default_factory=dict)
    """Sections of the configuration to extend."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """{dotted path: value}"""
    sizes: tuple[int, ...] = (200,)
    """Numbers of demonstrations that it is trained with."""

    @property
    def samples(self) -> bool:
        """Whether the policy answers prompts in training."""
        return "policy" in self.terms


ARMS: dict[str, Arm] = {
    "sft": Arm(label="SFT", terms={"imitate": {"kind": "sft", "source": "demos"}}, sizes=SIZES),
    "frozen_sft": Arm(label="frozen discriminator + imitation", terms=ALONE | ANCHOR, sizes=SIZES),
    "gapo": Arm(label="GAPO", terms=GAPO, sizes=SIZES),
    "dpo": Arm(
        label="DPO on perturbed prompts + imitation",
        terms={"prefer": {"kind": "dpo", "source": "pairs"}} | ANCHOR,
        sections={"sources": {"pairs": {"kind": "pairs", "batch_size": 8}}, "frozen": {"reference": {"learner": "policy"}}},
        values={"learners.policy.learning_rate": 1e-4},
    ),
    "frozen": Arm(label="frozen discriminator alone", terms=ALONE),
    "gapo_adversarial": Arm(
        label="GAPO + adversarial SFT",
        terms=GAPO | {"robust": {"kind": "sft", "source": "anchor", "view": "pgd", "coef": 0.1}},
        sections={"adversaries": {"pgd": {"kind": "pgd", "radius": 0.1, "steps": 2}}},
    ),
    "gapo_verified": Arm(
        label="GAPO + verifiable reward",
        terms=GAPO,
        values={"sources.write.rewards": [SCORE, {"kind": "instructions", "weight": VERIFIED}]},
    ),
}  # fmt: skip


def described(size: int, seed: int, folder: Path, *stages: str) -> dict[str, Any]:
    """The configuration with some of its stages and so many demonstrations, without evaluations."""
    data = prepared(Path("out/smollm_gapo"))
    demos = str(data / f"demos_{size}.jsonl")
    values = {"args.seed": seed, "args.output_dir": str(folder), "args.eval_steps": 0, "learners.policy.model": MODEL}
    values |= {"learners.policy.dtype": DTYPE, "sources.demos.data": demos, "sources.anchor.data": demos}
    config = configuration.read(CONFIG)
    for path, value in values.items():
        put(config, path, value)
    config["evaluations"] = {}
    config["stages"] = [stage | ({"steps": 1} if smoke() else {}) for stage in config["stages"] if stage["name"] in stages]
    if smoke():
        config["sources"]["write"] |= {"batch_size": 2, "group_size": 2}
    return config


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Sets a value at a dotted path."""
    *above, last = path.split(".")
    for name in above:
        config = config[name]
    config[last] = value


def warm(size: int, seed: int) -> Path:
    """The folder of both learners after their warm-up, which the first cell that asks for it trains; a killed one trains it again."""
    folder = OUT / f"smollm_gapo{'_smoke' if smoke() else ''}" / f"warm-{size}-{seed}"
    with locked(folder.with_suffix(".lock")):
        once(folder.with_suffix(".json"), lambda: _train(described(size, seed, folder, "imitate", "discriminator"))[1])
    return folder


def _train(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    trainer = configuration.trainer(config)
    trainer.train(overwrite=True, progress=False)
    return trainer, {"steps": [stage["steps"] for stage in config["stages"]]}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Other processes wait at its beginning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        flock(file, LOCK_EX)
        yield


def game(name: str, size: int, seed: int, folder: Path) -> dict[str, Network]:
    """{learner: its network} of an arm, after its training into `folder`."""
    arm, start = ARMS[name], warm(size, seed)
    config = described(size, seed, folder, "game")
    for path, rate in config["stages"][0].pop("set").items():
        put(config, path, rate)
    config["learners"]["policy"]["options"] = {**_options(config), "adapter": str(start / "policy")}
    config["learners"]["policy"]["options"].pop("lora")
    config["learners"]["discriminator"]["model"] = str(start / "discriminator")
    config["objectives"], config["stages"][0]["objectives"] = dict(arm.terms), list(arm.terms)
    for section, entries in arm.sections.items():
        config[section] = {**config.get(section, {}), **entries}
    if "pairs" in config["sources"]:
        config["sources"]["pairs"] |= {"data": _pairs(size)}
    for path, value in arm.values.items():
        put(config, path, value)
    used = {term["source"] for term in arm.terms.values()} | ({"demos"} if "discriminator" in arm.terms else set())
    config["sources"] = {source: entry for source, entry in config["sources"].items() if source in used}
    if not arm.samples:
        del config["learners"]["discriminator"]
    trainer, _ = _train(config)
    networks = {learner: trainer.learners[learner].network for learner in config["learners"]}
    return networks if arm.samples else networks | {"discriminator": discriminator(start)}


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config["learners"]["policy"]["options"])


def _pairs(size: int) -> list[dict[str, Any]]:
    """Preference pairs: the same answer under its own prompt and under one that it violates, for every rejected prompt."""
    rows = loading.rows(str(prepared(Path("out/smollm_gapo")) / f"demos_{size}.jsonl"))
    return [
        {
            "id": f"{row['id']}/{i}",
            "prompt": row["prompt"],
            "chosen": row["response"],
            "rejected": row["response"],
            "rejected_prompt": prompt,
        }
        for row in rows
        for i, prompt in enumerate(row["rejected_prompt"])
    ]


def discriminator(start: Path) -> Network:
    """The discriminator after its warm-up."""
    return load(str(start / "discriminator"), max_length=128)


def untrained() -> Network:
    """The model as it is, under the template of the others."""
    options = {"chat_template": _options(configuration.read(CONFIG))["chat_template"]}
    return load(MODEL, dtype=DTYPE, max_length=160, options=options)


def started(start: Path) -> Network:
    """The policy after its warm-up."""
    options = _options(configuration.read(CONFIG)) | {"adapter": str(start / "policy")}
    options.pop("lora")
    return load(MODEL, dtype=DTYPE, max_length=160, options=options)
