"""Evaluation of a model: its clean utility, its robustness under attack, and what can be certified about it.

Public names are imported when they are first used: a run that evaluates nothing loads neither plots nor suites.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advalign.evaluation.reports.report import Report
    from advalign.evaluation.suites.benign import Benign
    from advalign.evaluation.suites.result import SuiteResult
    from advalign.evaluation.suites.suite import Suite

_MODULES = {
    "Benign": "advalign.evaluation.suites.benign",
    "Report": "advalign.evaluation.reports.report",
    "Suite": "advalign.evaluation.suites.suite",
    "SuiteResult": "advalign.evaluation.suites.result",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


__all__ = ["Benign", "Report", "Suite", "SuiteResult"]
