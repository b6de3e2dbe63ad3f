"""The tables of README.md, written from benchmarks/results/*.json: no number is typed by hand.

python benchmarks/tables.py            rewrites what stands between `<!-- results: NAME -->` and `<!-- end -->`
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")


def demo(found: Mapping[str, Any]) -> str:
    """Three arms of the main job."""
    names = {"sft": "SFT alone", "frozen": "frozen discriminator", "mixed": "mixed step"}
    seeds = len(found["seeds"])
    rows = ["| arm | held-out compliance | unique answers | entropy (nats) |", "|---|---:|---:|---:|"]
    for key, name in names.items():
        spread = found["compliance"][key]
        others = [_mean([run[metric] for run in found[key]]) for metric in ("unique", "entropy")]
        rows.append(f"| {name} | {spread['mean']:.3f} ± {spread['sd']:.3f} | {others[0]:.3f} | {others[1]:.3f} |")
    return "\n".join(
        [
            f"**Writing under constraints from 60 demonstrations** (`make bench-demo`, {seeds} seeds, mean ± standard deviation; "
            "90 combinations never trained on, 8 answers each; `frozen` and `mixed` start from the same weights).",
            "",
            *rows,
            "",
            f"Mixed minus SFT {_paired(found['mixed_minus_sft'])}; mixed minus frozen {_paired(found['mixed_minus_frozen'])} "
            f"(paired over seeds). {found['cpu_hours']:.2f} CPU-hours.",
            "",
            "The settings were tuned by held-out compliance on seeds 0 and 1, which are among the seeds: optimistic for the mixed step.",
        ]
    )


def sst2(found: Mapping[str, Any]) -> str:
    """Clean accuracy and accuracy under attack of every arm."""
    arms = [name for name in ("plain", "classify_pgd", "consistency") if name in found]
    attacks = list(found["plain"]["aua"])
    rows = [f"| arm | clean | {' | '.join(attacks)} |", "|---|---:|" + "---:|" * len(attacks)]
    for arm in arms:
        radius = found["radius"].get(arm)
        name = arm if radius is None else f"{arm}, radius {radius:g}"
        chosen = " (chosen)" if arm == found["chosen"] else ""
        values = " | ".join(f"{found[arm]['aua'][a]:.3f}" for a in attacks)
        rows.append(f"| {name}{chosen} | {found[arm]['clean']:.3f} | {values} |")
    gains = found[found["chosen"]]["gain"]
    shown = "; ".join(f"{name} {_paired(gain)}" for name, gain in gains.items())
    return "\n".join(
        [
            f"**Robust sentiment on SST-2** (`make bench-sst2`; all-MiniLM-L6-v2, 2,000 training sentences, two epochs, "
            f"{len(found['plain']['seeds'])} seeds; clean accuracy on all 872 dev sentences, attacks on 100 of them; arm and radius were "
            "chosen on a split of the training data).",
            "",
            *rows,
            "",
            f"Gain of the chosen arm over plain training, per (seed, sentence): {shown}. {found['cpu_hours']:.2f} CPU-hours.",
            "",
            "The grid of radii was set after one exploratory run looked at on dev sentences; "
            "the choice within it used training data alone.",
        ]
    )


def mawps(found: Mapping[str, Any]) -> str:
    """Word problems before and after the mixed step, and after as many steps of plain SFT."""
    names = {"sft": "after SFT", "control": "SFT continued", "mixed": "mixed step"}
    metrics = ("accuracy", "pass@8", *(k for k in found["arms"]["sft"] if k.startswith("loss@")))
    rows = [f"| arm | {' | '.join(metrics)} |", "|---|" + "---:|" * len(metrics)]
    rows += [f"| {names[arm]} | {_cells(found['arms'][arm], metrics)} |" for arm in names]
    gains = [f"minus {names[o]} {_paired(found[f'mixed_minus_{o}']['accuracy_over_problems'])}" for o in ("sft", "control")]
    seeds = len(found["seeds"])
    return "\n".join(
        [
            f"**Word problems** (`make bench-mawps`, {seeds} seed{'s' if seeds > 1 else ''}; MAWPS SingleOp and AddSub, a causal "
            "model from scratch; exact answers on held-out problems, greedy, and loss of the worked answer under embedding PGD by radius).",
            "",
            *rows,
            "",
            f"Accuracy of the mixed step {', '.join(gains)} (paired over problems). {found['cpu_hours']:.2f} CPU-hours.",
            "",
            "The warm-up was chosen by held-out accuracy of one seed; the mixed stage was not tuned. Its policy gradient sees answers of "
            "184 problems that the control never sees.",
        ]
    )


def _cells(arm: Mapping[str, Any], metrics: Sequence[str]) -> str:
    return " | ".join(f"{arm[metric]['mean']:.3f}" for metric in metrics)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _paired(found: Mapping[str, float]) -> str:
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def filled(text: str) -> str:
    """`text` with every results section whose file exists written anew."""
    for name, table in {"demo": demo, "sst2": sst2, "mawps": mawps}.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            body = table(json.loads(path.read_text(encoding="utf-8")))
            pattern = rf"<!-- results: {name} -->.*?<!-- end -->"
            text = re.sub(pattern, lambda _, n=name, b=body: f"<!-- results: {n} -->\n{b}\n<!-- end -->", text, flags=re.DOTALL)
    return text


def main() -> None:
    readme = Path("README.md")
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
