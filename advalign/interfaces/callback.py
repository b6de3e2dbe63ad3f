"""What is called during a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Callback:
    """Base of callbacks: override what you need. `trainer` is the `Trainer` of the run, after the event."""

    def on_step(self, trainer: Any, logs: Mapping[str, Any]) -> None:
        """After every training step, with all numbers logged for it."""

    def on_evaluate(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """After every evaluation during training, with the numbers of all evaluations."""

    def on_save(self, trainer: Any, path: str) -> None:
        """After a checkpoint is complete, with its folder."""
