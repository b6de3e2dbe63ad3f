"""Scores on rollouts: token by token or per response, their weights, and what is refused."""

from dataclasses import dataclass

import pytest
from helpers.runs import game

from advalign.advantages.gae import GAE
from advalign.advantages.group import Group
from advalign.errors import RewardError
from advalign.interfaces import Advantage, Reward
from advalign.rewards.length import Length
from advalign.sources._rollouts import RolloutSource, build_rows, weights, without_abstentions
from advalign.sources._scoring import as_scorer, score, total_reward
from advalign.training.annotate import Annotator, Draw
from advalign.types import Example, Rollout, RolloutGroup


class Fixed(Reward):
    """A reward whose scores are those the test gives."""

    def start(self, context):
        raise AssertionError("it is not started")


@dataclass(frozen=True, kw_only=True)
class Rollouts(RolloutSource):
    """A source of rollouts that is only annotated."""

    def start(self, context, name):
        raise AssertionError("it is not started")


def rolled(*rewards):
    rollouts = [Rollout(response_ids=[5, 6, 7][:n], sampler_logprobs=[0.0] * n, text="", finished=True) for n in (3, 2)]
    groups = [RolloutGroup(example=Example(prompt="red"), prompt_ids=[3], rollouts=rollouts)]
    fixed = [Fixed(weight=weight) for weight, _ in rewards]
    logs = score(groups, fixed, [as_scorer(lambda g, s=s: s) for _, s in rewards], "sources.write")
    return groups, weights(fixed), logs


def test_token_rewards_are_weighted_placed_and_summed():
    """Weight 2 on tokens (1, 2, 3) and (4, 5), weight 1 on the responses 10 and 20: totals 2 * 6 + 10 = 22 and 2 * 9 + 20 = 38."""
    groups, factors, logs = rolled((2.0, [[1.0, 2.0, 3.0], [4.0, 5.0]]), (1.0, [10.0, 20.0]))
    first, second = groups[0].rollouts
    assert (first.token_rewards, second.token_rewards) == ([2.0, 4.0, 6.0], [8.0, 10.0])
    assert (first.rewards, second.rewards) == ([0.0, 10.0], [0.0, 20.0])
    assert [total_reward(r, factors) for r in groups[0].rollouts] == [22.0, 38.0]
    assert [logs[k] for k in logs if k.endswith("/mean")] == [7.5, 15.0]

    trainer = game()
    trainer.start()
    encoder = trainer.learners["policy"].network.encoder
    rows = build_rows(groups, encoder, factors, 1.0)
    assert rows.token_rewards[rows.tokens.target].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]

    annotate = Annotator(trainer.learners, {}, budget=8192)

    def draw(name, advantage):
        return Draw(name=name, source=Rollouts(advantage=advantage), learner="policy", needed=frozenset())

    summed, _ = annotate(draw("a", Group(scale="none")), rows)
    assert summed.rewards.sum(1).tolist() == [22.0, 38.0]  # an estimator of whole responses gets the sum
    assert summed.advantages[summed.tokens.target].tolist() == [-8.0] * 3 + [8.0] * 2

    class Reader(Advantage):
        @property
        def reads_token_rewards(self):
            return True

        def __call__(self, rows, state, all_reduce):
            self.seen = rows.token_rewards, rows.rewards.sum(1)
            return rows.advantages, None

    reader = Reader()
    annotate(draw("b", reader), rows)
    assert reader.seen[0] is rows.token_rewards
    assert reader.seen[1].tolist() == [10.0, 20.0]
    assert GAE().reads_token_rewards


def test_token_rewards_that_do_not_fit():
    with pytest.raises(RewardError, match="gave 2 scores for a response of 3 tokens"):
        rolled((1.0, [[1.0, 2.0], [1.0, 2.0]]))
    with pytest.raises(RewardError, match="gave 1 scores for 2 responses"):
        rolled((1.0, [[1.0, 2.0, 3.0]]))
    with pytest.raises(RewardError, match="gave inf"):
        rolled((1.0, [[1.0, float("inf"), 3.0], [1.0, 2.0]]))
    groups, _, _ = rolled((1.0, [[1.0, float("nan"), 3.0], [1.0, 2.0]]))
    remaining, num_abstained = without_abstentions(groups)
    assert (len(remaining[0].rollouts), num_abstained) == (1, 1)


def test_a_reward_that_follows_the_length_shows_in_the_log():
    """Rewards a + b log(length) have r = 1, minus that r = -1; one that does not vary has none. By hand: lengths 1, e, e², here 1, 2, 4
    (logs 0, 1, 2 times log 2) with rewards 0, 1, 0: covariance 0."""

    def group(lengths):
        rollouts = [Rollout(response_ids=[3] * n, sampler_logprobs=[0.0] * n, text="x", finished=True) for n in lengths]
        return [RolloutGroup(example=Example(prompt="p"), prompt_ids=[1], rollouts=rollouts)]

    for scores, expected in (([0.0, 1.0, 2.0], 1.0), ([3.0, 2.0, 1.0], -1.0), ([0.0, 1.0, 0.0], 0.0), ([1.0, 1.0, 1.0], None)):
        logs = score(group([1, 2, 4]), [Length(target=1)], [as_scorer(lambda groups, scores=scores: scores)], "write")
        assert logs.get("rewards/length/corr_length") == (None if expected is None else pytest.approx(expected, abs=1e-12))
