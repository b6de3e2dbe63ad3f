"""Containers. Axes: B rows, T tokens, V vocabulary, D hidden, C classes, R rewards, P pairs, G rollouts per prompt.

Index t is about token t: `logprobs[t] = log p(ids[t] | ids[<t])`, `values[t] = V(ids[<t])`. Rows are right padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
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
class DemoRows(Rows):
    tokens: Tokens


@dataclass(frozen=True, kw_only=True)
class PairRows(Rows):
    """Rows 2i are chosen, rows 2i + 1 rejected, of one prompt. `ref_logprobs`: annotation. `margin`: by how much the
    chosen response is better, where the data says so; both rows of a pair carry it."""

    tokens: Tokens
    ref_logprobs: Float[Tensor, "B T"] | None = None
    margin: Float[Tensor, "B"] | None = None


@dataclass(frozen=True, kw_only=True)
class FeedbackRows(Rows):
    """Single responses, each desirable or not. `mismatched`: the prompt of every row with another row's response; from
    them the annotation `anchor` (KTO's z0, one number per draw, carried by every row) is computed, then they are dropped."""

    tokens: Tokens
    desirable: Bool[Tensor, "B"]
    mismatched: Tokens | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    anchor: Float[Tensor, "B"] | None = None


@dataclass(frozen=True, kw_only=True)
class LabelRows(Rows):
    """`labels`: class index, or for discriminators 1 = real, 0 = not. `kind` (discriminators): index into KINDS; `offset`: what is
    taken off a score before it is judged (AIRL: log-probability of the text under the policy)."""

    KINDS = ("real", "perturbed", "generated", "corrupted")

    tokens: Tokens
    labels: Int[Tensor, "B"]
    kind: Int[Tensor, "B"] | None = None
    offset: Float[Tensor, "B"] | None = None


@dataclass(frozen=True, kw_only=True)
class RolloutRows(Rows):
    """One row per sampled response. What is None was asked for by no objective.
    `old_logprobs` None means one update per draw: the ratio is exactly 1. `baseline`: the reward of the greedy response
    to the row's prompt. `roles`: which side of a game wrote the row; None is role 0 everywhere."""

    tokens: Tokens
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


@dataclass(frozen=True, kw_only=True)
class Outputs(Rows):
    """What one forward gave, only as far as an objective declared the need (the field names are the needs).
    `distribution`: hidden states that predict token t, and the head: two-view divergences are computed from them in
    chunks, so that no B x T x V tensor is stored. `hidden`: {site: "B T D"}, not shifted; the need "hidden:layer:3" asks for one.
    `token_scores[t]`: the score head at token t, not shifted, zero at padding. `score_gradients`: of each row's score with respect to
    the input embeddings it was computed from, edits included; part of the graph. `reader`: of a scorer that reads hidden states."""

    logprobs: Float[Tensor, "B T"] | None = None
    entropy: Float[Tensor, "B T"] | None = None
    values: Float[Tensor, "B T"] | None = None
    scores: Float[Tensor, "B"] | None = None
    token_scores: Float[Tensor, "B T"] | None = None
    score_gradients: Float[Tensor, "B T D"] | None = None
    class_logits: Float[Tensor, "B C"] | None = None
    distribution: Distribution | None = None
    hidden: Mapping[str, Float[Tensor, "B T D"]] | None = None
    reader: Reader | None = None

    def detach(self) -> Outputs:
        return self._each(lambda x: x.detach())

    def gather(self, origin: Int[Tensor, "B T0"]) -> Outputs:
        """Outputs of changed rows, back at the positions of the rows they stand for; zero at those that are gone (-1)."""

        def back(x: Tensor) -> Tensor:
            index, gone = origin.clamp(min=0), origin < 0
            wide = (slice(None), slice(None), *[None] * (x.ndim - 2))
            return x.gather(1, index[wide].expand(*index.shape, *x.shape[2:])).masked_fill(gone[wide], 0)

        columns = {n: getattr(self, n) for n in ("logprobs", "entropy", "values", "token_scores", "score_gradients")}
        new: dict[str, Any] = {n: back(x) for n, x in columns.items() if x is not None}
        if self.distribution is not None:
            new["distribution"] = replace(self.distribution, hidden=back(self.distribution.hidden))
        if self.hidden is not None:
            new["hidden"] = {site: back(x) for site, x in self.hidden.items()}
        return replace(self, **new)


@dataclass(frozen=True, kw_only=True)
class Distribution(Rows):
    """Next-token distributions, unexpanded. `hidden[b, t]` predicts token t; `head` maps "N D" to logits "N V"."""

    hidden: Float[Tensor, "B T D"]
    head: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Reader(Rows):
    """A network that reads another one's hidden states: `score(hidden "B T D", mask "B T") -> "B"`, with the gradients of both."""

    score: Callable[[Tensor, Tensor], Tensor]


NEEDS = tuple(f.name for f in fields(Outputs))


@dataclass(frozen=True)
class Weights:
    """loss = (values / global count * losses).sum(), the count taken over the whole update and all ranks."""

    values: Float[Tensor, "..."]
    count: Float[Tensor, ""]


@dataclass(frozen=True)
class Losses:
    """Unreduced losses, shaped as the weights; metrics are (values, weights) pairs, averaged over the whole update."""

    values: Float[Tensor, "..."]
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """Where an adversary may move, and how far. A radius is never bare: it has a ball, a scope and a unit.
    sites: "embedding" or "layer:k" (the output of block k). relative_to: "mean_embedding_norm" | "absolute".
    scope: one ball per "token" or per "row". where: "prompt" (real tokens that are no target) | "response" | "all".
    share: one delta per "row" or one per "group". special: whether special tokens may move."""

    radius: float
    ball: str = "L2"
    sites: tuple[str, ...] = ("embedding",)
    relative_to: str = "mean_embedding_norm"
    scope: str = "token"
    where: str = "all"
    share: str = "row"
    special: bool = True


@dataclass(frozen=True)
class Edit:
    """What an adversary does at a site. Hidden states h become h - (h . ablate) ablate at `where`, then h + add.

    add: zero wherever it may not act. ablate: a direction of norm 1. tokens (at "embedding" only): rows that are run INSTEAD,
    perhaps longer or shorter; `add` then has their width, and `origin[b, t]` says where position t of the row went (-1: gone).
    """

    add: Float[Tensor, "B T D"] | None = None
    tokens: Tokens | None = None
    origin: Int[Tensor, "B T0"] | None = None
    ablate: Float[Tensor, "D"] | None = None
    where: Bool[Tensor, "B T"] | None = None


# ------------------------------------------------------------------------------------------------ host side


@dataclass(frozen=True, kw_only=True)
class Example:
    """One thing to answer. `verify(text)` scores a response in [0, 1] where the example knows how."""

    prompt: str
    answer: str | None = None
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    verify: Callable[[str], float] | None = None
    label: int | None = None
    pair: str | None = None


@dataclass(kw_only=True)
class Rollout:
    """One sampled response: the sampler's own ids (never re-tokenised), their log-probabilities, their text. `rewards`: one number per
    reward; `token_rewards`: those that were given token by token, weighted and summed over rewards, one per id."""

    response_ids: list[int]
    sampler_logprobs: list[float]
    text: str
    finished: bool
    policy_version: int = 0
    rewards: list[float] = field(default_factory=list)
    reward_versions: list[int] = field(default_factory=list)
    offpolicy: bool = False
    token_rewards: list[float] | None = None


@dataclass(kw_only=True)
class RolloutGroup:
    """All rollouts of one prompt. `baseline`: the reward of its greedy response, where an estimator asked for it."""

    example: Example
    prompt_ids: list[int]
    rollouts: list[Rollout]
    baseline: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. temperature 0 is greedy."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an attack may spend or change per example; None is unlimited. `radius` in the attack's own threat model."""

    queries: int | None = None
    edits: float | None = None
    radius: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What an attack found: a text, or an edit of hidden states for the example's own text.

    attempts: several texts instead of one; the example is broken if any of them breaks it. forced: the beginning of the response
    that was put into a generator's mouth; what it adds is judged. queries: what the attack says it spent on this very example.
    refused: why it was not tried at all; such an example is in no rate, since it did not withstand anything.
    """

    text: str | None = None
    edits: Mapping[str, Tensor] | None = None
    note: str = ""
    attempts: tuple[str, ...] = ()
    forced: str | None = None
    queries: int | None = None
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """The harness's verdict. status: succeeded | failed | skipped (wrong before) | over_budget | undetermined (the judge could not
    tell) | error. Of `attempts` texts that were judged, `broken` broke the example; one attempt is the rule. `spent`: what of the
    target's meter fell on this example, queries apart; like seconds it depends on the batch, and is no part of the verdict."""

    example: str
    attack: str
    status: str
    attempts: int = 1
    broken: int = 0
    queries: int = 0
    seconds: float = 0.0
    distance: float = 0.0
    before: str = ""
    after: str = ""
    note: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
