"""The tables and curves of benchmarks/smollm_rl.py and of the GRPO half of benchmarks/smollm_trl.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

NAMES = {
    "base": "published model, 3 worked problems in the prompt",
    "start": "warm start, 16 SFT steps",
    "sft": "SFT on the worked problems",
    "grpo": "`grpo`",
    "dapo": "`dapo`, dynamic sampling",
    "sapo": "`sapo`",
    "grpo_pgd": "`grpo`, half under PGD",
    "grpo_consistency": "`grpo` + rollout consistency",
    "grpo_noise": "`grpo` on noisy problems",
}
FAMILIES = ("typos", "distractors", "reformatting", "templates")


def smollm_rl(found: Mapping[str, Any]) -> str:
    """Every arm clean, under noise and elsewhere; what it samples; differences; the choice and the targets."""
    summary = found["summary"]
    arms = {name: summary["arms"][name] for name in NAMES if name in summary["arms"]}
    parts = [
        f"**Word problems on SmolLM2-135M-Instruct** (`{found['command']}`; exact answers, greedy, on held-out test problems; mean over "
        f"seeds, whose number stands behind the arm; noise: mean of typos, distractors and reformatting; {found['cpu_hours']:.2f} CPU-hours"
        f"{_missing(found)}).",
        "",
        *_rows(("arm", "clean [95 %]", *FAMILIES, "noise", "lost"), [_accuracy(name, arm) for name, arm in arms.items()]),
        "",
        *_rows(
            ("arm", "pass@1", "pass@4", "pass@8", "entropy", "ASDiv", "GSM8K", "perplexity", "CPU s", "tokens sampled", "trained"),
            [_sampled(name, arm) for name, arm in arms.items()],
        ),
        "",
        *_differences(summary["differences"]),
        *_verdict(summary),
    ]
    return "\n".join(parts)


def short(found: Mapping[str, Any]) -> str:
    """Clean, noise and cost of every arm, for the guide."""
    arms = found["summary"]["arms"]
    rows = [[NAMES[name], *_short(arms[name])] for name in NAMES if name in arms]
    return "\n".join([*_rows(("arm", "clean", "noise", "pass@8", "CPU minutes"), rows), "", *_verdict(found["summary"])])


def _short(arm: Mapping[str, Any]) -> list[str]:
    minutes = arm["training_seconds"]["mean"] / 60 if "training_seconds" in arm else 0
    return [*(f"{arm_rate['mean']:.3f}" for arm_rate in (arm["rates"]["test"], arm["noise"], arm["pass"]["8"])), f"{minutes:.0f}"]


def _missing(found: Mapping[str, Any]) -> str:
    return f"; cells still missing: {', '.join(found['missing'])}" if found["missing"] else ""


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1), *(f"| {' | '.join(row)} |" for row in rows)]


def _accuracy(name: str, arm: Mapping[str, Any]) -> list[str]:
    low, high = arm["clean_interval"]
    families = [f"{arm['families'][family]['mean']:.3f}" for family in FAMILIES]
    clean = f"{arm['rates']['test']['mean']:.3f} [{low:.3f}, {high:.3f}]"
    return [
        f"{NAMES[name]} ({len(arm['seeds'])})",
        clean,
        *families,
        f"{arm['noise']['mean']:.3f}",
        f"{arm['loss_under_noise']['mean']:.3f}",
    ]


def _sampled(name: str, arm: Mapping[str, Any]) -> list[str]:
    passes = [f"{arm['pass'][k]['mean']:.3f}" for k in ("1", "4", "8")]
    transfer = [f"{arm['rates'][data]['mean']:.3f}" for data in ("asdiv", "gsm8k")]
    cost = [f"{arm['training_seconds']['mean']:.0f}"] if "training_seconds" in arm else ["0"]
    tokens = [f"{arm.get('tokens', {}).get(kind, 0):,.0f}" for kind in ("sampled", "trained")]
    return [NAMES[name], *passes, f"{arm['entropy']['mean']:.2f}", *transfer, f"{arm['perplexity']['mean']:.1f}", *cost, *tokens]


def _differences(differences: Mapping[str, Any]) -> list[str]:
    if not differences:
        return []
    kinds = {"test": "clean", "noise": "noise", "lost": "lost", "pass@8": "pass@8", "asdiv": "ASDiv", "gsm8k": "GSM8K"}
    rows = [[f"`{pair}`", *(_paired(difference[kind]) for kind in kinds)] for pair, difference in differences.items()]
    return ["Paired over problems, each averaged over seeds (95 %):", "", *_rows(("difference", *kinds.values()), rows), ""]


def _verdict(summary: Mapping[str, Any]) -> list[str]:
    chosen = summary["chosen"]
    lines = []
    if chosen:
        lines.append("Chosen on validation problems: " + ", ".join(f"{role} `{arm}`" for role, arm in chosen.items()) + ".")
    if "targets" in summary:
        gain, robust = summary["targets"]["gain"], summary["targets"]["robust"]
        lines.append(
            f"Targets: `grpo` minus `start` {_paired(gain)}, asked for +0.100: {_reached(gain)}. `{robust['arm']}` loses "
            f"{robust['loss']:.3f} under noise and `grpo` {robust['loss_grpo']:.3f}; half of the latter minus the former "
            f"{_paired(robust['margin'])}, asked for 0: {_reached(robust)}."
        )
    return lines


def _reached(target: Mapping[str, Any]) -> str:
    return "reached" if target["reached"] else "not reached"


def _paired(found: Mapping[str, float]) -> str:
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def smollm_trl(found: Mapping[str, Any]) -> str:
    """GRPO here and in TRL."""
    summary = found["summary"]["grpo"]
    sides = [side for side in ("advalign", "trl") if side in summary]
    rows = [_side(side, summary[side]) for side in sides]
    head = ("side", "reward, first quarter", "last quarter", "valid", "test", "CPU s per draw", "peak, MB", "tokens sampled")
    trl = found["versions"].get("trl", "")
    parts = [
        f"**The same GRPO here and in TRL {trl}** (`{found['command']}`; SmolLM2-135M-Instruct, bfloat16 base and float32 adapters, one "
        f"thread; mean ± standard deviation over seeds; medians of CPU-seconds; resident peak of a process{_missing(found)}).",
        "",
        *_rows(head, rows),
    ]
    if "ours_minus_trl" in summary:
        difference = summary["ours_minus_trl"]
        parts += [
            "",
            f"Ours minus TRL: test {_paired(difference['test'])} (paired over problems), reward of the last quarter "
            f"{_paired(difference['last_quarter'])}. TRL takes {summary['time_ratio']:.2f} times as long per draw.",
        ]
    return "\n".join(parts)


def _side(name: str, side: Mapping[str, Any]) -> list[str]:
    metrics = [_spread(side[metric], 3) for metric in ("first_quarter", "last_quarter", "valid", "test")]
    cost = [f"{side['cpu_seconds_per_draw']['mean']:.1f}", f"{side['peak_mb']['mean']:,.0f}", f"{side['sampled_tokens']['mean']:,.0f}"]
    return [name, *metrics, *cost]


def _spread(value: Mapping[str, Any], digits: int) -> str:
    deviation = "" if value["sd"] is None else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{deviation}"


def curves(found: Mapping[str, Any], drawing: Any) -> dict[str, str]:
    """{name of the file: plot}: the reward by draw and by CPU-second, smoothed over seven draws, averaged over seeds."""
    series: dict[str, dict[str, Any]] = {"smollm_rl_reward": {}, "smollm_rl_cpu": {}}
    for arm in NAMES:
        runs = [cell["curve"] for cell in found["cells"].values() if cell["arm"] == arm and "reward" in cell.get("curve", {})]
        if runs and arm != "start":
            rows = [[(s, r) for s, r in zip(run["cpu_seconds"], run["reward"], strict=True) if r is not None] for run in runs]
            rewards = [smooth([r for _, r in row]) for row in rows]
            mean = [fmean(values) for values in zip(*rewards, strict=False)]
            seconds = [fmean(s - row[0][0] for s, row in zip(values, rows, strict=True)) for values in _columns(rows)]
            series["smollm_rl_reward"][arm] = (list(range(1, len(mean) + 1)), mean)
            series["smollm_rl_cpu"][arm] = (seconds, mean)
    labels = {"smollm_rl_reward": "draw", "smollm_rl_cpu": "CPU-seconds since the first draw"}
    plots = {name: lines for name, lines in series.items() if lines}
    return {name: drawing.lines(lines, x_label=labels[name], y_label="mean reward", key=name) for name, lines in plots.items()}


def _columns(rows: Sequence[Sequence[tuple[float, float]]]) -> list[list[float]]:
    return [[s for s, _ in column] for column in zip(*rows, strict=False)]


def smooth(values: Sequence[float], width: int = 7) -> list[float]:
    return [fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
