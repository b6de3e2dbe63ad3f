"""Embeddings between two rows of one group, where WGAN-GP penalises input gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.adversaries._unbounded import UnboundedAdversary
from advalign.errors import ConfigError
from advalign.functional import balls, deltas
from advalign.interfaces import PerturbationContext
from advalign.types import Edit


@dataclass(frozen=True, kw_only=True)
class Interpolate(UnboundedAdversary[Tensor]):
    """e + u (e' - e), u ~ U(0, 1), e' the embeddings of another row of the group   (WGAN-GP, arXiv:1704.00028, algorithm 1).

    With `gradient_penalty` on this view it is WGAN-GP. Differences: the paper pairs real with generated at random over the batch; here
    the other row is drawn from the row's own group, whichever its label, so where a group is one real and one other row it is exactly a
    line between the two. Texts differ in length: tokens beyond the shorter one stay as they are. Rows alone in their group stay too.
    It does not read the model's losses and has no radius. Groups must stay whole within a micro-batch (`gradient_penalty` requires it).
    """

    family: ClassVar[str] = "interpolation"

    steps: int = field(default=0, init=False)
    """No gradient steps."""

    def __post_init__(self) -> None:
        if self.share != "row":
            raise ConfigError(f"interpolate.share: '{self.share}' given; each row has its own partner, so it must be 'row'.")

    def describe(self) -> tuple[str, ...]:
        return ("towards another row of the group",)

    def start(self, context: PerturbationContext) -> Float[Tensor, "N T D"]:
        tokens = context.tokens
        assert tokens is not None
        assert context.network is not None
        draws = [torch.rand(2, generator=g, device=g.device, dtype=torch.float64).tolist() for g in context.generators]
        group = tokens.group.tolist()
        partner, fraction = list(range(len(group))), torch.zeros(len(group), dtype=torch.float64)
        for row, (which, how_far) in enumerate(draws):
            others = [other for other in range(len(group)) if group[other] == group[row] and other != row]
            if others:
                partner[row], fraction[row] = others[int(which * len(others))], how_far
        with torch.no_grad():
            embeddings = context.network.model.get_input_embeddings()(tokens.ids).to(deltas.delta_dtype(context))
        common = context.allowed & tokens.mask & tokens.mask[partner]
        return balls.masked(fraction.to(embeddings)[:, None, None] * (embeddings[partner] - embeddings), common)

    def ask(self, state: Float[Tensor, "N T D"]) -> dict[str, Edit]:
        return {"embedding": Edit(state)}

    def tell(self, state: Float[Tensor, "N T D"], losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> Float[Tensor, "N T D"]:
        return state


__all__ = ["Interpolate"]
