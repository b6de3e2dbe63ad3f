"""The tables of benchmarks/adv.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def adv(found: Mapping[str, Any]) -> str:
    """Every arm on the first task, what carried over to the second, and the certificate where there is one."""
    parts = [
        f"**{len(found['sst2'])} ways to train one classifier** (`{found['command']}`; all-MiniLM-L6-v2, {found['steps']} steps of 32, the "
        "first 32 of them clean; clean: all dev sentences of SST-2; AdvGLUE: its 148 SST-2 sentences; embedding PGD by radius and word "
        f"attacks under the same constraints on {found['attacked']} dev sentences; every radius, and the arm `{found['chosen']}`, "
        f"was chosen on {found['validated']} other training sentences).",
        "",
        *_table(found["sst2"], advglue=True),
        "",
        "gain: accuracy under attack, mean of the attacks, over plain training, per (seed, sentence), with its 95% interval. forwards: "
        "per optimizer step. cost: CPU seconds of an optimizer step over those of a clean step of the same run. Arms with one "
        "seed are compared with that seed of plain training.",
    ]
    certified = _certified(found["sst2"])
    if certified:
        parts += ["", certified]
    warned = [arm for arm, run in found["sst2"].items() if any(s["warnings"] for s in run["seeds"])]
    if warned:
        parts += [
            "",
            f"Last, without a gain, for the suite warns of them (constant predictions, or attacks that are not monotone in the radius): "
            f"{', '.join(f'`{arm}`' for arm in warned)}.",
        ]
    if len(found.get("ag_news", {})) > 1:
        parts += [
            "",
            f"On AG News ({found['ag_news_clean']} test rows for clean accuracy), plain training and the arms that validated best on "
            "SST-2, their radii unchanged:",
            "",
            *_table(found["ag_news"], advglue=False),
        ]
    return "\n".join([*parts, "", f"{found['cpu_hours']:.2f} CPU-hours."])


def _table(arms: Mapping[str, Any], *, advglue: bool) -> list[str]:
    attacks = list(arms["none"]["aua"])
    head = ["arm", "radius", "seeds", "clean", *(["AdvGLUE"] if advglue else []), *attacks, "worst case", "gain", "forwards", "cost"]
    rows = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    fallen = {name: any(seed["warnings"] for seed in arm["seeds"]) for name, arm in arms.items()}  # a constant stands any attack
    for name, arm in sorted(arms.items(), key=lambda item: (fallen[item[0]], -item[1]["mean_of_attacks"])):
        gain = arm["gain"]["mean_of_attacks"]
        cells = [name, f"{arm['radius']:g}" if arm["radius"] else "", str(len(arm["seeds"])), f"{arm['clean']:.3f}"]
        cells += [f"{arm['advglue']:.3f}"] if advglue else []
        cells += [f"{arm['aua'][attack]:.3f}" for attack in attacks]
        cells += [f"{arm['worst_case']:.3f}"]
        cells += [f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" if name != "none" and not fallen[name] else ""]
        cells += [str(sum(arm["forwards"].values())), f"{arm['cost']:.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _certified(arms: Mapping[str, Any]) -> str:
    """One line per arm that carries a certificate: certified accuracy by number of changed words, first seed."""
    lines = []
    for name, arm in arms.items():
        for rows in arm.get("certified", [])[:1]:
            shown = ", ".join(f"{row['within']:g} words {row['certified accuracy']:.3f}" for row in rows)
            lines.append(f"`{name}` certified accuracy: {shown} ({rows[0]['copies']:.0f} copies a sentence).")
    return " ".join(lines)


def cost(found: Mapping[str, Any]) -> str:
    """A method a row; counted and timed, for both models in every setting."""
    kinds = {"encoder": "encoder", "language_model": "language model"}
    settings = list(found["encoder"])
    sizes = ", ".join(f"{name} {found[kind]['full']['parameters'] / 1e6:.0f}M parameters" for kind, name in kinds.items())
    lines = [
        f"**What an update costs, in plain updates of the same setting** (`{found['command']}`; {sizes}; 16 rows of 48 tokens; counted "
        "floating-point operations, in brackets the median of CPU seconds over alternating rounds).",
        "",
        "| method | " + " | ".join(f"{name}, {setting}" for name in kinds.values() for setting in settings) + " |",
        "|---|" + "---:|" * (len(kinds) * len(settings)),
    ]
    for method in found["encoder"]["full"]["counted"]:
        runs = [found[kind][setting] for kind in kinds for setting in settings]
        cells = [f"{run['counted'][method]:.2f} ({run['timed'][method]['median']:.2f})" for run in runs]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{found['cpu_hours']:.2f} CPU-hours."])
