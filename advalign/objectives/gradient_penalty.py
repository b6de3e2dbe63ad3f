"""A bound on how fast a discriminator's score s may change with what it reads: g = ds / d(input embeddings), over a row's real tokens.

target 0:    ||g||^2 / 2, so coef is gamma                      (R1 on real rows, R2 on others: arXiv:1801.04406, eq. 9)
target c:    (||g|| - c)^2                                      (WGAN-GP, arXiv:1704.00028, eq. 3, with c = 1 on interpolated rows)
one_sided:   max(0, ||g|| - c)^2                                (WGAN-LP, arXiv:1709.08894)
every k:     in every k-th step, times k                        (lazy, arXiv:1912.04958, section 3.1, with k = 16)

Differences: images are replaced by embeddings, which train; the penalty's whole gradient is taken, also through them. The norm is over
all real tokens of the row, prompt included, and grows with the length of a row whose every token matters. The unit is score per embedding
length, so gamma and c belong to a model. On view `interpolate` (or any adversary's) it is g at the edited embeddings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import gan, weights
from advalign.interfaces import Objective
from advalign.names import LearnerName
from advalign.ranges import Count, NonNegative, OneOf
from advalign.types import LabelRows, Losses, Outputs, Rows, Weights

__all__ = ["GradientPenalty"]

ROWS = ("real", "other", "all")


@dataclass(frozen=True, kw_only=True)
class GradientPenalty(Objective[LabelRows]):
    """R1: ||ds / de||^2 / 2 on real rows; with a target c (||ds / de|| - c)^2."""

    learner: LearnerName = "discriminator"
    """Name of the discriminator."""
    rows: Annotated[str, OneOf(ROWS, "kind of rows")] = "real"
    """Whose gradients are penalised: real, other or all."""
    target: NonNegative = 0.0
    """c, the norm that is not penalised, in score per unit of embedding."""
    one_sided: bool = False
    """Penalise only norms above the target."""
    every: Count = 16
    """k: active in every k-th step, with k times its loss."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"input_gradient_norm"})
    row_types: ClassVar[tuple[type[Rows], ...]] = (LabelRows,)

    def __post_init__(self) -> None:
        if self.one_sided and not self.target:
            raise ConfigError("objectives.gradient_penalty.one_sided: a norm is never below a target of 0; give a target, such as 1.")

    @property
    def interval(self) -> int:
        return self.every

    @property
    def bundle(self) -> str:
        """A group on an attacked view: its adversary may read the other rows of a group (`interpolate`)."""
        return "row" if self.view == "clean" else "group"

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"score_gradients"})}

    def weights(self, rows: LabelRows) -> Weights:
        return weights.rows(self._counted(rows))

    def losses(self, rows: LabelRows, views: Mapping[str, Outputs]) -> Losses:
        input_gradients = views[self.view].score_gradients
        assert input_gradients is not None
        squares = gan.squared_norms(input_gradients, rows.tokens.mask)
        values = gan.gradient_penalty(squares, target=self.target, one_sided=self.one_sided)
        weight = self._counted(rows).to(squares.dtype)
        return Losses(self.every * values, {"input_gradient_norm": (squares.detach().sqrt(), weight)})

    def _counted(self, rows: LabelRows) -> Bool[Tensor, "B"]:
        chosen = {"real": rows.labels == 1, "other": rows.labels != 1, "all": torch.ones_like(rows.labels, dtype=torch.bool)}[self.rows]
        return chosen & rows.tokens.mask.any(1)
