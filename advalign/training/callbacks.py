"""Callbacks: subclass and override what you need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Callbacks:
    """Abstract base with nothing to do on any event."""

    def on_step(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """After every training step."""

    def on_evaluate(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """After every evaluation during training."""

    def on_save(self, trainer: Any, path: str) -> None:
        """After a checkpoint is complete."""
