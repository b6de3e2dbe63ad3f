"""What every engine refuses in what it sampled."""

import math
from collections.abc import Iterable

from advalign.errors import RolloutError
from advalign.types import Rollout


def check_finite(rollouts: Iterable[Rollout]) -> None:
    """Raises RolloutError where a sampled token has no log-probability."""
    for rollout in rollouts:
        place = next((t for t, value in enumerate(rollout.sampler_logprobs) if not math.isfinite(value)), None)
        if place is not None:
            raise RolloutError(
                f"rollout: the model gives no finite numbers (token {place} of a response has log-probability "
                f"{rollout.sampler_logprobs[place]}); its weights have diverged or are damaged, or dtype is too narrow for them."
            )


__all__ = ["check_finite"]
