"""The log of a training run, read back."""

import json
from pathlib import Path
from typing import Any


def read(folder: str | Path) -> list[dict[str, Any]]:
    """One mapping per logged step of the run in `folder` (`log.jsonl`)."""
    return [json.loads(line) for line in complete_lines(Path(folder) / "log.jsonl")]


def complete_lines(path: Path) -> list[str]:
    """Lines of a file, without their ends; a last one that a killed process left half written is dropped."""
    if not path.exists():
        return []
    # Not splitlines: texts may hold other separators, which JSON leaves as they are.
    return path.read_text(encoding="utf-8").split("\n")[:-1]


__all__ = ["complete_lines", "read"]
