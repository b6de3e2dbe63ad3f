"""results.jsonl, read back: one line per attack and example."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from advalign.checked import check
from advalign.errors import ConfigError
from advalign.metrics.run_log import complete_lines
from advalign.types import STATUSES, AttackResult

FIELDS = get_type_hints(AttackResult, include_extras=True)
MAPPINGS = ("metrics", "spent")
"""Fields that are numbers by name."""


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
    if missing or values.keys() - FIELDS.keys():
        wrong = f"lacks {', '.join(sorted(missing))}" if missing else f"has {', '.join(sorted(values.keys() - FIELDS.keys()))}"
        raise ConfigError(f"{where}: a result {wrong}, so it is not as it was written.")
    for name, value in values.items():
        if value is not None or name not in ("distance", "seconds"):  # null: nan
            entries = {k: 0.0 if x is None else x for k, x in value.items()} if name in MAPPINGS and isinstance(value, dict) else value
            check(FIELDS[name], entries, f"{where}: {name}")
    if values["status"] not in STATUSES:
        raise ConfigError(f"{where}: no status '{values['status']}'. Known: {', '.join(sorted(STATUSES))}.")
    return AttackResult.from_json(values)


__all__ = ["mapping", "parsed", "read_lines"]
