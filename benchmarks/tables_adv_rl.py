"""The tables of benchmarks/adv_rl.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TEXT = ("clean", "typos", "distractors", "format", "order", "ood")


def adv_rl(found: Mapping[str, Any]) -> str:
    """Every arm on clean, noisy and attacked prompts, its differences to `grpo` and its cost."""
    prompts = found["prompts"]
    attacks = [f"pgd@{radius:g}" for radius in found["radii"]]
    control = f"ball noise@{found['radii'][-1]:g}"
    seeds = len(found["seeds"])
    parts = [
        f"**Cards under noise and attack** (`{found['command']}`; {seeds} seed{'s' if seeds > 1 else ''}, {found['draws']} draws of 128 "
        f"responses from one SFT checkpoint per seed; greedy answers on {prompts['clean']} prompts of hands never trained on, the same "
        f"hands under each noise, {prompts['ood']} out of distribution; sampled, pass@8: eight answers at temperature 1; "
        "pgd@r: embedding PGD of 20 steps on the prompt, r in mean embedding norms of the start, cumulative over radii).",
        "",
        *_rates(found["arms"], (*TEXT, "sampled", "pass@8")),
        "",
        *_rates(found["arms"], (*attacks, control)),
        "",
        "Minus `grpo`, paired over prompts (each averaged over seeds; 95 %):",
        "",
        *_differences(found["arms"], ("clean", "sampled", "typos", "distractors", "format", *attacks[:2])),
        "",
        *_cost(found["cost"], found["arms"]),
        "",
        f"{found['cpu_hours']:.2f} CPU-hours.",
    ]
    return "\n".join(parts)


def _rates(arms: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    rows = [f"| arm | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    for name, arm in arms.items():
        cells = [f"{arm['rates'][kind]['mean']:.3f}" for kind in kinds]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _differences(arms: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    rows = [f"| arm | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    for name, arm in arms.items():
        if "minus_grpo" in arm:
            gaps = [arm["minus_grpo"][kind] for kind in kinds]
            cells = [f"{gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" for gap in gaps]
            rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _cost(cost: Mapping[str, Any], arms: Mapping[str, Any]) -> list[str]:
    """The reward in training; and what an arm costs, where it was timed."""
    head = ["arm", "reward, first tenth", "last tenth", *(["CPU s per draw", "forwards per update"] if cost else [])]
    rows = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for name, arm in arms.items():
        if "first_rewards" in arm:
            cells = [name, *(f"{arm[key]['mean']:.3f}" for key in ("first_rewards", "last_rewards"))]
            cells += [f"{cost[name]['cpu_seconds_per_draw']:.2f}", f"{cost[name]['forwards_per_update']:.2f}"] if cost else []
            rows.append(f"| {' | '.join(cells)} |")
    if cost:
        rows += [
            "",
            "CPU seconds of a draw: sampling and eight updates, the arms taking turns in one process, median. Forwards: of the trainer, "
            "per update (old log-probabilities of a draw spread over its updates); inner steps, which also go backward to the delta, "
            "counted once.",
        ]
    return rows
