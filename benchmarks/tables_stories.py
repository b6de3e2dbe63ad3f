"""The tables of benchmarks/stories.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PARTS = ("compliance", "words", "length", "sentence", "unique", "self_bleu", "num_words")
NAMES = {"self_bleu": "self-BLEU", "num_words": "words written", "words": "words present", "sentence": "one sentence"}


def stories(found: Mapping[str, Any]) -> str:
    """GAPO and its alternatives, then GAD and its own; what is not there yet has no table."""
    parts = [f"**Sentences with required words** (`{found['command']}`; {found['cpu_hours']:.2f} CPU-hours in all)."]
    extra = {"teacher": "the teacher", "real": "people (the real sentences)"}
    references = {label: found[name] for name, label in extra.items() if name in found}
    if "gapo" in found:
        parts += ["", *table(found["gapo"], {k: v for k, v in references.items() if "people" in k}, ("perplexity",))]
        parts += ["", *gaps(found["gapo"], "GAPO")]
    if "gad" in found:
        parts += ["", "Distillation from the teacher's text:", "", *table(found["gad"], references, ("perplexity", "teacher_perplexity"))]
        parts += ["", *gaps(found["gad"], "GAD")]
    return "\n".join(parts)


def table(arms: Mapping[str, Any], references: Mapping[str, Any], last: Sequence[str]) -> list[str]:
    accuracies = ("discriminator/accuracy/generated", "discriminator/accuracy/perturbed")
    heads = [*(NAMES.get(name, name) for name in PARTS), *(name.replace("_", "'s ") for name in last), "D on generated", "D on perturbed"]
    rows = [f"| arm (seeds) | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for label, arm in {**{a["label"]: a for a in arms.values()}, **references}.items():
        cells = [cell(arm.get(name)) for name in (*PARTS, *last)] + [cell(arm["discriminator"].get(name)) for name in accuracies]
        rows.append(f"| {label} ({len(arm['seeds'])}) | {' | '.join(cells)} |")
    return rows


def cell(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return "–"
    digits = 1 if spread["mean"] >= 2 else 3
    shown = f"{spread['mean']:.{digits}f}"
    return shown if spread["sd"] is None else f"{shown} ± {spread['sd']:.{digits}f}"


def gaps(arms: Mapping[str, Any], first: str) -> list[str]:
    """The first arm minus each other, paired over prompts."""
    names = ("compliance", "unique", "self_bleu", "nll")
    rows = [f"| {first} minus | {' | '.join(NAMES.get(n, n) for n in names)} |", "|---|" + "---:|" * len(names)]
    for arm in arms.values():
        if "minus_this" in arm:
            found = arm["minus_this"]
            cells = [f"{found[n]['difference']:+.3f} [{found[n]['low']:+.3f}, {found[n]['high']:+.3f}]" for n in names]
            rows.append(f"| {arm['label']} | {' | '.join(cells)} |")
    return rows if len(rows) > 2 else []
