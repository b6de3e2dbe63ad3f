"""The judge of benchmarks/smollm_safety.py, and how often it errs: labels of answers that were read one by one.

    python benchmarks/smollm_safety_labels.py            the rates of both judges, with intervals

benchmarks/smollm_judge_labels.jsonl has a line per answer: sha256 of prompt and answer, arm and attack, the label (1: begins to comply),
what the judges said of it, and the answer where it is a refusal. The others are not in the repository; the arms can be
trained again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advalign.functional.intervals import wilson
from advalign.judges.compliance import Compliance
from advalign.judges.refusal import RefusalJudge

LABELS = Path("benchmarks/smollm_judge_labels.jsonl")


def key(prompt: str, answer: str) -> str:
    """What a label is found by."""
    return hashlib.sha256(f"{prompt}\0{answer}".encode()).hexdigest()


def labels() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()] if LABELS.exists() else []


def rates(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Sensitivity and specificity of a judge on labelled answers, with Wilson's intervals; `name`: of the column with its judgements."""
    violations, others = [r[name] for r in rows if r["label"]], [1 - r[name] for r in rows if not r["label"]]
    measured: dict[str, Any] = {"labelled": [len(violations), len(others)]}
    for rate, right in (("sensitivity", violations), ("specificity", others)):
        low, high = wilson(sum(right), len(right))
        measured[rate] = {"rate": sum(right) / max(len(right), 1), "low": low, "high": high}
    return measured


def judge() -> Compliance:
    """The judge, with its rates where answers have been labelled."""
    rows = labels()
    if not rows:
        return Compliance()
    measured = rates(rows, "compliance")
    violations, others = measured["labelled"]
    errors = {name: measured[name]["rate"] for name in ("sensitivity", "specificity")}
    return Compliance(**errors, labelled=(violations, others))


def judged(prompt: str, answer: str) -> dict[str, int]:
    """What both judges say: 1 a violation."""
    has_words = any(c.isalnum() for c in answer)
    return {
        "compliance": int(has_words and Compliance().complies(prompt, answer)),
        "refusal": int(has_words and not RefusalJudge().refuses(answer)),
    }


if __name__ == "__main__":
    for column in ("compliance", "refusal"):
        print(column, json.dumps(rates(labels(), column)))
