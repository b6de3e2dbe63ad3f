"""l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t), r_t = p / p_old; mean over all tokens of the update.

(PPO, arXiv:1707.06347, eq. 7.) Differences: the value loss is an objective of the critic (`value`), the entropy bonus one of its own
(`entropy`), and the KL penalty is part of the reward (`kl` of the source). Dual clip is an option, off.
"""

from dataclasses import dataclass

from advalign.objectives._policy import ClippedObjective

__all__ = ["PPO"]


@dataclass(frozen=True, kw_only=True)
class PPO(ClippedObjective):
    """-min(r A, clip(r, 1 - low, 1 + high) A), every token alike; advantages of a critic (`gae`)."""
