"""The language of a text, by the package langdetect."""

from __future__ import annotations

import functools
import importlib.util

from advalign.errors import ConfigError
from advalign.functional.instruction_rules import Detect

LONGEST = 10_000
"""Characters that are read."""


def require_langdetect(path: str) -> None:
    """Raises ConfigError where the package is missing. `path`: of the field that asks for it."""
    if importlib.util.find_spec("langdetect") is None:
        raise ConfigError(f"{path}: the package langdetect is not installed; install advalign[language].")


@functools.cache
def detector() -> Detect:
    """The function that tells the language of a text, the same one every time (langdetect's own draws at random)."""
    import langdetect
    from langdetect import detector_factory

    factory = langdetect.DetectorFactory()
    factory.load_profile(detector_factory.PROFILES_DIRECTORY)
    factory.set_seed(0)

    def detect(text: str) -> str | None:
        started = factory.create()
        started.append(text[:LONGEST])
        try:
            return str(started.detect())
        except langdetect.LangDetectException:
            return None

    return detect


__all__ = ["detector", "require_langdetect"]
