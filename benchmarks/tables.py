"""The tables of the documents, written from benchmarks/results/*.json: no number is typed by hand.

python benchmarks/tables.py            rewrites what stands between `<!-- results: NAME -->` and `<!-- end -->` (README.md, docs), and
                                       between `<!-- measured: ARMS -->` and `<!-- end -->` (docs/algorithms/*.md, from rl.json)
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import tables_gan
import tables_smollm_gapo
import tables_smollm_headline
import tables_smollm_rl
import tables_smollm_safety
import tables_speed
from tables_adv import adv, cost
from tables_adv_lm import adv_lm
from tables_adv_rl import adv_rl
from tables_adv_safety import adv_safety
from tables_async import async_rollouts
from tables_demo_chat import demo_chat
from tables_evaluation import TITLES, evaluation, evaluation_bars
from tables_gcg import gcg
from tables_generation import generation, generation_vllm
from tables_long_run import long_run
from tables_processes import processes
from tables_rl import measured, ppo_memory, preferences, preferred, rl, rl_claims
from tables_self_play import self_play
from tables_stories import stories
from tables_suites import suites

RESULTS = Path("benchmarks/results")
PARTS = {"smollm_peers_gcg": "smollm_peers"}
"""{section: the file that it is a part of}"""
SMOLLM = {
    "smollm_rl": tables_smollm_rl,
    "smollm_gapo": tables_smollm_gapo,
    "smollm_headline": tables_smollm_headline,
    "smollm_safety": tables_smollm_safety,
}
"""{results file: the module with its `curves`, and with the `short` table of its guide}"""


def demo(found: Mapping[str, Any]) -> str:
    """The arms of the main job."""
    names = {
        "sft": "SFT alone",
        "frozen_alone": "frozen discriminator as reward, nothing beside it",
        "frozen": "frozen discriminator, adversarial SFT beside it",
        "mixed": "mixed step",
    }
    seeds = len(found["seeds"])
    rows = ["| arm | held-out compliance | unique answers | entropy (nats) |", "|---|---:|---:|---:|"]
    for key, name in names.items():
        spread = found["compliance"][key]
        others = [_mean([run[metric] for run in found[key]]) for metric in ("unique", "entropy")]
        rows.append(f"| {name} | {spread['mean']:.3f} ± {spread['sd']:.3f} | {others[0]:.3f} | {others[1]:.3f} |")
    return "\n".join(
        [
            f"**Writing under constraints from 60 demonstrations** (`make bench-demo`, {seeds} seeds, mean ± standard deviation; "
            "90 combinations never trained on, 8 answers each; all but SFT start from the same weights).",
            "",
            *rows,
            "",
            f"Mixed minus SFT {_paired(found['mixed_minus_sft'])}; minus the frozen discriminator alone "
            f"{_paired(found['mixed_minus_frozen_alone'])}; minus it with adversarial SFT {_paired(found['mixed_minus_frozen'])} "
            f"(paired over seeds). {found['cpu_hours']:.2f} CPU-hours.",
            "",
            "The settings were chosen on two other seeds and on 90 other combinations, kept out of training there.",
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


def plots() -> None:
    """The curves of docs/comparison_rl.md, and the front of docs/comparison_adversarial.md."""
    from advalign.evaluation.reports import plots as drawing

    Path("docs/images").mkdir(exist_ok=True)
    if (RESULTS / "adv.json").exists():
        (Path("docs/images") / "adv_front.svg").write_text(drawing.standalone(front(drawing)), encoding="utf-8")
    for name, svg in gan_plots(drawing).items():
        (Path("docs/images") / f"{name}.svg").write_text(drawing.standalone(svg), encoding="utf-8")
    if (RESULTS / "speed.json").exists():
        for name, svg in tables_speed.plots(json.loads((RESULTS / "speed.json").read_text(encoding="utf-8")), drawing).items():
            (Path("docs/images") / f"{name}.svg").write_text(drawing.standalone(svg), encoding="utf-8")
    if (RESULTS / "evaluation.json").exists():
        whole = json.loads((RESULTS / "evaluation.json").read_text(encoding="utf-8"))
        for group in (name for name in TITLES if name in whole):
            (Path("docs/images") / f"evaluation_{group}.svg").write_text(evaluation_bars(whole[group]), encoding="utf-8")
    for experiment, module in SMOLLM.items():
        path = RESULTS / f"{experiment}.json"
        for name, svg in module.curves(json.loads(path.read_text(encoding="utf-8")), drawing).items() if path.exists() else ():
            (Path("docs/images") / f"{name}.svg").write_text(drawing.standalone(svg), encoding="utf-8")
    arms = json.loads((RESULTS / "rl.json").read_text(encoding="utf-8"))["arms"]
    shown = ("reinforce", "ppo", "grpo", "dapo", "gspo", "sapo", "cispo", "nsr", "psr", "luffy")
    for key, name, label in (("sums/reward", "rl_reward", "mean reward"), ("sums/sampled_entropy", "rl_entropy", "nats per token")):
        curves = {arm: (list(range(len(arms[arm]["curves"][key]))), _smooth(arms[arm]["curves"][key])) for arm in shown if arm in arms}
        svg = drawing.lines(curves, x_label="draw", y_label=label, key=name)
        (Path("docs/images") / f"{name}.svg").write_text(drawing.standalone(svg), encoding="utf-8")


def gan_plots(drawing: Any) -> dict[str, str]:
    """{name of the file: plot} of docs/experiments/gan.md and gan_failures.md."""
    found: dict[str, str] = {}
    if (RESULTS / "gan.json").exists():
        whole = json.loads((RESULTS / "gan.json").read_text(encoding="utf-8"))
        found |= {f"gan_{design}": tables_gan.front(whole, design, drawing) for design in tables_gan.DESIGNS if design in whole}
    if (RESULTS / "gan_failures.json").exists():
        whole = json.loads((RESULTS / "gan_failures.json").read_text(encoding="utf-8"))
        alone = tuple(name for name in whole["games"] if name.startswith("alone"))
        others = tuple(name for name in whole["games"] if name not in alone)
        for metric in ("compliance", "unique"):
            found[f"gan_failures_{metric}"] = tables_gan.curve(whole, others, metric, drawing)
        if alone:
            found["gan_failures_overpowered"] = tables_gan.curve(whole, alone, "compliance", drawing)
    return found


def front(drawing: Any) -> str:
    """Clean accuracy against accuracy under attack, an arm a point; the interval is that of the gain over plain training."""
    arms = json.loads((RESULTS / "adv.json").read_text(encoding="utf-8"))["sst2"]
    series = {}
    for name, arm in arms.items():
        gain, base = arm["gain"]["mean_of_attacks"], arms["none"]["mean_of_attacks"]
        interval = [base + gain["low"], base + gain["high"]] if name != "none" else []
        series[name] = [arm["clean"], arm["mean_of_attacks"], *interval]
    return str(drawing.points(series, x_label="clean accuracy", y_label="accuracy under attack, mean", key="adv_front"))


def _smooth(values: Sequence[float], width: int = 7) -> list[float]:
    return [_mean(list(values[max(0, i - width + 1) : i + 1])) for i in range(len(values))]


def _cells(arm: Mapping[str, Any], metrics: Sequence[str]) -> str:
    return " | ".join(f"{arm[metric]['mean']:.3f}" for metric in metrics)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _paired(found: Mapping[str, float]) -> str:
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def filled(text: str) -> str:
    """`text` with every results section whose file exists written anew."""
    for name, table in {
        "demo": demo,
        "demo_chat": demo_chat,
        "sst2": sst2,
        "mawps": mawps,
        "rl": rl,
        "rl_claims": rl_claims,
        "preferences": preferences,
        "ppo_memory": ppo_memory,
        "adv": adv,
        "adv_gpu": adv,
        "adv_cost": cost,
        "adv_cost_gpu": cost,
        "adv_lm": adv_lm,
        "adv_lm_r2d2": adv_lm,
        "adv_safety": adv_safety,
        "adv_rl": adv_rl,
        "self_play": self_play,
        "stories": stories,
        "gcg": gcg,
        "evaluation": evaluation,
        "suites": suites,
        "async_rollouts": async_rollouts,
        "generation": generation,
        "generation_gpu": generation,
        "generation_vllm": generation_vllm,
        "processes": processes,
        "long_run": long_run,
        "smollm_speed": tables_speed.smollm,
        "smollm_headline": tables_smollm_headline.headline,
        "smollm_peers": tables_smollm_headline.peers_dpo,
        "smollm_peers_gcg": tables_smollm_headline.peers_gcg,
        "gan": tables_gan.gan,
        "gan_failures": tables_gan.gan_failures,
        "smollm_rl": tables_smollm_rl.smollm_rl,
        "smollm_trl": tables_smollm_rl.smollm_trl,
        "smollm_gapo": tables_smollm_gapo.smollm_gapo,
        "smollm_safety": tables_smollm_safety.smollm_safety,
    }.items():
        path = RESULTS / f"{PARTS.get(name, name)}.json"
        if path.exists():
            body = table(json.loads(path.read_text(encoding="utf-8")))
            pattern = rf"<!-- results: {name} -->.*?<!-- end -->"
            text = re.sub(pattern, lambda _, n=name, b=body: f"<!-- results: {n} -->\n{b}\n<!-- end -->", text, flags=re.DOTALL)
    for name, module in SMOLLM.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            body = f"<!-- results: {name}_short -->\n{module.short(json.loads(path.read_text(encoding='utf-8')))}\n<!-- end -->"
            text = re.sub(rf"<!-- results: {name}_short -->.*?<!-- end -->", lambda _, b=body: b, text, flags=re.DOTALL)
    return _speed(text)


def _speed(text: str) -> str:
    """Sections of one file, each shown where its part has been measured."""
    if not (RESULTS / "speed.json").exists():
        return text
    found = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    for name, (table, part) in tables_speed.SECTIONS.items():
        if part in found["parts"]:
            pattern = rf"<!-- results: {name} -->.*?<!-- end -->"
            text = re.sub(pattern, lambda _, n=name, t=table: f"<!-- results: {n} -->\n{t(found)}\n<!-- end -->", text, flags=re.DOTALL)
    return text


def documents() -> dict[Path, str]:
    """Every document with a table, as it should be."""
    pages = [
        Path("README.md"),
        *sorted(Path("docs").glob("*.md")),
        *sorted(Path("docs/experiments").glob("*.md")),
        *sorted(Path("docs/guides").glob("*.md")),
    ]
    found = {page: filled(page.read_text(encoding="utf-8")) for page in pages}
    for page in sorted(Path("docs/algorithms").glob("*.md")):
        found[page] = page.read_text(encoding="utf-8")
        for results, fill in (("rl", measured), ("preferences", preferred)):
            if (RESULTS / f"{results}.json").exists():
                found[page] = fill(found[page], json.loads((RESULTS / f"{results}.json").read_text(encoding="utf-8")))
    return found


def main() -> None:
    for page, text in documents().items():
        page.write_text(text, encoding="utf-8")
    if (RESULTS / "rl.json").exists():
        plots()


if __name__ == "__main__":
    main()
