"""The tables of docs/models.md, from the results of the checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TITLES = {"policy": "causal models", "classifier": "classifiers"}
BEGIN, END = "<!-- architectures -->\n", "<!-- end -->\n"
LOADING, WORKS, REFUSED = "loading", "works", "refused: "


def rewritten(text: str, results: Mapping[str, Any]) -> str:
    """The page with the tables of `results` between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tables(results) + END + after


def tables(results: Mapping[str, Any]) -> str:
    lines = []
    for head, families in results.items():
        checks = next(list(f["checks"]) for f in families.values() if LOADING not in f["checks"])
        num_right = sum(LOADING not in family["checks"] for family in families.values())
        lines += [
            f"**{len(families)} families of {TITLES[head]}**, {num_right} of which load; {len(checks)} checks each: {', '.join(checks)}.",
            "",
            "| model type | class | in 4.57 | agrees to | result |",
            "|---|---|---|---|---|",
            *(_row(kind, family) for kind, family in families.items()),
            "",
        ]
    return "\n".join(lines)


def _row(kind: str, family: Mapping[str, Any]) -> str:
    checks, old = family["checks"], "yes" if family["in 4.57"] else "no"
    refused = LOADING in checks
    agrees = "" if refused else f"{family['tolerance']:.0e}".replace("e-0", "e-") + (f" ({family['why']})" if family["why"] else "")
    return f"| `{kind}` | {family['class']} | {old} | {agrees} | {'; '.join(_results(checks)).replace('|', '/')} |"


def _results(checks: Mapping[str, str]) -> list[str]:
    """What works, and what of it is off or refused and why."""
    if LOADING in checks:
        return ["refused: " + _reason(checks[LOADING])]
    remarks = {check: text for check, text in checks.items() if text != WORKS}
    return ["works", *(f"{check} {_remark(text)}" for check, text in remarks.items())]


def _remark(text: str) -> str:
    if text.startswith(REFUSED):
        return "refused: " + _reason(text)
    return re.sub(r"^off: \w+ (.*); its rows are padded\.$", r"off (\1)", text.removeprefix(f"{WORKS}: "))


def _reason(text: str) -> str:
    """Of a refusal, with "it" for the name of the model and without the pointer to this page."""
    text = re.sub(r"^(model[a-z._]*|sites): ", "", text.removeprefix(REFUSED))
    text = re.sub(r"^(the forward of |generate of )?\w+ \([\w-]+\) (itself )?", lambda m: f"{m[1]}it " if m[1] else "it ", text)
    return re.sub(r"[:;]? ?docs/models\.md lists .*$", "", text).strip().rstrip(".;")
