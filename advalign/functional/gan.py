"""Discriminator losses on a score s (a logit: D = sigmoid(s)), one per row, and the rewards a score gives a generator.

With p the real and q the generated distribution, the best score is log p/q for `bce` (arXiv:1406.2661, prop. 1) and log p/q + c(prompt)
for `bradley_terry`; a group-centred advantage removes c, so both give a generator the same policy gradient.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from advalign.errors import unknown
from advalign.functional import weights


def bce(scores: Float[Tensor, "B"], labels: Int[Tensor, "B"], *, label_smoothing: float = 0.0) -> Float[Tensor, "B"]:
    """real: -(1 - e) log D - e log(1 - D);  other: -log(1 - D)   (arXiv:1406.2661, eq. 1; one-sided e: arXiv:1606.03498, section 3.4).

    The best D is (1 - e) p / (p + q): still constant exactly where q = p, and the scores of real rows stay bounded.
    """
    wanted = (labels == 1).to(scores.dtype) * (1 - label_smoothing)
    return binary_cross_entropy_with_logits(scores, wanted, reduction="none")


def hinge(scores: Float[Tensor, "B"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """real: max(0, 1 - s);  other: max(0, 1 + s)   (arXiv:1705.02894)."""
    return (1 - signs(labels).to(scores.dtype) * scores).relu()


def bradley_terry(
    scores: Float[Tensor, "B"], labels: Int[Tensor, "B"], group: Int[Tensor, "B"], counted: Bool[Tensor, "B"]
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """-log sigmoid(s_real - s_other) of every real row with every other row of its group   (GAD, arXiv:2511.10643).

    Written per row: the mean loss of a row against its opponents, and (a metric) the fraction of them it is on the right side of.
    With the weights of `weights.matched` the sum over rows is the sum over pairs. Zero for rows without an opponent.
    """
    meets = weights.opponents(labels, group, counted)
    number = meets.sum(1).to(scores.dtype)
    lead = signs(labels).to(scores.dtype)[:, None] * (scores[:, None] - scores[None])
    losses = torch.where(meets, softplus(-lead), 0.0).sum(1)
    won = (meets & (lead > 0)).sum(1).to(scores.dtype)
    return _mean(losses, number), _mean(won, number)


def signs(labels: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """+1 for real rows, -1 for others."""
    return torch.where(labels == 1, 1, -1)


# What a policy that maximises the expected reward against a best, fixed-point discriminator minimises.
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda s: s,  # KL(q || p)
    "-log(1-D)": softplus,  # 2 JS(p, q); never negative, so longer episodes pay: a positive bias
    "log D": logsigmoid,  # 2 KL((p + q) / 2 || p); never positive
    "D": torch.sigmoid,  # bounded
}


def reward(scores: Float[Tensor, "*S"], *, form: str = "logit") -> Float[Tensor, "*S"]:
    """A score as a reward: logit s, -log(1 - D), log D or D. All have q = p as fixed point; they differ in what they punish."""
    if form not in FORMS:
        raise unknown("gan.reward", "form", form, FORMS)
    return FORMS[form](scores)


def _mean(total: Tensor, number: Tensor) -> Tensor:
    return total / number.clamp(min=1)
