"""The table of benchmarks/gcg.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {
    "nanogcg": "nanoGCG 0.3.0",
    "tokens": "[tokens](../algorithms/tokens.md): plain GCG",
    "gcg": "[gcg](../algorithms/gcg.md): with momentum",
    "gcg_16": "the same, 16 candidates per step",
    "random_search": "[random_search](../algorithms/random_search.md)",
    "beast": "[beast](../algorithms/beast.md)",
}


def gcg(found: Mapping[str, Any]) -> str:
    """Best loss by forwards and its difference to nanoGCG; seconds per candidate behind a long prompt."""
    searches, settings, cost = found["searches"], found["settings"], found["cost"]
    budgets = searches["budgets"]
    rows = [f"| search | {' | '.join(f'{b} forwards' for b in budgets)} | minus nanoGCG | CPU s |", "|---|" + "---:|" * (len(budgets) + 2)]
    for name, shown in NAMES.items():
        row = searches[name]
        cells = [f"{x:.3f}" for x in row["curve"][:-1]] + [f"{row['loss']['mean']:.3f} ± {row['loss']['sd']:.3f}"]
        gap = row.get("minus_nanogcg")
        cells.append("—" if gap is None else f"{gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]")
        rows.append(f"| {shown} | {' | '.join(cells)} | {row['cpu_seconds']['mean']:.1f} |")
    return "\n".join(
        [
            f"**Best loss (nats per token) at equal forwards** (`make bench-gcg`; {settings['seeds']} seeds, mean ± standard deviation, "
            "the difference paired over seeds with its 95 % interval; "
            f"bare prompts {searches['bare']['mean']:.3f}; suffixes of {settings['length']} tokens, {settings['width']} candidates "
            f"per step from the top {settings['top']}; a Llama of {found['parameters'] / 1e6:.1f} million parameters that has read "
            f"{found['training']['tokens']:,} tokens of stories; CPU seconds of one search, one thread of a shared machine).",
            "",
            *rows,
            "",
            *_cost(cost),
            "",
            f"{found['cpu_hours']:.2f} CPU-hours.",
        ]
    )


def _cost(cost: Mapping[str, Any]) -> list[str]:
    seconds = cost["seconds"]
    pairs = (
        ("scoring, the prompt cached", "cached"),
        ("scoring whole rows, logits of the response alone", "whole"),
        ("scoring by nanoGCG, its cache off", "nanogcg"),
        ("a whole search by `tokens`", "our steps"),
        ("a whole search by nanoGCG", "nanogcg steps"),
    )
    rows = [f"| {shown} | {1000 * seconds[name]:.2f} |" for shown, name in pairs]
    scoring, whole = seconds["nanogcg"] / seconds["cached"], seconds["nanogcg steps"] / seconds["our steps"]
    return [
        f"**CPU milliseconds per candidate behind a prompt of {cost['prompt_tokens']} tokens** ({cost['width']} candidates, median of "
        f"{cost['rounds']} rounds in turns)",
        "",
        "| | ms |",
        "|---|---:|",
        *rows,
        "",
        f"Scoring is {scoring:.1f} times as fast as nanoGCG's, a whole search {whole:.1f} times. The largest difference between a loss "
        f"with and without the cache is {cost['errors']['cached']:.1e} nats.",
    ]
