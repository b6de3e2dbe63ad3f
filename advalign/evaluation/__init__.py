"""What a model is worth clean, under attack, and on paper.

Public names are imported when they are first used: a run that evaluates nothing loads neither plots nor suites.
"""

import importlib
from typing import Any

_NAMES = {
    "AnsweringClassifier": "advalign.targets.black_box",
    "AnsweringGenerator": "advalign.targets.black_box",
    "ClassifierTarget": "advalign.targets.target",
    "GeneratorTarget": "advalign.targets.target",
    "Report": "advalign.evaluation.reports.report",
    "Suite": "advalign.evaluation.suites.suite",
    "SuiteResult": "advalign.evaluation.suites.result",
    "target_of": "advalign.targets.target",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_NAMES[name]), name)
