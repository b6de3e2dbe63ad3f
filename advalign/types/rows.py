"""Rows of tensors: what objectives read. Right padded; index t is about token t."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Rows:
    """Abstract: a dataclass of tensors whose first axis is the row, of other such containers, and of tensors by name."""

    def index(self, rows: Int[Tensor, "N"]) -> Self:
        """The rows named by `rows`, in that order."""
        return self._each(lambda x: x[rows])

    def to(self, device: torch.device | str) -> Self:
        return self._each(lambda x: x.to(device))

    def _each(self, f: Callable[[Tensor], Tensor]) -> Self:
        new: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                new[item.name] = f(value)
            elif isinstance(value, Rows):
                new[item.name] = value._each(f)
            elif isinstance(value, Mapping):
                new[item.name] = {name: f(x) for name, x in value.items()}
        return replace(self, **new)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class Tokens(Rows):
    """`target[b, t]`: a loss may train on token t (False at 0). `group`: rows of one prompt share a number.
    `key`: the row's number in its update, the same however the update is split; random starts are keyed by it."""

    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    target: Bool[Tensor, "B T"]
    group: Int[Tensor, "B"]
    key: Int[Tensor, "B"]

    @property
    def lengths(self) -> Int[Tensor, "B"]:
        return self.mask.sum(1)

    def fit(self, width: int) -> Tokens:
        """Crop or right-pad to `width` columns; cropped columns must be padding."""
        return replace(self, ids=fit(self.ids, width), mask=fit(self.mask, width), target=fit(self.target, width))


def fit(x: Tensor, width: int) -> Tensor:
    """Crop or zero-pad the second axis of `x` ("B T ...") to `width`."""
    if x.shape[1] >= width:
        return x[:, :width]
    return torch.cat([x, x.new_zeros(x.shape[0], width - x.shape[1], *x.shape[2:])], 1)


@dataclass(frozen=True, kw_only=True)
class TokenRows(Rows):
    """Abstract: the rows of a source, as the learners' objectives read them."""

    tokens: Tokens
    """The rows."""

    @property
    def softmax_temperature(self) -> float:
        """What the logits are divided by before log-probabilities are taken: the sampling temperature, and 1 for greedy sampling."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class DemoRows(TokenRows):
    """Prompts with the responses to imitate."""


@dataclass(frozen=True, kw_only=True)
class PairRows(TokenRows):
    """Rows 2i are chosen, rows 2i + 1 rejected, of one prompt. `ref_logprobs`: annotation. `margin`: by how much the
    chosen response is better, where the data says so; both rows of a pair carry it."""

    ref_logprobs: Float[Tensor, "B T"] | None = None
    margin: Float[Tensor, "B"] | None = None


@dataclass(frozen=True, kw_only=True)
class FeedbackRows(TokenRows):
    """Single responses, each desirable or not. `mismatched`: the prompt of every row with another row's response; from
    them the annotation `anchor` (KTO's z0, one number per draw, carried by every row) is computed, then they are dropped."""

    desirable: Bool[Tensor, "B"]
    mismatched: Tokens | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    anchor: Float[Tensor, "B"] | None = None


@dataclass(frozen=True, kw_only=True)
class LabelRows(TokenRows):
    """`labels`: class index, or for discriminators 1 = real, 0 = not. `kind` (discriminators): index into KINDS; `offset`: what is
    taken off a score before it is judged (AIRL: log-probability of the text under the policy)."""

    KINDS = ("real", "perturbed", "generated", "corrupted")

    labels: Int[Tensor, "B"]
    kind: Int[Tensor, "B"] | None = None
    offset: Float[Tensor, "B"] | None = None


@dataclass(frozen=True, kw_only=True)
class RolloutRows(TokenRows):
    """One row per sampled response. What is None was asked for by no objective.
    `old_logprobs` None means one update per draw: the ratio is exactly 1. `baseline`: the reward of the greedy response
    to the row's prompt. `roles`: which side of a game wrote the row; None is role 0 everywhere."""

    rewards: Float[Tensor, "B R"]
    advantages: Float[Tensor, "B T"]
    sampler_logprobs: Float[Tensor, "B T"]
    finished: Bool[Tensor, "B"]
    old_logprobs: Float[Tensor, "B T"] | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    old_entropy: Float[Tensor, "B T"] | None = None
    values: Float[Tensor, "B T"] | None = None
    returns: Float[Tensor, "B T"] | None = None
    token_rewards: Float[Tensor, "B T"] | None = None
    offpolicy: Bool[Tensor, "B"] | None = None
    baseline: Float[Tensor, "B"] | None = None
    roles: Int[Tensor, "B"] | None = None
    temperature: float = 1.0

    @property
    def softmax_temperature(self) -> float:
        return self.temperature or 1.0
