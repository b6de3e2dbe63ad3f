"""What is told of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Callback:
    """Base of callbacks; every method may be left out."""

    def on_step(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """After every training step."""

    def on_evaluate(self, trainer: Any, logs: Mapping[str, float]) -> None:
        """After every evaluation."""

    def on_save(self, trainer: Any, path: str) -> None:
        """After every checkpoint."""
