"""The best of what a learner writes, as demonstrations for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from advalign import data as loading
from advalign.errors import RewardError
from advalign.interfaces import Context, Source, SourceRuntime, shrunk
from advalign.ranges import Count, Threshold
from advalign.sources._rollouts import Sampled, check_prompts, completion_metrics, weights, without_abstentions
from advalign.sources._scoring import score, start_scorers, total_reward
from advalign.sources._stream import Stream
from advalign.types import DemoRows, RolloutGroup, Rows, from_json, to_json, without_verifier

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Rejection"]


@dataclass(frozen=True, kw_only=True)
class Rejection(Sampled):
    """argmax_i R(x, y_i) of y_1 .. y_n ~ p(. | x), where R >= threshold: rejection sampling for SFT.

    RAFT and best-of-n (arXiv:2304.06767, algorithm 1) with `refresh: 1`; collected once and learned from for long, the third stage of
    DeepSeek-R1 (arXiv:2501.12948, section 2.3.3). A pool is collected, served in draws of up to `batch_size` rows, each pass over it in
    a new order, and collected again with the current learner. Rows have the sampled ids. Ours: where nothing passes, the previous pool
    is kept; RAFT has no threshold.
    """

    keep: Count = 1
    """Responses kept per prompt: the best different ones (ties: those sampled first)."""
    threshold: Threshold | None = None
    """Least total reward of a response that is kept. None: any."""
    refresh: Count = 1
    """Draws served from a pool before it is collected again."""
    collect: Count = 16
    """Prompts per collection, answered `group_size` times."""

    occasional_metrics: ClassVar[tuple[str, ...]] = ("rewards/*", "completions/*", "kept_reward")
    row_type: ClassVar[type[Rows]] = DemoRows

    def smaller(self) -> Source:
        """Without a threshold, which two steps of training do not reach."""
        return replace(shrunk(self, batch_size=2, group_size=2, collect=2), threshold=None)

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[RolloutGroup]):
    def __init__(self, config: Rejection, context: Context, name: str) -> None:
        examples = loading.examples(config.data, limit=config.limit, seed=context.seed)
        self.config, self.context, self.name, self.path = config, context, name, f"sources.{name}"
        self.weights = weights(config.rewards)
        self.prompts = Stream(examples, lambda epoch: context.random("source", name, epoch), self.path)
        self.scorers = start_scorers(config.rewards, context, examples, self.path)
        self.pool: Stream[RolloutGroup] | None = None  # groups of one response
        self.num_served = self.num_pools = 0  # draws of this pool; pools so far
        self.logs: dict[str, float] = {}

    def check_rows(self, encoder: Encoder) -> None:
        check_prompts(encoder, self.prompts.items, self.config.sampling, self.path)

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        self.logs = {}
        if self.pool is None or self.num_served >= self.config.refresh:
            self._collect(step, repeat)
        assert self.pool is not None
        self.num_served += 1
        self.logs["num_pool"] = float(len(self.pool.items))
        return self.pool.take(min(self.config.batch_size, len(self.pool.items)))

    def _collect(self, step: int, repeat: int) -> None:
        config = self.config
        examples = self.prompts.take(config.collect)
        groups = self.context.generate(config.learner, examples, config.group_size, config.sampling, ("rollout", self.name, step, repeat))
        num_sampled = sum(len(g.rollouts) for g in groups)
        self.logs = score(groups, config.rewards, self.scorers, self.path)
        scored, num_abstained = without_abstentions(groups)
        self.logs |= completion_metrics(scored, self.weights) | {"abstained": float(num_abstained)}
        ranked = self._ranked(scored)
        accepted = [(g, total) for g, total in ranked if config.threshold is None or total >= config.threshold]
        self.num_served = 0
        self.logs["kept_fraction"] = len(accepted) / num_sampled
        if accepted:
            self.logs["kept_reward"] = sum(total for _, total in accepted) / len(accepted)
            self._fill([without_verifier(g) for g, _ in accepted], self.num_pools + 1)
        elif self.pool is None:
            best = f"the best total reward is {max(total for _, total in ranked):.3g}" if ranked else "the rewards abstained on all of them"
            raise RewardError(
                f"{self.path}: none of {num_sampled} responses reached the threshold {config.threshold}, {best}; lower it, or raise "
                "group_size."
            )

    def _ranked(self, groups: Sequence[RolloutGroup]) -> list[tuple[RolloutGroup, float]]:
        """Per prompt the `keep` best different responses and their total rewards, each as a group of its own."""
        by_prompt: dict[tuple[int, ...], dict[tuple[int, ...], tuple[RolloutGroup, float]]] = {}
        for group in groups:
            responses = by_prompt.setdefault(tuple(group.prompt_ids), {})
            for rollout in group.rollouts:
                single = RolloutGroup(example=group.example, prompt_ids=group.prompt_ids, rollouts=[rollout])
                responses.setdefault(tuple(rollout.response_ids), (single, total_reward(rollout, self.weights)))
        ranked = [sorted(responses.values(), key=lambda pair: -pair[1]) for responses in by_prompt.values()]
        return [pair for best in ranked for pair in best[: self.config.keep]]

    def _fill(self, groups: list[RolloutGroup], number: int) -> None:
        """Sets pool `number` of the run."""
        self.num_pools = number
        self.pool = Stream(groups, lambda epoch: self.context.random("source", self.name, "pool", number, epoch), self.path)

    def rows(self, items: Sequence[RolloutGroup], encoder: Encoder) -> DemoRows:
        return DemoRows(tokens=encoder.rollouts(items))

    def state_dict(self) -> dict[str, Any]:
        state = {"prompts": self.prompts.state_dict(), "served": self.num_served, "collected": self.num_pools, "pool": None}
        if self.pool is not None:
            state["pool"] = [self.pool.position, [to_json(group) for group in self.pool.items]]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        if state["pool"] is not None:
            position, groups = state["pool"]
            self._fill([from_json(values) for values in groups], state["collected"])
            assert self.pool is not None
            self.pool.position = position
        self.num_served, self.num_pools = int(state["served"]), int(state["collected"])
