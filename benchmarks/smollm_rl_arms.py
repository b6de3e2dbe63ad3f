"""The arms of benchmarks/smollm_rl.py: one configuration each, and how it is trained with its curve kept.

All but `base` begin with the same warm start on 95 worked problems (same seed, same draws, so the same weights); `start` ends there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from smollm_cells import MODEL, smoke
from smollm_rl_noise import FAMILIES

from advalign import config as configuration
from advalign.interfaces.callback import Callback
from advalign.models import Network, load

DATA = Path("out/smollm_rl")
STEPS = 48
"""Draws of 16 problems with 8 answers each, and SFT steps; two updates each."""
SFT_ROWS = 64
"""Rows of an SFT step: as many tokens as a draw of GRPO samples and trains, the prompt of a group counted once (`tokens` of the cells)."""

DYNAMIC = {"sources.problems.dynamic": {"max_batches": 2}}
ARMS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "start": ("grpo", {}),
    "sft": ("grpo", {}),
    "grpo": ("grpo", {}),
    "dapo": ("grpo", {"objectives.policy.kind": "dapo"} | DYNAMIC),
    "sapo": ("grpo", {"objectives.policy.kind": "sapo"}),
    "grpo_pgd": ("robust_grpo", {}),
    "grpo_consistency": ("rollout_consistency", {}),
    "grpo_noise": ("grpo", {"sources.problems.data": str(DATA / "noisy.jsonl")}),
}
"""{arm: its file in configs/smollm2, and what differs}. `grpo_noise`: half of the problems under the kinds of noise that are measured."""
ROBUST = ("grpo_pgd", "grpo_consistency")
"""One of these is chosen; `grpo_noise` knows the noise and is reported beside them."""


def described(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """The configuration of an arm."""
    file, changes = ARMS[arm]
    values = {"args.seed": seed, "args.output_dir": str(folder / "run"), "learners.policy.model": MODEL, "args.save_steps": 8} | changes
    config = configuration.read(f"configs/smollm2/{file}.yaml", [f"{path}={json.dumps(value)}" for path, value in values.items()])
    warm, policy = config["stages"]
    del config["evaluations"]  # measured at the end
    config["args"]["eval_steps"] = 0
    if arm == "sft":
        config["sources"]["taught"] = {"kind": "demos", "data": str(DATA / "train.jsonl"), "batch_size": SFT_ROWS}
        config["objectives"]["teach"] = {"kind": "sft", "source": "taught"}
        policy = policy | {"objectives": ["teach"]}
    config["stages"] = [warm, policy | {"steps": STEPS}][: 1 if arm == "start" else 2]
    if smoke():
        config["stages"] = [stage | {"steps": 1} for stage in config["stages"]]
        config["sources"]["problems"] |= {"batch_size": 2, "group_size": 4}
        config["sources"].get("taught", {})["batch_size"] = 4
    return config


class Curve(Callback):
    """Writes rewards, entropies and CPU-seconds to a file, a line per step; a resumed run goes on in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.mark = path, time.process_time()

    def start(self) -> None:
        self.mark = time.process_time()

    def on_step(self, trainer: Any, logs: Mapping[str, Any]) -> None:
        row = {name: round(float(logs[metric]), 4) for name, metric in METRICS.items() if logs.get(metric) is not None}
        row |= {"step": trainer.step, "seconds": round(time.process_time() - self.mark, 2)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.start()

    def rows(self) -> list[dict[str, float]]:
        """A row per step, with the seconds up to it; of a step that was made again after a kill, the last."""
        by_step = {row["step"]: row for row in map(json.loads, self.path.read_text(encoding="utf-8").splitlines())}
        seconds = accumulate(by_step[step]["seconds"] for step in sorted(by_step))
        return [by_step[step] | {"cpu_seconds": round(spent, 1)} for step, spent in zip(sorted(by_step), seconds, strict=True)]


METRICS = {
    "reward": "problems/reward",
    "entropy": "problems/sampled_entropy",
    "equal": "problems/frac_reward_zero_std",
    "length": "problems/completions/mean_length",
    "batches": "problems/dynamic/batches",
    "imitate": "imitate/loss",
    "teach": "teach/loss",
    "gain": "pgd/gain",
    "divergence": "smooth/divergence",
    "norm": "policy/grad_norm",
}
"""{name in a curve: metric of the log}"""


def train(arm: str, seed: int, folder: Path) -> None:
    """Trains an arm, or goes on where a kill ended it; its adapter and its curve end in `folder`."""
    curve = Curve(folder / "curve.jsonl")
    trainer = configuration.trainer(described(arm, seed, folder), callbacks=[curve])
    trainer.start()
    curve.start()
    trainer.train(resume=True, progress=False)
    rows = curve.rows()
    columns = {name: [row.get(name) for row in rows] for name in ("cpu_seconds", *METRICS)}
    logged = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    lines = (folder / "run" / "speed.jsonl").read_text(encoding="utf-8").splitlines()
    policy = [row for row in map(json.loads, lines) if row["step"] > trainer.run_spec.stages[0].steps]
    tokens = {name: sum(row.get(f"{name}_tokens", 0.0) for row in policy) for name in ("sampled", "trained")}
    content = {"curve": logged, "tokens": tokens, "training_seconds": rows[-1]["cpu_seconds"]}
    (folder / "curve.json").write_text(json.dumps(content), encoding="utf-8")


def trained_network(folder: Path) -> Network:
    """The model that `train` left."""
    return load(str(folder / "run" / "policy"), dtype="bfloat16")


KINDS = tuple(kind for kinds in FAMILIES.values() for kind in kinds)
"""Every kind of noise that is measured."""
