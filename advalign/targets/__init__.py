"""Models under attack: what answers, what it can give, and what it cost. Public names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advalign.targets.black_box import AnsweringClassifier, AnsweringGenerator, BlackBoxModel
    from advalign.targets.build import network_target, target_of
    from advalign.targets.cache import AnswerCache
    from advalign.targets.classifier import ClassifierTarget
    from advalign.targets.generator import GeneratorTarget
    from advalign.targets.prefix import CachedPrefix
    from advalign.targets.target import NetworkTarget
    from advalign.targets.voting import RanMask, Smoothed

_MODULES = {
    "AnswerCache": "cache",
    "AnsweringClassifier": "black_box",
    "AnsweringGenerator": "black_box",
    "BlackBoxModel": "black_box",
    "CachedPrefix": "prefix",
    "ClassifierTarget": "classifier",
    "GeneratorTarget": "generator",
    "NetworkTarget": "target",
    "RanMask": "voting",
    "Smoothed": "voting",
    "network_target": "build",
    "target_of": "build",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "AnswerCache",
    "AnsweringClassifier",
    "AnsweringGenerator",
    "BlackBoxModel",
    "CachedPrefix",
    "ClassifierTarget",
    "GeneratorTarget",
    "NetworkTarget",
    "RanMask",
    "Smoothed",
    "network_target",
    "target_of",
]
