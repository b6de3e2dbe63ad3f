"""Where rows come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from advalign.errors import ConfigError
from advalign.interfaces.advantage import Advantage
from advalign.interfaces.context import Context
from advalign.interfaces.reward import Reward
from advalign.types import Rows, Sampling

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """What one draw of a source asks a rollout engine for."""

    data: Any
    """Where its prompts come from."""
    num_prompts: int
    """Prompts per draw."""
    responses_per_prompt: int
    """Responses to each."""
    sampling: Sampling
    """How they are sampled."""


class SourceRuntime(ABC, Generic[Item]):
    """A started source. Items are host-side (text and the sampler's ids); every learner builds its own rows of them."""

    logs: Mapping[str, float] = {}
    """Numbers of the last draw, written to the log as `<source>/<name>`."""
    examples: Sequence[Any] = ()
    """All its examples, where it is a source over a list."""

    @abstractmethod
    def draw(self, step: int, repeat: int) -> Sequence[Item]:
        """Items of one draw, a function of (seed, step, repeat) and of the runtime's state."""

    @abstractmethod
    def rows(self, items: Sequence[Item], encoder: Any) -> Rows:
        """Rows of some items, as the encoder of a learner reads them; of the type that the source declares."""

    def sample(self, number: int, rng: Any) -> list[Item]:
        """Items for another source, without moving this one."""
        raise ConfigError(f"{type(self).__name__}: other sources cannot take examples from it; name a source over a list, such as demos.")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""


class Source(ABC):
    """Abstract base of every source."""

    row_type: ClassVar[type[Rows]]
    """The container its rows are."""
    draws_before_updates: ClassVar[bool] = False
    """Drawn before the first learner moves: a learner samples for it, or it attacks one."""

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Names of sources that are started, and draw, before it."""
        return ()

    @property
    def samples_with(self) -> str | None:
        """The learner (or frozen copy) that samples its responses, whose policy `old_logprobs` are of; None: nobody."""
        return None

    @property
    def players(self) -> Sequence[tuple[str, str]]:
        """(field, learner or frozen copy) of everybody who writes text for it; each needs head `policy`."""
        return ()

    @property
    def reward_parts(self) -> Sequence[Reward]:
        """Its rewards."""
        return ()

    @property
    def advantage_estimator(self) -> Advantage | None:
        """What makes advantages of its rewards; None: it has no rollouts."""
        return None

    @property
    def reward_penalty(self) -> Any:
        """A KL penalty inside the reward (`KLPenalty`), or None."""
        return None

    @property
    def steps_ahead(self) -> int:
        """By how many steps its rollouts may be older than the update that reads them."""
        return 0

    @property
    def request(self) -> SamplingRequest | None:
        """What one draw asks the rollout engine for; None: nothing, or not known beforehand."""
        return None

    @property
    def draw_size(self) -> int:
        """How many items one draw has, for forecasts."""
        return 16

    @abstractmethod
    def start(self, context: Context, name: str) -> SourceRuntime[Any]:
        """The runtime; heavy things happen here."""
