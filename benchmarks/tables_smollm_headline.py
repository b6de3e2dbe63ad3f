"""The tables of benchmarks/smollm_headline.py and benchmarks/smollm_peers.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

NAMES = {
    "base": "the model as it is",
    "start": "after the short SFT",
    "sft": "SFT",
    "rl": "GRPO",
    "adv_sft": "adversarial SFT",
    "adv_then_rl": "adversarial SFT, then GRPO",
    "rl_then_adv": "GRPO, then adversarial SFT",
    "alternating": "alternating",
    "mixed": "mixed in one step",
}
RATES = ("right", "form", "solved", "pgd", "injected", "distractor", "typos", "robust")


def headline(content: Mapping[str, Any]) -> str:
    """Every arm on the test problems, what mixing bought, and its cost."""
    summary = content["summary"] or {"arms": {}}
    arms = {name: summary["arms"][name] for name in NAMES if name in summary["arms"]}
    most = max((arm["seeds"] for arm in arms.values()), default=0)
    head = (
        f"**Solve, in the form asked for, also when attacked** (`make bench-smollm-headline`; {most} seeds; 131 test problems, greedy; "
        "pgd: four steps on the question's embeddings; injected, distractor, typos: never trained on; robust: mean of the four)."
    )
    missing = ["", f"Not finished: {', '.join(content['missing'])}."] if content["missing"] else []
    parts = [head, "", *_rates(arms), "", *_cost(arms), *_target(summary), *missing, "", f"{content['cpu_hours']:.2f} CPU-hours."]
    return "\n".join(parts)


def _rates(arms: Mapping[str, Any]) -> list[str]:
    rows = [f"| arm | {' | '.join(RATES)} | solved + robust | the same, validation |", "|---|" + "---:|" * (len(RATES) + 2)]
    for name, arm in arms.items():
        cells = [f"{arm['test'][kind]:.3f}" for kind in RATES] + [f"{arm[split]['solved + robust']:.3f}" for split in ("test", "valid")]
        rows.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    return rows


def _cost(arms: Mapping[str, Any]) -> list[str]:
    rows = ["| arm | nats, Alpaca | nats, Wikipedia | steps | tokens sampled | tokens trained on | CPU s |", "|---|" + "---:|" * 6]
    for name, arm in arms.items():
        cells = [f"{arm['answer_nll']:.3f}", f"{arm['text_nll']:.3f}"]
        keys = ("steps", "sampled_tokens", "trained_tokens", "training_seconds")
        cells += [f"{arm[key]:,.0f}" if key in arm else "—" for key in keys]
        rows.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    return rows


def _target(summary: Mapping[str, Any]) -> list[str]:
    if "target" not in summary:
        return []
    best, gaps = summary["best_sequence"], summary["mixed_minus"]
    kinds = ("solved + robust", "solved", "robust", "robust (unseen)")
    rows = [f"| mixed minus | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    for name in (name for name in NAMES if name in gaps):
        rows.append(f"| {NAMES[name]} | {' | '.join(_gap(gaps[name][kind]) for kind in kinds)} |")
    cosine = summary["arms"]["mixed"].get("cosine")
    said = [
        "",
        f"Best sequence on the validation problems: {NAMES[best]}. Target (mixed ahead of it in solved + robust): "
        f"{'reached' if summary['target']['reached'] else 'not reached'}, {_gap(summary['target'])}.",
    ]
    if cosine:
        first, last = (f"{cosine[part]:+.3f}" for part in ("first third", "last third"))
        said += [
            "",
            f"Cosine between the gradients of GRPO and of adversarial SFT in the mixed step: {first} in the first third of the run, {last} "
            "in the last.",
            "",
            "![Solved and robust](../images/smollm_headline.svg)",
            "",
            "![Cosines](../images/smollm_headline_cosine.svg)",
        ]
    return ["", "Paired over test problems, each averaged over seeds (95 %):", "", *rows, *said]


def short(content: Mapping[str, Any]) -> str:
    """Solved, robust and cost of every arm, for a guide."""
    arms = (content["summary"] or {"arms": {}})["arms"]
    rows = ["| arm | solved | robust | robust, never trained on | CPU minutes |", "|---|" + "---:|" * 4]
    for name in (name for name in NAMES if name in arms):
        cells = [f"{arms[name]['test'][kind]:.3f}" for kind in ("solved", "robust", "robust (unseen)")]
        cells.append(f"{arms[name]['training_seconds'] / 60:.0f}" if "training_seconds" in arms[name] else "—")
        rows.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    return "\n".join(rows)


def curves(content: Mapping[str, Any], drawing: Any) -> dict[str, str]:
    """{name of the file: plot}: solved against robust, and the cosine between the gradients of the two terms by measurement."""
    arms = (content["summary"] or {"arms": {}})["arms"]
    plots = {}
    if arms:
        series = {NAMES[name]: (arms[name]["test"]["solved"], arms[name]["test"]["robust"]) for name in NAMES if name in arms}
        plots["smollm_headline"] = drawing.points(series, x_label="solved", y_label="robust", key="smollm_headline")
    if cosines := arms.get("mixed", {}).get("cosine"):
        lines = {f"seed {i}": ([*range(len(values))], _smooth(values)) for i, values in enumerate(cosines["all"])}
        plots["smollm_headline_cosine"] = drawing.lines(lines, x_label="every fourth step", y_label="cosine", key="smollm_headline_cosine")
    return plots


def _smooth(values: list[float], width: int = 3) -> list[float]:
    return [fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def _gap(value: Mapping[str, float]) -> str:
    return f"{value['difference']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def peers_dpo(content: Mapping[str, Any]) -> str:
    """DPO here and in TRL."""
    dpo = (content["summary"] or {}).get("dpo")
    if dpo is None:
        return "**DPO on SmolLM2-135M-Instruct**: not measured yet."
    apart, settings = dpo["largest_difference"], dpo["settings"]
    rows = ["| | advalign | TRL | TRL over advalign |", "|---|---:|---:|---:|"]
    for name, key, form in (("CPU s per step", "seconds_per_step", ".2f"), ("peak memory, MB", "peak_mb", ",.0f")):
        value = dpo[key]
        rows.append(f"| {name} | {value['advalign']:{form}} | {value['trl']:{form}} | {value['ratio']:.2f} |")
    return "\n".join(
        [
            f"**DPO on SmolLM2-135M-Instruct** (`make bench-smollm-peers`; TRL 1.16.0, LoRA, float32, "
            f"{settings['steps']} steps of {settings['pairs']} pairs of HH-RLHF in the same order, {settings['rounds']} runs of each in "
            "turns, one thread, medians).",
            "",
            *rows,
            "",
            f"Largest difference over the steps: {apart['loss']:.1e} in the loss, {apart['margins']:.1e} in the margin, "
            f"{apart['logps']:.1e} in the log-probability of the chosen answers.",
        ]
    )


def peers_gcg(content: Mapping[str, Any]) -> str:
    """GCG here and in nanoGCG."""
    gcg = (content["summary"] or {}).get("gcg")
    if gcg is None:
        return "**GCG on SmolLM2-135M-Instruct**: not measured yet."
    settings = gcg["settings"]
    names = {"nanogcg": "nanoGCG 0.3.0", "tokens": "`tokens`: plain GCG", "gcg": "`gcg`: with momentum"}
    rows = ["| search | loss reached | minus nanoGCG | CPU s per step | times faster |", "|---|---:|---:|---:|---:|"]
    for name, shown in names.items():
        row = gcg["searches"][name]
        more = [_gap(row["minus_nanogcg"]), f"{row['ratio']:.1f}"] if "ratio" in row else ["—", "—"]
        rows.append(f"| {shown} | {row['loss']:.3f} | {more[0]} | {row['seconds_per_step']:.2f} | {more[1]} |")
    return "\n".join(
        [
            f"**GCG on SmolLM2-135M-Instruct** (`make bench-smollm-peers`; {settings['cases']} requests of AdvBench with their targets, "
            f"suffixes of {settings['length']} tokens, {settings['width']} candidates a step from the top {settings['top']}, "
            f"{settings['forwards']} forwards a search, float32, one thread; nats per token; the interval is over requests).",
            "",
            *rows,
        ]
    )
