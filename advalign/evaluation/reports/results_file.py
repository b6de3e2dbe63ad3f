"""results.jsonl, read back: one line per attack and example."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from advalign.errors import ConfigError
from advalign.metrics.run_log import complete_lines
from advalign.types import STATUSES, AttackResult

NAMES = {field.name for field in fields(AttackResult)}


def read_lines(path: Path) -> list[str]:
    """The whole lines of a file of results. Raises ConfigError for one that is not text."""
    try:
        return complete_lines(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: it is not UTF-8 text ({error.reason} at byte {error.start}), so it is not as it was written.") from None


def parsed(lines: Sequence[str], path: Path) -> list[AttackResult]:
    """The results of lines. Raises ConfigError, naming the line, for what is no result, and for a second one of one attack and example."""
    results, line_of = [], dict[tuple[str, str], int]()
    for number, line in enumerate(lines, 1):
        result = _result(line, f"{path}, line {number}")
        first = line_of.setdefault((result.attack, result.example), number)
        if first != number:
            raise ConfigError(
                f"{path}, line {number}: a second result of attack '{result.attack}' on example '{result.example}', after line {first}; "
                "each is counted once."
            )
        results.append(result)
    return results


def mapping(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line. Raises ConfigError, which begins with `where`, for anything else."""
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: no JSON object, so it is not as it was written.")
    return values


def _result(line: str, where: str) -> AttackResult:
    values = mapping(line, where)
    missing = {"example", "attack", "status"} - values.keys()
    if missing or values.keys() - NAMES:
        wrong = f"lacks {', '.join(sorted(missing))}" if missing else f"has {', '.join(sorted(values.keys() - NAMES))}"
        raise ConfigError(f"{where}: a result {wrong}, so it is not as it was written.")
    if values["status"] not in STATUSES:
        raise ConfigError(f"{where}: no status '{values['status']}'. Known: {', '.join(sorted(STATUSES))}.")
    return AttackResult.from_json(values)


__all__ = ["mapping", "parsed", "read_lines"]
