"""Where rows come from."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from torch import Tensor

from advalign.checked import Checked
from advalign.errors import ConfigError
from advalign.interfaces.advantage import Advantage
from advalign.interfaces.context import Context
from advalign.interfaces.reward import Reward
from advalign.names import SOURCES, names_of
from advalign.types import PairRows, RolloutGroup, RolloutRows, Rows, Sampling, Tokens

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

Item = TypeVar("Item")
SourceT = TypeVar("SourceT", bound="Source")


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """What one draw of a source asks a rollout engine for."""

    data: Any
    """Reference to its prompts (see `advalign.data`)."""
    num_prompts: int
    """Prompts per draw."""
    responses_per_prompt: int
    """Responses to each prompt."""
    sampling: Sampling
    """How they are sampled."""


class RewardPenalty(Checked, ABC):
    """Abstract base: a penalty inside the reward that reads annotated rows (KL to the reference)."""

    @abstractmethod
    def initial_state(self) -> dict[str, float]:
        """What it carries from draw to draw; saved with the run."""

    @abstractmethod
    def apply(self, rows: RolloutRows, state: dict[str, float], *, summed: bool) -> tuple[RolloutRows, dict[str, float]]:
        """The rows with the penalty in `token_rewards`, or with its sum as one more reward (`summed`), and logs; updates `state`.

        `rows` have `old_logprobs` and `ref_logprobs`."""


class SourceRuntime(ABC, Generic[Item]):
    """Abstract base: a started source. Items are host-side (text and the sampler's ids); every learner builds its own rows from them."""

    logs: Mapping[str, float] = {}
    """Numbers of the last draw, logged as `<source>/<name>`."""
    examples: Sequence[Item] = ()
    """All its examples, for a source over a list."""
    class_names: tuple[str, ...] = ()
    """Names of the classes of its labels, by index; empty: it has none."""

    @abstractmethod
    def draw(self, step: int, repeat: int) -> Sequence[Item]:
        """Items of one draw: a function of (seed, step, repeat) and of the runtime's state."""

    @abstractmethod
    def rows(self, items: Sequence[Item], encoder: Encoder) -> Rows:
        """Rows of some items, tokenised by a learner's encoder, in the container that the source declares as `row_type`."""

    def check_rows(self, encoder: Encoder) -> None:
        """Refuses, before the first step, rows that a learner with this encoder could not take: too long, or not for its chat template.
        Called for the learner that samples and for every one that reads the source. Here: nothing is known before a draw."""

    def sample(self, number: int, rng: random.Random) -> list[Item]:
        """`number` items for another source, without advancing this one."""
        raise ConfigError(f"{type(self).__name__}: other sources cannot take examples from it; name a source over a list, such as demos.")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""


class Source(Checked, ABC, section="sources"):
    """Abstract base of every source: a configuration, and what the library must know of it before it is started."""

    row_type: ClassVar[type[Rows]]
    """The container of its rows."""
    draws_before_updates: ClassVar[bool] = False
    """Drawn before the first learner is updated, because a learner samples for it or it attacks one."""

    occasional_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics, as patterns (`accuracy/*`), that some draws leave out; any other that is missing in a draw is taken for a wrong name."""

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Names of sources that are started, and draw, before it. Here: those that its fields name (`advalign.names.SourceName`)."""
        return names_of(self, SOURCES)

    @property
    def replays(self) -> tuple[str, ...]:
        """Names of sources that objectives must have read, in this step or before, for it to have rows."""
        return ()

    @property
    def samples_with(self) -> str | None:
        """The learner (or frozen copy) that samples its responses, whose log-probabilities `old_logprobs` are. None: no learner samples."""
        return None

    @property
    def reward_parts(self) -> Sequence[Reward]:
        """Its rewards."""
        return ()

    @property
    def advantage_estimator(self) -> Advantage | None:
        """What turns its rewards into advantages. None: its rows are not rollouts."""
        return None

    @property
    def reward_penalty(self) -> RewardPenalty | None:
        """The penalty inside its reward, if there is one."""
        return None

    @property
    def steps_ahead(self) -> int:
        """By how many steps its rollouts may be older than the update that reads them."""
        return 0

    @property
    def request(self) -> SamplingRequest | None:
        """What one draw asks the rollout engine for. None: nothing, or not known before the draw."""
        return None

    @property
    def training_data(self) -> tuple[Any, str] | None:
        """(reference, split) of the data it reads (see `advalign.data`). None: it reads no data."""
        return None if self.request is None else (self.request.data, "train")

    @property
    def draw_size(self) -> int:
        """Items per draw, for forecasts of memory."""
        return 16

    def smaller(self) -> Source:
        """The same for a smoke run, with draws as small as they can be. Here: the field `batch_size`, where there is one, at most 2."""
        return shrunk(self, batch_size=2)

    def num_classes(self) -> int | None:
        """How many classes the labels of its data have, read before any model is loaded. None: it has no such labels."""
        return None

    @abstractmethod
    def start(self, context: Context, name: str) -> SourceRuntime[Any]:
        """The runtime. Data is read here, not in the constructor."""


def shrunk(source: SourceT, **most: int) -> SourceT:
    """A source whose fields `most` are at most so large, or as little larger as its own checks allow."""
    if not is_dataclass(source):
        return source
    numbers = {name: value for name, value in vars(source).items() if name in most and isinstance(value, int)}
    for doublings in itertools.count():
        small = {name: min(value, most[name] << doublings) for name, value in numbers.items()}
        try:
            return cast(SourceT, replace(source, **small))
        except ConfigError:
            if small == numbers:
                raise
    raise AssertionError("numbers have no end")


def check_rows(rows: Rows, items: Sequence[Any], row_type: type[Rows], path: str) -> None:
    """Raises ConfigError where the rows that a runtime built from `items` are not what its source declares. `path` names the source."""
    if not isinstance(rows, row_type):
        raise ConfigError(f"{path}: its runtime built {type(rows).__name__}, and the source declares row_type {row_type.__name__}.")
    columns = {name: x for name, x in vars(rows).items() if isinstance(x, Tensor)}
    tokens: Tokens = vars(rows)["tokens"]
    number = len(tokens.ids)
    for name, column in columns.items():
        if len(column) != number:
            raise ConfigError(f"{path}: column '{name}' has {len(column)} entries for {number} rows; every column has one per row.")
    if row_type is PairRows and number % 2:
        raise ConfigError(f"{path}: {number} rows built; pairs have two rows each, chosen then rejected.")
    groups = [item for item in items if isinstance(item, RolloutGroup)]
    responses = sum(len(group.rollouts) for group in groups)
    if row_type is RolloutRows and len(groups) == len(items) and responses != number:
        raise ConfigError(f"{path}: {number} rows built from {responses} responses; rollouts have one row per response.")
