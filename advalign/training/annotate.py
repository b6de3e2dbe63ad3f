"""Columns that belong to a draw, one no-grad pass each: old and reference log-probabilities, old entropy, values; then
the advantages. They stay fixed while the draw is used for several updates.

Every process holds the whole draw, and runs its share of the rows; advantages are then those of one process, without a reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advalign.engine import micro as mb
from advalign.engine.checks import check_advantages
from advalign.engine.process_group import ProcessGroup
from advalign.errors import ConfigError
from advalign.functional import mismatch
from advalign.functional.masks import sampled_tokens
from advalign.interfaces import Advantage, Objective, Source
from advalign.models import Network
from advalign.models.inference import batched_forward
from advalign.types import DemoRows, FeedbackRows, PairRows, RolloutRows


def columns(network: Network, rows: Any, needs: Set[str], budget: int, ranks: ProcessGroup | None = None) -> dict[str, Tensor]:
    """{need: "B T"} of one network over the rows of a draw, on the CPU, without dropout; the processes in `ranks` partition the rows."""
    layout = mb.BatchLayout(network.packs, frozenset(["rows"]))
    partition = mb.partition({"rows": rows}, budget, layout=layout, parts=1 if ranks is None else ranks.number)
    micros = mb.pad_to_equal_count(partition, {"rows": rows})[0 if ranks is None else ranks.index]
    outputs = batched_forward(
        network,
        rows.tokens,
        needs,
        batches=[micro["rows"] for micro, idle in micros if not idle],
        idle=[micro["rows"] for micro, idle in micros if idle],
        temperatures=mb.temperatures([rows]),
    )
    return outputs if ranks is None else {need: ranks.sum(outputs[need]) for need in sorted(outputs)}


class Annotator:
    """Completes the rows of rollout draws. `states`: what estimators and KL coefficients carry from draw to draw, by source."""

    def __init__(self, learners: Mapping[str, Any], frozen: Mapping[str, Network], ranks: ProcessGroup | None, budget: int):
        self.learners, self.frozen, self.ranks, self.budget = learners, frozen, ranks, budget
        self.states: dict[str, dict[str, Any]] = {}

    def needs(self, source: Source, readers: Sequence[Objective], specs: Mapping[str, Any]) -> frozenset[str]:
        """The columns to compute. `specs`: {learner: its configuration}."""
        needed = frozenset(c for t in readers for c in t.columns)
        penalty = source.reward_penalty is not None
        users = {t.learner: specs[t.learner] for t in readers if "old_logprobs" in t.columns}
        sampler = source.samples_with
        once = all(name == sampler and spec.updates * spec.minibatches * spec.epochs == 1 for name, spec in users.items())
        once &= not source.steps_ahead
        if penalty:
            return needed | {"old_logprobs", "ref_logprobs"}
        # With one update per draw, of the sampler itself as it was, the ratio is exactly 1.
        return needed - {"old_logprobs"} if once and not any(t.exact_old for t in readers) else needed

    def __call__(self, name: str, source: Source, rows: RolloutRows, needed: Set[str]) -> tuple[RolloutRows, dict[str, float]]:
        """The rows of a draw of `source` with every column in `needed` and their advantages; and what to log about them."""
        advantage = source.advantage_estimator
        assert advantage is not None
        rows = self._columns(source, advantage, rows, needed)
        state = self._state(name, source)
        logs = {} if rows.old_logprobs is None else _gap(rows)
        summed = not advantage.reads_token_rewards
        if summed and rows.token_rewards is not None:
            whole = rows.token_rewards.sum(1, keepdim=True).to(rows.rewards.dtype)
            rows = replace(rows, rewards=torch.cat([rows.rewards, whole], 1), token_rewards=None)
        if source.reward_penalty is not None:
            rows, found = source.reward_penalty.apply(rows, state["kl"], summed=summed)
            logs |= found
        advantages, returns = check_advantages(f"sources.{name}.advantage", advantage(rows, state["advantage"], _whole), rows.tokens)
        return replace(rows, advantages=advantages, returns=returns), logs

    def _columns(self, source: Source, advantage: Advantage, rows: RolloutRows, needed: Set[str]) -> RolloutRows:
        new: dict[str, Any] = {}
        # Replayed rows keep the log-probabilities of the policy that sampled them.
        own = {n for n in ("logprobs", "entropy") if f"old_{n}" in needed and getattr(rows, f"old_{n}") is None}
        if own:
            now = columns(self.learners[source.samples_with or ""].network, rows, own, self.budget, self.ranks)
            new |= {f"old_{need}": column for need, column in now.items()}
        if "old_logprobs" in new:  # where nobody knows who sampled (nan), it is taken to be the policy of now
            new["sampler_logprobs"] = torch.where(rows.sampler_logprobs.isnan(), new["old_logprobs"], rows.sampler_logprobs)
        if "ref_logprobs" in needed:
            new["ref_logprobs"] = _reference(rows, self.frozen.get("reference"), self.budget, self.ranks)
        if advantage.needs_values or "values" in needed:
            critics = [runtime.network for runtime in self.learners.values() if runtime.network.head == "value"]
            if not critics:
                name = type(advantage).__name__
                raise ConfigError(f"sources: advantage '{name}' needs values, and no learner has head: value; add one (a critic).")
            new["values"] = columns(critics[0], rows, {"values"}, self.budget, self.ranks)["values"]
        return replace(rows, **new)

    def _state(self, name: str, source: Source) -> dict[str, Any]:
        if name not in self.states:
            advantage, penalty = source.advantage_estimator, source.reward_penalty
            self.states[name] = {
                "advantage": None if advantage is None else advantage.initial_state(),
                "kl": None if penalty is None else penalty.initial_state(),
            }
        return self.states[name]


def _gap(rows: RolloutRows) -> dict[str, float]:
    """How far the trainer's log-probabilities are from the sampler's; demonstrations have no sampler."""
    assert rows.old_logprobs is not None
    return mismatch.diagnostics(rows.old_logprobs, rows.sampler_logprobs, sampled_tokens(rows.tokens.target, rows.offpolicy))


def _whole(x: Tensor) -> Tensor:
    """The sum over processes, where each of them has all rows."""
    return x


def annotate_pairs(
    rows: PairRows, needed: Set[str], *, reference: Network | None, budget: int, ranks: ProcessGroup | None = None
) -> PairRows:
    if "ref_logprobs" not in needed:
        return rows
    return replace(rows, ref_logprobs=_reference(rows, reference, budget, ranks))


def annotate_feedback(
    rows: FeedbackRows,
    needed: Set[str],
    *,
    policy: Network,
    reference: Network | None,
    budget: int,
    ranks: ProcessGroup | None = None,
) -> FeedbackRows:
    """The rows of a draw with reference and z0 = max(0, mean of sum_t log p - log p_ref over mismatched rows), without those rows."""
    new: dict[str, Any] = {"mismatched": None}
    if "ref_logprobs" in needed:
        new["ref_logprobs"] = _reference(rows, reference, budget, ranks)
    if "anchor" in needed:
        assert rows.mismatched is not None
        crossed = DemoRows(tokens=rows.mismatched)
        now, then = columns(policy, crossed, {"logprobs"}, budget, ranks)["logprobs"], _reference(crossed, reference, budget, ranks)
        ratios = (now - then).sum(1)
        new["anchor"] = (ratios.sum() / len(ratios)).clamp(min=0).repeat(len(ratios))
    return replace(rows, **new)


def _reference(rows: Any, reference: Network | None, budget: int, ranks: ProcessGroup | None = None) -> Tensor:
    if reference is None:
        raise ConfigError("frozen: an objective compares with the reference; add frozen: {reference: {learner: policy}}.")
    return columns(reference, rows, {"logprobs"}, budget, ranks)["logprobs"]
