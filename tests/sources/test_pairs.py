"""Preferences that prefer nothing and responses that are none: refused with their row before the first step."""

import json
import math

import pytest
from helpers.context import FakeContext

from advalign.errors import ConfigError
from advalign.sources import Demos, Feedback, Pairs

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
SIDES = {
    "equal": {"chosen": "b"},
    "equal messages": {"chosen": [{"role": "assistant", "content": "b"}]},
    "chosen null": {"chosen": None},
    "rejected nan": {"rejected": math.nan},
    "chosen empty": {"chosen": ""},
    "rejected empty": {"rejected": ""},
    "chosen a number": {"chosen": 5},
    "rejected a list": {"rejected": ["b"]},
    "rejected an object": {"rejected": {"text": "b"}},
}


def start(source):
    return source.start(FakeContext(), "s")


@pytest.mark.parametrize("kind", [Pairs, Feedback])
@pytest.mark.parametrize("case", SIDES)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_pair_with_equal_or_no_sides_is_refused(tmp_path, kind, case, streaming):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, GOOD | SIDES[case])))
    with pytest.raises(ConfigError, match=r"row '2' \(.*a\.jsonl, row 2\)"):
        start(kind(data={"path": str(path), "streaming": streaming}, batch_size=4)).draw(0, 0)


def test_the_same_text_under_two_prompts_is_a_pair():
    row = {"prompt": "p", "rejected_prompt": "q", "chosen": "a", "rejected": "a"}
    assert len(start(Pairs(data=[row])).examples) == 1


@pytest.mark.parametrize("value", [None, math.nan, "", 5, True, ["a"], {"a": 1}])
@pytest.mark.parametrize("kind", [Demos, Feedback])
def test_a_demonstration_has_a_response_that_is_a_text(kind, value):
    rows = [{"prompt": "p", "response": "a", "label": 1}, {"prompt": "p", "response": value, "label": 1}]
    with pytest.raises(ConfigError, match=r"row '2' has (no|an empty) response"):
        start(kind(data=rows))
