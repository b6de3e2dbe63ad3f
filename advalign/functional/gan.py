"""Discriminator losses on a score s (a logit: D = sigmoid(s)), one per row or token, and the rewards a score gives a generator.

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


def bce(scores: Float[Tensor, "*S"], labels: Int[Tensor, "*S"], *, label_smoothing: float = 0.0) -> Float[Tensor, "*S"]:
    """real: -(1 - e) log D - e log(1 - D);  other: -log(1 - D)   (arXiv:1406.2661, eq. 1; one-sided e: arXiv:1606.03498, section 3.4).

    The best D is (1 - e) p / (p + q): still constant exactly where q = p, and the scores of real rows stay bounded.
    """
    probability = (labels == 1).to(scores.dtype) * (1 - label_smoothing)
    return binary_cross_entropy_with_logits(scores, probability, reduction="none")


def least_squares(scores: Float[Tensor, "*S"], labels: Int[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """real: (s - 1)^2 / 2;  other: (s + 1)^2 / 2   (arXiv:1611.04076, eq. 2 with the codes b = 1 and a = -1).

    The best score is (p - q) / (p + q) = tanh(log(p / q) / 2): bounded, and zero where the two are equally likely.
    """
    return (scores - signs(labels)).square() / 2


def wasserstein(scores: Float[Tensor, "*S"], labels: Int[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """real: -s;  other: s   (arXiv:1701.07875, eq. 3, without the bound of 1 on the gradient of s, which a penalty has to give).

    With the weights of `weights.by_side` a constant added to all scores changes nothing.
    """
    return -signs(labels) * scores


def relativistic(
    scores: Float[Tensor, "B"], labels: Int[Tensor, "B"], group: Int[Tensor, "B"], counted: Bool[Tensor, "B"]
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """real: -log sigmoid(s - mean s_other);  other: -log sigmoid(mean s_real - s)   (relativistic average, arXiv:1807.00734).

    The means are over the other side of the row's group; also returned is the lead, the argument of the sigmoid. Zero for rows
    without an opponent.
    """
    meets = weights.opponents(labels, group, counted)
    number = meets.sum(1)
    # The score of a row without an opponent may be anything, nan included.
    mean = _mean(torch.where(meets, scores[None], 0.0).sum(1), number.to(scores.dtype))
    lead = torch.where(number > 0, signs(labels) * (scores - mean), 0.0)
    return torch.where(number > 0, softplus(-lead), 0.0), lead


def hinge(scores: Float[Tensor, "*S"], labels: Int[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """real: max(0, 1 - s);  other: max(0, 1 + s)   (arXiv:1705.02894)."""
    return (1 - signs(labels).to(scores.dtype) * scores).relu()


def bradley_terry(
    scores: Float[Tensor, "B"], labels: Int[Tensor, "B"], group: Int[Tensor, "B"], counted: Bool[Tensor, "B"]
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """-log sigmoid(s_real - s_other) of every real row with every other row of its group   (GAD, arXiv:2511.10643).

    Written per row: the mean loss of a row against its opponents, and (a metric) the fraction of them that it ranks correctly against.
    With the weights of `weights.matched` the sum over rows is the sum over pairs. Zero for rows without an opponent.
    """
    meets = weights.opponents(labels, group, counted)
    number = meets.sum(1).to(scores.dtype)
    lead = signs(labels).to(scores.dtype)[:, None] * (scores[:, None] - scores[None])
    losses = torch.where(meets, softplus(-lead), 0.0).sum(1)
    won = (meets & (lead > 0)).sum(1).to(scores.dtype)
    return _mean(losses, number), _mean(won, number)


def in_order(scores: Float[Tensor, "3 P"]) -> Float[Tensor, "P"]:
    """(-log sigmoid(s_0 - s_1) - log sigmoid(s_1 - s_2)) / 2: the policy's states are ranked between the reference's states of the better
    and of the worse response   (GANPO, arXiv:2601.22083, with the opponent of the same pair in place of a running mean)."""
    return softplus(-(scores[:-1] - scores[1:])).mean(0)


def squared_norms(input_gradients: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
    """||g||^2 of every row, over its real tokens."""
    return torch.where(mask[..., None], input_gradients, 0.0).square().sum((1, 2))


def gradient_penalty(squares: Float[Tensor, "B"], *, target: float, one_sided: bool = False) -> Float[Tensor, "B"]:
    """||g||^2 / 2 for a target of 0 (arXiv:1801.04406, eq. 9), else (||g|| - target)^2 (arXiv:1704.00028, eq. 3), or its positive
    part's square. A gradient of exactly zero, where a norm has no derivative, gets no penalty gradient."""
    if target == 0:
        return squares / 2
    norms = torch.where(squares > 0, squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt(), 0.0)
    above = norms - target
    return (above.clamp(min=0) if one_sided else above).square()


def signs(labels: Int[Tensor, "*S"]) -> Int[Tensor, "*S"]:
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
