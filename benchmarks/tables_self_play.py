"""The table of benchmarks/self_play.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def self_play(found: Mapping[str, Any]) -> str:
    """Every arm clean, under random words, under its own attacker and under a fresh one; and its differences to `random`."""
    arms, texts, steps = found["arms"], found["texts"], found["steps"]
    kinds = ("clean", "random", f"random, all {texts}", "own attacker", "best response", f"best response, all {texts}")
    rows = [f"| arm | {' | '.join(kinds)} | CPU s |", "|---|" + "---:|" * (len(kinds) + 1)]
    for name, arm in arms.items():
        cells = [_spread(arm["rates"].get(kind)) for kind in kinds]
        spent = f"{arm['training_cpu_seconds']['mean']:.0f}" if "training_cpu_seconds" in arm else "—"
        rows.append(f"| {name} | {' | '.join(cells)} | {spent} |")
    return "\n".join(
        [
            f"**Held-out compliance under distracting words** (`{found['command']}`; {len(found['seeds'])} seeds, mean ± standard "
            f"deviation; {found['prompts']} combinations never trained on, {texts} attacks each, greedy answers; {steps['arm']} steps per "
            f"arm from one SFT checkpoint per seed, {steps['response']} steps for the fresh attacker; CPU seconds of an arm's training).",
            "",
            *rows,
            "",
            "Minus `random`, paired over prompts (each averaged over seeds; 95 %):",
            "",
            *_differences(arms, ("clean", "random", "best response")),
            "",
            f"{found['cpu_hours']:.2f} CPU-hours.",
        ]
    )


def _spread(rate: Mapping[str, Any] | None) -> str:
    if rate is None:
        return "—"
    return f"{rate['mean']:.3f}" + (f" ± {rate['sd']:.3f}" if rate["sd"] is not None else "")


def _differences(arms: Mapping[str, Any], kinds: tuple[str, ...]) -> list[str]:
    rows = [f"| arm | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    for name, arm in arms.items():
        if "minus_random" in arm:
            gaps = [arm["minus_random"][kind] for kind in kinds]
            cells = [f"{gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" for gap in gaps]
            rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows
