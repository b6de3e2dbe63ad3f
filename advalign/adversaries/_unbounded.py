"""Threats that are not measured as a distance in hidden states."""

from dataclasses import dataclass, field

from advalign.interfaces import Adversary
from advalign.interfaces.adversary import State


@dataclass(frozen=True, kw_only=True)
class UnboundedAdversary(Adversary[State]):
    """Abstract. A radius, a ball and a site have no meaning here and cannot be given."""

    radius: float = field(default=0.0, init=False)
    ball: str = field(default="L2", init=False)
    sites: tuple[str, ...] = field(default=("embedding",), init=False)
    relative_to: str = field(default="absolute", init=False)
    scope: str = field(default="token", init=False)

    @property
    def starts_at_zero(self) -> bool:
        """Nothing starts from a delta of zero, so a divergence may be climbed."""
        return False
