"""docs/metrics.md as patterns of the names that a run logs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from advalign import plugins

ROOT = Path(plugins.__file__).parents[1]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
SLOTS = ("objective", "source", "learner", "adversary", "evaluation")  # names that a configuration gives


def pattern(entry: str, names: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
    """The logged names that an entry stands for, in a run whose configuration has these names."""
    text = re.escape(entry)
    for slot in SLOTS:
        text = text.replace(f"<{slot}>", f"(?:{'|'.join(map(re.escape, names[slot])) or '(?!)'})")
    text = text.replace("<reward>", f"(?:{'|'.join(plugins.kinds('rewards'))})").replace("<kind>", "(?:real|perturbed|generated|corrupted)")
    return re.compile(text.replace("<k>", "[0-9]+"))


def unknown(logged, names) -> list[str]:
    patterns = [pattern(entry, names) for entry in ENTRIES]
    return sorted(name for name in logged if not any(p.fullmatch(name) for p in patterns))
