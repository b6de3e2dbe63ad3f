"""Columns that are computed once per draw, one forward without gradient each, and the advantages: old and reference log-probabilities, old
entropy, values. They stay fixed while the draw is used for several updates.

Every process holds the whole draw and runs its part of the rows; the advantages then need no reduction.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from advalign.engine.checks import check_advantages
from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.process_group import SINGLE_PROCESS, ProcessGroup
from advalign.errors import ConfigError
from advalign.functional import mismatch
from advalign.functional.masks import sampled_tokens
from advalign.interfaces import Advantage, Objective, RewardPenalty, Source
from advalign.models import Network
from advalign.training.columns import columns
from advalign.training.run_spec import REFERENCE
from advalign.types import DemoRows, FeedbackRows, PairRows, RolloutRows, TokenRows


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A draw of a source whose rows a learner is about to read."""

    name: str
    """Name of the source."""
    source: Source
    """Its configuration."""
    learner: str
    """The learner that reads the rows."""
    needed: Set[str]
    """Columns to compute (`needed_columns`)."""


def needed_columns(source: Source, readers: Sequence[Objective], learners: Mapping[str, Learner]) -> frozenset[str]:
    """The columns that the objectives `readers` and the reward penalty of a source read."""
    needed = frozenset(column for objective in readers for column in objective.columns)
    users = {o.learner: learners[o.learner] for o in readers if "old_logprobs" in o.columns}
    sampler = source.samples_with
    once = all(name == sampler and learner.updates * learner.minibatches * learner.epochs == 1 for name, learner in users.items())
    once &= not source.steps_ahead
    if source.reward_penalty is not None:
        return needed | {"old_logprobs", "ref_logprobs"}
    # With one update per draw, of the sampler itself as it was, the ratio is exactly 1.
    return needed - {"old_logprobs"} if once and not any(o.exact_old for o in readers) else needed


class Annotator:
    """Completes the rows of draws."""

    def __init__(
        self,
        learners: Mapping[str, LearnerRuntime],
        copies: Mapping[str, Network],
        *,
        budget: int,
        references: Mapping[str, str] | None = None,
        critics: Mapping[str, str] | None = None,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """`copies`: frozen copies by name, which may grow; `references`: {learner: the one that its `ref_logprobs` are of}; `critics`:
        {source: the learner that its values are of}."""
        self.learners, self.copies, self.references = learners, copies, references or {}
        self.critics = critics or {}
        self.budget, self.processes = budget, processes
        self.states: dict[str, dict[str, Any]] = {}
        """{source: what its advantage and its KL penalty carry from draw to draw}"""

    def __call__(self, draw: Draw, rows: TokenRows) -> tuple[TokenRows, dict[str, float]]:
        """The rows with every column in `draw.needed`, and the numbers to log about them."""
        annotate = next((ANNOTATE[cls] for cls in type(rows).__mro__ if cls in ANNOTATE), None)
        return (rows, {}) if annotate is None else annotate(self, draw, rows)

    def rollouts(self, draw: Draw, rows: RolloutRows) -> tuple[RolloutRows, dict[str, float]]:
        """Rollouts with their columns and advantages."""
        source, advantage = draw.source, draw.source.advantage_estimator
        assert advantage is not None
        rows = self._rollout_columns(draw, advantage, rows)
        state = self._state(draw.name, source)
        before = copy.deepcopy(state)
        logs = {} if rows.old_logprobs is None else _sampler_mismatch(rows)
        summed = not advantage.reads_token_rewards
        if summed and rows.token_rewards is not None:
            totals = rows.token_rewards.sum(1, keepdim=True).to(rows.rewards.dtype)
            rows = replace(rows, rewards=torch.cat([rows.rewards, totals], 1), token_rewards=None)
        if source.reward_penalty is not None:
            rows, penalty_logs = _penalised(source.reward_penalty, advantage, rows, state["kl"])
            logs |= penalty_logs
        estimate = advantage(rows, state["advantage"], _sum_over_all_rows)
        advantages, returns = check_advantages(f"sources.{draw.name}.advantage", estimate, rows.tokens)
        carried = [x for part in state.values() for x in (part or {}).values()]
        if not all(map(math.isfinite, carried)) or not advantages[rows.tokens.target].isfinite().all():
            self.states[draw.name] = before  # what is carried is that of draws whose numbers were finite
        return replace(rows, advantages=advantages, returns=returns), logs

    def pairs(self, draw: Draw, rows: PairRows) -> tuple[PairRows, dict[str, float]]:
        """Pairs with reference log-probabilities."""
        return annotate_pairs(rows, draw.needed, reference=self._reference(draw.learner), budget=self.budget, processes=self.processes), {}

    def feedback(self, draw: Draw, rows: FeedbackRows) -> tuple[FeedbackRows, dict[str, float]]:
        """Feedback with reference log-probabilities and anchor."""
        policy = self.learners[draw.learner].network
        annotated = annotate_feedback(
            rows, draw.needed, policy=policy, reference=self._reference(draw.learner), budget=self.budget, processes=self.processes
        )
        return annotated, {}

    def reference_logprobs(self, draw: Draw, rows: TokenRows, *, own: bool = False) -> Tensor:
        """Those of the reference of the learner that reads the rows, or of the sampler where the rewards have a KL penalty, which is a
        distance from it; `own`: in any case those of the learner."""
        owner = draw.learner if own or draw.source.reward_penalty is None else draw.source.samples_with
        return _reference_logprobs(rows, self._reference(owner or draw.learner), self.budget, self.processes)

    def _network(self, name: str) -> Network:
        """The network of a learner, or a frozen copy."""
        return self.learners[name].network if name in self.learners else self.copies[name]

    def _reference(self, learner: str) -> Network | None:
        """The network that a learner, or a sampler, is compared with; None: it has none, or none that exists."""
        return self.copies.get(self.references.get(learner, ""))

    def _rollout_columns(self, draw: Draw, advantage: Advantage, rows: RolloutRows) -> RolloutRows:
        new: dict[str, Tensor] = {}
        source, needed = draw.source, draw.needed
        # Replayed rows keep the log-probabilities of the policy that sampled them.
        existing = {"logprobs": rows.old_logprobs, "entropy": rows.old_entropy}
        missing = {need for need, column in existing.items() if f"old_{need}" in needed and column is None}
        if missing:
            old = columns(self._network(source.samples_with or ""), rows, missing, self.budget, self.processes)
            new |= {f"old_{need}": column for need, column in old.items()}
        if "old_logprobs" in new:  # where the sampler is unknown (nan), it is taken to be the current policy
            new["sampler_logprobs"] = torch.where(rows.sampler_logprobs.isnan(), new["old_logprobs"], rows.sampler_logprobs)
        if "ref_logprobs" in needed:
            new["ref_logprobs"] = self.reference_logprobs(draw, rows)
        if advantage.needs_values or "values" in needed:
            new["values"] = columns(self._critic(draw.name, advantage), rows, {"values"}, self.budget, self.processes)["values"]
        return replace(rows, **new)  # type: ignore[arg-type]

    def _critic(self, source: str, advantage: Advantage) -> Network:
        if source not in self.critics:
            name = type(advantage).__name__
            raise ConfigError(f"sources: advantage '{name}' needs values, and no learner has head: value; add one (a critic).")
        return self.learners[self.critics[source]].network

    def _state(self, name: str, source: Source) -> dict[str, Any]:
        if name not in self.states:
            advantage, penalty = source.advantage_estimator, source.reward_penalty
            self.states[name] = {
                "advantage": None if advantage is None else advantage.initial_state(),
                "kl": None if penalty is None else penalty.initial_state(),
            }
        return self.states[name]


ANNOTATE: Mapping[type, Callable[[Annotator, Draw, Any], tuple[Any, dict[str, float]]]] = {
    RolloutRows: Annotator.rollouts,
    PairRows: Annotator.pairs,
    FeedbackRows: Annotator.feedback,
}
"""{row type: what completes its rows}. Rows of other types are complete as they are."""


def _penalised(
    penalty: RewardPenalty, advantage: Advantage, rows: RolloutRows, state: dict[str, float]
) -> tuple[RolloutRows, dict[str, float]]:
    """The rows with the penalty where the advantage reads it, and logs."""
    if not advantage.separates_penalty:
        return penalty.apply(rows, state, summed=not advantage.reads_token_rewards)
    alone, logs = penalty.apply(replace(rows, token_rewards=None), state, summed=False)
    assert alone.token_rewards is not None
    return replace(rows, penalty=alone.token_rewards.sum(1).to(rows.rewards.dtype)), logs


def _sampler_mismatch(rows: RolloutRows) -> dict[str, float]:
    """How far the trainer's log-probabilities are from the sampler's; demonstrations have no sampler."""
    assert rows.old_logprobs is not None
    return mismatch.diagnostics(rows.old_logprobs, rows.sampler_logprobs, sampled_tokens(rows.tokens.target, rows.offpolicy))


def _sum_over_all_rows(x: Tensor) -> Tensor:
    """The `all_reduce` of advantages: every process has all rows."""
    return x


def annotate_pairs(
    rows: PairRows, needed: Set[str], *, reference: Network | None, budget: int, processes: ProcessGroup = SINGLE_PROCESS
) -> PairRows:
    """The rows of a draw with reference log-probabilities, where they are needed."""
    if "ref_logprobs" not in needed:
        return rows
    return replace(rows, ref_logprobs=_reference_logprobs(rows, reference, budget, processes))


def annotate_feedback(
    rows: FeedbackRows,
    needed: Set[str],
    *,
    policy: Network,
    reference: Network | None,
    budget: int,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> FeedbackRows:
    """The rows of a draw with reference log-probabilities and anchor z0, without their mismatched rows.

    z0 = max(0, mean of sum_t log p - log p_ref over mismatched rows)."""
    new: dict[str, Any] = {"mismatched": None}
    if "ref_logprobs" in needed:
        new["ref_logprobs"] = _reference_logprobs(rows, reference, budget, processes)
    if "anchor" in needed:
        assert rows.mismatched is not None
        mismatched = DemoRows(tokens=rows.mismatched)
        logprobs = columns(policy, mismatched, {"logprobs"}, budget, processes)["logprobs"]
        ratios = (logprobs - _reference_logprobs(mismatched, reference, budget, processes)).sum(1)
        new["anchor"] = (ratios.sum() / len(ratios)).clamp(min=0).repeat(len(ratios))
    return replace(rows, **new)


def _reference_logprobs(rows: TokenRows, reference: Network | None, budget: int, processes: ProcessGroup) -> Tensor:
    if reference is None:
        raise ConfigError(f"frozen: an objective compares with the reference; add frozen: {{{REFERENCE}: {{learner: policy}}}}.")
    return columns(reference, rows, {"logprobs"}, budget, processes)["logprobs"]
