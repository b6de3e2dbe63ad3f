"""Threat models that are not a ball in hidden states."""

from dataclasses import dataclass, field

from advalign.interfaces import Adversary
from advalign.interfaces.adversary import State


@dataclass(frozen=True, kw_only=True)
class UnboundedAdversary(Adversary[State]):
    """Abstract. Radius, ball, sites and scope have no meaning here and cannot be configured."""

    radius: float = field(default=0.0, init=False)
    """Not used."""
    ball: str = field(default="L2", init=False)
    """Not used."""
    sites: tuple[str, ...] = field(default=("embedding",), init=False)
    """Not used."""
    relative_to: str = field(default="absolute", init=False)
    """Not used."""
    scope: str = field(default="token", init=False)
    """Not used."""
