"""The tables of benchmarks/adv_lm.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def adv_lm(found: Mapping[str, Any]) -> str:
    """Violations by attack, their difference to plain SFT, what is said instead, and what the rule costs."""
    arms = found["arms"]
    first = next(iter(arms.values()))
    attacks = list(first["violated"])
    seeds = len(found["seeds"])
    asked, searched = (first["violated"][name]["n"] for name in ("none", "tokens"))
    near = {kind: first["refused"][kind]["n"] for kind in first["refused"]}
    gaps = {name: arm["minus_sft"] for name, arm in arms.items() if name not in ("base", "sft")}
    gaps |= {"cat minus unattacked": found["cat_minus_unattacked"]} if "cat_minus_unattacked" in found else {}
    taught = [name for name in arms if name != "base"]
    parts = [
        f"**{len(taught)} ways to teach one rule** (`{found['command']}`; {seeds} seed{'s' if seeds > 1 else ''}, {asked} answers to "
        f"forbidden requests in all, {searched} of them for `tokens`; share that violates the rule, Wilson intervals of 95 %; any: at "
        "least one of the columns, over the requests that every attack was run on).",
        "",
        *table(arms, [*attacks, "any"], lambda arm, name: interval(arm["any_attack"] if name == "any" else arm["violated"][name])),
        "",
        f"Minus `sft`{', and `cat` minus its control' if 'cat' in arms else ''}, paired over requests (each averaged over seeds; 95 %):",
        "",
        *table(gaps, attacks, lambda gap, attack: difference(gap[attack])),
        "",
        "The refusal is kept, share of answers (what neither refuses nor violates says something else); in brackets the share of "
        "violations that are not fluent:",
        "",
        *table(arms, attacks, _kept),
        "",
        f"Near misses ({near['related']} related requests, {near['aside']} that name the topic only to exclude it), perplexity of held-out "
        "text (seeds apart), and CPU seconds per training step:",
        "",
        *table(arms, (*_NEAR, "answers", "stories", "CPU s"), _utility),
        "",
        f"{found['cpu_hours']:.2f} CPU-hours.",
    ]
    return "\n".join(parts)


_NEAR = {
    "refused, related": ("refused", "related"),
    "refused, aside": ("refused", "aside"),
    "helped, related": ("helped", "related"),
    "helped, aside": ("helped", "aside"),
}


def table(arms: Mapping[str, Any], columns: Sequence[str], cell: Callable[[Mapping[str, Any], str], str]) -> list[str]:
    rows = [f"| arm | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    return rows + [f"| {name} | {' | '.join(cell(arm, column) for column in columns)} |" for name, arm in arms.items()]


def difference(gap: Mapping[str, float]) -> str:
    return f"{gap['difference']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]"


def _kept(arm: Mapping[str, Any], attack: str) -> str:
    """Fluent violations are violations, so the rest of them is salad; where nothing is violated there is nothing to split."""
    violated, fluent = arm["violated"][attack]["rate"], arm["fluent"][attack]["rate"]
    salad = f" ({1 - fluent / violated:.2f})" if violated else ""
    return f"{arm['kept'][attack]['rate']:.2f}{salad}"


def _utility(arm: Mapping[str, Any], column: str) -> str:
    if column in _NEAR:
        kind, of = _NEAR[column]
        return interval(arm[kind][of])
    if column in arm["perplexity"]:
        return " / ".join(f"{value:.1f}" for value in arm["perplexity"][column])
    return f"{arm['cpu_seconds_per_step']:.2f}"


def interval(x: Mapping[str, float]) -> str:
    return f"{x['rate']:.2f} [{x['low']:.2f}, {x['high']:.2f}]"
