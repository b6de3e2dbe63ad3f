"""Floor 4: what a model is worth clean, under attack, and on paper."""

from advalign.evaluation.answers import AnsweringClassifier, AnsweringGenerator
from advalign.evaluation.report import Report
from advalign.evaluation.result import SuiteResult
from advalign.evaluation.suite import Suite
from advalign.evaluation.target import ClassifierTarget, GeneratorTarget, target_of

__all__ = [
    "AnsweringClassifier", "AnsweringGenerator", "ClassifierTarget", "GeneratorTarget", "Report", "Suite", "SuiteResult", "target_of",
]  # fmt: skip
