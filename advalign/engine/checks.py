"""What a plugin returned, checked where it enters the library: a wrong shape is refused in one sentence and never broadcast."""

from __future__ import annotations

from torch import Tensor

from advalign.errors import ConfigError
from advalign.types import Tokens


def check_losses(name: str, losses: Tensor, weights: Tensor) -> None:
    """Refuses losses of objective `name` whose shape is not that of its weights for the same rows."""
    if losses.shape != weights.shape:
        path = f"adversaries.{name}" if name.endswith(".inner") else f"objectives.{name}"  # inner objectives: named after their adversary
        raise ConfigError(
            f"{path}: `losses` returned values of shape {tuple(losses.shape)}, and `weights` values of shape "
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
