"""Scores as rewards: their form and bounds, statistics of a draw, what length explains, and increases credited to tokens."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import gan
from advalign.interfaces import Reward
from advalign.ranges import OneOf, PositiveBound

FLOOR = 1e-4  # of a standard deviation, as that of groups
SENTENCE = re.compile(r"(?<![.!?…。！？])[.!?…。！？]++[\"')\]]*+(?=\s)|\n+")

# Names that need no quoting in YAML, for the formulas of `functional.gan`.
FORMS = {"logit": "logit", "neg_log_one_minus": "-log(1-D)", "log": "log D", "probability": "D", "airl": "logit"}
NORMALIZE = ("none", "batch", "running")
LENGTH = ("none", "residual")


@dataclass(frozen=True, kw_only=True)
class ShapedReward(Reward):
    """Abstract base: what is done to a score before it is a reward."""

    form: Annotated[str, OneOf(FORMS, "form")] = "logit"
    """logit, neg_log_one_minus, log, probability or airl."""
    clip: PositiveBound | None = None
    """Bound of the score's size before the form (papers: 10, or none). None: no bound."""
    soft_clip: PositiveBound | None = None
    """c of the smooth bound c tanh(score / c). None: no bound."""
    length: Annotated[str, OneOf(LENGTH, "length")] = "none"
    """residual: subtract what a straight line in log(1 + tokens), fitted to the draw, explains; the mean stays."""
    normalize: Annotated[str, OneOf(NORMALIZE, "normalize")] = "none"
    """To mean 0 and standard deviation 1, of the draw (batch) or of all draws so far (running)."""

    def __post_init__(self) -> None:
        if self.clip is not None and self.soft_clip is not None:
            raise ConfigError("rewards.discriminator.soft_clip: clip is given too; use one of them.")

    def shaped(self, scores: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Scores, bounded and in their form."""
        if self.clip is not None:
            scores = scores.clamp(-self.clip, self.clip)
        if self.soft_clip is not None:
            scores = self.soft_clip * torch.tanh(scores / self.soft_clip)
        return gan.reward(scores, form=FORMS[self.form])


class RunningStatistics:
    """Mean and standard deviation (n - 1) of all numbers added so far, by Chan's update; nan does not count."""

    def __init__(self) -> None:
        self.number, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, x: Float[Tensor, "N"]) -> None:
        x = x[~x.isnan()]
        if not len(x):
            return
        total, mean = self.number + len(x), float(x.mean())
        gap = mean - self.mean
        self.squares += float((x - mean).square().sum()) + gap**2 * self.number * len(x) / total
        self.mean += gap * len(x) / total
        self.number = total

    @property
    def std(self) -> float:
        return (self.squares / max(self.number - 1, 1)) ** 0.5

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.number, self.mean, self.squares = int(state["number"]), float(state["mean"]), float(state["squares"])


@dataclass(frozen=True, kw_only=True)
class Scale:
    """(y - slope (x - centre) - mean) factor: what a draw's statistics make of scores y, x the log lengths of the responses."""

    slope: float = 0.0
    """Trend of the scores in x."""
    centre: float = 0.0
    """Mean of x."""
    mean: float = 0.0
    """Mean of the scores."""
    factor: float = 1.0
    """One over their standard deviation."""

    @classmethod
    def without_trend(cls, y: Float[Tensor, "N"], x: Float[Tensor, "N"]) -> Scale:
        """slope is that of least squares, so that the result is uncorrelated with x and has y's mean. nan does not count."""
        scored = ~y.isnan()
        if not scored.any():
            return cls()
        centre = x[scored].mean()
        centred = x[scored] - centre
        spread = centred.square().sum()
        slope = (centred * (y[scored] - y[scored].mean())).sum() / spread if spread > 0 else torch.zeros_like(spread)
        return cls(slope=float(slope), centre=float(centre))

    def apply(self, y: Float[Tensor, "N"], x: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Scores on this scale; nan stays."""
        if self.slope:
            y = y - self.slope * (x - self.centre)
        return (y - self.mean) * self.factor


def segment_ends(text: str, segment: str | int) -> list[int]:
    """Where the segments of a text end, in characters; the last is the end of the text. A sentence ends behind its mark or
    at a line break, `segment` words behind the last of them."""
    if segment == "sentence":
        ends = [match.end() for match in SENTENCE.finditer(text)]
    else:
        ends = [match.end() for match in re.finditer(r"\S+", text)][int(segment) - 1 :: int(segment)]
    # White space alone is not a segment, neither between two others nor at the end.
    starts = [0, *ends]
    return [end for start, end in zip(starts, ends, strict=False) if text[start:end].strip() and text[end:].strip()] + [len(text)]


def last_tokens(ids: Sequence[int], ends: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """The index of the token that completes the first `end` characters, per end; the last token for the end of the text."""
    indices = [bisect_left(range(len(ids)), end, key=lambda t: len(decode(ids[: t + 1]))) for end in ends[:-1]]
    return [*(min(t, len(ids) - 1) for t in indices), len(ids) - 1]


def credit_increases(values: Sequence[float], tokens: Sequence[int], number: int) -> list[float]:
    """Each increase of `values`, from 0 on, at its token of `number`; they sum to the last value."""
    per_token, before = [0.0] * number, 0.0
    for value, t in zip(values, tokens, strict=True):
        per_token[t] += value - before
        before = value
    return per_token


def rescale(per_token: Sequence[float], total: float, scale: float) -> list[float]:
    """`per_token` times `scale`, with what is missing to `total` on the last token."""
    scaled = [scale * value for value in per_token[:-1]]
    return [*scaled, total - sum(scaled)]
