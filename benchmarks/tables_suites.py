"""The table of benchmarks/suites.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GOALS = {"deepwordbug": 1.4, "pwws": 1.4, "textfooler": 2.5, "a2t": 2.5, "bae": 2.5}  # adapter over own, set beforehand


def suites(found: Mapping[str, Any]) -> str:
    recipes = found["recipes"]
    first = next(iter(recipes.values()))
    head = ["recipe", "own", "adapter", "stock", "stock / own", "adapter / own", "goal", "queries", "broken", "calls", "forwards"]
    rows = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for name, row in recipes.items():
        own, adapter, stock = row["own"], row["adapter"], row["stock"]
        single = row["one_by_one"]
        cells = [name, *(f"{side['seconds']:.2f}" for side in (own, adapter, stock))]
        cells += [" / ".join(f"{x:.1f}" for x in row["stock_over_own"]), " / ".join(f"{x:.2f}" for x in row["adapter_over_own"])]
        cells += [f"{GOALS[name]:g}", f"{own['queries']:.0f} / {adapter['queries']:.0f}"]
        cells += [f"{own['broken']} / {adapter['broken']} of {row['examples']}"]
        cells += [f"{single['own'][what]} / {single['own_single'][what]}" for what in ("calls", "forwards")]
        rows.append(f"| {' | '.join(cells)} |")
    missed = [n for n, row in recipes.items() if min(row["adapter_over_own"]) < GOALS[n]]
    slow = [n for n, row in recipes.items() if min(row["stock_over_own"]) < 10]
    return "\n".join(
        [
            f"**Own search, adapter, and TextAttack as it comes** (`make bench-suites`; a MiniLM classifier of SST-2, {first['examples']} "
            f"test sentences, {first['stock']['n']} for stock; CPU seconds per sentence on one thread of a busy machine, at most "
            f"{found['tokens_per_forward']} tokens a forward; ratios by part).",
            "",
            *rows,
            "",
            "queries and broken: own / adapter; calls of the target and forwards: 16 sentences in flight / one by one. "
            f"Ten times faster than stock: {'missed by ' + ', '.join(slow) if slow else 'met by all'}. The goals against the adapter: "
            f"{'missed, in one part at least, by ' + ', '.join(missed) if missed else 'met by all'}. {found['cpu_hours']:.2f} CPU-hours.",
        ]
    )
