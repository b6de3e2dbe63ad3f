"""reroute: l_t = mean_k relu(cos(h_k, h_k_ref))       retain: l_t = mean_k ||h_k - h_k_ref||_2       k over `layers`
(representation rerouting, arXiv:2406.04313, algorithm 1; h_ref of the frozen copy `against`, from which training started).

Two objectives, one of harmful rows and one of benign ones, with coefficients alpha (1 - t / 2T) and alpha t / 2T through `schedules`.
Layers are counted from 0, as sites are: the paper's 10 and 20 (hidden_states[10] and [20] in its code) are the outputs of blocks 9 and 19.
Differences: the released code's retain mean counts padded positions as zeros, so its retain loss is smaller by the fraction of padding;
ours does not. Its retain layers include the embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from advalign.errors import ConfigError
from advalign.functional import adversarial, weights
from advalign.interfaces import Objective
from advalign.names import ViewName
from advalign.ranges import Distinct, Length, Natural, OneOf
from advalign.types import DemoRows, Losses, Outputs, Rows, Tokens, Weights

__all__ = ["CircuitBreaker"]

ROLES = {"reroute": adversarial.rerouted, "retain": adversarial.displaced}
PLACES = ("all", "prompt", "response")


@dataclass(frozen=True, kw_only=True)
class CircuitBreaker(Objective[DemoRows]):
    """reroute: relu(cos(h, h_ref)) of harmful tokens; retain: ||h - h_ref||_2 of benign ones; mean over `layers`."""

    role: Annotated[str, OneOf(ROLES, "role")] = "reroute"
    """reroute (harmful rows) or retain (benign rows)."""
    layers: Annotated[tuple[Natural, ...], Length(), Distinct()] = (9, 19)
    """Blocks whose outputs are compared, counted from 0; the paper's "layers 10 and 20" are counted from 1."""
    against: ViewName = "reference"
    """The frozen copy whose hidden states are h_ref."""
    where: Annotated[str, OneOf(PLACES, "region")] = "all"
    """Tokens that count: all real ones, as in the released code, prompt or response."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"cosine"})
    row_types: ClassVar[tuple[type[Rows], ...]] = (DemoRows,)

    def __post_init__(self) -> None:
        if self.view == self.against:
            raise ConfigError(f"objectives.circuit_breaker.view: '{self.view}' is also `against`; name the frozen copy there.")

    @property
    def sites(self) -> tuple[str, ...]:
        """The layers as sites."""
        return tuple(f"layer:{k}" for k in self.layers)

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {view: frozenset(f"hidden:{site}" for site in self.sites) for view in (self.view, self.against)}

    def weights(self, rows: DemoRows) -> Weights:
        return weights.token(self._region(rows.tokens))

    def losses(self, rows: DemoRows, views: Mapping[str, Outputs]) -> Losses:
        hidden, original = views[self.view].hidden, views[self.against].hidden
        assert hidden is not None
        assert original is not None
        region = self._region(rows.tokens)
        pairs = [(hidden[site][region], original[site][region].detach()) for site in self.sites]
        losses = _spread(torch.stack([ROLES[self.role](*pair) for pair in pairs]).mean(0), region)
        with torch.no_grad():
            cosine = _spread(torch.stack([cosine_similarity(a.float(), b.float(), dim=1) for a, b in pairs]).mean(0), region)
        return Losses(losses, {"cosine": (cosine.to(losses.dtype), region.to(losses.dtype))})

    def _region(self, tokens: Tokens) -> Bool[Tensor, "B T"]:
        return {"all": tokens.mask, "prompt": tokens.mask & ~tokens.target, "response": tokens.target}[self.where]


def _spread(values: Float[Tensor, "N"], region: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    return torch.zeros(region.shape, dtype=values.dtype, device=values.device).masked_scatter(region, values)
