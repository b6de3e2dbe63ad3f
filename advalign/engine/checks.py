"""What a plugin returned, checked where it enters the library: a wrong shape is refused in one sentence and never broadcast."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from advalign.errors import AdvalignError, ConfigError
from advalign.interfaces import Objective
from advalign.types import Losses, Outputs, TokenRows, Tokens


def evaluate(name: str, objective: Objective, rows: TokenRows, views: Mapping[str, Outputs]) -> Losses:
    """The losses of objective `name`. What its code raises names the objective; errors of this library pass as they are."""
    try:
        return objective.losses(rows, views)
    except AdvalignError:
        raise
    except Exception as error:
        raise AdvalignError(f"{objective_path(name)}: losses raised {type(error).__name__}: {error}") from error


def objective_path(name: str) -> str:
    """Where the configuration has objective `name`; inner objectives are named after their adversary."""
    return f"adversaries.{name}" if name.endswith(".inner") else f"objectives.{name}"


def check_metrics(name: str, losses: Losses) -> None:
    """Refuses a metric of objective `name` that carries a gradient."""
    for metric, (values, weights) in losses.metrics.items():
        if values.requires_grad or weights.requires_grad:
            raise ConfigError(f"{objective_path(name)}: metric '{metric}' of `losses` carries a gradient; detach it.")


def check_losses(name: str, losses: Tensor, weights: Tensor) -> None:
    """Refuses losses of objective `name` whose shape is not that of its weights for the same rows."""
    if losses.shape != weights.shape:
        raise ConfigError(
            f"{objective_path(name)}: `losses` returned values of shape {tuple(losses.shape)}, and `weights` values of shape "
            f"{tuple(weights.shape)} for the same rows; return one loss per weight, unreduced."
        )


def check_advantages(path: str, estimate: object, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    """What an advantage returned for `tokens`: (advantages "B T", returns "B T" or None), or an error that begins with `path`."""
    if not isinstance(estimate, tuple) or len(estimate) != 2:
        raise ConfigError(f"{path}: returned {type(estimate).__name__}, must be (advantages, returns or None).")
    for name, values in zip(("advantages", "returns"), estimate, strict=True):
        if values is None and name == "returns":
            continue
        if not isinstance(values, Tensor) or values.shape != tokens.target.shape:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ConfigError(
                f"{path}: returned {name} of shape {shape}, must be {tuple(tokens.target.shape)} (rows, tokens); "
                "`advalign.functional.advantages.expand` puts one number per row on its target tokens."
            )
    return estimate  # type: ignore[return-value]
