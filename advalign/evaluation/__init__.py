"""Floor 4: what a model is worth clean, under attack, and on paper.

Public names are imported when they are first used: a run that evaluates nothing loads neither plots nor suites.
"""

import importlib
from typing import Any

_NAMES = {
    "AnsweringClassifier": "answers",
    "AnsweringGenerator": "answers",
    "ClassifierTarget": "target",
    "GeneratorTarget": "target",
    "Report": "report",
    "Suite": "suite",
    "SuiteResult": "result",
    "target_of": "target",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
