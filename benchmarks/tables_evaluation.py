"""The tables and pictures of benchmarks/evaluation.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advalign.evaluation.reports import plots

TITLES = {
    "sst2": "SST-2: all-MiniLM-L6-v2, fine-tuned plainly and adversarially (`mixed`)",
    "ag_news": "AG News: the same two ways",
    "rule_lm": "A language model that must not talk about cats",
}


def evaluation(found: Mapping[str, Any]) -> str:
    """Accuracy under every attack, model by model, and the paired difference to the first."""
    parts = [f"**The full suites on models that were trained plainly and adversarially** (`{found['command']}`)."]
    for group, title in TITLES.items():
        if group in found:
            parts += [
                "",
                f"**{title}** ([suite](../configs/suites/{found[group]['suite']}.yaml), {found[group]['examples']} examples attacked)",
            ]
            parts += ["", f"![{title}](images/evaluation_{group}.svg)", "", *_table(found[group]), "", *_beside(found[group])]
    return "\n".join([*parts, "", f"{found['attack_hours']:.2f} hours of attacks on a busy thread."])


def _table(group: Mapping[str, Any]) -> list[str]:
    models, against = group["models"], group["against_first"]
    names = list(models)
    rows = [
        f"| under | {' | '.join(names)} | {' | '.join(f'{n} − {names[0]}' for n in against)} |",
        "|---|" + "---:|" * (len(names) + len(against)),
    ]
    lines = {"clean": {n: m["clean_on_attacked"] for n, m in models.items()}}
    lines |= {
        attack: {n: m["attacks"][attack]["accuracy under attack"] for n, m in models.items()} for attack in models[names[0]]["attacks"]
    }
    lines["worst case"] = {n: m["worst_case"]["accuracy"] for n, m in models.items()}
    for which in models[names[0]].get("groups", {}):
        lines[f"worst case, {which}"] = {n: m["groups"][which]["accuracy"] for n, m in models.items()}
    for under, values in lines.items():
        cells = [_number(values[n]) for n in names]
        for name in against:
            row = next((r for r in against[name] if r["under"] == under), None)
            cells.append("" if row is None else f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], p {_p(row['p'])}")
        rows.append(f"| {under} | {' | '.join(cells)} |")
    return rows


def _beside(group: Mapping[str, Any]) -> list[str]:
    """What else one must know: clean utility on everything, over-refusal, what disqualifies."""
    lines = []
    for name, model in group["models"].items():
        said = [f"clean accuracy {model['clean']['accuracy']:.3f} on all {model['num_clean']} examples"]
        if "over_refusal" in model:
            rate = model["over_refusal"]
            said.append(f"over-refusal {rate['rate']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}] of {rate['num']} near misses")
        if "degenerate" in model["clean"]:
            said.append(f"{model['clean']['degenerate']:.1%} degenerate answers")
        said += [f"disqualified: {reason}" for reason in model["failures"]]
        lines.append(f"* {name}: {'; '.join(said)}.")
    return lines


def evaluation_bars(group: Mapping[str, Any]) -> str:
    """Accuracy under every attack as a picture, the models side by side."""
    bars = []
    for name, model in group["models"].items():
        rows = model["attacks"] | {"worst case": {"accuracy under attack": model["worst_case"]["accuracy"], **model["worst_case"]}}
        for attack, row in rows.items():
            bars.append({"label": attack, "series": name, "value": row["accuracy under attack"], "low": row["low"], "high": row["high"]})
    return plots.standalone(plots.bars([b for b in bars if b["value"] is not None], x_label="accuracy", limits=(0, 1), key="evaluation"))


def _p(value: float) -> str:
    return "< 1e-5" if value < 1e-5 else f"{value:.2g}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
