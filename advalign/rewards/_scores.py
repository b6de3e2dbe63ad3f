"""Scores as rewards: their form and bounds, statistics of a draw, what length explains, and increases credited to tokens."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError, unknown
from advalign.functional import gan
from advalign.interfaces import Reward

FLOOR = 1e-4  # of a standard deviation, as that of groups
SENTENCE = re.compile(r"[.!?…。！？]+[\"')\]]*(?=\s)|\n+")


# Names that need no quoting in YAML, for the formulas of `functional.gan`.
FORMS = {"logit": "logit", "neg_log_one_minus": "-log(1-D)", "log": "log D", "probability": "D", "airl": "logit"}
NORMALIZE = ("none", "batch", "running")
LENGTH = ("none", "residual")


@dataclass(frozen=True, kw_only=True)
class Shaped(Reward):
    """Abstract: what is done to a score before it is a reward."""

    form: str = "logit"
    clip: float | None = None
    soft_clip: float | None = None
    length: str = "none"
    normalize: str = "none"
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, known in {"form": FORMS, "length": LENGTH, "normalize": NORMALIZE}.items():
            if getattr(self, name) not in known:
                raise unknown(f"rewards.discriminator.{name}", name, getattr(self, name), known)
        for name in ("clip", "soft_clip"):
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise ConfigError(f"rewards.discriminator.{name}: {bound} is not above 0; use null for no clipping.")
        if self.clip is not None and self.soft_clip is not None:
            raise ConfigError("rewards.discriminator.soft_clip: clip is given too; use one of them.")

    def shaped(self, scores: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Scores, bounded and in their form."""
        if self.clip is not None:
            scores = scores.clamp(-self.clip, self.clip)
        if self.soft_clip is not None:
            scores = self.soft_clip * torch.tanh(scores / self.soft_clip)
        return gan.reward(scores, form=FORMS[self.form])


class Running:
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


def residual(y: Float[Tensor, "N"], x: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """y - b (x - mean x), b the least-squares slope: uncorrelated with x, of the same mean. nan stays, and does not count."""
    judged = ~y.isnan()
    if not judged.any():
        return y
    centred = x - x[judged].mean()
    spread = centred[judged].square().sum()
    slope = (centred[judged] * (y[judged] - y[judged].mean())).sum() / spread if spread > 0 else torch.zeros_like(spread)
    return y - slope * centred


def ends(text: str, segment: str | int) -> list[int]:
    """Where the segments of a text end, as numbers of characters; the last is the end of the text. A sentence ends behind its mark or
    at a line break, `segment` words behind the last of them."""
    if segment == "sentence":
        found = [match.end() for match in SENTENCE.finditer(text)]
    else:
        found = [match.end() for match in re.finditer(r"\S+", text)][int(segment) - 1 :: int(segment)]
    # White space alone is no segment, neither between two others nor at the end.
    starts = [0, *found]
    return [end for start, end in zip(starts, found, strict=False) if text[start:end].strip() and text[end:].strip()] + [len(text)]


def last_tokens(ids: Sequence[int], stops: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """The index of the token that completes each of the first so many characters; the last of all for the end of the text."""
    length = [bisect_left(range(len(ids)), stop, key=lambda t: len(decode(ids[: t + 1]))) for stop in stops[:-1]]
    return [*(min(t, len(ids) - 1) for t in length), len(ids) - 1]


def credited(values: Sequence[float], where: Sequence[int], number: int) -> list[float]:
    """Each increase of `values`, from 0 on, at its token; they sum to the last value."""
    each, before = [0.0] * number, 0.0
    for value, t in zip(values, where, strict=True):
        each[t] += value - before
        before = value
    return each


def moved(each: Sequence[float], total: float, scale: float) -> list[float]:
    """`each` times `scale`, with what is missing to `total` on the last token."""
    scaled = [scale * value for value in each[:-1]]
    return [*scaled, total - sum(scaled)]
