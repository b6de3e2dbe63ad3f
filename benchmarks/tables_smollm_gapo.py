"""The tables and curves of benchmarks/smollm_gapo.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from statistics import fmean
from typing import Any

NAMES = {
    "base": "published model",
    "start": "warm start, 30 SFT steps",
    "sft": "SFT",
    "dpo": "DPO on perturbed prompts + imitation",
    "frozen": "frozen discriminator alone",
    "frozen_sft": "frozen discriminator + imitation",
    "gapo": "GAPO",
    "gapo_adversarial": "GAPO + adversarial SFT",
    "gapo_verified": "GAPO + verifiable reward",
}
SIZES = ("50", "200", "1000")
IMAGES = (
    "![Mean score of the discriminator by step](../images/smollm_gapo_reward.svg)",
    "![Fraction of sampled answers in which both constraints hold by step](../images/smollm_gapo_verified.svg)",
    "",
    "Sampled answers of the training prompts with 200 demonstrations: what the discriminator says of them, and how many hold both",
    "constraints. Where the score rises alone, the policy follows errors of the discriminator.",
)


def smollm_gapo(found: Mapping[str, Any]) -> str:
    """Every arm by number of demonstrations; differences; the target."""
    summary = found["summary"]
    rates = {size: summary["rates"][size] for size in ("0", *SIZES) if size in summary["rates"]}
    parts = [
        f"**Instructions under constraints on SmolLM2-135M-Instruct** (`{found['command']}`; fraction of answers at temperature 0.7 in "
        f"which both constraints hold, 120 test prompts, 4 answers each; mean over seeds, whose number stands behind the arm; "
        f"{found['cpu_hours']:.2f} CPU-hours{_missing(found)}).",
        "",
        *_table([_row(size, name, rates[size][name]) for size in rates for name in NAMES if name in rates[size]]),
        "",
        *_differences(summary["differences"]),
        *_verdict(summary),
        *(["", *IMAGES] if any(cell.get("curve") for name, cell in found["cells"].items() if "-200-" in name) else []),
    ]
    return "\n".join(parts)


def short(found: Mapping[str, Any]) -> str:
    """Satisfied constraints, diversity and cost at 200 demonstrations, for the guide."""
    rates = found["summary"]["rates"].get("200", {})
    rows = [
        f"| {NAMES[name]} | {rates[name]['all']['mean']:.3f} | {rates[name]['held-out pairs']['mean']:.3f} | "
        f"{rates[name]['self_bleu']['mean']:.3f} | {rates[name]['cpu_seconds']['mean'] / 60:.0f} |"
        for name in NAMES
        if name in rates
    ]
    head = ["| 200 demonstrations | both hold | held-out pairs | self-BLEU | CPU minutes |", "|---|---:|---:|---:|---:|"]
    return "\n".join([*head, *rows, "", *_verdict(found["summary"])])


def _missing(found: Mapping[str, Any]) -> str:
    return f"; cells still missing: {', '.join(found['missing'])}" if found["missing"] else ""


HEAD = (
    "demonstrations", "arm", "dev", "both hold", "held-out pairs", "seen pairs", "one constraint", "unique", "self-BLEU", "words", "nll",
    "AUC of D", "perplexity",
)  # fmt: skip


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(HEAD)} |", "|---:|---|" + "---:|" * (len(HEAD) - 2), *(f"| {' | '.join(row)} |" for row in rows)]


def _row(size: str, name: str, row: Mapping[str, Any]) -> list[str]:
    measures = ("dev", "all", "held-out pairs", "seen pairs", "constraints", "unique", "self_bleu")
    cells = [_spread(row[measure]) for measure in measures]
    auc = f"{row['auc']['mean']:.2f}" if "auc" in row else "–"
    rest = [f"{row['words']['mean']:.1f}", f"{row['nll']['mean']:.2f}", auc, f"{exp(row['text_nll']['mean']):.1f}"]
    return [size if size != "0" else "–", f"{NAMES[name]} ({row['seeds']})", *cells, *rest]


def _spread(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:.3f}" + ("" if value["sd"] is None else f" ± {value['sd']:.3f}")


def _differences(by_size: Mapping[str, Any]) -> list[str]:
    kinds = {"all": "both hold", "held-out pairs": "held-out pairs", "seen pairs": "seen pairs", "self_bleu": "self-BLEU", "nll": "nll"}
    rows = [
        f"| {size} | `{pair}` | {' | '.join(_paired(row[kind]) for kind in kinds)} |"
        for size in SIZES
        for pair, row in by_size.get(size, {}).items()
    ]
    if not rows:
        return []
    head = [f"| demonstrations | difference | {' | '.join(kinds.values())} |", "|---:|---|" + "---:|" * len(kinds)]
    return ["Paired over test prompts, each averaged over seeds (95 %):", "", *head, *rows, ""]


def _verdict(summary: Mapping[str, Any]) -> list[str]:
    best, target = summary["best"], summary["target"]
    named = [f"`{best[size]['arm']}` with {size}" for size in SIZES if size in best]
    lines = [f"Best on dev prompts: {', '.join(named)}."] if named else []
    if target["regimes"]:
        shown = "; ".join(f"{size} demonstrations {_paired(target['regimes'][size])}" for size in SIZES if size in target["regimes"])
        verdict = "reached" if target["reached"] else "not reached"
        lines.append(f"Target, `gapo` ahead of `frozen_sft` in one regime with an interval above zero: {verdict} ({shown}).")
    return lines


def _paired(found: Mapping[str, float]) -> str:
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def curves(found: Mapping[str, Any], drawing: Any) -> dict[str, str]:
    """{name of the file: plot}: what the discriminator says of the policy's answers, and how many of them hold their constraints, by step,
    smoothed over seven steps and averaged over seeds."""
    labels = {"reward": "score of the discriminator", "verified": "both constraints hold"}
    plots = {}
    for measure, label in labels.items():
        series = {}
        for name in NAMES:
            cells = [cell for key, cell in found["cells"].items() if key.startswith(f"{name}-200-") and cell.get("curve")]
            if cells:
                rows = [smooth([v for v in cell["curve"][measure] if v is not None]) for cell in cells]
                mean = [fmean(values) for values in zip(*rows, strict=False)]
                series[name] = (list(range(1, len(mean) + 1)), mean)
        if series:
            plots[f"smollm_gapo_{measure}"] = drawing.lines(series, x_label="step", y_label=label, key=f"smollm_gapo_{measure}")
    return plots


def smooth(values: Sequence[float], width: int = 7) -> list[float]:
    """Means of the last values."""
    return [fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
