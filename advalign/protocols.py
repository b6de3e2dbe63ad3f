"""The seams. Each is satisfied by one new file in the room of its name."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from advalign.errors import ConfigError
from advalign.types import (
    Budget,
    Edit,
    Example,
    Losses,
    Outputs,
    Proposal,
    RolloutGroup,
    RolloutRows,
    Rows,
    Sampling,
    ThreatModel,
    Tokens,
    Weights,
)

# ---------------------------------------------------------------------------------------------- objectives


@dataclass(frozen=True, kw_only=True)
class Term:
    """Abstract base of every objective: one line of `loss = sum_k coef_k objective_k(source_k | view_k)`.

    `rows` is the container class the objective reads; the planner refuses a source that yields another.
    `annotations` are per-draw columns it needs on those rows (old_logprobs, ref_logprobs, old_entropy, values).
    """

    source: str
    view: str = "clean"
    learner: str = "policy"
    coef: float = 1.0

    rows: ClassVar[tuple[type[Rows], ...]] = ()
    annotations: ClassVar[frozenset[str]] = frozenset()
    # An objective may have a field `every`: it is active in every so many steps only, and multiplies its weights by it.

    @property
    def columns(self) -> frozenset[str]:
        """The annotations this object needs: those of its class, and those of its options."""
        return self.annotations

    @property
    def exact_old(self) -> bool:
        """Whether old_logprobs are read even where they equal the present ones (one update per draw)."""
        return False

    @property
    def bundle(self) -> str:
        """What must not be split over micro-batches: "row" (pairs always stay together), or "group"."""
        return "row"

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        """{view: names of the Outputs fields this objective reads there}."""
        raise NotImplementedError

    def weights(self, rows: Any) -> Weights:
        """Weights of the unreduced losses over the rows of a WHOLE update; no model is needed for them."""
        raise NotImplementedError

    def losses(self, rows: Any, views: Mapping[str, Outputs]) -> Losses:
        """Unreduced losses of some rows, first axis rows (or pairs)."""
        raise NotImplementedError


# --------------------------------------------------------------------------------------------- adversaries


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What an inner loop is given to stand on. N deltas (rows, or groups that share one) for B rows.

    shapes {site: (T, D)} · allowed "N T": where a delta may be non-zero · radius: absolute, in the unit of the ball ·
    generators: one per delta, keyed by (seed, update, row, adversary), so that no result depends on the batch split ·
    tokens: the rows (of a group, its first) · names: the identity of each delta inside its update, as "train/12" ·
    key: the update, (seed, "update", learner, step, repeat, epoch, minibatch) · memory: what this adversary keeps between
    updates, saved with the run (tensors, numbers, and dictionaries of those by string) · network: the model itself.
    """

    shapes: Mapping[str, tuple[int, int]]
    allowed: Bool[Tensor, "N T"]
    radius: float
    dtype: torch.dtype
    generators: Sequence[torch.Generator]
    tokens: Tokens | None = None
    names: tuple[str, ...] = ()
    key: tuple[Any, ...] = ()
    memory: dict[str, Any] = field(default_factory=dict)
    network: Any = None


@dataclass(frozen=True, kw_only=True)
class Perturber:
    """Abstract base of every adversary: its threat model as flat fields (see `ThreatModel`), and how it is trained on.

    inner: an objective to ascend instead of the terms on this view. dropout: "off" (ascent and final pass without
    dropout), "sync" (the same masks in all of them) or "fresh". probability: a row is attacked with it, else left as it is.
    special: False keeps special tokens as they are.
    """

    radius: float
    ball: str = "L2"
    sites: tuple[str, ...] = ("embedding",)
    relative_to: str = "mean_embedding_norm"
    scope: str = "token"
    where: str = "all"
    share: str = "row"
    special: bool = True
    probability: float = 1.0
    dropout: str = "off"
    inner: Term | None = None

    @property
    def threat(self) -> ThreatModel:
        names = ("radius", "ball", "sites", "relative_to", "scope", "where", "share", "special")
        return ThreatModel(**{name: getattr(self, name) for name in names})


@runtime_checkable
class Adversary(Protocol):
    """The engine owns the loop: `steps` times (`passes`, if it restarts) ask, forward, gradients, tell; then one last ask.
    Deltas are {site: "N T D"}; `losses` "N" are those of each delta at what was asked last.

    Two things are optional. With `accumulate = "every"` (FreeLB, FreeAT) every one of `passes` passes also trains: ask, forward,
    losses / passes, one backward for parameters and deltas together, tell; there is no pass after the last. With
    `settle(memory, all_reduce)` the engine calls it once per update, after the last micro-batch (a universal delta moves there).

    With several processes `keeps` says what its memory is of: "all" rows (then every process runs at least one row of the view), or
    single "rows"; of those `by_row(memory)`, {place ending in the row's name: {site: tensor}}, is united before `settle`.
    """

    steps: int
    dropout: str
    inner: Term | None

    @property
    def threat(self) -> ThreatModel: ...
    def start(self, ground: Ground) -> Any: ...
    def ask(self, state: Any) -> Mapping[str, Edit]: ...
    def tell(self, state: Any, losses: Float[Tensor, "N"], gradients: Mapping[str, Float[Tensor, "N T D"]]) -> Any: ...


# --------------------------------------------------------------------------------- rollouts and what they earn


class AdvantageEstimator(Protocol):
    """Rewards of a whole draw -> (advantages "B T", returns "B T" or None). Advantages are zero off target.

    `needs_values`: reads `rows.values`, so a critic must exist. An estimator may also declare `needs_baseline` (reads
    `rows.baseline`, the reward of the greedy response), `reads_token_rewards` (`rows.token_rewards`, else summed into the
    reward) and `compares` (one response per prompt teaches nothing); absent means False. With `initial_state() -> dict` (of
    floats, or of dictionaries of floats, by string) that dictionary is kept per source, handed in as `state`, updated in place
    and saved with the run; without, `state` is None. Off-policy rows take part in all statistics like any other row.
    `all_reduce` sums over ranks, and every rank calls it equally often; groups never cross a rank.
    """

    needs_values: ClassVar[bool]

    def __call__(
        self, rows: RolloutRows, state: Any, all_reduce: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]: ...


class Context(Protocol):
    """What a plugin's `start` may hold on to: the run, seen from a leaf."""

    seed: int

    def generator(self, *key: object) -> torch.Generator:
        """A generator whose stream is a function of the run's seed and the key alone."""

    def random(self, *key: object) -> random.Random:
        """The same, for host-side choices."""

    def source(self, name: str) -> Any:
        """The started runtime of another source."""

    def drawn(self, name: str) -> Any:
        """What another source yielded in the current step, or None."""

    def generate(self, learner: str, examples: Sequence[Example], n: int, sampling: Sampling, key: tuple) -> list[RolloutGroup]: ...

    def generate_later(
        self, learner: str, examples: Sequence[Example], n: int, sampling: Sampling, key: tuple
    ) -> Callable[[], list[RolloutGroup]]:
        """The same from a copy of the weights of now, in the background; what is returned waits for it."""

    # Wherever a learner is named below, a frozen copy may be: an averaged judge, a previous opponent.

    def over(self, items: Sequence[Any], work: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
        """`work(items)`, one plain value per item, shared among the processes of the run; `work` may not speak to them itself."""

    def encoder(self, learner: str) -> Any:
        """A learner's tokenizer and how it joins prompts and responses."""

    def version(self, learner: str) -> int:
        """How many updates a learner has made."""

    def score(self, learner: str, prompts: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> tuple[list[float], int]:
        """A scalar learner's scores of (prompt, text) pairs, without gradient, and the version that gave them."""

    def score_tokens(self, learner: str, groups: Sequence[RolloutGroup]) -> tuple[list[list[float]], int]:
        """Per rollout one score per response id, by a scorer with the sampler's tokenizer, and the version that gave them."""

    def logprobs(self, learner: str, prompts: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """log p(text | prompt) under a policy, summed over tokens, without gradient."""

    def target(self, learner: str) -> AbstractContextManager[Any]:
        """A learner's network as an attack of a suite sees it, with gradients of its inputs and a meter; only inside the `with`."""


class Reward(Protocol):
    """One score per rollout, groups in order, rollouts in order; nan abstains (the row leaves the batch and is counted).
    A score may be a list with one number per response id: rewards on tokens, which sum to the response's. Several processes share the
    groups among them, unless the class says `whole = True`: its scores are of the whole draw, and every process is given all of it."""

    weight: float

    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Sequence[float | Sequence[float]]]: ...


class RolloutEngine(Protocol):
    """Samples from a learner's network. `sync` tells it that the weights moved to `version`. Where a source works `ahead`, both
    are also called from another thread, with a copy of the network; an engine with a state of its own locks itself. `logs`, if it
    has them, are written to the log of every step as `rollout/<name>`. Optional, for several processes:
    `skip(generator, number, sampling)` leaves the random numbers of that many responses out."""

    def generate(
        self, learner: Any, examples: Sequence[Example], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]: ...
    def sync(self, network: Any, version: int) -> None: ...


# --------------------------------------------------------------------------------------- sources and tasks


class SourceRuntime(Protocol):
    """A started source. `items` are host-side (text and the sampler's ids); every learner builds its own rows of them."""

    def draw(self, step: int, repeat: int) -> Any:
        """Items of one draw, a function of (seed, step, repeat) and of the runtime's state."""

    def rows(self, items: Any, encoder: Any) -> Rows: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Source(Protocol):
    """`after`: names of sources that must have drawn first. `yields`: the Rows class it builds."""

    yields: ClassVar[type[Rows]]

    @property
    def after(self) -> tuple[str, ...]: ...
    def start(self, context: Context, name: str) -> SourceRuntime: ...


class Task(Protocol):
    """Procedural problems with their own verifier. Splits: "train", "test" and "ood" never share a prompt."""

    def examples(self, split: str, number: int, rng: random.Random) -> list[Example]:
        """Up to `number` distinct examples, each carrying `verify`."""

    def demonstrate(self, example: Example, rng: random.Random) -> str:
        """A response that `verify` scores 1."""

    def perturb(self, example: Example, text: str, rng: random.Random) -> Example:
        """A near example, of the same task, that `text` (right for `example`) violates."""


# ------------------------------------------------------------------------------------------------- attacks


class Target(Protocol):
    """The victim, as an attack sees it. Every text or edit sent is counted; gradients are counted apart."""

    num_queries: int
    num_gradients: int

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Float[Tensor, "B C"]: ...


class Attack(Protocol):
    """Proposes; never decides its own success. access: "text" | "logprobs" | "gradients"."""

    access: ClassVar[str]

    def propose(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]: ...


# -------------------------------------------------------------------------------------------------- judges


@dataclass(frozen=True, kw_only=True)
class Assessor:
    """Abstract base of every judge of answers, with what is known of its own errors.

    sensitivity: P(it reads a violation | it is one); specificity: P(it reads none | there is none); labelled: how many violations and
    how many others these were measured on. They are carried into the intervals of a report; 1 and 1 claim a judge without error.
    """

    sensitivity: float = 1.0
    specificity: float = 1.0
    labelled: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        rates = (self.sensitivity, self.specificity)
        if not all(0 <= rate <= 1 for rate in rates) or sum(rates) <= 1:
            raise ConfigError(
                f"judge: sensitivity {rates[0]:g} and specificity {rates[1]:g} given; both are in [0, 1], and a judge whose two rates "
                "do not sum to more than 1 says nothing."
            )
        if self.labelled is not None and (len(self.labelled) != 2 or min(self.labelled) < 1):
            raise ConfigError(f"judge.labelled: {self.labelled} given; the number of labelled violations and of labelled others is needed.")

    def start(self) -> Callable[[Sequence[Example], Sequence[str]], Sequence[float]]:
        """What scores answers: 1 as it should be, 0 a violation, between them by degree, nan: it cannot tell."""
        raise NotImplementedError


class Callback(Protocol):
    def on_step(self, trainer: Any, logs: Mapping[str, float]) -> None: ...
    def on_evaluate(self, trainer: Any, logs: Mapping[str, float]) -> None: ...
    def on_save(self, trainer: Any, path: str) -> None: ...


__all__ = [
    "Adversary", "AdvantageEstimator", "Assessor", "Attack", "Callback", "Context", "Ground", "Int", "Perturber", "Reward",
    "RolloutEngine", "Source", "SourceRuntime", "Target", "Task", "Term",
]  # fmt: skip
