"""Two-view divergences of next-token distributions, and log(1 - p) of tokens, without storing a B x T x V tensor; scalar heads.

d_t = D(p(. | y_<t) || q(. | y_<t)): logits are made from hidden states `chunk` target tokens at a time, under
non-reentrant checkpointing, and recomputed in backward. (Ours; the divergences are those of `functional.divergence`.)
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from advalign.errors import unknown
from advalign.functional import adversarial
from advalign.functional.divergence import BETWEEN
from advalign.types import Distribution, Tokens


def divergence(
    p: Distribution, q: Distribution, target: Bool[Tensor, "B T"], *, kind: str = "symmetric_kl", chunk: int = 512, stop: bool = False
) -> Float[Tensor, "B T"]:
    """D(p || q) on target, zero elsewhere. The gradient flows into both; with `stop`, not into p (its head included)."""
    if kind not in BETWEEN:
        raise unknown("heads.divergence", "kind", kind, BETWEEN)

    def piece(p_hidden: Tensor, q_hidden: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not stop):
            logits = _at_least_float32(p.head(p_hidden.detach() if stop else p_hidden))
        return BETWEEN[kind](logits, _at_least_float32(q.head(q_hidden)))

    chunks = zip(p.hidden[target].split(chunk), q.hidden[target].split(chunk), strict=True)
    values = torch.cat([checkpoint(piece, p_hidden, q_hidden, use_reentrant=False) for p_hidden, q_hidden in chunks])
    return torch.zeros(target.shape, dtype=values.dtype, device=values.device).masked_scatter(target, values)


def odds(distribution: Distribution, tokens: Tokens, *, chunk: int = 512) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """(log p, log(1 - p)) of every target token, zero elsewhere; from logits, so that the second is exact where p is close to 1."""
    target = tokens.target

    def piece(hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return adversarial.odds(_at_least_float32(distribution.head(hidden)), ids)

    chunks = zip(distribution.hidden[target].split(chunk), tokens.ids[target].split(chunk), strict=True)
    pieces = [checkpoint(piece, hidden, ids, use_reentrant=False) for hidden, ids in chunks]
    columns = [torch.cat(parts) for parts in zip(*pieces, strict=True)]
    zeros = torch.zeros(target.shape, dtype=columns[0].dtype, device=target.device)
    return zeros.masked_scatter(target, columns[0]), zeros.masked_scatter(target, columns[1])


class _UnitNorm(nn.Module):
    """w / ||w||: the spectral norm of a matrix with one row is its length, so no power iteration is needed, nor its buffers."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.norm()


def normalize(scalar: nn.Linear) -> None:
    """Spectral normalisation of a scalar head, W / sigma(W)   (arXiv:1802.05957, eq. 8): it is 1-Lipschitz in what it reads."""
    parametrize.register_parametrization(scalar, "weight", _UnitNorm())


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
