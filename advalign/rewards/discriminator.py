"""The score of another learner: a discriminator, a critic or a reward model; of a whole response, or credited to its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Context, Scorer
from advalign.names import SAMPLER, ScorerName
from advalign.ranges import Count, OneOf
from advalign.rewards._scores import FLOOR, RunningStatistics, Scale, ShapedReward, credit_increases, last_tokens, rescale, segment_ends
from advalign.types import Rollout, RolloutGroup

LEVELS = ("sequence", "token", "segment")


@dataclass(frozen=True, kw_only=True)
class Discriminator(ShapedReward):
    """r = D(x, y); in `form` the logit D, -log(1 - σ(D)), log σ(D) or σ(D)   (GAPO, arXiv:2503.20194; GAIL, arXiv:1606.03476, eq. 14).

    At the optimal discriminator the expected rewards descend KL(q‖p), 2 JS(p, q), 2 KL((p+q)/2 ‖ p) and KL(p ‖ (p+q)/2): the logit is the
    default because group centring removes its prompt constant. `airl`: D - log π(y | x) under the sampler (arXiv:1710.11248).
    Every scored rollout stores the version of the weights that scored it, so that a stale score can be recognised. A score that is not
    finite is left out (the reward abstains on the row) and counted as `num_nonfinite_scores`; where all are, the run stops.
    """

    learner: ScorerName
    """Learner (or frozen copy) with head `score`."""
    level: Annotated[str, OneOf(LEVELS, "level")] = "sequence"
    """sequence: one score of the whole response. token: a score per token, of a discriminator with the sampler's tokenizer. segment: every
    beginning of the text that ends a segment is scored, and each increase is credited to the last token of its segment; they sum to the
    whole text's reward, and the discriminator may have a tokenizer of its own."""
    segment: Annotated[str, OneOf(("sentence",), "segment")] | Count = "sentence"
    """sentence, or a number of words."""
    sampler: Annotated[str, replace(SAMPLER, when=("level", "segment"))] = "policy"
    """With `level: segment`, the learner whose tokens the response has."""

    scores_whole_draw: ClassVar[bool] = True  # the forwards are divided among processes, the statistics are of all responses

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "airl" and self.level != "sequence":
            raise ConfigError(
                f"rewards.discriminator.level: form 'airl' weighs whole responses, and '{self.level}' is given; use sequence."
            )

    @property
    def scoring_learner(self) -> str | None:
        return self.learner

    def start(self, context: Context) -> _DiscriminatorScorer:
        return _DiscriminatorScorer(self, context)


class _DiscriminatorScorer(Scorer):
    """A started reward; its state are the statistics of `normalize: running`."""

    def __init__(self, config: Discriminator, context: Context) -> None:
        self.config, self.context = config, context
        self.running = RunningStatistics()
        self.scale = Scale()

    def __call__(self, groups: Sequence[RolloutGroup]) -> list[float] | list[list[float]]:
        return self._scores(groups, self._fitted)

    def as_last_scaled(self, groups: Sequence[RolloutGroup]) -> list[float] | list[list[float]]:
        return self._scores(groups, lambda sums, lengths: self.scale)

    def _scores(self, groups: Sequence[RolloutGroup], scale_of: Callable[[Tensor, Tensor], Scale]) -> list[float] | list[list[float]]:
        rollouts = [r for g in groups for r in g.rollouts]
        level = {"sequence": self._sequence, "token": self._token, "segment": self._segment}[self.config.level]
        parts, version = level(groups, rollouts)
        parts = self._finite(parts)
        for rollout in rollouts:
            rollout.reward_versions.append(version)
        sums = torch.tensor([math.fsum(part) for part in parts], dtype=torch.float64)
        log_lengths = torch.tensor([len(r.response_ids) for r in rollouts], dtype=torch.float64).log1p()
        scale = scale_of(sums, log_lengths)
        totals = scale.apply(sums, log_lengths)
        if self.config.level == "sequence":
            return totals.tolist()
        return [rescale(part, total, scale.factor) for part, total in zip(parts, totals.tolist(), strict=True)]

    def _finite(self, parts: list[list[float]]) -> list[list[float]]:
        """The scores by response, nan where one is not finite: infinite ones would spoil what is computed of all of them."""
        bad = [not all(map(math.isfinite, part)) for part in parts]
        if all(bad):
            raise RewardError(
                f"rewards.discriminator: learner '{self.config.learner}' scored all {len(parts)} responses as nan or infinite; look at its "
                "loss and learning_rate, or bound the scores with soft_clip."
            )
        self.logs = {"num_nonfinite_scores": [float(sum(bad))]} if any(bad) else {}
        return [[math.nan] * len(part) if is_bad else part for part, is_bad in zip(parts, bad, strict=True)]

    def _fitted(self, totals: Tensor, log_lengths: Tensor) -> Scale:
        """The scale of a draw, kept for `as_last_scaled`."""
        self.scale = Scale() if self.config.length == "none" else Scale.without_trend(totals, log_lengths)
        if self.config.normalize != "none":
            statistics = self.running if self.config.normalize == "running" else RunningStatistics()
            statistics.add(self.scale.apply(totals, log_lengths))
            self.scale = replace(self.scale, mean=statistics.mean, factor=1 / max(statistics.std, FLOOR))
        return self.scale

    def _sequence(self, groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout]) -> tuple[list[list[float]], int]:
        prompts = [g.example.prompt for g in groups for _ in g.rollouts]
        scores, version = self.context.score(self.config.learner, prompts, [r.text for r in rollouts], [r.finished for r in rollouts])
        rewards = self.config.shaped(torch.tensor(scores, dtype=torch.float64))
        if self.config.form == "airl":
            rewards = rewards - torch.tensor([math.fsum(r.sampler_logprobs) for r in rollouts], dtype=torch.float64)
        return rewards[:, None].tolist(), version

    def _token(self, groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout]) -> tuple[list[list[float]], int]:
        scores, version = self.context.score_tokens(self.config.learner, groups)
        return [self.config.shaped(torch.tensor(per_token, dtype=torch.float64)).tolist() for per_token in scores], version

    def _segment(self, groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout]) -> tuple[list[list[float]], int]:
        encoder = self.context.encoder(self.config.sampler)
        ends = [segment_ends(r.text, self.config.segment) for r in rollouts]
        prompts = [g.example.prompt for g in groups for _ in g.rollouts]
        # The last beginning is the whole text, which alone may be finished.
        rows = [
            (prompt, r.text[:end], r.finished and end == len(r.text))
            for prompt, r, stops in zip(prompts, rollouts, ends, strict=True)
            for end in stops
        ]
        scores, version = self.context.score(self.config.learner, *(list(column) for column in zip(*rows, strict=True)))
        shaped = self.config.shaped(torch.tensor(scores, dtype=torch.float64)).split([len(stops) for stops in ends])
        return [
            credit_increases(values.tolist(), last_tokens(r.response_ids, stops, encoder.decode), len(r.response_ids))
            for values, r, stops in zip(shaped, rollouts, ends, strict=True)
        ], version

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.running.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.running.load_state_dict(state["seen"])


__all__ = ["Discriminator"]
