"""Past draws of a source of rollouts, once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from advalign.errors import ConfigError
from advalign.interfaces import Advantage, Context, SourceRuntime
from advalign.sources import _rollouts
from advalign.types import RolloutGroup, RolloutRows, Rows

__all__ = ["Replay"]


@dataclass(frozen=True, kw_only=True)
class Replay(_rollouts.RolloutSource):
    """Rows of past draws with p_old = the policy that sampled them: r_t = p_now / p_then, an off-policy ratio.

    Experience replay with importance ratios against the behaviour policy (ACER, arXiv:1611.01224), its age bounded as in
    asynchronous RL (AReaL, arXiv:2505.24298). Ours: whole groups, so that group-relative advantages stay what they were; drawn
    uniformly, without replacement. The last `steps` draws of source `of` are kept; `batch_size` of their groups are drawn, none
    whose sampler is more than `max_staleness` updates of `learner` behind. `include_current` adds the current draw to the
    pool, and makes it where nothing else reads `of`. Where there is no past to draw from, the rows are of the current draw.
    """

    source: str
    advantage: Advantage
    batch_size: int = 16
    steps: int = 8
    max_staleness: int | None = None
    include_current: bool = False
    learner: str = "policy"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sources.replay.{name}: got {getattr(self, name)}, must be at least 1.")

    @property
    def depends_on(self) -> tuple[str, ...]:
        return (self.source,)

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[RolloutGroup]):
    def __init__(self, config: Replay, context: Context, name: str) -> None:
        self.config, self.context, self.name = config, context, name
        replayed = context.source_config(config.source)
        given: type[Rows] = replayed.row_type
        if given is not RolloutRows:
            raise ConfigError(f"sources.{name}.source: source '{config.source}' builds {given.__name__}; only rollouts can be replayed.")
        sampler = replayed.samples_with or config.learner
        if sampler != config.learner:
            raise ConfigError(f"sources.{name}.learner: '{config.learner}' given, but source '{config.source}' is sampled by '{sampler}'.")
        self.pool: list[tuple[int, list[RolloutGroup]]] = []  # (step, groups), oldest first
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        config, self.logs = self.config, {}
        current = [_rollouts.without_verifier(group) for group in self._current(step, repeat)]
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
        fresh = sum(any(group is other for other in current) for group in chosen)
        self.logs |= {"num_fresh": float(fresh), "num_replayed": float(len(chosen) - fresh), "staleness": sum(ages) / len(ages)}
        return chosen

    def _current(self, step: int, repeat: int) -> Sequence[RolloutGroup]:
        drawn = self.context.current_items(self.config.source)
        if drawn is None and self.config.include_current:
            source = self.context.source(self.config.source)
            drawn = source.draw(step, repeat)
            self.logs = dict(source.logs)
        return drawn or ()

    def rows(self, items: Sequence[RolloutGroup], encoder: Any) -> RolloutRows:
        rows = self.context.source(self.config.source).rows(items, encoder)
        assert isinstance(rows, RolloutRows)
        return replace(rows, old_logprobs=rows.sampler_logprobs)

    def state_dict(self) -> dict[str, Any]:
        return {"pool": [[step, [_rollouts.to_json(group) for group in groups]] for step, groups in self.pool]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pool = [(step, [_rollouts.from_json(values) for values in groups]) for step, groups in state["pool"]]


def age(group: RolloutGroup, version: int) -> int:
    """Updates of the policy since the group was sampled; what it did not sample itself has no age."""
    return version - max((r.policy_version for r in group.rollouts if not r.offpolicy), default=version)
