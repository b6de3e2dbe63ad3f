"""How many different things a policy says, and what that costs: the curve of quality against diversity over temperature.

Diversity is never reported alone: at a high temperature anybody is diverse. Two policies are compared by their curves, at matched
temperature or matched quality ("Language GANs Falling Short", arXiv:1811.02549).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from advalign.errors import ConfigError
from advalign.metrics import utility
from advalign.models import Network
from advalign.rewards.exact_answer import ExactAnswer
from advalign.rollout.hf import HF
from advalign.types import Example, RolloutGroup, Sampling

if TYPE_CHECKING:
    from advalign.evaluation.reports.report import Report

TEMPERATURES = (0.3, 0.5, 0.7, 0.9, 1.0, 1.2, 1.5)
Quality = Callable[[Sequence[RolloutGroup]], Sequence[float]]


def installed() -> bool:
    """Whether Self-BLEU can be computed at all."""
    return importlib.util.find_spec("nltk") is not None


def check(where: str) -> None:
    """Refuses Self-BLEU where it cannot be computed."""
    if not installed():
        raise ConfigError(f"{where}: 'nltk' is not installed; install advalign[diversity], or leave self_bleu at 0.")


def self_bleu(groups: Sequence[Sequence[str]], *, order: int = 4) -> float:
    """Mean BLEU of a text with all others of its group as references   (Texygen, arXiv:1802.01886, section 3.2): 1 when all are the same.

    BLEU is nltk's, of white-space words, n-grams up to `order` equally weighted, smoothed by its method 1 as Texygen's; 0 without a
    common word. Differences: references are the other responses to the same PROMPT, since texts for different prompts should
    differ; and a text shorter than `order` words is measured up to its length, or it would never be 1.
    Groups of one and empty texts leave out; nan where nothing is left.
    """
    check("diversity.self_bleu")
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    values = []
    for group in groups:
        words = [text.split() for text in group]
        for i, mine in enumerate(words):
            others, n = words[:i] + words[i + 1 :], min(order, len(mine))
            if others and n:
                values.append(sentence_bleu(others, mine, weights=[1 / n] * n, smoothing_function=smooth))
    return sum(values) / len(values) if values else math.nan


def grams(texts: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """The distinct n-grams of words of all texts; a text of fewer than n words is one gram by itself."""
    found: set[tuple[str, ...]] = set()
    for words in map(str.split, texts):
        found |= {tuple(words[i : i + n]) for i in range(max(len(words) - n, 0) + 1)}
    return found


def coverage(texts: Sequence[str], references: Sequence[str], *, n: int = 2) -> float:
    """Share of the references' distinct n-grams of words that occur in some text: what the policy never says is missing.

    For references of fewer than n words it is the share of them that were given exactly. It grows with the number of samples.
    """
    wanted = grams(references, n)
    return len(wanted & grams(texts, n)) / len(wanted)


def of_groups(groups: Sequence[RolloutGroup], *, references: Sequence[str] | None = None, order: int = 0) -> dict[str, float]:
    """`unique` per prompt and, over all prompts, `unique/overall`; `distinct_1`, `distinct_2`; `coverage` of `references`; `self_bleu`
    up to `order`, if any. What has no value (no pair of words, no second sample) is left out."""
    by_prompt = [[r.text for r in g.rollouts] for g in groups]
    texts = [text for group in by_prompt for text in group]
    logs = {"unique": utility.unique_fraction(by_prompt), "unique/overall": utility.unique_fraction([texts])}
    logs |= {f"distinct_{n}": utility.distinct_n(texts, n) for n in (1, 2)}
    logs |= {} if references is None else {"coverage": coverage(texts, references)}
    logs |= {"self_bleu": self_bleu(by_prompt, order=order)} if order else {}
    return {name: value for name, value in logs.items() if not math.isnan(value)}


# ------------------------------------------------------------------------------------ quality against diversity


def quality_diversity(
    network: Any,
    examples: Sequence[Example],
    temperatures: Sequence[float] = TEMPERATURES,
    samples: int = 8,
    *,
    sampling: Sampling | None = None,
    quality: Quality | None = None,
    order: int = 0,
    seed: int = 0,
    engine: Any = None,
) -> list[dict[str, float]]:
    """One row per temperature of what `engine` (by default: this process) samples from `network`: `temperature`, `quality` (mean over
    the responses that can be judged), the numbers of `of_groups`, and `length` in tokens.

    `quality` is what `reward.start(context)` gives: a score per response, nan abstains; by default 1 where the answer verifies. All
    temperatures share one random stream and all other options of `sampling`.
    """
    if not temperatures or min(temperatures) < 0 or samples < 2:
        raise ConfigError(f"quality_diversity: {samples} samples at temperatures {list(temperatures)}; give at least 2, and none below 0.")
    if order:
        check("quality_diversity.order")
    judge: Quality = quality or ExactAnswer().start(None)  # type: ignore[arg-type]
    rows = []
    for temperature in temperatures:
        generator = torch.Generator().manual_seed(seed)
        options = replace(sampling or Sampling(), temperature=float(temperature))
        groups = (engine or HF()).generate(network, examples, samples, options, generator)
        scores = [s for s in map(float, judge(groups)) if not math.isnan(s)]
        lengths = [len(r.response_ids) for g in groups for r in g.rollouts]
        rows.append(
            {"temperature": float(temperature), "quality": sum(scores) / len(scores) if scores else math.nan}
            | of_groups(groups, order=order)
            | {"length": sum(lengths) / len(lengths)}
        )
    return rows


def numbers(text: str) -> list[float]:
    """ "0.3,0.7,1" as numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"temperatures: '{text}' is no list of numbers; write it as 0.3,0.7,1.") from None


def of_suite(suite: Any, network: Network, temperatures: Sequence[float]) -> Report:
    """The curve of a policy on a suite's examples, with its `sampling` and its `samples` per prompt (8 where it has none)."""
    if network.head != "policy":
        raise ConfigError(f"temperatures: a {network.head} samples nothing; quality and diversity are of a policy.")
    options: dict[str, Any] = {"sampling": suite.sampling, "seed": suite.seed, "order": 4 if installed() else 0}
    rows = quality_diversity(network, suite._examples(network), temperatures, max(suite.samples, 2) if suite.samples else 8, **options)
    from advalign.evaluation.reports.report import Report

    return plot(Report("Quality and diversity", "over sampling temperatures"), {"policy": rows})


def plot(
    report: Report, curves: Mapping[str, Sequence[Mapping[str, float]]], *, diversity: str = "unique", title: str = "Quality and diversity"
) -> Report:
    """{model: rows of `quality_diversity`} as one line per model, from cold to hot, and as a table. A curve further up and to
    the right is better; a point alone is not."""
    kept = {name: [r for r in rows if diversity in r and not math.isnan(r["quality"])] for name, rows in curves.items()}
    lines = {name: ([r[diversity] for r in rows], [r["quality"] for r in rows]) for name, rows in kept.items()}
    report.lines(lines, title=title, x_label=diversity, y_label="quality", note="Each curve runs over temperatures; see the table.")
    return report.table([{"model": name, **row} for name, rows in curves.items() for row in rows])


__all__ = ["check", "coverage", "grams", "installed", "numbers", "of_groups", "of_suite", "plot", "quality_diversity", "self_bleu"]
