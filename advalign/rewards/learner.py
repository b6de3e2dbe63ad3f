"""The score of another learner: a discriminator, a critic or a reward model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from advalign.errors import ConfigError, unknown
from advalign.functional import gan
from advalign.protocols import Context
from advalign.types import RolloutGroup

# Names that need no quoting in YAML, for the formulas of `functional.gan`.
FORMS = {"logit": "logit", "neg_log_one_minus": "-log(1-D)", "log": "log D", "probability": "D"}


@dataclass(frozen=True, kw_only=True)
class Learner:
    """r = D(x, y); in `form` the logit D, -log(1 - σ(D)), log σ(D) or σ(D)   (GAPO, arXiv:2503.20194; GAIL, arXiv:1606.03476, eq. 14).

    At the optimal discriminator the expected rewards descend KL(q‖p), 2 JS(p, q), 2 KL((p+q)/2 ‖ p) and KL(p ‖ (p+q)/2): the logit is the
    default because group centring removes its prompt constant. `clip` bounds the logit before the form (papers: 10, or none; ours: none).
    Every scored rollout is stamped with the version of the learner that scored it, so a stale score can be told.
    """

    learner: str
    form: str = "logit"
    clip: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise unknown("rewards.learner.form", "form", self.form, FORMS)
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"rewards.learner.clip: {self.clip} is not above 0; use null for no clipping.")

    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Sequence[float]]:
        def score(groups: Sequence[RolloutGroup]) -> list[float]:
            flat = [(group.example.prompt, rollout) for group in groups for rollout in group.rollouts]
            prompts, rollouts = [p for p, _ in flat], [r for _, r in flat]
            scores, version = context.score(self.learner, prompts, [r.text for r in rollouts], [r.finished for r in rollouts])
            logits = torch.tensor(scores, dtype=torch.float64)
            if self.clip is not None:
                logits = logits.clamp(-self.clip, self.clip)
            for rollout in rollouts:
                rollout.reward_versions.append(version)
            return gan.reward(logits, form=FORMS[self.form]).tolist()

        return score


__all__ = ["Learner"]
