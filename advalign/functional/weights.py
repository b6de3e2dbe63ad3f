"""How much each element of a loss counts. loss = (values / global count * losses).sum(), the count over the whole update.

A mean of local means is wrong under accumulation and data parallelism, so nothing averages before these do. Values are
float64: counts stay exact beyond 2^24 tokens. Rows without a target token have weight zero and are not counted.
"""

from typing import Annotated

from jaxtyping import Bool, Float, Int
from torch import Tensor

from advalign.ranges import OneOf
from advalign.types import Weights

KINDS = ("token", "sequence")
Weighting = Annotated[str, OneOf(KINDS, "weighting")]
"""What the mean of a loss is over: all tokens alike, or responses, each the mean over its tokens."""


def token(target: Bool[Tensor, "B T"]) -> Weights:
    """Every target token counts the same: sum over tokens / number of tokens (DAPO, arXiv:2503.14476, eq. 12)."""
    values = target.double()
    return Weights(values, values.sum())


def sequence(target: Bool[Tensor, "B T"]) -> Weights:
    """Every row counts the same: mean over rows of the mean over their tokens (GRPO, arXiv:2402.03300, eq. 3)."""
    lengths = target.sum(1, keepdim=True)
    return Weights(target.double() / lengths.clamp(min=1), target.any(1).double().sum())


def constant(target: Bool[Tensor, "B T"], *, length: int) -> Weights:
    """Mean over rows of the sum over their tokens / `length`, a constant (Dr. GRPO, arXiv:2503.20783, section 3.2)."""
    return Weights(target.double() / length, target.any(1).double().sum())


def rows(counted: Bool[Tensor, "B"]) -> Weights:
    """One loss per row, or per pair: the mean over those that count."""
    values = counted.double()
    return Weights(values, values.sum())


def scale(weights: Weights, factor: Float[Tensor, "B"]) -> Weights:
    """Every row's weight times a factor, and the count with it: a weighted mean over rows."""
    values = weights.values * factor
    return Weights(values, values.sum())


def by_name(weighting: str, target: Bool[Tensor, "B T"]) -> Weights:
    """`token` or `sequence`."""
    return {"token": token, "sequence": sequence}[weighting](target)


def matched(labels: Int[Tensor, "B"], group: Int[Tensor, "B"], counted: Bool[Tensor, "B"]) -> Weights:
    """Real (label 1) times other rows of one group: a row weighs half its number of opponents, so the count is the number
    of pairs, and the sum of weights times `gan.bradley_terry` is the sum over pairs. Rows without an opponent weigh zero."""
    values = opponents(labels, group, counted).sum(1).double() / 2
    return Weights(values, values.sum())


def by_side(labels: Int[Tensor, "B"], group: Int[Tensor, "B"], counted: Bool[Tensor, "B"]) -> Weights:
    """A group with real and with other rows weighs 1, half of it for each side, however many rows the sides have; others weigh zero."""
    real = labels == 1
    same_side = (group[:, None] == group[None]) & (real[:, None] == real[None]) & counted[None]
    values = opponents(labels, group, counted).any(1).double() / (2 * same_side.sum(1).clamp(min=1))
    return Weights(values, values.sum())


def opponents(labels: Int[Tensor, "B"], group: Int[Tensor, "B"], counted: Bool[Tensor, "B"]) -> Bool[Tensor, "B B"]:
    """Pairs of rows of one group, both counted, exactly one of the two real."""
    real = labels == 1
    meets = (group[:, None] == group[None]) & (real[:, None] != real[None])
    return meets & counted[:, None] & counted[None]
