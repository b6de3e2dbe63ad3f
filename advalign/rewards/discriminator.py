"""The score of another learner: a discriminator, a critic or a reward model; of a whole response, or credited to its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from advalign.errors import ConfigError, unknown
from advalign.interfaces import Context, Scorer
from advalign.rewards import _scores
from advalign.types import Rollout, RolloutGroup

LEVELS = ("sequence", "token", "segment")


@dataclass(frozen=True, kw_only=True)
class Discriminator(_scores.Shaped):
    """r = D(x, y); in `form` the logit D, -log(1 - σ(D)), log σ(D) or σ(D)   (GAPO, arXiv:2503.20194; GAIL, arXiv:1606.03476, eq. 14).

    At the optimal discriminator the expected rewards descend KL(q‖p), 2 JS(p, q), 2 KL((p+q)/2 ‖ p) and KL(p ‖ (p+q)/2): the logit is the
    default because group centring removes its prompt constant. `airl`: D - log π(y | x) under the sampler (arXiv:1710.11248).
    `clip` bounds the score before the form (papers: 10, or none; ours: none), `soft_clip` c by c tanh(D / c).
    `learner` may name a frozen copy. Every scored rollout is stamped with the version of what scored it, so a stale score can be told.

    level: `token` asks a judge that shares the sampler's tokenizer for a score per token. `segment` scores every beginning of the text that
    ends a `segment` (a sentence, or so many words), and credits each increase to the last token of its segment; they sum to the whole
    text's reward, and the judge may have a tokenizer of its own (`sampler` is the learner that wrote).
    length: `residual` takes off what a straight line in log(1 + tokens), fitted to the draw, explains; the mean stays.
    normalize: to mean 0 and standard deviation 1, of the draw (`batch`) or of all draws so far (`running`).
    """

    learner: str
    level: str = "sequence"
    segment: str | int = "sentence"
    sampler: str = "policy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level not in LEVELS:
            raise unknown("rewards.discriminator.level", "level", self.level, LEVELS)
        words = isinstance(self.segment, int) and not isinstance(self.segment, bool) and self.segment > 0
        if self.segment != "sentence" and not words:
            raise ConfigError(f"rewards.discriminator.segment: '{self.segment}' given; 'sentence', or a number of words of at least 1.")
        if self.form == "airl" and self.level != "sequence":
            raise ConfigError(
                f"rewards.discriminator.level: form 'airl' weighs whole responses, and '{self.level}' is given; use sequence."
            )

    scores_whole_draw: ClassVar[bool] = True  # what it asks of the learner is shared among processes, its statistics are of all responses

    @property
    def scoring_learner(self) -> str | None:
        return self.learner

    def start(self, context: Context) -> _DiscriminatorScorer:
        return _DiscriminatorScorer(self, context)


class _DiscriminatorScorer(Scorer):
    """A started reward. `state_dict`: what `normalize: running` has seen."""

    def __init__(self, config: Discriminator, context: Context) -> None:
        self.config, self.context = config, context
        self.seen = _scores.Running()

    def __call__(self, groups: Sequence[RolloutGroup]) -> list[float] | list[list[float]]:
        rollouts = [r for g in groups for r in g.rollouts]
        level = {"sequence": self._sequence, "token": self._token, "segment": self._segment}[self.config.level]
        parts, version = level(groups, rollouts)
        for rollout in rollouts:
            rollout.reward_versions.append(version)
        totals = torch.tensor([math.fsum(each) for each in parts], dtype=torch.float64)
        wanted, scale = self._wanted(totals, [len(r.response_ids) for r in rollouts])
        if self.config.level == "sequence":
            return wanted.tolist()
        return [_scores.moved(each, total, scale) for each, total in zip(parts, wanted.tolist(), strict=True)]

    def _wanted(self, totals: Tensor, lengths: Sequence[int]) -> tuple[Tensor, float]:
        """What each response earns, and by how much that was scaled."""
        if self.config.length == "residual":
            totals = _scores.residual(totals, torch.tensor(lengths, dtype=torch.float64).log1p())
        if self.config.normalize == "none":
            return totals, 1.0
        statistics = self.seen if self.config.normalize == "running" else _scores.Running()
        statistics.add(totals)
        scale = 1 / max(statistics.std, _scores.FLOOR)
        return (totals - statistics.mean) * scale, scale

    def _sequence(self, groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout]) -> tuple[list[list[float]], int]:
        prompts = [g.example.prompt for g in groups for _ in g.rollouts]
        scores, version = self.context.score(self.config.learner, prompts, [r.text for r in rollouts], [r.finished for r in rollouts])
        rewards = self.config.shaped(torch.tensor(scores, dtype=torch.float64))
        if self.config.form == "airl":
            rewards = rewards - torch.tensor([math.fsum(r.sampler_logprobs) for r in rollouts], dtype=torch.float64)
        return rewards[:, None].tolist(), version

    def _token(self, groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout]) -> tuple[list[list[float]], int]:
        scores, version = self.context.score_tokens(self.config.learner, groups)
        return [self.config.shaped(torch.tensor(each, dtype=torch.float64)).tolist() for each in scores], version

    def _segment(self, groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout]) -> tuple[list[list[float]], int]:
        encoder = self.context.encoder(self.config.sampler)
        ends = [_scores.ends(r.text, self.config.segment) for r in rollouts]
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
            _scores.credited(each.tolist(), _scores.last_tokens(r.response_ids, stops, encoder.decode), len(r.response_ids))
            for each, r, stops in zip(shaped, rollouts, ends, strict=True)
        ], version

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen.load_state_dict(state["seen"])


__all__ = ["Discriminator"]
