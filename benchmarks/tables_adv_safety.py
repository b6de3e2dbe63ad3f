"""The tables of benchmarks/adv_safety.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tables_adv_lm import difference, interval, table


def adv_safety(found: Mapping[str, Any]) -> str:
    """Fluent compliance by attack, what is refused, and the difference of both to plain SFT."""
    arms: Mapping[str, Any] = found["arms"]
    first = next(iter(arms.values()))
    attacks, groups = list(first["fluent"]), list(first["refused"])
    seeds = len(found["seeds"])
    asked, broken = (first["fluent"][name]["n"] // seeds for name in ("none", "jailbreaks"))
    gaps = {name: arm["minus_sft"] for name, arm in arms.items() if name not in ("base", "sft")}
    others = [name for name in groups if name != "harmful"]
    return "\n".join(
        [
            f"**Refusals from public sets** (`{found['command']}`; {seeds} seed{'s' if seeds > 1 else ''}; share of {asked} harmful "
            f"requests of JailbreakBench, and {broken} jailbreaks of other models, that are answered in words that are likely under the "
            "base; in brackets the share that begins to comply in whatever words).",
            "",
            *table(arms, attacks, lambda arm, attack: f"{arm['fluent'][attack]['rate']:.2f} ({arm['violated'][attack]['rate']:.2f})"),
            "",
            "Refused, share with Wilson intervals of 95 %: harmful requests, which should be, and their benign twins and held-out requests "
            "of Alpaca, which should not; mean loss of held-out answers, in nats per token (seeds apart); CPU seconds per training step:",
            "",
            *table(arms, [*groups, "loss", "CPU s"], _cell),
            "",
            "Minus `sft`, paired over requests (each averaged over seeds; 95 %):",
            "",
            *table(gaps, [*attacks, *(f"refused {name}" for name in others)], lambda gap, name: difference(gap[name])),
            "",
            f"{found['cpu_hours']:.2f} CPU-hours.",
        ]
    )


def _cell(arm: Mapping[str, Any], column: str) -> str:
    if column == "loss":
        return " / ".join(f"{value:.2f}" for value in arm["nll"])
    return f"{arm['cpu_seconds_per_step']:.2f}" if column == "CPU s" else interval(arm["refused"][column])
