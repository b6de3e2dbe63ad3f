"""advalign: adversarial and GAN-style alignment, beside SFT and RL, mixed in one training step.

    loss of a learner = sum_k coef_k * objective_k(source_k | view_k)

Public names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "Callback": "advalign.interfaces.callback",
    "Correction": "advalign.objectives._policy",
    "Curriculum": "advalign.sources._options",
    "Demonstrations": "advalign.sources._options",
    "Distractors": "advalign.sources._variants",
    "DiscriminatorEvaluation": "advalign.training.discriminator_evaluation",
    "Dynamic": "advalign.sources._options",
    "Evaluation": "advalign.training.evaluate",
    "Frozen": "advalign.training.run_spec",
    "Gate": "advalign.training.schedule",
    "Injection": "advalign.sources._game",
    "KLPenalty": "advalign.sources._options",
    "Learner": "advalign.engine.learner",
    "Follow": "advalign.training.schedule",
    "Opponents": "advalign.sources._game",
    "Payoff": "advalign.sources._game",
    "Ramp": "advalign.training.schedule",
    "Sampling": "advalign.types",
    "Stage": "advalign.training.schedule",
    "Suite": "advalign.evaluation.suites.suite",
    "Trainer": "advalign.training.trainer",
    "TrainingArguments": "advalign.training.run_spec",
    "Until": "advalign.training.schedule",
    "load": "advalign.models.load",
}
__all__ = [*sorted(_NAMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'advalign' has no attribute '{name}'")
    return getattr(importlib.import_module(_NAMES[name]), name)
