"""The log of a training run, read back."""

import json
from pathlib import Path
from typing import Any

from advalign.errors import ConfigError


def read(folder: str | Path) -> list[dict[str, Any]]:
    """One mapping per logged step of the run in `folder` (`log.jsonl`). Raises ConfigError for a line that is none."""
    path = Path(folder) / "log.jsonl"
    return [step_of_log(line, f"{path}, line {number}") for number, line in enumerate(complete_lines(path), 1)]


def step_of_log(line: str, location: str) -> dict[str, Any]:
    """The numbers of a line of the log, with its `step`. Raises ConfigError for another line."""
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise ConfigError(f"{location}: it is no step of a run, so it is not as it was written; restore it, or remove the line.")
    return values


def complete_lines(path: Path) -> list[str]:
    """Lines of a file, without their ends; a last one that a killed process left half written is dropped."""
    if not path.exists():
        return []
    # Not splitlines: texts may hold other separators, which JSON leaves as they are.
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: it is not UTF-8 text ({error.reason} at byte {error.start}), so it is not as it was written.") from None


__all__ = ["complete_lines", "read", "step_of_log"]
