"""discriminate: l = (-log sigmoid(D(r) - D(h)) - log sigmoid(D(h) - D(r'))) / 2      generate: l = -log sigmoid(D(h) - D(r))

An adversarial regulariser in the space of hidden states (GANPO, arXiv:2601.22083), beside a preference loss. h are the policy's hidden
states of one response of a pair (`side`), r the reference's of the same response, r' the reference's of the other one. A discriminator D,
another learner (`model: latent:policy`), learns to rank them; the policy is moved, through D and without sampling, to where D takes its
states for the reference's. With two discriminators, one per side, that is GANPO.

Differences from the released code: a score meets the scores of its own pair and not running means over batches (relativistic in pairs,
arXiv:1807.00734, section 4.1), so the split of a batch changes nothing; padding is masked, which the released code leaves out; D is
post-norm and without spectral norms but for that of its head, if asked; states are those after a block (`site`), before the last norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from advalign.errors import ConfigError
from advalign.functional import gan
from advalign.names import COPY, CopyName
from advalign.objectives._pairs import PairObjective
from advalign.ranges import Matches, OneOf
from advalign.types import Losses, Outputs, PairRows

__all__ = ["Latent"]

ROLES, SIDES = ("discriminate", "generate"), ("chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Latent(PairObjective):
    """discriminate (a learner `latent:...`): rank r over h over r'; generate (the policy): h as if r."""

    site: Annotated[str, Matches(r"layer:-?\d+", "layer:k, the output of block k (layer:0 is the first),")]
    """Where hidden states are read: "layer:k", the output of block k."""
    role: Annotated[str, OneOf(ROLES, "role")] = "generate"
    """discriminate (train the discriminator) or generate (train the policy against it)."""
    side: Annotated[str, OneOf(SIDES, "side of a pair")] = "chosen"
    """Which response of a pair is h: chosen or rejected."""
    against: CopyName = "reference"
    """The frozen copy whose hidden states are r and r'."""
    policy: Annotated[str, replace(COPY, when=("role", "discriminate"))] = "now"
    """For discriminate: the frozen copy that follows the policy (`ema: 0.0`)."""
    critic: Annotated[str, replace(COPY, when=("role", "generate"))] = "critic"
    """For generate: the frozen copy that follows the discriminator (`ema: 0.0`)."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset(
        {"accuracy", "accuracy/real", "distance", "score/other", "score/policy", "score/real"}
    )
    first_pass_metrics: ClassVar[frozenset[str]] = frozenset({"accuracy", "score"})

    def __post_init__(self) -> None:
        if self.view in (self.against, self.other):
            raise ConfigError(f"objectives.latent.view: '{self.view}' is also a copy it compares with; name the frozen copies there.")

    @property
    def other(self) -> str:
        """The frozen copy of the other player."""
        return self.policy if self.role == "discriminate" else self.critic

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        hidden, reader = frozenset({f"hidden:{self.site}"}), frozenset({"reader"})
        learner, other = (reader, hidden) if self.role == "discriminate" else (hidden, reader)
        return {self.view: learner, self.other: other, self.against: hidden}

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        discriminates = self.role == "discriminate"
        states, reader = views[self.other if discriminates else self.view], views[self.view if discriminates else self.other].reader
        assert states.hidden is not None
        assert reader is not None
        reference, mask, side = self._reference(views), rows.tokens.mask, SIDES.index(self.side)
        on_side = slice(side, None, 2)
        hidden = states.hidden[self.site]
        score = reader.score((hidden.detach() if discriminates else hidden)[on_side], mask[on_side])
        if discriminates:
            same, other = reader.score(reference, mask).unflatten(0, (-1, 2))[:, [side, 1 - side]].unbind(1)
            losses = gan.in_order(torch.stack([same, score, other]))
            accuracy = ((same > score).to(losses.dtype) + (score > other).to(losses.dtype)) / 2
            metrics: dict[str, Tensor] = {"accuracy": accuracy, "accuracy/real": (same > score).to(losses.dtype), "score/other": other}
        else:
            with torch.no_grad():
                same = reader.score(reference[on_side], mask[on_side])
            losses = softplus(-(score - same))
            metrics = {"distance": _distance(hidden[on_side], reference[on_side], mask[on_side])}
        metrics |= {"score/policy": score, "score/real": same}
        weight = self.weights(rows).values.to(losses.dtype)
        return Losses(losses, {name: (values.detach().to(losses.dtype), weight) for name, values in metrics.items()})

    def _reference(self, views: Mapping[str, Outputs]) -> Float[Tensor, "B T D"]:
        hidden = views[self.against].hidden
        assert hidden is not None
        return hidden[self.site].detach()


@torch.no_grad()
def _distance(hidden: Float[Tensor, "P T D"], reference: Float[Tensor, "P T D"], mask: Bool[Tensor, "P T"]) -> Float[Tensor, "P"]:
    """||h - r||_2, a mean over the tokens of a row."""
    per_token = torch.where(mask, (hidden - reference).norm(dim=-1), 0.0)
    return per_token.sum(1) / mask.sum(1).clamp(min=1)
