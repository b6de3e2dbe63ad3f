"""Verifiable instructions against the authors' rules, as the package if-verifiable 0.1.2 carries them (pip install if-verifiable)."""

import json
import os
import random
from pathlib import Path

import pytest

from advalign.functional.instructions import outcomes, read

OWN_COUNT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}  # NLTK's models have to be downloaded
PIECES = [
    "Dogs bark.", "It is 5 p.m., so what?", "\n", "\n\n", "* a", "- b", "*x*", "**y**", "***", "******", "<<t>>", "[name]", "P.S. bye",
    "P.P.S.", "SECTION 1", "Section 2", '"', ",", "My answer is no.", '{"a": 1}', "```json", "```", "LOUD", "  ",
]  # fmt: skip


@pytest.fixture
def registry(monkeypatch):
    nltk = pytest.importorskip("nltk", reason="the optional package nltk is not installed")
    monkeypatch.setattr(nltk, "download", lambda *_, **__: True)
    pytest.importorskip("if_verifiable", reason="the package if-verifiable is not installed")
    from if_verifiable.ifeval import instructions_registry

    return instructions_registry.INSTRUCTION_DICT


def texts(row, rng):
    """Texts that follow some instruction of the row often enough."""
    values = [v for kwargs in row["kwargs"] for value in kwargs.values() for v in (value if isinstance(value, list) else [value])]
    words = [str(value) for value in values if not isinstance(value, int)]
    for _ in range(40):
        text = rng.choice(["", " ", "\n\n"]).join(rng.choices(PIECES + 4 * words + [f"{word} 1" for word in words], k=rng.randint(1, 12)))
        yield rng.choice([str, str.upper, str.lower, lambda t: f'"{t}"', lambda t: t.replace(",", "")])(text)


def test_strict_and_loose_outcomes_are_the_authors(registry):
    path = Path(os.environ.get("ADVALIGN_DATA", "/nowhere")) / "if_ifeval" / "prompts_part.jsonl"
    if not path.exists():
        pytest.skip("the data set if_ifeval is not at hand")
    from if_verifiable.common import get_loose_transformations

    rng, counts = random.Random(0), {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        keep = [
            (name, kwargs)
            for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
            if name not in OWN_COUNT and not name.startswith("language") and not name.startswith("change_case:english")
            and str(kwargs.get("letter", "a")).isalpha()  # the package draws a letter where it is none
        ]  # fmt: skip
        for text in texts(row, rng):
            for name, kwargs in keep:
                rule = registry[name](name)
                rule.build_description(**kwargs)
                strict = bool(text.strip() and rule.check_following(text))
                loose = any(t.strip() and rule.check_following(t) for t in get_loose_transformations(text))
                parts = read([name], [kwargs], "row")
                assert (outcomes(parts, text), outcomes(parts, text, loose=True)) == ([strict], [loose]), (name, kwargs, text)
                counts.setdefault(name, set()).add(strict)
    assert [name for name, values in counts.items() if len(values) < 2] == []
