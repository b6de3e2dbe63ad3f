"""L2, Linf and L1 balls over hidden states. Axes: N deltas, T tokens, D hidden, K balls per delta, M numbers per ball.

scope "token": every (n, t) has its own ball over D (K = T, M = D).
scope "row":   every n has one ball over all its tokens together (K = 1, M = T D).
`allowed` marks where a delta may be non-zero; everything is zero elsewhere, so no result depends on padding.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.errors import unknown
from advalign.types.edits import BALLS, SCOPES

ORDERS = {"L2": 2.0, "Linf": float("inf"), "L1": 1.0}


def norm(x: Float[Tensor, "N T D"], *, ball: str, scope: str) -> Float[Tensor, "N K"]:
    """||x||_p of every ball; K = T for scope "token", 1 for "row"."""
    return torch.linalg.vector_norm(_split(x, scope), ORDERS[_ball(ball)], dim=2)


def project(x: Float[Tensor, "N T D"], *, ball: str, scope: str, radius: float) -> Float[Tensor, "N T D"]:
    """argmin_y ||y - x||_2 over ||y||_p <= radius. L1 by sorting (Duchi et al. 2008, figure 1)."""
    split = _split(x, scope)
    if _ball(ball) == "Linf":
        inside = split.clamp(-radius, radius)
    elif ball == "L2":
        size = torch.linalg.vector_norm(split, dim=2, keepdim=True)
        inside = torch.where(size > radius, split * (radius / size), split)
    else:
        inside = _project_l1(split, radius)
    return inside.reshape(x.shape)


def steepest(gradient: Float[Tensor, "N T D"], *, ball: str, scope: str) -> Float[Tensor, "N T D"]:
    """argmax_d <d, gradient> over ||d||_p <= 1: g / ||g|| (L2), sign g (Linf), the one largest |g| (L1); 0 where g = 0."""
    split = _split(gradient, scope)
    if _ball(ball) == "Linf":
        direction = split.sign()
    elif ball == "L2":
        # Divided by the largest entry first, so that squares of tiny gradients do not underflow to a zero norm.
        largest = split.abs().amax(2, keepdim=True)
        scaled = split / torch.where(largest > 0, largest, 1)
        size = torch.linalg.vector_norm(scaled, dim=2, keepdim=True)
        direction = scaled / torch.where(size > 0, size, 1)
    else:
        largest_at = split.abs().argmax(2, keepdim=True)
        direction = torch.zeros_like(split).scatter(2, largest_at, split.gather(2, largest_at).sign())
    return direction.reshape(gradient.shape)


def sample(
    allowed: Bool[Tensor, "N T"],
    dim: int,
    *,
    ball: str,
    scope: str,
    radius: float,
    generators: Sequence[torch.Generator],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "N T D"]:
    """Uniform in the ball: L2 and L1 drop coordinates of a point on a larger sphere (Voelker et al. 2017; Barthe et al. 2005)."""
    draw = {"L2": _uniform_l2, "Linf": _uniform_linf, "L1": _uniform_l1}[_ball(ball)]

    def draw_row(length: int, generator: torch.Generator) -> Tensor:
        balls, size = (length, dim) if _scope(scope) == "token" else (1, length * dim)
        return radius * draw(balls, size, generator, dtype).reshape(length, dim)

    return fill(allowed, dim, draw_row, generators=generators, dtype=dtype)


def fill(
    allowed: Bool[Tensor, "N T"],
    dim: int,
    draw: Callable[[int, torch.Generator], Tensor],
    *,
    generators: Sequence[torch.Generator],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "N T D"]:
    """`draw(length, generator)` gives "length D" for the allowed positions of one row, in order; zero elsewhere."""
    out = torch.zeros(*allowed.shape, dim, dtype=dtype, device=allowed.device)
    for row, mask, generator in zip(out, allowed, generators, strict=True):
        length = int(mask.sum())
        if length:
            row[mask] = draw(length, generator).to(device=row.device, dtype=dtype)
    return out


def masked(x: Float[Tensor, "N T D"], allowed: Bool[Tensor, "N T"]) -> Float[Tensor, "N T D"]:
    """`x` where a delta is allowed, exactly 0 elsewhere (also where `x` is nan)."""
    return torch.where(allowed[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))


def _project_l1(split: Float[Tensor, "N K M"], radius: float) -> Float[Tensor, "N K M"]:
    magnitude = split.abs()
    ordered = magnitude.sort(dim=2, descending=True).values
    excess = ordered.cumsum(2) - radius
    rank = torch.arange(1, split.shape[2] + 1, device=split.device, dtype=split.dtype)
    num_nonzero = (ordered * rank > excess).sum(2, keepdim=True).clamp(min=1)
    threshold = (excess.gather(2, num_nonzero - 1) / num_nonzero).clamp(min=0)
    return split.sign() * (magnitude - threshold).clamp(min=0)


def _uniform_l2(balls: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Float[Tensor, "K M"]:
    x = torch.randn(balls, size + 2, generator=generator, device=generator.device, dtype=dtype)
    return (x / torch.linalg.vector_norm(x, dim=1, keepdim=True))[:, :size]


def _uniform_linf(balls: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Float[Tensor, "K M"]:
    return 2 * torch.rand(balls, size, generator=generator, device=generator.device, dtype=dtype) - 1


def _uniform_l1(balls: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Float[Tensor, "K M"]:
    # Of one u in (-1, 1), the sign is the sign and -log |u| is exponential; size + 1 exponentials over their sum are uniform
    # on the simplex, and the first `size` of them uniform under it.
    u = _uniform_linf(balls, size + 1, generator, dtype)
    e = -u.abs().clamp(min=torch.finfo(dtype).tiny).log()
    return (u.sign() * e / e.sum(1, keepdim=True))[:, :size]


def _split(x: Float[Tensor, "N T D"], scope: str) -> Float[Tensor, "N K M"]:
    return x if _scope(scope) == "token" else x.reshape(x.shape[0], 1, -1)


def _ball(ball: str) -> str:
    if ball not in BALLS:
        raise unknown("balls", "ball", ball, BALLS)
    return ball


def _scope(scope: str) -> str:
    if scope not in SCOPES:
        raise unknown("balls", "scope", scope, SCOPES)
    return scope


__all__ = ["fill", "masked", "norm", "project", "sample", "steepest"]
