"""Rows of tensors: what objectives read. Right padded; index t is about token t."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Rows:
    """Abstract: a dataclass of tensors whose first axis is the row, of other such containers, and of tensors by name."""

    def index(self, rows: Int[Tensor, "N"]) -> Self:
        """The rows with these numbers, in that order."""
        return self.map_tensors(lambda x: x[rows])

    def to(self, device: torch.device | str) -> Self:
        """The same rows on another device."""
        return self.map_tensors(lambda x: x.to(device))

    def map_tensors(self, f: Callable[[Tensor], Tensor]) -> Self:
        """The same container with `f` of every tensor."""
        new: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                new[item.name] = f(value)
            elif isinstance(value, Rows):
                new[item.name] = value.map_tensors(f)
            elif isinstance(value, Mapping):
                new[item.name] = {name: f(x) for name, x in value.items()}
        return replace(self, **new)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class Tokens(Rows):
    """Token ids of some rows, right padded, and what each token is."""

    ids: Int[Tensor, "B T"]
    """Token ids; padding behind the real tokens."""
    mask: Bool[Tensor, "B T"]
    """Real tokens."""
    target: Bool[Tensor, "B T"]
    """Tokens that a loss may train on; False at 0."""
    group: Int[Tensor, "B"]
    """Rows of one prompt share a number."""
    key: Int[Tensor, "B"]
    """The row's number in its update, the same however the update is split; random starts are keyed by it."""
    role: Int[Tensor, "B T"] | None = None
    """Who wrote the token: index into `messages.ROLES`; -1: the chat template, or nobody. None: not known."""
    turn: Int[Tensor, "B T"] | None = None
    """The number of the message that the token belongs to; -1: none. None: not known."""
    token_types: Int[Tensor, "B T"] | None = None
    """The segment of the token, as the tokenizer gave it; 0 at padding. None: the tokenizer gives none."""

    @property
    def lengths(self) -> Int[Tensor, "B"]:
        """Real tokens per row."""
        return self.mask.sum(1)

    def fit(self, width: int) -> Tokens:
        """Crop or right-pad to `width` columns; cropped columns must be padding."""
        columns = {name: fit(getattr(self, name), width) for name in ("ids", "mask", "target")}
        more = {name: fit(x + 1, width) - 1 for name, x in (("role", self.role), ("turn", self.turn)) if x is not None}
        more |= {} if self.token_types is None else {"token_types": fit(self.token_types, width)}
        return replace(self, **columns, **more)

    def moved(self, source: Int[Tensor, "B T2"], *, ids: Int[Tensor, "B T2"], mask: Bool[Tensor, "B T2"], target: Tensor) -> Tokens:
        """Rows of other tokens, of which token t belongs where token `source[b, t]` of these rows belongs (-1: to nobody)."""
        columns = (("role", self.role), ("turn", self.turn))
        more = {k: x.gather(1, source.clamp(min=0)).masked_fill(source < 0, -1) for k, x in columns if x is not None}
        if self.token_types is not None:
            more["token_types"] = self.token_types.gather(1, source.clamp(min=0)) * mask
        return replace(self, ids=ids, mask=mask, target=target, **more)


def fit(x: Tensor, width: int) -> Tensor:
    """Crop or zero-pad the second axis of `x` ("B T ...") to `width`."""
    if x.shape[1] >= width:
        return x[:, :width]
    return torch.cat([x, x.new_zeros(x.shape[0], width - x.shape[1], *x.shape[2:])], 1)


@dataclass(frozen=True, kw_only=True)
class TokenRows(Rows):
    """Abstract: the rows of a source, as the learners' objectives read them."""

    tokens: Tokens
    """Prompt and response (or text), and which tokens are targets."""

    @property
    def softmax_temperature(self) -> float:
        """What the logits are divided by before log-probabilities are taken: the sampling temperature, and 1 for greedy sampling."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class DemoRows(TokenRows):
    """Demonstrations: their target tokens are to be imitated."""


@dataclass(frozen=True, kw_only=True)
class PairRows(TokenRows):
    """Preference pairs: rows 2i are chosen, rows 2i + 1 rejected, of one prompt."""

    ref_logprobs: Float[Tensor, "B T"] | None = None
    """Annotation: log-probabilities under the reference."""
    margin: Float[Tensor, "B"] | None = None
    """By how much the chosen response is better, where the data says so; both rows of a pair carry it."""


@dataclass(frozen=True, kw_only=True)
class FeedbackRows(TokenRows):
    """Single responses, each desirable or not."""

    desirable: Bool[Tensor, "B"]
    """Whether the response is desirable."""
    mismatched: Tokens | None = None
    """The prompt of every row with another row's response; dropped once `anchor` is computed from it."""
    ref_logprobs: Float[Tensor, "B T"] | None = None
    """Annotation: log-probabilities under the reference."""
    anchor: Float[Tensor, "B"] | None = None
    """Annotation: KTO's z0, one number per draw, carried by every row."""


@dataclass(frozen=True, kw_only=True)
class LabelRows(TokenRows):
    """Labelled texts, for classifiers and discriminators."""

    KINDS: ClassVar[tuple[str, ...]] = ("real", "perturbed", "generated", "corrupted")
    """Of rows for a discriminator."""

    labels: Int[Tensor, "B"]
    """Class index; for discriminators 1 = real, 0 = not."""
    kind: Int[Tensor, "B"] | None = None
    """For discriminators: index into KINDS."""
    offset: Float[Tensor, "B"] | None = None
    """What is subtracted from a score before the loss (AIRL: log-probability of the text under the policy)."""


@dataclass(frozen=True, kw_only=True)
class RolloutRows(TokenRows):
    """One row per sampled response. A column that no objective and no advantage reads is None."""

    rewards: Float[Tensor, "B R"]
    """One column per reward, times its weight; 0 where it abstained."""
    advantages: Float[Tensor, "B T"]
    """What the source's advantage makes of the rewards; zero off target."""
    sampler_logprobs: Float[Tensor, "B T"]
    """Log-probabilities under the engine that sampled the tokens; nan where they are not known."""
    finished: Bool[Tensor, "B"]
    """Whether the response ended by itself, and not by the length limit."""
    old_logprobs: Float[Tensor, "B T"] | None = None
    """Annotation: log-probabilities under the policy when the draw was made. None: one update per draw, so the ratio is exactly 1."""
    current_logprobs: Float[Tensor, "B T"] | None = None
    """Annotation: log-probabilities under the learner's weights before the update. None: those of `old_logprobs`."""
    ref_logprobs: Float[Tensor, "B T"] | None = None
    """Annotation: log-probabilities under the reference."""
    old_entropy: Float[Tensor, "B T"] | None = None
    """Annotation: entropy of the policy when the draw was made."""
    values: Float[Tensor, "B T"] | None = None
    """Annotation: the critic's V(ids[<t]) when the draw was made."""
    returns: Float[Tensor, "B T"] | None = None
    """What a critic learns to predict; from the advantage."""
    token_rewards: Float[Tensor, "B T"] | None = None
    """Rewards given token by token, on their tokens."""
    offpolicy: Bool[Tensor, "B"] | None = None
    """Demonstrations inside groups, which the policy did not sample. None: there are none."""
    scored: Bool[Tensor, "B R"] | None = None
    """Which rewards did not abstain. None: no reward abstained on a row."""
    baseline: Float[Tensor, "B"] | None = None
    """The reward of the greedy response to the row's prompt."""
    penalty: Float[Tensor, "B"] | None = None
    """The KL penalty of the response, apart from its rewards; for advantages that normalise every reward by itself."""
    roles: Int[Tensor, "B"] | None = None
    """Which side of a game wrote the row. None: role 0 everywhere."""
    temperature: float = 1.0
    """At which the responses were sampled."""

    @property
    def softmax_temperature(self) -> float:
        return self.temperature or 1.0
