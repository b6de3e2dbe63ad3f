"""Errors a user can meet. Each message is one sentence: where, what was given, what is allowed, the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdvalignError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigError(AdvalignError, ValueError):
    """A run that cannot start: wrong name, wrong type, a mix that makes no sense."""


class RewardError(AdvalignError):
    """A reward that failed, or returned the wrong number of scores. It stops the run."""


class RolloutError(AdvalignError):
    """A sampler that does not answer, or that does not hold the weights it is said to hold."""


class BudgetError(AdvalignError, ValueError):
    """A limit that cannot be kept: a row longer than the token budget, an attack without queries."""


def unknown(where: str, what: str, given: str, known: Iterable[str]) -> ConfigError:
    """The did-you-mean error: `objectives.robust.view: no adversary 'pdg'. Known: noise, pgd. Did you mean 'pgd'?`"""
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"{where}: no {what} '{given}'. Known: {', '.join(names) or 'none'}.{hint}")
