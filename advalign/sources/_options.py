"""Options of sources that sample: refill of uninformative groups, demonstrations inside groups, KL in the reward, a curriculum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from advalign.checked import Checked
from advalign.errors import ConfigError, unknown
from advalign.functional import advantages
from advalign.functional.divergence import ESTIMATORS
from advalign.functional.masks import sampled_tokens
from advalign.interfaces import Context, Reward, RewardPenalty
from advalign.ranges import Count, Finite, NonNegative, OneOf, Positive, ProperFraction, Words
from advalign.types import Example, RolloutGroup, RolloutRows


@dataclass(frozen=True, kw_only=True)
class Dynamic(Checked, section="dynamic"):
    """Dynamic sampling: prompts are drawn and answered until the batch is full of groups whose rewards differ, since equal rewards
    teach nothing (DAPO, arXiv:2503.14476, section 3.2). As there, correctness decides: a price on length beside it does not count."""

    max_batches: Count = 10
    """Batches after which the batch is filled up with uninformative groups, and their number is logged (10 in DAPO's code, which
    then stops the run)."""

    by: tuple[Words, ...] = ()
    """The rewards that decide, by their names in the log (`rewards/<name>/mean`). Empty: all but `length`; all if there is no other."""

    def deciding(self, rewards: Sequence[Reward], labels: Sequence[str], path: str) -> list[bool]:
        """Which rewards decide. Raises ConfigError for a name in `by` that is not among the labels of the rewards."""
        for name in self.by:
            if name not in labels:
                raise unknown(f"{path}.dynamic.by", "reward", name, labels)
        chosen = [label in self.by if self.by else not r.prices_length for r, label in zip(rewards, labels, strict=True)]
        return chosen if any(chosen) else [True] * len(chosen)


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Checked, section="demonstrations"):
    """`number` demonstrations join each group as off-policy rows, scored by the same rewards (LUFFY, arXiv:2504.14945: 1 of 8).

    With `gate` a group is one or the other (HPT, arXiv:2509.04419, eq. 9): if more than `gate` of its sampled responses are solved
    (total reward >= `solved`) the demonstrations leave, else the sampled responses do. Paper: gate 0; 0.25 for a weaker model.
    """

    number: Count = 1
    """Demonstrations per group."""
    gate: ProperFraction | None = None
    """Solve rate above which a group keeps its sampled responses, else its demonstrations. None: it keeps both."""
    solved: Finite = 0.5
    """Total reward from which a response counts as solved."""

    def choose(self, group: RolloutGroup, totals: Sequence[float]) -> list[int]:
        """Indices of the rollouts that stay; `totals` are their rewards."""
        sampled = [i for i, r in enumerate(group.rollouts) if not r.offpolicy]
        if self.gate is None or not sampled:
            return list(range(len(group.rollouts)))
        rate = sum(totals[i] >= self.solved for i in sampled) / len(sampled)
        return sampled if rate > self.gate else [i for i, r in enumerate(group.rollouts) if r.offpolicy]


@dataclass(frozen=True, kw_only=True)
class KLPenalty(RewardPenalty, section="kl"):
    """-coef k(log p_old - log p_ref) on every sampled token, as a reward (arXiv:1909.08593, eq. 2; estimators of `functional.divergence`).

    With `target` the coefficient follows the measured KL of a response, in nats:
    coef <- coef (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon) after a draw of n responses (ibid., section 2.2).
    """

    coef: NonNegative = 0.05
    """Coefficient, or its first value where `target` is given."""
    estimator: Annotated[str, OneOf(ESTIMATORS, "estimator")] = "k1"
    """k of the formula."""
    target: Positive | None = None
    """KL of a response that the coefficient is adapted to, in nats. None: the coefficient is fixed."""
    horizon: Positive = 10000.0
    """Responses over which the coefficient adapts."""

    def initial_state(self) -> dict[str, float]:
        return {"coef": self.coef}

    def apply(self, rows: RolloutRows, state: dict[str, float], *, summed: bool) -> tuple[RolloutRows, dict[str, float]]:
        assert rows.old_logprobs is not None
        assert rows.ref_logprobs is not None
        target = sampled_tokens(rows.tokens.target, rows.offpolicy)
        penalties = advantages.kl_rewards(rows.old_logprobs, rows.ref_logprobs, target, coef=state["coef"], estimator=self.estimator)
        kl = _mean_kl(rows.old_logprobs - rows.ref_logprobs, target)
        logs = {"kl": kl, "kl_coef": state["coef"]}
        if self.target is not None:
            number = int(target.any(1).sum())
            state["coef"] = float(advantages.adaptive_coefficient(state["coef"], kl, target=self.target, horizon=self.horizon, num=number))
        if summed:
            return replace(rows, rewards=torch.cat([rows.rewards, penalties.sum(1, keepdim=True).to(rows.rewards.dtype)], 1)), logs
        return replace(rows, token_rewards=penalties if rows.token_rewards is None else rows.token_rewards + penalties), logs


@dataclass(frozen=True, kw_only=True)
class Curriculum(Checked, section="curriculum"):
    """Prompts whose measured solve rate is near `target` are drawn more often: w = floor + exp(-((p - target) / width)^2 / 2).

    p is an average of the prompt's mean reward, p <- decay p + (1 - decay) r; a prompt that was never drawn counts as at the target.
    """

    target: Finite = 0.5
    """Solve rate drawn most often."""
    width: Positive = 0.25
    """Standard deviation of the weights around `target`."""
    floor: NonNegative = 0.05
    """Least weight, before the others are added."""
    decay: ProperFraction = 0.5
    """Of the average of a prompt's mean reward."""

    def start(self, examples: Sequence[Example], context: Context, name: str) -> CurriculumStream:
        return CurriculumStream(self, examples, context, name)


class CurriculumStream:
    """A stream of prompts weighted by their measured solve rates; it draws without replacement within a batch."""

    def __init__(self, config: Curriculum, examples: Sequence[Example], context: Context, name: str) -> None:
        if not examples:
            raise ConfigError(f"sources.{name}: the data is empty.")
        self.config, self.items, self.context, self.name = config, examples, context, name
        self.rates: dict[int, float] = {}  # {index of an example: measured solve rate}
        self.num_draws = 0  # also the key of the next draw
        self._index = {id(e): i for i, e in enumerate(examples)}

    def weight(self, index: int) -> float:
        c = self.config
        distance = (self.rates.get(index, c.target) - c.target) / c.width
        return c.floor + math.exp(-(distance**2) / 2)

    def take(self, number: int) -> list[Example]:
        rng = self.context.random("curriculum", self.name, self.num_draws)
        self.num_draws += 1
        # Efraimidis and Spirakis, 2006: the largest u^(1/w) are a weighted sample without replacement.
        keys = [rng.random() ** (1 / max(self.weight(i), 1e-12)) for i in range(len(self.items))]
        best = sorted(range(len(keys)), key=lambda i: -keys[i])[:number]
        return [self.items[best[i % len(best)]] for i in range(number)]

    def observe(self, example: Example, mean_reward: float) -> None:
        """Adds the mean reward of a drawn example to its average; nan is left out."""
        index = self._index.get(id(example))
        if index is not None and not math.isnan(mean_reward):
            before = self.rates.get(index, mean_reward)
            self.rates[index] = self.config.decay * before + (1 - self.config.decay) * mean_reward

    def logs(self) -> dict[str, float]:
        rates = list(self.rates.values())
        return {"curriculum/solve_rate": sum(rates) / len(rates), "curriculum/seen": len(rates) / len(self.items)} if rates else {}

    def state_dict(self) -> dict[str, Any]:
        return {"rates": {str(i): p for i, p in self.rates.items()}, "number": self.num_draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rates = {int(i): float(p) for i, p in state["rates"].items()}
        self.num_draws = int(state["number"])


def _mean_kl(gap: Tensor, target: Tensor) -> float:
    """Mean over responses of sum_t (log p_old - log p_ref)."""
    sums = gap.masked_fill(~target, 0.0).sum(1)[target.any(1)]
    return float(sums.mean()) if sums.numel() else 0.0
