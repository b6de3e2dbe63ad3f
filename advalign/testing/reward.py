"""The contract of a reward: one score per rollout, in order, never infinite, and about the rollout alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from advalign.interfaces import Context, Reward, Scorer, Scores
from advalign.testing import _runs
from advalign.testing._rules import explained, is_plugin, require, same, snapshot
from advalign.types import RolloutGroup


def check_reward(reward: Reward, groups: Sequence[RolloutGroup] | None = None, context: Context | None = None) -> None:
    """Raises AssertionError for the first rule that the reward breaks.

    `groups`: responses of your own, for a reward that reads what sums of digits do not have. `context`: of a run of your own; without
    one, a run of tiny models in which `scoring_learner` exists.
    """
    is_plugin(reward, Reward, "rewards")
    require(isinstance(reward.weight, int | float) and math.isfinite(reward.weight), reward, f"weight is {reward.weight!r}, not a number.")
    if context is None:
        run = _runs.context([reward.scoring_learner] if reward.scoring_learner else [])
        context, policy = run, run.learner("policy").network
        groups = _runs.rollout_groups(policy) if groups is None else groups
    require(bool(groups), reward, "no responses to score; give `groups` where you give `context`.")
    assert groups is not None
    with explained(reward, "start raised"):
        score = reward.start(context)
    require(callable(score), reward, f"start returns a {type(score).__name__}; return a function of the groups, or a Scorer.")
    scores = _scores(reward, score, groups)
    _about_the_rollout_alone(reward, context, groups, scores)
    if isinstance(score, Scorer):
        _state(reward, score)


def _scores(reward: Reward, score: Callable[[Sequence[RolloutGroup]], Scores], groups: Sequence[RolloutGroup]) -> list[Any]:
    rollouts = [r for g in groups for r in g.rollouts]
    before = snapshot(_told(groups))
    with explained(reward, "scoring raised; a reward that cannot judge a response returns nan for it"):
        result = score(groups)
    require(same(before, _told(groups)), reward, "it changes the rollouts; return scores and change nothing.")
    sized = isinstance(result, Sequence) and not isinstance(result, str)
    require(sized, reward, f"it returns a {type(result).__name__}; return a list with one score per rollout.")
    number = len(result)
    hint = "; one score per rollout, not per group" if number == len(groups) else ""
    require(number == len(rollouts), reward, f"it gives {number} scores for {len(rollouts)} rollouts{hint}.")
    for value, rollout in zip(result, rollouts, strict=True):
        per_token = isinstance(value, Sequence) and not isinstance(value, str)
        values: list[Any] = list(value) if isinstance(value, Sequence) else [value]
        numbers = all(isinstance(x, int | float) for x in values)
        require(numbers, reward, f"a score is {value!r} ({type(value).__name__}); a float, nan, or a list with one float per response id.")
        require(not any(math.isinf(x) for x in values), reward, f"a score is {value!r}; infinite scores are refused, nan abstains.")
        fits = not per_token or len(values) == len(rollout.response_ids)
        require(fits, reward, f"{len(values)} scores for a response of {len(rollout.response_ids)} ids; one per id, the end included.")
    return list(result)


def _told(groups: Sequence[RolloutGroup]) -> list[Any]:
    """What a reward is told; the version of a scorer is its own to note."""
    return [(g.prompt_ids, [(r.response_ids, r.sampler_logprobs, r.text, r.finished, r.rewards) for r in g.rollouts]) for g in groups]


def _about_the_rollout_alone(reward: Reward, context: Context, groups: Sequence[RolloutGroup], scores: list[Any]) -> None:
    again = _scores(reward, reward.start(context), groups)
    require(_close(again, scores), reward, "a second start scores the same rollouts differently; draw from context.random(...).")
    if reward.scores_whole_draw:
        return
    alone: list[Any] = []
    score = reward.start(context)
    for group in groups:
        for rollout in group.rollouts:
            single = copy.copy(group)
            single.rollouts = [rollout]
            alone += _scores(reward, score, [single])
    sentence = "a rollout alone has another score than in a draw: scores are out of order, or compare (then declare scores_whole_draw)."
    require(_close(alone, scores), reward, sentence)


def _close(first: Sequence[Any], second: Sequence[Any]) -> bool:
    def flat(x: Any) -> list[float]:
        return [float(v) for v in x] if isinstance(x, Sequence) else [float(x)]

    pairs = [(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(flat(x), flat(y), strict=True)]
    return all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def _state(reward: Reward, scorer: Scorer) -> None:
    with explained(reward, "the state of its scorer cannot be saved and loaded"):
        state = snapshot(dict(scorer.state_dict()))
        scorer.load_state_dict(state)
    require(same(state, dict(scorer.state_dict())), reward, "load_state_dict(state_dict()) changes the state of its scorer.")


__all__ = ["check_reward"]
