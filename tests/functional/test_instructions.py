"""Verifiable instructions: each rule by hand at its edges, IFEval's public prompts, and texts that would take a careless rule long."""

import json
import os
import time
from pathlib import Path

import pytest

from advalign.errors import ConfigError
from advalign.functional import instructions
from advalign.functional.instruction_rules import RULES, count_capital_words, count_sentences, count_words
from advalign.functional.instructions import outcomes, read, variants

CASES = [
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "A BIG dog", "A big dog"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, "One WELL-KNOWN dog", "A BIG dog"),
    ("change_case:english_capital", {}, "ALL OF IT, 3 TIMES", "All OF IT"),
    ("change_case:english_lowercase", {}, "all of it, 3 times", "all of It"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, " say HI. hi", "hi. Say hi."),
    ("combination:two_responses", {}, "one\n******\ntwo\n******", "one ****** one"),
    ("combination:two_responses", {}, "******\none\n******\ntwo", "one ****** ****** two"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] [a [b] c", "[name] [ad\ndress]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "bye\nP. S. and this", "bye\nPS and this"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s more", "P.S. more"),
    ("detectable_content:postscript", {"postscript_marker": "N.B. "}, "n.b. more", "nxbx more"),  # a text, not an expression
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", "My answer: no."),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1 a\nPart 2 b", "Part 1 a\nPart b"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b\n**c**", "* a\n- b\n- c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** ** *"),
    ("detectable_format:title", {}, "<<a>>\ntext", "<<>>\n<< \n>>"),
    ("keywords:existence", {"keywords": ["ox", "ewe"]}, "Oxen and EWES", "oxen"),
    ("keywords:existence", {"keywords": ["a.c"]}, "it is a.c here", "it is abc here"),
    ("keywords:forbidden_words", {"forbidden_words": ["ox"]}, "oxen", "an OX."),
    ("keywords:frequency", {"keyword": "ox", "frequency": 2, "relation": "at least"}, "ox, oxen", "ox"),
    ("keywords:frequency", {"keyword": "ox", "frequency": 2, "relation": "less than"}, "ox", "ox ox"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": "at least"}, "Eve", "evil"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "So"}, "a\n\n'so, b", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a *** b\n***", "a *** *** b"),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "Dr. No, e.g. he. Ah!", "One is. Two do! E f"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "it's ok", "ok then"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
    ("startend:end_checker", {"end_phrase": "The End. "}, 'so. "the end."', "the end. Bye"),
    ("startend:quotation", {}, ' "a" ', '"'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_each_rule_by_hand(name, arguments, right, wrong):
    (instruction,) = read([name], [arguments], "row")
    assert instruction.followed(right)
    assert not instruction.followed(wrong)
    assert not instruction.followed(" \n")  # IFEval: an empty text follows nothing


def test_the_cases_leave_out_no_rule():
    assert {name for name, *_ in CASES} | {"language:response_language"} == set(RULES)


def test_a_language_is_what_the_detector_says_and_what_it_cannot_tell_counts_as_followed():
    (german,) = read(["language:response_language"], [{"language": "de"}], "row")
    (capital,) = read(["change_case:english_capital"], [{}], "row")
    said = {"JA": "de", "YES": "en", "123": None}
    assert [german.followed(text, said.get) for text in said] == [True, False, True]
    assert [capital.followed(text, said.get) for text in said] == [False, True, False]


def test_langdetect_tells_the_same_every_time():
    pytest.importorskip("langdetect", reason="the optional package langdetect is not installed")
    from advalign.functional.languages import detector

    detect = detector()
    assert detect("Der Hund schläft unter dem Tisch und träumt.") == "de"
    assert detect("12 + 30") is None
    assert len({detect("hotel taxi bar") for _ in range(10)}) == 1  # langdetect alone draws at random


def test_loose_takes_off_the_first_line_the_last_line_and_stars():
    # lines a, *b*, c: eight texts, each of the four cuts with and without stars
    cut = ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*"]
    assert variants("a\n*b*\nc") == [text for part in cut for text in (part, part.replace("*", ""))]
    parts = read(["startend:quotation", "punctuation:no_comma"], [{}, {}], "row")
    assert outcomes(parts, 'Sure, here:\n"a, b"') == [False, False]
    assert outcomes(parts, 'Sure, here:\n"a, b"', loose=True) == [True, False]  # without the first, or the last line: '"a, b"' has a comma
    assert outcomes(parts, 'Sure, here:\n"a b"', loose=True) == [True, True]
    assert [instructions.accuracy([True, False], level) for level in instructions.LEVELS] == [0.0, 0.5]


def test_counts():
    assert [count_words(text) for text in ("", "it's 3.5 well-known", "a_b c")] == [0, 6, 2]
    assert [count_sentences(t) for t in ("", "One.", "One. Two", "At 3.5 p.m. he left. Bye!", "Wait... what? No.")] == [0, 1, 2, 2, 2]
    assert [count_capital_words(t) for t in ("", "I AM", "U.S. NASA-led", "DON'T", "3 4")] == [0, 2, 1, 2, 0]


def test_the_public_prompts_are_read():
    path = Path(os.environ.get("ADVALIGN_DATA", "/nowhere")) / "if_ifeval" / "prompts_part.jsonl"
    if not path.exists():
        pytest.skip("the data set if_ifeval is not at hand")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    parts = [read(row["instruction_id_list"], row["kwargs"], "row") for row in rows]
    assert {instruction.id for row in parts for instruction in row} == set(RULES)
    # Copies of the data in columns hold every argument of every instruction, null where it has none.
    names = {key: None for row in rows for kwargs in row["kwargs"] for key in kwargs}
    padded = [read(row["instruction_id_list"], [names | kwargs for kwargs in row["kwargs"]], "row") for row in rows]
    assert padded == parts


@pytest.mark.parametrize("pattern", ["[", "<<", "*", "\n", " ", "p.p", "9", '{"a":', "[" * 3 + "\n", "a. ", "(((", "A"])
def test_hostile_texts_take_time_in_proportion_to_their_length(pattern):
    text = pattern * (200_000 // len(pattern))
    parts = [instruction for name, arguments, *_ in CASES for instruction in read([name], [arguments], "row")]
    start = time.process_time()
    outcomes(parts, text, loose=True)
    assert time.process_time() - start < 20  # a quadratic rule takes hours


@pytest.mark.parametrize(
    ("ids", "kwargs", "sentence"),
    [
        (["punctuation:no_coma"], [{}], r"no instruction 'punctuation:no_coma'\..*Did you mean 'punctuation:no_comma'\?"),
        (["punctuation:no_comma"], [], r"lists of equal length; 1 and 0 given\."),
        ("punctuation:no_comma", [{}], r"lists of equal length; 'punctuation:no_comma' and 1 given\."),
        (["punctuation:no_comma"], [None], r"kwargs of punctuation:no_comma: None given; a mapping of arguments is expected\."),
        (["startend:end_checker"], [{"end_phrase": None}], r"kwargs of startend:end_checker: no 'end_phrase' given; it is required\."),
        (["startend:end_checker"], [{"end": "x"}], r"no argument 'end'\. Known: end_phrase\."),
        (["length_constraints:number_words"], [{"relation": "at most", "num_words": 3}], r"no relation 'at most'\. Known: at least, less"),
        (["length_constraints:number_words"], [{"relation": "at least", "num_words": -1}], r"num_words: -1 given; a whole number"),
        (["keywords:existence"], [{"keywords": "red"}], r"keywords: 'red' given; a list of texts is expected\."),
        (["keywords:letter_frequency"], [{"letter": "ab", "let_frequency": 1, "let_relation": "at least"}], r"'ab' given; one letter is"),
    ],
)  # fmt: skip
def test_what_cannot_be_verified_is_refused_in_a_sentence(ids, kwargs, sentence):
    with pytest.raises(ConfigError, match=rf"^row: .*{sentence}"):
        read(ids, kwargs, "row")
