"""Losses of adversarial training that are neither divergences nor preferences, element by element.

Axes here: N tokens or rows, V vocabulary, C classes, D hidden. `odds` gives what unlikelihood losses need: log(1 - p) is computed as
lse of the OTHER logits - lse of all, so with respect to logits the gradient of -log(1 - p) stays within [-1, 1], however close p is to 1;
from log p alone it would be p / (1 - p), which overflows where p rounds to 1.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from advalign.functional.divergence import kl


def leaky(x: Float[Tensor, "*S"], *, at: float, slope: float) -> Float[Tensor, "*S"]:
    """x where x >= at, else at + slope (x - at): below the cutoff a loss is low enough, and keeps `slope` of its gradient."""
    return torch.where(x < at, at + slope * (x - at), x)


def odds(logits: Float[Tensor, "N V"], ids: Int[Tensor, "N"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """(log p, log(1 - p)) of the entries `ids` of softmax(logits)."""
    lse = logits.logsumexp(1)
    others = logits.scatter(1, ids[:, None], -torch.inf).logsumexp(1)
    return logits.gather(1, ids[:, None]).squeeze(1) - lse, others - lse


def unlikelihood(logp: Float[Tensor, "*S"], log1m: Float[Tensor, "*S"], *, cutoff: float) -> Float[Tensor, "*S"]:
    """-log(1 - p), and 0 where log p < cutoff already (LAT, arXiv:2407.15549; there `log1mp`, cutoff -5)."""
    return torch.where(logp < cutoff, 0.0, -log1m)


def boosted_cross_entropy(logits: Float[Tensor, "N C"], labels: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """-log p_y - log(1 - max_{k != y} p_k): the margin is pushed from both sides (the BCE of MART, ICLR 2020)."""
    rival = logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)
    return cross_entropy(logits, labels, reduction="none") - odds(logits, rival)[1]


def mart(
    clean: Float[Tensor, "N C"], attacked: Float[Tensor, "N C"], labels: Int[Tensor, "N"], *, weight: float
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"], Float[Tensor, "N"]]:
    """(l, its boosted cross-entropy, its divergence): l = BCE(p', y) + weight KL(p || p') (1 - p_y)   (MART, ICLR 2020)."""
    boosted, divergence = boosted_cross_entropy(attacked, labels), kl(clean, attacked)
    wrong = odds(clean, labels)[1].exp()
    return boosted + weight * divergence * wrong, boosted, divergence


def rerouted(hidden: Float[Tensor, "N D"], original: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
    """relu(cos(h, h_ref)): 1 where nothing has changed, 0 where the two are orthogonal or further apart (arXiv:2406.04313, algorithm 1)."""
    hidden, original = _at_least_float32(hidden, original)
    return cosine_similarity(hidden, original, dim=1).relu()


def displaced(hidden: Float[Tensor, "N D"], original: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
    """||h - h_ref||_2; at 0 its gradient is taken to be 0 (arXiv:2406.04313, algorithm 1)."""
    hidden, original = _at_least_float32(hidden, original)
    return torch.linalg.vector_norm(hidden - original, dim=1)


def _at_least_float32(*xs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in xs)
