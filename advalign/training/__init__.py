"""The training loop around the step."""

from advalign.engine.learner import Learner
from advalign.training.run_spec import Frozen, TrainingArguments
from advalign.training.trainer import Trainer

__all__ = ["Frozen", "Learner", "Trainer", "TrainingArguments"]
