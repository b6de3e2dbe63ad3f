"""What an adversary declares, what it is given, and the inner loop that training and attacks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.checked import Checked
from advalign.interfaces.objective import Objective
from advalign.models import Network
from advalign.ranges import Fraction, Natural, NonNegative, OneOf
from advalign.types import Ball, Edit, Place, Scope, Share, Sites, ThreatModel, Tokens, Unit

DROPOUTS = ("off", "sync", "fresh")

State = TypeVar("State")

Memory = dict[str, Any]
"""What an adversary keeps between updates: tensors, numbers, and dictionaries of those by string; saved with the run."""


@dataclass(frozen=True, kw_only=True)
class PerturbationContext:
    """What an adversary may use in one inner loop. N deltas (one per row, or one per group) for rows of T tokens."""

    shapes: Mapping[str, tuple[int, int]]
    """{site: (T, D)}"""
    allowed: Bool[Tensor, "N T"]
    """Positions where a delta may be non-zero; T may change from step to step."""
    radius: float
    """Radius of the ball in hidden states, in the norm of the threat model."""
    dtype: torch.dtype
    """Precision of the hidden states; deltas have at least float32."""
    generators: Sequence[torch.Generator]
    """One per delta, keyed by (seed, update, row, adversary), so that no result depends on the split into micro-batches."""
    unit: float = 1.0
    """Length in hidden states of a configured length of 1: the mean embedding norm, or 1 where lengths are absolute."""
    tokens: Tokens | None = None
    """The N rows; of a group that shares a delta, its first row."""
    names: tuple[str, ...] = ()
    """Name of each delta within its update, as "train/12": 12 is the row's position in the draw. Another step puts another example there,
    so memory by name is for repeats of the same draw."""
    key: tuple[Any, ...] = ()
    """Name of the update: (seed, "update", learner, step, repeat, epoch, minibatch)."""
    memory: Memory = field(default_factory=dict)
    """What this adversary keeps between updates."""
    network: Network | None = None
    """The network under attack."""


@dataclass(frozen=True, kw_only=True)
class Adversary(Checked, ABC, Generic[State], section="adversaries"):
    """Abstract base of every adversary: its threat model as flat fields, and its half of the inner loop.

    The inner loop (`maximise`) runs `passes` times ask, forward, gradients of the deltas, tell; then asks once more for the final edits.
    With `trains_every_pass`, each of the `passes` passes also trains: one backward computes the gradients of parameters and deltas.
    """

    radius: NonNegative
    """Radius of the ball, in the unit `relative_to`."""
    ball: Ball = "L2"
    """Norm of the ball: L2, Linf or L1."""
    sites: Sites = ("embedding",)
    """What it perturbs: "embedding" or "layer:k", the output of block k (negative k from the end)."""
    relative_to: Unit = "mean_embedding_norm"
    """Unit of the radius: mean_embedding_norm (mean L2 norm of the rows of the embedding matrix) or absolute."""
    scope: Scope = "token"
    """One ball per token or per row."""
    where: Place = "all"
    """Positions it may perturb: prompt (real tokens that are not targets), response (targets), all, or the contents of messages: system,
    user, last_user (the last turn of the user), assistant or tool."""
    share: Share = "row"
    """One delta per row, or one per group of rollouts of one prompt."""
    special: bool = True
    """Whether special tokens may be perturbed."""
    probability: Fraction = 1.0
    """Probability that a row is attacked."""
    dropout: Annotated[str, OneOf(DROPOUTS, "dropout policy")] = "off"
    """Dropout in the inner loop and the final forward: off, sync (the same masks in all passes) or fresh."""
    inner: Objective | None = None
    """Objective to ascend instead of the objectives on this view."""
    steps: Natural = 0
    """Gradient steps of one inner loop (of one restart)."""

    family: ClassVar[str] = "continuous"
    """continuous (adds to hidden states), discrete (replaces tokens), or a name of its own for anything else."""
    trains_every_pass: ClassVar[bool] = False
    """Whether every pass of the inner loop also trains the parameters (FreeLB, FreeAT)."""

    @property
    def threat(self) -> ThreatModel:
        """The threat model that the flat fields describe."""
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
        """Gradient passes of one inner loop, over all restarts."""
        return self.steps

    @property
    def starts_at_zero(self) -> bool:
        """Whether the first delta is zero, where a divergence has no gradient."""
        return False

    @property
    def removes_targets(self) -> bool:
        """Whether tokens that are targets may be gone after its edit (`Edit.origin` -1); `start` must then decide which, for each row
        by its own generator."""
        return False

    @property
    def memory_scope(self) -> str:
        """What `memory` is kept for: none, rows (see `row_memory`) or global (then every process runs rows of the view)."""
        return "none"

    def describe(self) -> tuple[str, ...]:
        """Phrases that `advalign show` prints instead of ball and radius; empty: ball and radius."""
        return ()

    @abstractmethod
    def start(self, context: PerturbationContext) -> State:
        """The state before the first pass."""

    @abstractmethod
    def ask(self, state: State) -> Mapping[str, Edit]:
        """{site: edit} of the next pass; additions are "N T D"."""

    @abstractmethod
    def tell(self, state: State, losses: Float[Tensor, "N"], gradients: Mapping[str, Float[Tensor, "N T D"]]) -> State:
        """The next state, given the loss of each delta "N" under the last edits and {site: gradient "N T D"}, undefined off `allowed`."""

    def row_memory(self, memory: Memory) -> dict[str, Any]:
        """With memory_scope "rows": the part of `memory` that is kept by row, {key that ends in the row's name: {site: tensor}}."""
        return {}

    def end_update(self, memory: Memory, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Called once per update, after its last micro-batch (a universal delta takes its step here)."""


def maximise(
    adversary: Adversary[State],
    context: PerturbationContext,
    evaluate: Callable[[Mapping[str, Edit]], tuple[Tensor, Mapping[str, Tensor]] | None],
) -> Mapping[str, Edit] | None:
    """The inner loop: `passes` times ask, evaluate, tell. Returns the final edits.

    `evaluate(edits)` returns the loss of each delta and the gradients of the deltas, or None when its budget is spent; the loop then
    stops and returns None.
    """
    state = adversary.start(context)
    for _ in range(adversary.passes):
        feedback = evaluate(adversary.ask(state))
        if feedback is None:
            return None
        state = adversary.tell(state, *feedback)
    return adversary.ask(state)
