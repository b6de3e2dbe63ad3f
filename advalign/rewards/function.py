"""Any Python function as a reward."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from advalign import plugins
from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Context, Reward
from advalign.types import RolloutGroup


@dataclass(frozen=True, kw_only=True)
class Function(Reward):
    """r = fn(prompts=[...], completions=[...], **columns)[i]; None or nan abstains.

    The calling convention of TRL's custom reward functions, so that they work unchanged: every argument is a list with one entry per
    completion. columns: `completion_ids`, `answer`, `label`, `pair`, `id` and every key of the examples' `meta` (None where an
    example lacks it). Ours: a function without `**kwargs` gets the columns it names; one that raises stops the run, it never scores 0.
    """

    fn: str | Callable[..., Any]
    """The function, or its dotted path."""

    def __post_init__(self) -> None:
        if not callable(self.fn) and not self.fn.rpartition(".")[0]:
            raise ConfigError(f"rewards.function.fn: '{self.fn}' is not a dotted path such as my_lab.rewards.brevity.")

    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Sequence[float]]:
        function = plugins.function(self.fn, "rewards.function.fn")
        name = self.fn if isinstance(self.fn, str) else getattr(self.fn, "__qualname__", repr(self.fn))  # any callable
        accepts = _accepts(function)

        def score(groups: Sequence[RolloutGroup]) -> list[float]:
            columns = _columns(groups)
            number = len(columns["completions"])
            try:
                scores = function(**{key: value for key, value in columns.items() if accepts is None or key in accepts})
            except Exception as error:
                message = f"rewards.function: '{name}' failed on {number} completions with {type(error).__name__}: {error}"
                raise RewardError(message) from error
            return _checked(scores, number, name)

        return score


def _accepts(function: Callable[..., Any]) -> frozenset[str] | None:
    """Names a function takes; None for all of them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)


def _columns(groups: Sequence[RolloutGroup]) -> dict[str, list[Any]]:
    flat = [(group.example, rollout) for group in groups for rollout in group.rollouts]
    keys = dict.fromkeys(key for example, _ in flat for key in example.meta)
    columns = {str(key): [example.meta.get(key) for example, _ in flat] for key in keys}
    return columns | {
        "answer": [example.answer for example, _ in flat],
        "label": [example.label for example, _ in flat],
        "pair": [example.pair for example, _ in flat],
        "id": [example.id for example, _ in flat],
        "prompts": [example.prompt for example, _ in flat],
        "completions": [rollout.text for _, rollout in flat],
        "completion_ids": [rollout.response_ids for _, rollout in flat],
    }


def _checked(scores: Any, number: int, name: str) -> list[float]:
    try:
        values = [math.nan if score is None else float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise RewardError(f"rewards.function: '{name}' returned {type(scores).__name__}, not a list of numbers or None.") from error
    if len(values) != number:
        raise RewardError(f"rewards.function: '{name}' returned {len(values)} scores for {number} completions.")
    if any(math.isinf(value) for value in values):
        raise RewardError(f"rewards.function: '{name}' returned an infinite score; scores are finite, or None to abstain.")
    return values


__all__ = ["Function"]
