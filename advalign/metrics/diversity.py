"""Diversity of a policy's responses, and the curve of quality against diversity over temperature.

Diversity is never reported alone: every policy is diverse at a high temperature. Two policies are compared by their curves, at matched
temperature or matched quality ("Language GANs Falling Short", arXiv:1811.02549).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from advalign.errors import ConfigError
from advalign.interfaces import RolloutEngine
from advalign.metrics import utility
from advalign.models import Network
from advalign.rewards.exact_answer import ExactAnswer
from advalign.rollout.hf import HF
from advalign.types import Example, RolloutGroup, Sampling

TEMPERATURES = (0.3, 0.5, 0.7, 0.9, 1.0, 1.2, 1.5)
Quality = Callable[[Sequence[RolloutGroup]], Sequence[float]]
"""One score per rollout, nan to abstain."""


def has_nltk() -> bool:
    """Whether the package that Self-BLEU needs is installed."""
    return importlib.util.find_spec("nltk") is not None


def require_nltk(path: str) -> None:
    """Refuses Self-BLEU without that package."""
    if not has_nltk():
        raise ConfigError(f"{path}: 'nltk' is not installed; install advalign[diversity], or leave self_bleu at 0.")


def self_bleu(groups: Sequence[Sequence[str]], *, order: int = 4) -> float:
    """Mean BLEU of a text with all others of its group as references   (Texygen, arXiv:1802.01886, section 3.2): 1 when all are the same.

    BLEU is nltk's, of white-space words, n-grams up to `order` equally weighted, smoothed by its method 1 as Texygen's; 0 without a
    common word. Differences: references are the other responses to the same PROMPT, since texts for different prompts should
    differ; and a text shorter than `order` words is measured up to its length, or it would never be 1.
    Groups of one text and empty texts are left out; nan where nothing is left.
    """
    require_nltk("diversity.self_bleu")
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    values = []
    for group in groups:
        words = [text.split() for text in group]
        for i, text in enumerate(words):
            others, n = words[:i] + words[i + 1 :], min(order, len(text))
            if others and n:
                values.append(sentence_bleu(others, text, weights=[1 / n] * n, smoothing_function=smooth))
    return sum(values) / len(values) if values else math.nan


def ngrams(texts: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """The distinct n-grams of words of all texts; a text of fewer than n words is one gram by itself."""
    distinct: set[tuple[str, ...]] = set()
    for words in map(str.split, texts):
        distinct |= {tuple(words[i : i + n]) for i in range(max(len(words) - n, 0) + 1)}
    return distinct


def coverage(texts: Sequence[str], references: Sequence[str], *, n: int = 2) -> float:
    """Fraction of the references' distinct n-grams of words that occur in some text: what the policy never says is missing.

    For references of fewer than n words it is the fraction that some text equals. It grows with the number of samples.
    """
    reference_ngrams = ngrams(references, n)
    return len(reference_ngrams & ngrams(texts, n)) / len(reference_ngrams)


def group_diversity(groups: Sequence[RolloutGroup], *, references: Sequence[str] | None = None, order: int = 0) -> dict[str, float]:
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
    network: Network,
    examples: Sequence[Example],
    temperatures: Sequence[float] = TEMPERATURES,
    samples: int = 8,
    *,
    sampling: Sampling | None = None,
    quality: Quality | None = None,
    order: int = 0,
    seed: int = 0,
    engine: RolloutEngine | None = None,
) -> list[dict[str, float]]:
    """One row per temperature of what `engine` (by default: this process) samples from `network`: `temperature`, `quality` (mean over
    the responses that can be judged), the numbers of `group_diversity`, and `length` in tokens.

    `quality` is a started reward: a score per response, nan abstains; default: 1 where the answer verifies. All temperatures share one
    random stream and all other options of `sampling`.
    """
    if not temperatures or min(temperatures) < 0 or samples < 2:
        raise ConfigError(f"quality_diversity: {samples} samples at temperatures {list(temperatures)}; give at least 2, and none below 0.")
    if order:
        require_nltk("quality_diversity.order")
    score: Quality = quality or ExactAnswer().start(None)  # type: ignore[arg-type, assignment]
    rows = []
    for temperature in temperatures:
        generator = torch.Generator().manual_seed(seed)
        options = replace(sampling or Sampling(), temperature=float(temperature))
        groups = (engine or HF()).generate(network, examples, samples, options, generator)  # type: ignore[arg-type]  # None: an engine of texts
        scores = [s for s in map(float, score(groups)) if not math.isnan(s)]
        lengths = [len(r.response_ids) for g in groups for r in g.rollouts]
        rows.append(
            {"temperature": float(temperature), "quality": sum(scores) / len(scores) if scores else math.nan}
            | group_diversity(groups, order=order)
            | {"length": sum(lengths) / len(lengths)}
        )
    return rows


__all__ = ["coverage", "group_diversity", "has_nltk", "ngrams", "quality_diversity", "require_nltk", "self_bleu"]
