"""The tables of benchmarks/rl.py, rl_claims.py, ppo_memory.py and preferences.py, for benchmarks/tables.py."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any


def rl(found: Mapping[str, Any]) -> str:
    """Every policy algorithm from the same checkpoints."""
    head = "| algorithm | pass@1 | gain | pass@16 | maj@16 | ood pass@1 | entropy | clipped | no signal | CPU s per draw |"
    rows = [head, "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    base = found["base"]
    first, *others = (f"{base[k]['mean']:.3f}" for k in ("pass@1", "pass@16", "maj@16"))
    rows.append(f"| start (SFT) | {first} ± {base['pass@1']['sd']:.3f} | | {' | '.join(others)} | | {base['entropy']['mean']:.3f} | | | |")
    for name, arm in sorted(found["arms"].items(), key=lambda item: -item[1]["accuracy"]["mean"]):
        gain = _gain(arm, base)
        first = f"{arm['accuracy']['mean']:.3f} ± {arm['accuracy']['sd']:.3f} | {fmean(gain):+.3f} ± {stdev(gain):.3f}"
        middle = " | ".join(f"{arm[k]['mean']:.3f}" for k in ("pass@16", "maj@16", "ood", "entropy"))
        rest = f"{_or_dash(arm['clip_fraction'])} | {_or_dash(arm['zero_signal'])} | {arm['cpu_seconds_per_draw']:.2f}"
        rows.append(f"| {name} | {first} | {middle} | {rest} |")
    return "\n".join(
        [
            f"**{len(found['arms'])} algorithms** (`make bench-rl`; {len(found['seeds'])} seeds, mean ± standard deviation of pass@1 on "
            f"200 sums never trained on; {found['draws']} draws of 128 responses, {found['updates_per_draw']} updates each; "
            "ood: one digit more).",
            "",
            *rows,
            "",
            "gain: pass@1 over the start of the same seed (starts differ by "
            f"{max(base['pass@1']['values']) - min(base['pass@1']['values']):.2f}). "
            f"clipped: tokens whose gradient a clip removes (for `sapo`: where PPO's would); no signal: groups with equal rewards. "
            f"CPU seconds include sampling and the final evaluation, on two shared hardware threads. {found['cpu_hours']:.2f} CPU-hours.",
        ]
    )


def _alone(found: Mapping[str, Any]) -> str:
    """Weights, gradient and two moments in float32: 16 bytes per parameter of the policy."""
    return " / ".join(f"{16 * arms['separate']['parameters']['policy'] / 1e6:.2f}" for arms in found["presets"].values())


def rl_claims(found: Mapping[str, Any]) -> str:
    """Expected, found, and whether it held."""
    rows = ["| claim | expected | found | held |", "|---|---|---|---|"]
    for name, claim in found["claims"].items():
        rows.append(f"| {name} | {claim['expected']} | {_short(claim['found'])} | {'yes' if claim['holds'] else '**no**'} |")
    return "\n".join([f"**{len(found['claims'])} claims** (`make bench-rl`, {len(found['seeds'])} seeds).", "", *rows])


def ppo_memory(found: Mapping[str, Any]) -> str:
    """PPO's four models with weights of their own, and on one base."""
    kinds = ("weights", "gradients", "optimizer", "frozen", "total")
    rows = ["| preset | models | weights | gradients | optimizer | reference | total | peak growth |", "|---|---|" + "---:|" * 6]
    names = {"separate": "four of their own", "shared": "one base, adapters"}
    for preset, arms in found["presets"].items():
        for arm, run in arms.items():
            sizes = [*(run["bytes"][kind] for kind in kinds), run["peak_growth_bytes"]]
            rows.append(f"| {preset} | {names[arm]} | {' | '.join(f'{size / 1e6:.2f}' for size in sizes)} |")
    shares = [arms["shared"]["bytes"]["total"] / arms["separate"]["bytes"]["total"] for arms in found["presets"].values()]
    return "\n".join(
        [
            f"**PPO's four models, in MB** (`python benchmarks/ppo_memory.py`; float32, AdamW, rank {found['rank']} on all linear layers; "
            f"after {found['steps']} steps; peak growth: resident memory of a process that takes them, above a process that has trained a "
            "model of negligible size).",
            "",
            *rows,
            "",
            f"A policy alone, as GRPO without a KL term trains it, holds {_alone(found)} MB. "
            f"One base holds {' / '.join(f'{share:.0%}' for share in shares)} of the bytes of four models.",
        ]
    )


def preferences(found: Mapping[str, Any]) -> str:
    """Preference objectives on one set of pairs."""
    base = found["base"]
    rows = ["| objective | pass@1 | pass@16 | entropy |", "|---|---:|---:|---:|"]
    rows.append(f"| start (SFT) | {base['pass@1']['mean']:.3f} | {base['pass@16']['mean']:.3f} | {base['entropy']['mean']:.3f} |")
    for name, arm in found["arms"].items():
        rows.append(f"| {name} | {_short(arm['accuracy'])} | {arm['pass@16']['mean']:.3f} | {arm['entropy']['mean']:.3f} |")
    return "\n".join(
        [
            f"**{len(found['arms'])} objectives on the same pairs** (`{found['command']}`; right against wrong answers sampled from "
            f"the start; {found['updates']} updates, {len(found['seeds'])} seeds, defaults, "
            f"nothing tuned; {found['cpu_hours']:.2f} CPU-hours).",
            "",
            *rows,
        ]
    )


def preferred(text: str, found: Mapping[str, Any]) -> str:
    """The line of a preference objective's page."""

    def line(match: re.Match[str]) -> str:
        arms = {name: found["arms"][name] for name in match[1].split(",")}
        parts = [f"`{name}` pass@1 {_short(a['accuracy'])}, pass@16 {a['pass@16']['mean']:.3f}" for name, a in arms.items()]
        start = f"the start: pass@1 {found['base']['pass@1']['mean']:.3f}, pass@16 {found['base']['pass@16']['mean']:.3f}"
        body = (
            f"**Measured** (`{found['command']}`, right against wrong two-digit sums, {len(found['seeds'])} seeds; {start}): "
            f"{'; '.join(parts)}. All objectives: [comparison](../comparison_rl.md)."
        )
        return f"<!-- preferred: {match[1]} -->\n" + "\n".join(textwrap.wrap(body, 140, break_long_words=False)) + "\n<!-- end -->"

    return re.sub(r"<!-- preferred: ([\w,]+) -->.*?<!-- end -->", line, text, flags=re.DOTALL)


def _short(found: Any) -> str:
    """Nested numbers on one line; of a mean over seeds the mean and the spread."""
    if isinstance(found, Mapping):
        if "mean" in found and "sd" in found:
            return f"{found['mean']:.3f} ± {found['sd']:.3f}"
        return "; ".join(f"{key} {_short(value)}" for key, value in found.items() if value is not None)
    return f"{found:.3g}" if isinstance(found, float) else str(found)


def _gain(arm: Mapping[str, Any], base: Mapping[str, Any]) -> list[float]:
    """pass@1 over the start, seed by seed."""
    return [after - before for after, before in zip(arm["accuracy"]["values"], base["pass@1"]["values"], strict=True)]


def measured(text: str, found: Mapping[str, Any]) -> str:
    """The line of a provenance page: its arms in the comparison."""

    def line(match: re.Match[str]) -> str:
        parts = []
        for name in match[1].split(","):
            arm = found["arms"][name]
            gain = _gain(arm, found["base"])
            parts.append(
                f"`{name}` pass@1 {fmean(gain):+.3f} ± {stdev(gain):.3f} over it, pass@16 {arm['pass@16']['mean']:.3f}, "
                f"entropy {arm['entropy']['mean']:.3f}"
            )
        base = found["base"]
        body = (
            f"**Measured** (`make bench-rl`, two-digit addition, {len(found['seeds'])} seeds; the start: "
            f"pass@1 {base['pass@1']['mean']:.3f}, pass@16 {base['pass@16']['mean']:.3f}, "
            f"entropy {base['entropy']['mean']:.3f}): {'; '.join(parts)}. "
            "All arms: [comparison](../comparison_rl.md)."
        )
        return f"<!-- measured: {match[1]} -->\n" + "\n".join(textwrap.wrap(body, 140, break_long_words=False)) + "\n<!-- end -->"

    return re.sub(r"<!-- measured: ([\w,]+) -->.*?<!-- end -->", line, text, flags=re.DOTALL)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
