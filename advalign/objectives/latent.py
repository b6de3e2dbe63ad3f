"""discriminate: l = (-log sigmoid(D(r) - D(h)) - log sigmoid(D(h) - D(r'))) / 2      generate: l = -log sigmoid(D(h) - D(r))

An adversarial regulariser in the space of hidden states (GANPO, arXiv:2601.22083), beside a preference loss. h are the policy's hidden
states of one response of a pair (`side`), r the reference's of the same response, r' the reference's of the other one. A discriminator D,
another learner (`model: latent:policy`), learns to rank them; the policy is moved, through D and without sampling, to where D takes its
states for the reference's. With two discriminators, one per side, that is GANPO.

Differences from the released code: a score meets the scores of its own pair and not running means over batches (relativistic in pairs,
arXiv:1807.00734, section 4.1), so nothing depends on how a batch is split; padding is masked, which the released code leaves out; D is
post-norm and without spectral norms but for that of its head, if asked; states are those after a block (`site`), before the last norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from advalign.errors import ConfigError, unknown
from advalign.functional import gan
from advalign.objectives._pairs import PairObjective
from advalign.types import Losses, Outputs, PairRows

__all__ = ["Latent"]

ROLES, SIDES = ("discriminate", "generate"), ("chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Latent(PairObjective):
    """discriminate (a learner `latent:...`): rank r over h over r'; generate (the policy): h as if r. `site`: "layer:k". `against`, and
    `policy` or `critic`: frozen copies, the latter two such that follow their learner (`ema: 0.0`)."""

    site: str
    role: str = "generate"
    side: str = "chosen"
    against: str = "reference"
    policy: str = "now"
    critic: str = "critic"

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise unknown("objectives.latent.role", "role", self.role, ROLES)
        if self.side not in SIDES:
            raise unknown("objectives.latent.side", "side of a pair", self.side, SIDES)
        if not self.site.startswith("layer:"):
            raise ConfigError(f"objectives.latent.site: got {self.site}; hidden states are those after a block, layer:0 being the first.")
        if self.view in (self.against, self.other):
            raise ConfigError(f"objectives.latent.view: '{self.view}' is also a copy it compares with; name the frozen copies there.")

    @property
    def other(self) -> str:
        """The copy of the other player."""
        return self.policy if self.role == "discriminate" else self.critic

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        hidden, reader = frozenset({f"hidden:{self.site}"}), frozenset({"reader"})
        own, other = (reader, hidden) if self.role == "discriminate" else (hidden, reader)
        return {self.view: own, self.other: other, self.against: hidden}

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        discriminates = self.role == "discriminate"
        states, reader = views[self.other if discriminates else self.view], views[self.view if discriminates else self.other].reader
        assert states.hidden is not None
        assert reader is not None
        real, mask, own = self._reference(views), rows.tokens.mask, SIDES.index(self.side)
        here = slice(own, None, 2)
        now = states.hidden[self.site]
        played = reader.score((now.detach() if discriminates else now)[here], mask[here])
        if discriminates:
            better, worse = reader.score(real, mask).unflatten(0, (-1, 2))[:, [own, 1 - own]].unbind(1)
            losses = gan.in_order(torch.stack([better, played, worse]))
            accuracy = ((better > played).to(losses.dtype) + (played > worse).to(losses.dtype)) / 2
            found: dict[str, Tensor] = {"accuracy": accuracy, "accuracy/real": (better > played).to(losses.dtype), "score/other": worse}
        else:
            with torch.no_grad():
                better = reader.score(real[here], mask[here])
            losses, found = softplus(-(played - better)), {"distance": _apart(now[here], real[here], mask[here])}
        found |= {"score/policy": played, "score/real": better}
        each = self.weights(rows).values.to(losses.dtype)
        return Losses(losses, {name: (column.detach().to(losses.dtype), each) for name, column in found.items()})

    def _reference(self, views: Mapping[str, Outputs]) -> Float[Tensor, "B T D"]:
        hidden = views[self.against].hidden
        assert hidden is not None
        return hidden[self.site].detach()


@torch.no_grad()
def _apart(now: Float[Tensor, "P T D"], real: Float[Tensor, "P T D"], mask: Tensor) -> Float[Tensor, "P"]:
    """||h - r||_2, a mean over the tokens of a row."""
    each = torch.where(mask, (now - real).norm(dim=-1), 0.0)
    return each.sum(1) / mask.sum(1).clamp(min=1)
