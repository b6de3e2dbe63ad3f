"""Errors a user can meet. Each message is one sentence: path, what was given, what is allowed, the nearest match."""

from __future__ import annotations

import contextlib
import difflib
import signal
from collections.abc import Iterable, Iterator

EXCERPT = 100
"""Characters of a wrong value that a sentence shows."""
SHORT = 60
"""The same of a name, beside a list of all that are known."""


class AdvalignError(Exception):
    """Root of everything this package raises on purpose."""

    exit_code: int = 2
    """Of a command that ends with it: 2, a mistake in what was given."""


class ConfigError(AdvalignError, ValueError):
    """A run that cannot start: an unknown name, a wrong type, a combination that is not supported."""


class NotImported(ConfigError):
    """A module that a configuration names, where nothing is to be imported from it (`advalign show` without `--allow-imports`)."""


class NonFiniteError(AdvalignError):
    """Numbers that are not finite (nan, inf) where training needs finite ones. It stops the run before they reach a weight."""


class StorageError(AdvalignError):
    """Files that could not be written, on a full disk for example. What was complete before is as it was."""


class RewardError(AdvalignError):
    """A reward that failed, or returned the wrong number of scores. It stops the run."""


class RolloutError(AdvalignError):
    """A rollout engine that does not answer, or that samples from other weights than it claims."""


class TargetError(AdvalignError):
    """A model that is known only by its answers, and failed or answered with something else than what is asked of it."""


class BudgetError(AdvalignError, ValueError):
    """A limit that cannot be kept: a row longer than the token budget, an attack that has used its queries."""


class Interrupted(AdvalignError):
    """A run that a signal ended; the message says what was saved and how to go on."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        """`number`: of the signal."""
        super().__init__(message)
        self.exit_code = 128 + number


def excerpt(text: object, most: int = EXCERPT) -> str:
    """A text as it stands in a sentence: on one line, cut after `most` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[:most]}..."


def unknown(path: str, what: str, name: str, options: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist: `objectives.robust.view: no adversary 'pdg'. Known: noise, pgd. Did you mean 'pgd'?`"""
    names = sorted(options)
    nearest = difflib.get_close_matches(str(name)[:EXCERPT], names, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return ConfigError(f"{path}: no {what} '{excerpt(name, SHORT)}'. Known: {', '.join(names) or 'none'}.{hint}")


@contextlib.contextmanager
def located(path: str, **fields: str) -> Iterator[None]:
    """Puts `path` before the sentences of what is raised within and does not know where it is used. `fields`: {the name that such a
    sentence begins with: the field of `path` that it means}."""
    try:
        yield
    except AdvalignError as error:
        text = str(error)
        if not text.startswith(path):
            name = next((name for name in fields if text.startswith((f"{name}.", f"{name}:"))), None)
            error.args = (f"{path}: {text}" if name is None else f"{path}.{fields[name]}{text.removeprefix(name)}",)
        raise
