"""Past draws of a source of rollouts, drawn again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from advalign.errors import ConfigError
from advalign.interfaces import Context, SourceRuntime
from advalign.names import SourceName
from advalign.ranges import Count, Natural
from advalign.sources._rollouts import RolloutSource
from advalign.types import RolloutGroup, RolloutRows, from_json, to_json, without_verifier

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Replay"]


@dataclass(frozen=True, kw_only=True)
class Replay(RolloutSource):
    """Rows of past draws with p_old = the policy that sampled them: r_t = p_current / p_then, an off-policy ratio.

    Experience replay with importance ratios against the behaviour policy (ACER, arXiv:1611.01224), its age bounded as in
    asynchronous RL (AReaL, arXiv:2505.24298). Ours: whole groups, so that group-relative advantages stay what they were; drawn
    uniformly, without replacement. Where there is no past to draw from, the rows are those of the current draw.
    """

    source: SourceName
    """Name of the source whose draws are kept."""
    batch_size: Count = 16
    """Groups per draw."""
    steps: Count = 8
    """Number of draws kept."""
    max_staleness: Natural | None = None
    """Leave out groups whose sampler is more than so many updates of `learner` behind. None: no bound."""
    include_current: bool = False
    """Add the current draw to the choice, and make it where nothing else reads `source`."""

    occasional_metrics: ClassVar[tuple[str, ...]] = ("*",)

    @property
    def replays(self) -> tuple[str, ...]:
        return () if self.include_current else (self.source,)

    @property
    def draw_size(self) -> int:
        return self.batch_size

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[RolloutGroup]):
    def __init__(self, config: Replay, context: Context, name: str) -> None:
        self.config, self.context, self.name = config, context, name
        replayed = context.source_config(config.source)
        if replayed.row_type is not RolloutRows:
            raise ConfigError(
                f"sources.{name}.source: source '{config.source}' builds {replayed.row_type.__name__}; only rollouts can be replayed."
            )
        sampler = replayed.samples_with or config.learner
        if sampler != config.learner:
            raise ConfigError(f"sources.{name}.learner: '{config.learner}' given, but source '{config.source}' is sampled by '{sampler}'.")
        self.pool: list[tuple[int, list[RolloutGroup]]] = []  # (step, groups), oldest first
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        config, self.logs = self.config, {}
        current = [without_verifier(group) for group in self._current(step, repeat)]
        version = self.context.version(config.learner)
        past = [g for _, groups in self.pool for g in groups if config.max_staleness is None or age(g, version) <= config.max_staleness]
        eligible = past + current if config.include_current else past or current
        if not eligible:
            raise ConfigError(
                f"sources.{self.name}: no draw of '{config.source}' is left to replay and no active objective reads it; add one, or set "
                "include_current: true."
            )
        chosen = self.context.random("source", self.name, step).sample(eligible, min(config.batch_size, len(eligible)))
        if current:
            self.pool = [*self.pool, (step, current)][-config.steps :]
        ages = [age(group, version) for group in chosen]
        num_fresh = sum(any(group is other for other in current) for group in chosen)
        self.logs |= {"num_fresh": float(num_fresh), "num_replayed": float(len(chosen) - num_fresh), "staleness": sum(ages) / len(ages)}
        return chosen

    def _current(self, step: int, repeat: int) -> Sequence[RolloutGroup]:
        """What `source` drew in this step; drawn here where nothing else reads it and `include_current` is set."""
        items = self.context.current_items(self.config.source)
        if items is None and self.config.include_current:
            source = self.context.source(self.config.source)
            items = source.draw(step, repeat)
            self.logs = dict(source.logs)
        return items or ()

    def rows(self, items: Sequence[RolloutGroup], encoder: Encoder) -> RolloutRows:
        rows = self.context.source(self.config.source).rows(items, encoder)
        assert isinstance(rows, RolloutRows)
        return replace(rows, old_logprobs=rows.sampler_logprobs)

    def state_dict(self) -> dict[str, Any]:
        return {"pool": [[step, [to_json(group) for group in groups]] for step, groups in self.pool]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pool = [(step, [from_json(values) for values in groups]) for step, groups in state["pool"]]


def age(group: RolloutGroup, version: int) -> int:
    """Updates of the policy since it sampled the group; a group it did not sample itself has age 0."""
    return version - max((r.policy_version for r in group.rollouts if not r.offpolicy), default=version)
