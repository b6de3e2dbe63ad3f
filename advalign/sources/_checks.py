"""Checks of options that several sources have, one sentence each."""

from __future__ import annotations

from advalign.errors import ConfigError


def require_positive(path: str, **counts: int) -> None:
    """Every count is at least 1."""
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{path}.{name}: got {count}, must be at least 1.")


def require_fraction(path: str, **fractions: float) -> None:
    """Every number is in [0, 1]."""
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise ConfigError(f"{path}.{name}: got {fraction}, must be a fraction from 0 to 1.")


def require_proper_fraction(path: str, **fractions: float) -> None:
    """Every number is in [0, 1)."""
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ConfigError(f"{path}.{name}: got {fraction}, must be a fraction, at least 0 and below 1.")
