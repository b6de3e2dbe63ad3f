"""The best of what a learner writes, as demonstrations for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from advalign import data as loading
from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Context, SourceRuntime
from advalign.sources import _rollouts
from advalign.sources._rollouts import Sampled
from advalign.sources._stream import Stream
from advalign.types import DemoRows, RolloutGroup, Rows

__all__ = ["Rejection"]


@dataclass(frozen=True, kw_only=True)
class Rejection(Sampled):
    """argmax_i R(x, y_i) of y_1 .. y_n ~ p(. | x), where R >= threshold: rejection sampling for SFT.

    RAFT and best-of-n (arXiv:2304.06767, algorithm 1) with `refresh: 1`; collected once and learned from for long, the third stage of
    DeepSeek-R1 (arXiv:2501.12948, section 2.3.3). Per collection `collect` prompts are answered `group_size` times; per prompt the
    `keep` best different responses stay whose total reward is at least `threshold` (ties: those sampled first). The pool serves
    `refresh` draws of up to `batch_size` rows, each pass over it in a new order, before it is collected again with the learner of
    then. Rows carry the sampled ids. Ours: where nothing passes, the pool of before is kept; RAFT has no threshold.
    """

    keep: int = 1
    threshold: float | None = None
    refresh: int = 1
    collect: int = 16

    row_type: ClassVar[type[Rows]] = DemoRows

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "refresh", "collect"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sources.rejection.{name}: got {getattr(self, name)}, must be at least 1.")

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[Any]):
    def __init__(self, config: Rejection, context: Context, name: str) -> None:
        examples = loading.examples(config.data, limit=config.limit, seed=context.seed)
        self.config, self.context, self.name = config, context, name
        self.prompts = Stream(examples, lambda epoch: context.random("source", name, epoch), f"sources.{name}")
        self.scorers: list[_rollouts.Scorer] = _rollouts.started(config.rewards, context)
        self.pool: Stream[RolloutGroup] | None = None  # groups of one response
        self.served = self.collected = 0  # draws of this pool; pools so far
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        self.logs = {}
        if self.pool is None or self.served >= self.config.refresh:
            self._collect(step, repeat)
        assert self.pool is not None
        self.served += 1
        self.logs["num_pool"] = float(len(self.pool.items))
        return self.pool.take(min(self.config.batch_size, len(self.pool.items)))

    def _collect(self, step: int, repeat: int) -> None:
        config, where = self.config, f"sources.{self.name}"
        examples = self.prompts.take(config.collect)
        groups = self.context.generate(config.learner, examples, config.group_size, config.sampling, ("rollout", self.name, step, repeat))
        sampled = sum(len(g.rollouts) for g in groups)
        self.logs = _rollouts.score(groups, config.rewards, self.scorers, where)
        judged, abstained = _rollouts.without_abstentions(groups)
        self.logs |= _rollouts.report(judged, config.rewards) | {"abstained": float(abstained)}
        found = self._ranked(judged)
        kept = [(g, total) for g, total in found if config.threshold is None or total >= config.threshold]
        self.served = 0
        self.logs["kept_share"] = len(kept) / sampled
        if kept:
            self.logs["kept_reward"] = sum(total for _, total in kept) / len(kept)
            self._fill([_rollouts.without_verifier(g) for g, _ in kept], self.collected + 1)
        elif self.pool is None:
            best = f"the best total reward is {max(total for _, total in found):.3g}" if found else "the rewards abstained on all of them"
            raise RewardError(
                f"{where}: none of {sampled} responses reached the threshold {config.threshold}, {best}; lower it, or raise group_size."
            )

    def _ranked(self, groups: Sequence[RolloutGroup]) -> list[tuple[RolloutGroup, float]]:
        """Per prompt the `keep` best different responses and their total rewards, each as a group of its own."""
        by_prompt: dict[tuple[int, ...], dict[tuple[int, ...], tuple[RolloutGroup, float]]] = {}
        for group in groups:
            responses = by_prompt.setdefault(tuple(group.prompt_ids), {})
            for rollout in group.rollouts:
                total = _rollouts.total(rollout, self.config.rewards)
                alone = RolloutGroup(example=group.example, prompt_ids=group.prompt_ids, rollouts=[rollout])
                responses.setdefault(tuple(rollout.response_ids), (alone, total))
        ranked = [sorted(responses.values(), key=lambda pair: -pair[1]) for responses in by_prompt.values()]
        return [pair for best in ranked for pair in best[: self.config.keep]]

    def _fill(self, groups: list[RolloutGroup], number: int) -> None:
        self.collected = number
        self.pool = Stream(groups, lambda epoch: self.context.random("source", self.name, "pool", number, epoch), f"sources.{self.name}")

    def rows(self, items: Sequence[RolloutGroup], encoder: Any) -> DemoRows:
        return DemoRows(tokens=encoder.rollouts(items))

    def state_dict(self) -> dict[str, Any]:
        state = {"prompts": self.prompts.state_dict(), "served": self.served, "collected": self.collected, "pool": None}
        if self.pool is not None:
            state["pool"] = [self.pool.position, [_rollouts.to_json(group) for group in self.pool.items]]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        if state["pool"] is not None:
            position, groups = state["pool"]
            self._fill([_rollouts.from_json(values) for values in groups], state["collected"])
            assert self.pool is not None
            self.pool.position = position
        self.served, self.collected = int(state["served"]), int(state["collected"])
