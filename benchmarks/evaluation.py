"""The full suites on real models: a plain and an adversarially trained classifier, and language models that were taught a rule.

Classifiers: all-MiniLM-L6-v2 fine-tuned on 2,000 sentences of SST-2, and of AG News, plainly and by the arm that the validation of
benchmarks/adv.py chose (`mixed`: synonyms in the text and PGD on its embeddings), under configs/suites/classifier_full.yaml on test rows.
Generators: the small language models of benchmarks/adv_lm.py that must not talk about cats, taught by plain SFT, by adversarial SFT and
by CAT, under configs/suites/rule_lm.yaml; near misses are the benign twins. Each is compared with the plain one, example by example.

    python benchmarks/evaluation.py                  make bench-evaluation: what is missing; writes benchmarks/results/evaluation.json
    python benchmarks/evaluation.py --only rule_lm   one group; nothing is written under benchmarks/results
    python benchmarks/evaluation.py --collect        the results of what is there

Models that are not there yet are trained first, as those benchmarks train them. About 2 hours of attacks on a busy thread once they are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adv
import adv_lm
import torch
from common import about, once, save
from prepare_rule_lm import prepare, source, write

from advalign import interpolation, yaml_files
from advalign.evaluation import Suite
from advalign.evaluation.reports import compare
from advalign.models import load

OUT = Path("out/bench/evaluation")
ROBUST = ("mixed", 0.05)
EXAMPLES = {"sst2": 60, "ag_news": 40, "rule_lm": 32}
# Longer texts have more places, and a beam that opens all of them asks for thousands of texts.
CHANGED: dict[str, dict[str, Any]] = {"ag_news": {"beam": {"places": 8}}}
LESSONS = ("sft", "adversarial_sft", "cat")


def classifier(task: str, arm: str, value: float) -> Callable[[], Path]:
    return lambda: adv.Bench(task, "small").train(arm, value, 0) / "model"


def lesson(arm: str) -> Callable[[], Path]:
    return lambda: adv_lm.taught(arm, 0) / "policy"


# group: (suite, its data, {model: how to get it})
GROUPS: dict[str, tuple[str, str | None, dict[str, Callable[[], Path]]]] = {
    task: (
        "classifier_full",
        f"out/bench/adv/small/{task}/test.jsonl",
        {"plain": classifier(task, "none", 0.0), "adversarial": classifier(task, *ROBUST)},
    )
    for task in ("sst2", "ag_news")
} | {"rule_lm": ("rule_lm", None, {arm: lesson(arm) for arm in LESSONS})}


def run(group: str, name: str) -> dict[str, Any]:
    """One model under its suite; a killed run goes on where it was."""
    suite, data, models = GROUPS[group]
    folder = OUT / group / name

    def now() -> dict[str, Any]:
        network: Any = load(str(models[name]()), head=None)
        settings: Any = interpolation.resolve(yaml_files.read(f"configs/suites/{suite}.yaml", "a suite has data and attacks").values)
        for attack, options in CHANGED.get(group, {}).items():
            settings["attacks"][attack] |= options
        described = Suite.load(settings)
        given = {"examples": EXAMPLES[group], **({"data": data} if data else {})}
        cache = OUT / f"{group}.sqlite" if network.head == "classifier" else None
        result = type(described)(**{**vars(described), **given}).run(network, folder, cache=cache)
        return result.summary()

    return once(OUT / group / f"{name}.json", now)


def versus(group: str, first: str, second: str) -> list[dict[str, Any]]:
    return [dict(row) for row in compare.folders(OUT / group / first, OUT / group / second).rows]


def collect() -> None:
    found: dict[str, Any] = {}
    for group, (suite, _, models) in GROUPS.items():
        names = [name for name in models if (OUT / group / f"{name}.json").exists()]
        runs = {name: run(group, name) for name in names}
        against = {name: versus(group, names[0], name) for name in names[1:]}
        if runs:
            found[group] = {
                "suite": suite,
                "examples": EXAMPLES[group],
                "changed": CHANGED.get(group, {}),
                "models": runs,
                "against_first": against,
            }
    costs = [row["seconds"] for group in found.values() for model in group["models"].values() for row in model["cost"]]
    save("benchmarks/results/evaluation.json", {**about("make bench-evaluation"), **found, "attack_hours": round(sum(costs) / 3600, 2)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="groups, separated by commas")
    parser.add_argument("--collect", action="store_true", help="start nothing; write the results of what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if not args.collect:
        if not adv_lm.DATA.joinpath("stories.jsonl").exists():
            write(adv_lm.DATA, prepare(source()))
        for group in args.only.split(",") if args.only else GROUPS:
            for name in GROUPS[group][2]:
                run(group, name)
    if not args.only:
        collect()


if __name__ == "__main__":
    main()
