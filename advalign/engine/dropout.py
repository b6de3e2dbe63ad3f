"""Dropout in an update: off where losses compare the current policy with log-probabilities that were taken without it.

    r_t = pi(y_t) / pi_old(y_t)        beta (log pi(y) - log pi_ref(y))

Rollouts, old and reference log-probabilities are taken without dropout. With dropout in the update, r_t of unchanged weights is not 1 but
the ratio of a randomly thinned network to the whole one, and clipping cuts that noise; without it, r_t measures what the optimizer did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from advalign.interfaces import Objective
from advalign.models import Network
from advalign.models.perturb import without_dropout


def dropout_of_update(network: Network, options: Mapping[str, Any], objectives: Iterable[Objective[Any]]) -> AbstractContextManager[None]:
    """Inside, dropout is as it is in an update of a learner with these `options`: the model's own, unless an objective compares
    log-probabilities and the options do not say. A rate that they give LoRA stays."""
    given = "dropout" in options or not any(objective.compares_logprobs for objective in objectives)
    if given or not network.draws_dropout:
        return nullcontext()
    adapter = options.get("lora")
    return without_dropout(network, except_adapter=isinstance(adapter, Mapping) and bool(adapter.get("lora_dropout")))


__all__ = ["dropout_of_update"]
