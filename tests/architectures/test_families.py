"""Families of transformers beside plain transformers: each check says what the table says. `ADVALIGN_FAMILIES=all`: not only a few."""

import json
import os
import re

import pytest
import transformers
from architectures import page, table

RESULTS = json.loads(table.RESULTS.read_text(encoding="utf-8"))
EVERY = [(head, kind) for head, families in table.FAMILIES.items() for kind in families]
ALL = os.environ.get("ADVALIGN_FAMILIES") == "all"
OLD = transformers.__version__.startswith("4.")


def without_numbers(checks):
    """How far a refused model is off may be another number on another machine."""
    return {check: re.sub(r"\d[\d.e+-]*", "#", text) for check, text in checks.items()}


@pytest.mark.parametrize(("head", "kind"), [name for name in EVERY if ALL or table.FAMILIES[name[0]][name[1]].smoke])
def test_a_family_gives_what_the_table_says(head, kind):
    if OLD and table.FAMILIES[head][kind].since5:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    checks = table.outcomes(head, kind)
    assert not [f"{check}: {text}" for check, text in checks.items() if text.startswith(table.WRONG)]
    assert table.model_class(head, kind) == RESULTS[head][kind]["class"]
    if not OLD:  # another version may refuse other families
        assert without_numbers(checks) == without_numbers(RESULTS[head][kind]["checks"])


def test_the_page_and_the_table_are_those_of_the_results():
    text = (table.ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert text == page.rewritten(text, RESULTS), "run `make models-table`"
    assert [(head, kind) for head, families in RESULTS.items() for kind in families] == EVERY
    for head, kind in EVERY:
        described = table.described(head, kind)
        assert {name: RESULTS[head][kind][name] for name in described} == described
        assert not [text for text in RESULTS[head][kind]["checks"].values() if text.startswith(table.WRONG)]


def test_there_are_many_families_and_most_work():
    num_right = {head: sum(page.LOADING not in family["checks"] for family in families.values()) for head, families in RESULTS.items()}
    assert num_right["policy"] >= 45
    assert num_right["classifier"] >= 18
