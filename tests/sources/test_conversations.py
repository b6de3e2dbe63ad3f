"""Demonstrations that are conversations: one turn of the assistant, all of them in one row, or each in a row of its own."""

import json

import pytest
from helpers.chat_templates import SHAPES, chat_tokenizer
from helpers.context import FakeContext

from advalign.errors import ConfigError
from advalign.models import Encoder
from advalign.sources.demos import Demos

SHAPE = SHAPES["system and two turns"]


def built(tmp_path, name, **options):
    """The rows of one conversation from a file, and their texts: (whole, target)."""
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": SHAPE}) + "\n")
    source = Demos(data=str(file), **options)
    runtime = source.start(FakeContext(), "chat")
    tok = chat_tokenizer(name)
    tokens = runtime.rows(runtime.examples, Encoder(tok)).tokens
    columns = zip(tokens.ids, tokens.mask, tokens.target, strict=True)
    return [(tok.decode(ids[mask]), tok.decode(ids[target])) for ids, mask, target in columns], tok


def test_the_last_turn_is_the_target_unless_others_are_asked_for(tmp_path):
    texts, tok = built(tmp_path, "chatml")
    assert texts == [(tok.apply_chat_template(SHAPE, tokenize=False), "red<|im_end|>\n")]
    texts, _ = built(tmp_path, "chatml", assistant_turns="all")
    assert texts == [(tok.apply_chat_template(SHAPE, tokenize=False), "hello you<|im_end|>\nred<|im_end|>\n")]


def test_each_turn_is_a_row_of_what_precedes_it(tmp_path):
    texts, tok = built(tmp_path, "chatml", assistant_turns="each")
    rows = [tok.apply_chat_template(SHAPE[: i + 1], tokenize=False) for i in (2, 4)]
    assert texts == [(rows[0], "hello you<|im_end|>\n"), (rows[1], "red<|im_end|>\n")]


def test_the_choice_is_one_of_three():
    with pytest.raises(ConfigError, match=r"sources\.demos\.assistant_turns: no choice 'first'\. Known: "):
        Demos(data=[], assistant_turns="first")
