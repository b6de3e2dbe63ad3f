"""What an objective declares: one line of `loss = sum_k coef_k objective_k(source_k | view_k)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from advalign.checked import Checked
from advalign.names import LearnerName, SourceName, ViewName
from advalign.ranges import Finite
from advalign.types import Losses, Outputs, Rows, Weights

RowsRead = TypeVar("RowsRead", bound=Rows)
"""The row containers that an objective reads, such as `Objective[DemoRows | RolloutRows]`."""


@dataclass(frozen=True, kw_only=True)
class Objective(Checked, ABC, Generic[RowsRead], section="objectives"):
    """Abstract base of every objective. It does not know whether its view was attacked, and it never averages."""

    source: SourceName
    """Name of the source whose rows it reads."""
    view: ViewName = "clean"
    """How the model is run on them: `clean`, or the name of an adversary or of a frozen copy."""
    learner: LearnerName = "policy"
    """Name of the learner whose loss it is a summand of."""
    coef: Finite = 1.0
    """What its loss is multiplied by; 0 switches it off."""

    row_types: ClassVar[tuple[type[Rows], ...]] = ()
    """Row containers it reads; a source that builds another one is refused. Empty: any."""
    annotations: ClassVar[frozenset[str]] = frozenset()
    """Columns that it reads and that are computed once per draw: old_logprobs, old_entropy, ref_logprobs, values, anchor; or before every
    update: current_logprobs."""
    metric_names: ClassVar[frozenset[str] | None] = None
    """Metrics that `losses` may report, so that a run that waits for another one is refused; None: not known before the first step."""
    first_pass_metrics: ClassVar[frozenset[str]] = frozenset()
    """Metrics, by what stands before their first slash, that a step logs of rows before it has trained on them: of the first of several
    `updates` and `epochs` alone."""
    is_divergence: ClassVar[bool] = False
    """Compares its view with another view of the same rows, so its gradient is zero at a zero edit."""

    @property
    def columns(self) -> frozenset[str]:
        """The annotations this object needs: those of its class, and those of its options."""
        return self.annotations

    @property
    def compares_logprobs(self) -> bool:
        """Whether its losses compare the current policy with log-probabilities that were taken without dropout, so that by default the
        update of its learner has none (`engine/dropout.py`)."""
        return bool(self.columns & {"old_logprobs", "ref_logprobs"})

    @property
    def interval(self) -> int:
        """It is active in every `interval`-th step of a stage, and multiplies its own losses by that number."""
        return 1

    @property
    def exact_old(self) -> bool:
        """Whether old_logprobs are read even where they equal the current ones (one update per draw)."""
        return False

    @property
    def assumes_current_sampler(self) -> bool:
        """Whether rows sampled by older weights bias it: it weighs tokens by a ratio to the policy and leaves the sampler uncorrected."""
        return False

    @property
    def bundle(self) -> str:
        """What must not be split over micro-batches: "row" (pairs always stay together), or "group"."""
        return "row"

    @property
    @abstractmethod
    def reads(self) -> Mapping[str, frozenset[str]]:
        """{view: names of the `Outputs` fields it reads there}; "hidden:layer:3" names one site."""

    @abstractmethod
    def weights(self, rows: RowsRead) -> Weights:
        """Weights of the unreduced losses over the rows of a WHOLE update, computed without a model."""

    @abstractmethod
    def losses(self, rows: RowsRead, views: Mapping[str, Outputs]) -> Losses:
        """Unreduced losses of some rows, first axis rows (or pairs), in the shape of the weights."""
