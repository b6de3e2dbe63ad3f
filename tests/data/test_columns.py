"""Values that a field cannot have: each is refused with its row and its column, wherever something reads it."""

import json
import math
import random
import re

import pytest

from advalign import data
from advalign.errors import ConfigError
from advalign.types.messages import conversation

NO_TEXTS = [5, 1.5, True, {"a": 1}, ["a"], [["a"]], [None], [1], [{"content": "x"}], [{"from": "human"}]]
NULLS = [None, math.nan]
TURNS = {
    "a role that is no text": ([{"role": 5, "content": "x"}], r"\[0\]: .* is not a message"),
    "a role misspelt": ([{"role": "usr", "content": "x"}], r"\[0\]: no role 'usr'.*Did you mean 'user'"),
    "a role in capitals": ([{"role": "Assistant", "content": "x"}], r"\[0\]: no role 'Assistant'"),
    "no content": ([{"role": "user"}], r"\[0\]\.content: null given"),
    "null content": ([{"role": "user", "content": None}], r"\[0\]\.content: null given"),
    "a number for content": ([{"role": "user", "content": 5}], r"\[0\]\.content: 5 is neither"),
    "a part that is no text": ([{"role": "user", "content": [{"type": "image"}]}], r"\[0\]\.content: a part of type image"),
    "a text among messages": (["a", {"role": "user", "content": "x"}], r"\[0\]: a is not a message"),
    "calls that are no list": ([{"role": "assistant", "content": "x", "tool_calls": "f"}], r"\[0\]\.tool_calls: f"),
    "an empty list of parts": ([{"role": "user", "content": []}], r"\[0\]\.content: an empty list"),
    "ShareGPT with a number": ([{"from": "human", "value": 5}], r"\[0\]\.content: 5"),
    "ShareGPT without a role": ([{"from": 5, "value": "x"}], r"\[0\]: .* is not a message"),
}


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / "a.jsonl")

    return write


@pytest.mark.parametrize("column", ["prompt", "question", "text"])
@pytest.mark.parametrize("value", [*NO_TEXTS, *NULLS, "", []])
def test_a_prompt_is_a_text_or_messages(write, column, value):
    path = write({column: "x"}, {column: value})
    with pytest.raises(ConfigError, match=rf"a\.jsonl, row 2: the prompt is (empty|not a text).*'{column}'"):
        data.examples(path)
    with pytest.raises(ConfigError, match=rf"row 2: the prompt .*'{column}'"):
        list(data.streamed({"path": path, "streaming": True}).read(random.Random(0)))


@pytest.mark.parametrize("value", [*NO_TEXTS, *NULLS, ""])
def test_a_response_that_is_needed_is_a_text_or_messages(write, value):
    path = write({"prompt": "x", "response": "y"}, {"prompt": "x", "response": value})
    with pytest.raises(ConfigError, match=r"a\.jsonl, example '2' has (no|an empty) response"):
        data.demonstrations(path)
    if value not in NULLS and value != "":
        with pytest.raises(ConfigError, match=r"row 2, column 'reply', the response, holds"):
            data.examples(write({"prompt": "x", "reply": "y"}, {"prompt": "x", "reply": value}), columns={"response": "reply"})
        assert (
            data.examples(write({"prompt": "x", "output": value}))[0].meta["response"] == value
        )  # nothing reads a column that was guessed


@pytest.mark.parametrize("value", NO_TEXTS)
def test_a_second_text_is_a_text(write, value):
    with pytest.raises(ConfigError, match=r"row 1, column 'hypothesis', the pair, holds"):
        data.labelled(write({"premise": "a", "hypothesis": value, "label": 0}))
    assert data.labelled(write({"premise": "a", "hypothesis": None, "label": 0}))[0][0].pair is None


@pytest.mark.parametrize(("value", "answer"), [(5, "5"), (5.0, "5"), (2.5, "2.5"), ("a", "a"), (None, None), (math.nan, None)])
def test_an_answer_is_a_text_or_a_number_and_nan_is_none(write, value, answer):
    assert data.examples(write({"prompt": "x", "answer": value}))[0].answer == answer


def test_answers_that_are_lists_are_no_text_to_compare_with(write):
    example = data.examples(write({"prompt": "x", "answer": ["a", "b"]}))[0]
    assert (example.answer, example.meta["answer"]) == (None, ["a", "b"])
    with pytest.raises(ConfigError, match=r"row 1, column 'gold', the answer, holds a list; a text or a number"):
        data.examples(write({"prompt": "x", "gold": ["a", "b"]}), columns={"answer": "gold"})


@pytest.mark.parametrize("case", TURNS)
@pytest.mark.parametrize("column", ["prompt", "messages", "response", "chosen"])
def test_a_message_that_is_none_is_named(write, case, column):
    turns, sentence = TURNS[case]
    row = {"prompt": "x", "rejected": "z"} if column not in ("prompt", "messages") else {}
    with pytest.raises(ConfigError, match=rf"a\.jsonl, row 1: {column}{sentence}"):
        data.examples(write(row | {column: turns}))


def test_a_conversation_begins_and_ends_where_it_should(write):
    user, assistant = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    with pytest.raises(ConfigError, match="row 1: the messages are one answer of the assistant"):
        data.examples(write({"messages": [assistant]}))
    with pytest.raises(ConfigError, match="example '1' has no response: its messages end with a turn of role user"):
        data.demonstrations(write({"messages": [user, assistant, user]}))
    for column in ("response", "chosen", "rejected"):
        with pytest.raises(ConfigError, match=rf"row 1: {column} ends with a turn of role user"):
            data.examples(write({"prompt": [user], "chosen": "a", "rejected": "b", column: [assistant, user]}))


def test_a_conversation_that_says_nothing_is_empty(write):
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": ""}]
    for row in ({"prompt": turns}, {"messages": turns}):
        with pytest.raises(ConfigError, match="row 1: the prompt is empty"):
            data.examples(write(row))


def test_only_a_message_that_calls_tools_may_have_no_text(write):
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    turns = [{"role": "user", "content": "x"}, call, {"role": "tool", "content": "1"}]
    assert data.examples(write({"prompt": turns}))[0].prompt == conversation(turns)


def test_half_of_a_surrogate_pair_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n{"prompt": "a\\ud800"}\n')
    with pytest.raises(ConfigError, match=r"row 2, column 'prompt' holds half of a surrogate pair \('.ud800'\)"):
        data.examples(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "a\\udfff"}]}\n')
    with pytest.raises(ConfigError, match=r"half of a surrogate pair"):
        data.examples(str(tmp_path / "a.jsonl"))


def test_an_example_knows_where_it_was_read_and_two_of_other_places_are_equal(write):
    example = data.examples(write({"prompt": "x", "id": "q7"}))[0]
    assert re.fullmatch(r"row 'q7' \(.*a\.jsonl, row 1\)", example.described)
    at_hand = data.examples([{"prompt": "x", "id": "q7"}])[0]
    assert (at_hand.described, at_hand) == ("row 'q7'", example)
