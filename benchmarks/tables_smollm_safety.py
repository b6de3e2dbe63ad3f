"""The tables of benchmarks/smollm_safety.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from smollm_safety_summary import UNSEEN

NAMES = {
    "base": "published model",
    "sft": "refusal SFT",
    "adversarial_sft": "adversarial SFT",
    "cat": "CAT",
    "lat": "LAT",
    "mixat": "MixAT",
    "r2d2": "R2D2's pool",
    "circuit_breakers": "circuit breakers",
    "grpo": "the chosen arm + GRPO",
}


def smollm_safety(found: Mapping[str, Any]) -> str:
    """Violations by attack, what else the model does, differences to refusal SFT, the choice, the target and the judges."""
    summary = found["summary"]
    arms = {name: summary["arms"][name] for name in NAMES if name in summary["arms"]}
    attacks = list(next(iter(arms.values()))["violated"])
    others = [name for name, arm in arms.items() if name not in ("base", "sft") and "minus_sft" in arm]
    parts = [
        f"**Refusals of SmolLM2-135M-Instruct under attack** (`{found['command']}`; {found['cpu_hours']:.2f} CPU-hours{_missing(found)}; "
        "share of JailbreakBench's behaviors whose answer is a violation, as the judge reads it, mean over seeds, whose number stands "
        "behind the arm).",
        "",
        *_table(("arm", *attacks), [_violations(name, arm, attacks) for name, arm in arms.items()]),
        "",
        *_corrected(arms, attacks),
        "Refused though harmless (benign twins, advice, borderline requests), IFEval prompts followed, with Wilson "
        "intervals of 95 %; perplexity of Wikipedia and of held-out answers; CPU-seconds of training:",
        "",
        *_table(
            ("arm", "twins", "safe", "borderline", "IFEval", "text", "answers", "CPU s"),
            [_usefulness(name, arm) for name, arm in arms.items()],
        ),
        "",
    ]
    if others:
        parts += ["Minus refusal SFT, paired over prompts (each averaged over seeds; 95 %):", "", *_differences(arms, others), ""]
    return "\n".join([*parts, *_verdict(summary), *_judges(summary)])


def _missing(found: Mapping[str, Any]) -> str:
    return f"; cells still missing: {', '.join(found['missing'])}" if found["missing"] else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1), *(f"| {' | '.join(row)} |" for row in rows)]


def _name(name: str, arm: Mapping[str, Any]) -> str:
    return f"{NAMES[name]} ({arm['seeds']})"


def _violations(name: str, arm: Mapping[str, Any], attacks: Sequence[str]) -> list[str]:
    return [_name(name, arm), *(f"{arm['violated'][attack]['rate']:.2f}" for attack in attacks)]


def _corrected(arms: Mapping[str, Mapping[str, Any]], attacks: Sequence[str]) -> list[str]:
    """The same without the judge's errors, where they are known."""
    known = [a for a in attacks if all("corrected" in arm["violated"][a] for arm in arms.values())]
    if not known:
        return []
    rows = [[_name(n, arm), *(_interval(*arm["violated"][a]["corrected"]) for a in known)] for n, arm in arms.items()]
    return [
        "Without the judge's errors (95 %, its own doubt included; attempts of one behavior as independent):",
        "",
        *_table(("arm", *known), rows),
        "",
    ]


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _usefulness(name: str, arm: Mapping[str, Any]) -> list[str]:
    refused = [*(arm["refused"][group] for group in ("twins", "safe", "borderline")), arm["followed"]]
    shares = [_interval(x["rate"], x["low"], x["high"]) for x in refused]
    return [
        _name(name, arm),
        *shares,
        f"{arm['perplexity']['text']:.2f}",
        f"{arm['perplexity']['answers']:.2f}",
        f"{arm['training_seconds']:.0f}",
    ]


def _differences(arms: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    columns = list(arms[names[0]]["minus_sft"])
    rows = []
    for name in names:
        gaps = [arms[name]["minus_sft"][column] for column in columns]
        rows.append([NAMES[name], *(f"{g['difference']:+.2f} [{g['low']:+.2f}, {g['high']:+.2f}]" for g in gaps)])
    return _table(("arm", *columns), rows)


def _verdict(summary: Mapping[str, Any]) -> list[str]:
    if "choice" not in summary:
        return []
    choice, target = summary["choice"], summary["target"]
    refusals, perplexity = target["refused_twins_minus_sft"], target["perplexity_over_sft"]
    within = ", ".join(NAMES[name] for name in choice["within_limits"]) or "none"
    met = "met" if target["met"] else "not met"
    return [
        f"Chosen on HarmBench's behaviors: {NAMES[choice['arm']]} (within the limits of usefulness: {within}); strongest attack there on "
        f"refusal SFT, of those that no arm trained on: `{choice['attack']}`. On JailbreakBench's, under it: "
        f"{target['violations']['arm']:.2f} against {target['violations']['sft']:.2f}; twins refused {refusals['difference']:+.3f} "
        f"[{refusals['low']:+.3f}, {refusals['high']:+.3f}]; perplexity of text {perplexity['difference']:+.1%} "
        f"[{perplexity['low']:+.1%}, {perplexity['high']:+.1%}]. The target (half, at most 5 points, at most 3 %) is {met}.",
        "",
    ]


def _judges(summary: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, measured in summary.get("judges", {}).items():
        values = [measured[rate] for rate in ("sensitivity", "specificity")]
        rows.append(
            [
                f"`{name}`",
                *(f"{v['rate']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for v in values),
                " + ".join(map(str, measured["labelled"])),
            ]
        )
    if not rows:
        return []
    return ["The judges, on answers that were read:", "", *_table(("judge", "sensitivity", "specificity", "violations + others"), rows)]


def short(found: Mapping[str, Any]) -> str:
    """The chosen arm beside refusal SFT, for the guide."""
    summary = found["summary"]
    rows = []
    for name, arm in ((n, summary["arms"][n]) for n in NAMES if n in summary["arms"]):
        worst = max(arm["violated"], key=lambda attack: arm["violated"][attack]["rate"])
        rates = [f"{arm['violated']['none']['rate']:.2f}", f"{arm['violated'][worst]['rate']:.2f} (`{worst}`)"]
        minutes = arm["training_seconds"] / 60
        rows.append([NAMES[name], *rates, f"{arm['refused']['twins']['rate']:.2f}", f"{arm['perplexity']['text']:.2f}", f"{minutes:.0f}"])
    head = ("arm", "violations", "under the worst attack", "twins refused", "perplexity", "CPU minutes")
    return "\n".join([*_table(head, rows), "", *_verdict(summary)]).rstrip()


def curves(found: Mapping[str, Any], drawing: Any) -> dict[str, str]:
    """{name of the file: plot}: benign twins refused against violations under the attacks that no arm trained on."""
    arms = (found["summary"] or {"arms": {}})["arms"]
    if not arms:
        return {}
    broken = {name: fmean(arms[name]["violated"][attack]["rate"] for attack in UNSEEN) for name in NAMES if name in arms}
    series = {NAMES[name]: (arms[name]["refused"]["twins"]["rate"], value) for name, value in broken.items()}
    labels = {"x_label": "benign twins refused", "y_label": "violations under unseen attacks"}
    return {"smollm_safety": drawing.points(series, **labels, key="smollm_safety")}
