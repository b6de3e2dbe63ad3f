"""Floor 4: the training loop around the step."""

from advalign.engine.learner import Learner
from advalign.training.trainer import Frozen, Trainer, TrainingArguments

__all__ = ["Frozen", "Learner", "Trainer", "TrainingArguments"]
