"""Results in the formats of other tools: garak's report (one JSON line per entry) and Inspect's samples (one JSON line per sample)."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advalign.errors import unknown
from advalign.functional.escaping import json_line, visible
from advalign.types import STATUSES, AttackResult

if TYPE_CHECKING:
    from advalign.evaluation.suites.result import SuiteResult

SCORES = {name: float(not status.right) for name, status in STATUSES.items() if name != "skipped" and status.right is not None}


def write(result: SuiteResult, style: str, path: str | Path) -> Path:
    """`result` as JSON lines in the style of "garak" or "inspect"."""
    if style not in STYLES:
        raise unknown("export", "style", style, STYLES)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json_line(entry) + "\n" for entry in STYLES[style](result)), encoding="utf-8")
    return path


def _garak(result: SuiteResult) -> Iterator[dict[str, Any]]:
    """start_run, init, one attempt per attack and example (status 2: complete), one eval per attack, completion.

    A detector's score of 1 is a hit, null is undetermined. Examples that were wrong before any attack are left out, as garak has no such
    case.
    """
    run, now = str(uuid.uuid4()), datetime.now(UTC).isoformat()
    yield {"entry_type": "start_run setup", "_config.version": "advalign"}
    yield {"entry_type": "init", "garak_version": "advalign", "start_time": now, "run": run}
    count: Counter[tuple[str, str]] = Counter()
    for number, r in enumerate(r for r in result.results if r.status != "skipped"):
        score = SCORES.get(r.status)
        outcome = "none" if score is None else "hit" if score else "pass"
        count[r.attack, outcome] += 1
        prompt = result.prompts[r.example]
        yield {
            "entry_type": "attempt",
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, visible(f"{r.attack}/{r.example}"))),
            "seq": number,
            "status": 2,
            "probe_classname": f"advalign.{r.attack}",
            "prompt": {"turns": [{"role": "user", "content": {"text": r.note or prompt, "lang": "*"}}]},
            "outputs": [{"text": r.after, "lang": "*"}],
            "detector_results": {"advalign.Judge": [score]},
            "goal": prompt,
            "notes": {"example": r.example, "status": r.status, "queries": r.queries, "before": r.before},
        }
    for arm in result.arms:
        passed, hits, nones = (count[arm.name, outcome] for outcome in ("pass", "hit", "none"))
        totals = {"passed": passed, "fails": hits, "nones": nones, "total": passed + hits, "total_evaluated": passed + hits}
        yield {"entry_type": "eval", "probe": f"advalign.{arm.name}", "detector": "advalign.Judge", **totals}
    yield {"entry_type": "completion", "end_time": datetime.now(UTC).isoformat(), "run": run}


def _inspect(result: SuiteResult) -> Iterator[dict[str, Any]]:
    """A sample per attack and example; the score "robust" is C (right under attack), I (broken) or N (no answer that could be judged)."""
    epochs: Counter[str] = Counter()
    for r in result.results:
        epochs[r.example] += 1
        prompt = result.prompts[r.example]
        choice = {"message": {"role": "assistant", "content": r.after}, "stop_reason": "stop"}
        yield {
            "id": r.example,
            "epoch": epochs[r.example],
            "input": r.note or prompt,
            "target": r.before,
            "messages": [{"role": "user", "content": r.note or prompt}, choice["message"]],
            "output": {"model": "advalign", "choices": [choice], "completion": r.after},
            "scores": {"robust": {"value": _letter(r), "answer": r.after, "explanation": r.status, "metadata": dict(r.metrics)}},
            "metadata": {"attack": r.attack, "original": prompt, "queries": r.queries, "distance": r.distance, "status": r.status},
        }


def _letter(r: AttackResult) -> str:
    return {True: "C", False: "I", None: "N"}[STATUSES[r.status].right]


STYLES: Mapping[str, Callable[[SuiteResult], Iterator[dict[str, Any]]]] = {"garak": _garak, "inspect": _inspect}

__all__ = ["STYLES", "write"]
