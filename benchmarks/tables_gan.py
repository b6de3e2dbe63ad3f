"""The tables and plots of benchmarks/gan.py and benchmarks/gan_failures.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DESIGNS = {"scarce": "60 demonstrations", "rich": "400 demonstrations"}
MEASURES = ("compliance", "unique", "entropy", "pass@8")


def gan(found: Mapping[str, Any]) -> str:
    """Both designs, and the ablation of the first."""
    parts = [
        f"**Writing under constraints, rewarded by a discriminator** (`{found['command']}`; mean ± standard deviation over seeds; 90 "
        "combinations never trained on, 8 answers each; all arms start from the same weights of their seed and make the same number "
        "of steps; entropy in nats per token)."
    ]
    for design, told in DESIGNS.items():
        if design in found:
            parts += ["", f"{design.capitalize()}: {told}.", "", *_arms(compared(found[design]))]
    ablation = {name: arm for name, arm in found.get("scarce", {}).items() if arm["ablation"]}
    if ablation:
        parts += ["", "What changes GAPO, one change at a time (scarce):", "", *_ablation(ablation, found["scarce"]["gapo"])]
    second = {name: arm for name, arm in found.get("scarce", {}).items() if arm["second_wave"]}
    if second:
        parts += ["", "Second wave (scarce), each beside the arm that lacks what it adds:", "", *_second(second, found["scarce"])]
    if "fresh" in found:
        parts += ["", "Seeds that nothing was chosen on (scarce):", "", *_fresh(found["fresh"])]
    return "\n".join([*parts, "", f"{found['cpu_hours']:.2f} CPU-hours."])


def _fresh(arms: Mapping[str, Any]) -> list[str]:
    rows = [
        "| arm | seeds | compliance | unique | entropy | minus frozen, compliance | minus frozen, unique |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, arm in arms.items():
        gaps = [interval(arm["minus_frozen"][m]) if "minus_frozen" in arm else "" for m in ("compliance", "unique")]
        label = "GAPO, Bradley-Terry instead of BCE" if name == "bradley_terry" else arm["label"]
        rows.append(f"| {label} | {len(arm['seeds'])} | {' | '.join(spread(arm[m]) for m in MEASURES[:3])} | {' | '.join(gaps)} |")
    return rows


def compared(arms: Mapping[str, Any]) -> dict[str, Any]:
    """The arms of the comparison itself."""
    return {name: arm for name, arm in arms.items() if not arm["ablation"] and not arm["second_wave"]}


def _second(arms: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    rows = ["| arm | seeds | compliance | unique | entropy | beside | minus it, compliance | minus it, unique |"]
    rows.append("|---|---:|---:|---:|---:|---|---:|---:|")
    for arm in arms.values():
        cells = " | ".join(spread(arm[m]) for m in MEASURES[:3])
        beside, gaps = "", ["", ""]
        if "minus_control" in arm:
            beside, gaps = others[arm["control"]]["label"], [interval(arm["minus_control"][m]) for m in ("compliance", "unique")]
        rows.append(f"| {arm['label']} | {len(arm['seeds'])} | {cells} | {beside} | {' | '.join(gaps)} |")
    return rows


def _arms(arms: Mapping[str, Any]) -> list[str]:
    head = "| arm | seeds | compliance | unique | entropy | pass@8 | GAPO − arm, compliance | GAPO − arm, unique |"
    rows = [head, "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for arm in sorted(arms.values(), key=lambda a: -a["compliance"]["mean"]):
        gaps = [interval(arm["gapo_minus_this"][m]) if "gapo_minus_this" in arm else "" for m in ("compliance", "unique")]
        label = f"**{arm['label']}**" if arm["trained_discriminator"] else arm["label"]
        rows.append(f"| {label} | {len(arm['seeds'])} | {' | '.join(spread(arm[m]) for m in MEASURES)} | {' | '.join(gaps)} |")
    return [*rows, "", "Bold: the discriminator continues to learn. Differences are paired over seeds, with a bootstrap interval of 95 %."]


def _ablation(arms: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    rows = ["| change | seeds | compliance | unique | entropy | minus GAPO, compliance |", "|---|---:|---:|---:|---:|---:|"]
    rows.append(f"| GAPO | {len(base['seeds'])} | {' | '.join(spread(base[m]) for m in MEASURES[:3])} | |")
    for arm in sorted(arms.values(), key=lambda a: -a["minus_gapo"]["compliance"]["difference"]):
        cells = " | ".join(spread(arm[m]) for m in MEASURES[:3])
        rows.append(f"| {arm['label']} | {len(arm['seeds'])} | {cells} | {interval(arm['minus_gapo']['compliance'])} |")
    rows += ["", "A difference is taken over the seeds that both have."]
    if "minus_frozen_alone" in arms.get("alone", {}):
        gap = arms["alone"]["minus_frozen_alone"]
        told = f"compliance {interval(gap['compliance'])}, unique {interval(gap['unique'])}, pass@8 {interval(gap['pass@8'])}"
        rows += ["", f"Co-trained minus frozen, both without imitation beside the reward ({gap['compliance']['n']} seeds): {told}."]
    if "minus_frozen_longer" in arms.get("longer", {}):
        gap = arms["longer"]["minus_frozen_longer"]
        told = f"compliance {interval(gap['compliance'])}, unique {interval(gap['unique'])}, pass@8 {interval(gap['pass@8'])}"
        rows += ["", f"Co-trained minus frozen, both for twice the steps ({gap['compliance']['n']} seeds): {told}."]
    return rows


def gan_failures(found: Mapping[str, Any]) -> str:
    """Length leak and the games that fail."""
    rows = [
        f"**Failures, and what cures them** (`{found['command']}`; {len(found['seeds'])} seeds; constraints toy, 60 demonstrations).",
        "",
        "Length leak: only their length distinguishes real texts (4 to 8 words) from the policy's (2 to 6). Accuracy is that of a "
        "discriminator trained for 150 steps while the policy does not train, on unseen rows; lengths are in tokens, with the end.",
        "",
        "| control | discriminator accuracy | length before | length after 150 steps |",
        "|---|---:|---:|---:|",
    ]
    for name, arm in found["leak"].items():
        cells = [spread(arm[key]) for key in ("warm_discriminator_accuracy", "length_before", "length_after")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows += [
        "",
        "The game, at its last steps:",
        "",
        "| run | compliance | unique | entropy | reward | discriminator accuracy | updates skipped |",
    ]
    rows += ["|---|---:|---:|---:|---:|---:|---:|"]
    for name, arm in found["games"].items():
        keys = ("compliance", "unique", "entropy", "reward", "discriminator_accuracy", "skipped")
        rows.append(f"| {name} | {' | '.join(spread(arm['last'][k]) if k in arm['last'] else '' for k in keys)} |")
    return "\n".join([*rows, "", f"{found['cpu_hours']:.2f} CPU-hours."])


def spread(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:.3f}" + (f" ± {value['sd']:.3f}" if value["sd"] is not None else "")


def interval(value: Mapping[str, float]) -> str:
    """One seed has no interval."""
    if value["n"] < 2:
        return f"{value['difference']:+.3f}"
    return f"{value['difference']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def front(found: Mapping[str, Any], design: str, drawing: Any) -> str:
    """Diversity against compliance; the line joins those that no other exceeds in both."""
    arms = compared(found[design])
    series = {arm["label"]: (arm["unique"]["mean"], arm["compliance"]["mean"]) for arm in arms.values()}
    return str(drawing.points(series, x_label="unique answers", y_label="held-out compliance", key=f"gan_{design}"))


def curve(found: Mapping[str, Any], names: tuple[str, ...], metric: str, drawing: Any) -> str:
    """One metric of several games over the steps."""
    series = {name: list(zip(*found["games"][name]["curves"][metric], strict=True)) for name in names if name in found["games"]}
    return str(drawing.lines(series, x_label="steps", y_label=metric.replace("_", " "), key=f"failures_{metric}"))
