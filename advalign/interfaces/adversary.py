"""What an adversary declares, and what it is given. The engine owns the loop: ask, forward, gradients, tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.interfaces.objective import Objective
from advalign.types import Edit, ThreatModel, Tokens

State = TypeVar("State")

Memory = dict[str, Any]
"""What an adversary keeps between updates: tensors, numbers, and dictionaries of those by string; saved with the run."""


@dataclass(frozen=True, kw_only=True)
class PerturbationContext:
    """What an inner loop may use. N deltas (one per row, or per group that shares one) for B rows of T tokens."""

    shapes: Mapping[str, tuple[int, int]]
    """{site: (T, D)}"""
    allowed: Bool[Tensor, "N T"]
    """Positions where a delta may be non-zero."""
    radius: float
    """Absolute size of the ball, in the norm of the threat model."""
    dtype: torch.dtype
    """Of the deltas: at least float32."""
    generators: Sequence[torch.Generator]
    """One per delta, keyed by (seed, update, row, adversary), so that no result depends on the batch split."""
    tokens: Tokens | None = None
    """The rows; of a group, its first."""
    names: tuple[str, ...] = ()
    """The identity of each delta inside its update, as "train/12"."""
    key: tuple[Any, ...] = ()
    """The update: (seed, "update", learner, step, repeat, epoch, minibatch)."""
    memory: Memory = field(default_factory=dict)
    """What this adversary keeps between updates."""
    network: Any = None
    """The model itself."""


@dataclass(frozen=True, kw_only=True)
class Adversary(ABC, Generic[State]):
    """Abstract base of every adversary: its threat model as flat fields, and its half of the inner loop.

    `steps` times (`passes`, if it restarts) ask, forward, gradients of the deltas, tell; then one last ask. With
    `trains_every_pass` each of `passes` passes also trains: one backward for parameters and deltas together, tell; no pass follows.
    """

    radius: float
    """Size of the ball; unit: `relative_to`."""
    ball: str = "L2"
    """Norm of the ball: L2, Linf or L1."""
    sites: tuple[str, ...] = ("embedding",)
    """Where it moves: "embedding" or "layer:k", the output of block k (negative k from the end)."""
    relative_to: str = "mean_embedding_norm"
    """Unit of the radius: mean_embedding_norm (mean L2 norm of the rows of the embedding matrix) or absolute."""
    scope: str = "token"
    """One ball per token or per row."""
    where: str = "all"
    """Positions it may touch: prompt (real tokens that are no target), response (targets) or all."""
    share: str = "row"
    """One delta per row, or one per group of rollouts of one prompt."""
    special: bool = True
    """Whether special tokens move."""
    probability: float = 1.0
    """Probability that a row is attacked at all."""
    dropout: str = "off"
    """In ascent and final pass: off, sync (the same masks in all of them) or fresh."""
    inner: Objective | None = None
    """An objective to ascend instead of the objectives on this view."""
    steps: int = 0
    """Gradient steps of one inner loop."""

    family: ClassVar[str] = "continuous"
    """continuous (adds to hidden states), discrete (replaces tokens), or a name of its own for anything else."""
    trains_every_pass: ClassVar[bool] = False
    """Every pass of the loop also trains the parameters (FreeLB, FreeAT)."""

    @property
    def threat(self) -> ThreatModel:
        """The threat model: what the flat fields say together."""
        return ThreatModel(
            radius=self.radius,
            ball=self.ball,
            sites=self.sites,
            relative_to=self.relative_to,
            scope=self.scope,
            where=self.where,
            share=self.share,
            special=self.special,
        )

    @property
    def passes(self) -> int:
        """How often the engine asks in one inner loop, restarts among them."""
        return self.steps

    @property
    def starts_at_zero(self) -> bool:
        """Whether the first delta is zero, where a divergence has no gradient."""
        return False

    @property
    def memory_scope(self) -> str:
        """Of what `memory` is kept: none, rows (see `row_memory`) or global (every process then runs rows of the view)."""
        return "none"

    def describe(self) -> tuple[str, ...]:
        """Phrases for `advalign show` instead of ball and radius. Empty: ball and radius."""
        return ()

    @abstractmethod
    def start(self, context: PerturbationContext) -> State:
        """The state before the first pass."""

    @abstractmethod
    def ask(self, state: State) -> Mapping[str, Edit]:
        """{site: edit} of the next pass; additions are "N T D"."""

    @abstractmethod
    def tell(self, state: State, losses: Float[Tensor, "N"], gradients: Mapping[str, Float[Tensor, "N T D"]]) -> State:
        """The next state, given the loss of each delta at what was asked last and the gradients of the deltas."""

    def row_memory(self, memory: Memory) -> dict[str, Any]:
        """With memory_scope "rows": the part of `memory` kept by row, {place ending in the row's name: {site: tensor}}."""
        return {}

    def end_update(self, memory: Memory, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Called once per update, after the last micro-batch (a universal delta moves here)."""
