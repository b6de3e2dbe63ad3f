"""One function per format: whatever a text holds, it is shown, and does nothing."""

import json
import re
import time
from html.parser import HTMLParser

import pytest
from helpers import payloads
from markdown_it import MarkdownIt

from advalign.functional import escaping

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Text(HTMLParser):
    """The tags and the text of a fragment."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def flat(text):
    return re.sub("[ \t\n]+", " ", text).strip(" ")


@pytest.mark.parametrize("payload", payloads.ALL)
def test_markdown_shows_it_and_makes_nothing_of_it(payload):
    """Rendered with raw HTML, tables and struck text on: one paragraph, whose text is the payload's."""
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for source in (escaping.markdown(payload), f"seen: {escaping.markdown(payload)}"):
        page = Text(renderer.render(source))
        assert page.tags in (["p"], [])
        assert flat(page.text).removeprefix("seen: ").removeprefix("seen:") == flat(escaping.visible(payload))


@pytest.mark.parametrize("payload", payloads.ALL)
def test_a_cell_of_a_table_stays_one_cell(payload):
    table = f"| a | b |\n|---|---|\n| {escaping.markdown(payload)} | end |\n"
    page = Text(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(table))
    assert page.tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]


@pytest.mark.parametrize("payload", payloads.ALL)
def test_code_is_code_whatever_backticks_are_in_it(payload):
    page = Text(MarkdownIt("commonmark", {"html": True}).render(f"the attack {escaping.code(payload)} crashed"))
    assert page.tags == ["p", "code"]
    assert flat(page.text) == flat(f"the attack {escaping.one_line(escaping.visible(payload))} crashed")


def test_plain_words_are_left_as_they_are():
    for text in ("word_swap", "pgd@0.1", "0.123", "–", "1,200", "a-b", "it's 5 %", "x = 3", "-log ASR(n)", "3 apples"):
        assert escaping.markdown(text) == text


def test_bare_addresses_become_no_links_on_pages_that_look_for_them():
    """GitHub links `http://`, `www.` and `mailto:`; an escaped colon or stop is not one."""
    assert escaping.markdown("http://a.b www.a.b mailto:a") == r"http\://a.b www\.a.b mailto\:a"


@pytest.mark.parametrize("payload", payloads.ALL)
def test_a_terminal_obeys_nothing(payload):
    shown = escaping.terminal(payload)
    assert not OBEYED.search(shown)
    shown.encode()
    assert escaping.terminal("a\tb\nc é 漢 🙂 \u200d") == "a\tb\nc é 漢 🙂 \u200d"


@pytest.mark.parametrize("payload", payloads.ALL)
def test_json_is_one_line_that_every_reader_reads_back(payload):
    line = escaping.json_line({"text": payload, payload: [payload]})
    assert len(line.splitlines()) == 1
    assert line.encode()
    assert json.loads(line) == {"text": payload, payload: [payload]}


def test_json_has_no_numbers_that_json_does_not_have():
    strict = lambda line: json.loads(line, parse_constant=lambda name: pytest.fail(name))  # noqa: E731
    value = {"a": float("nan"), "b": [float("inf"), -float("inf")], "c": b"\xff", "d": None, "e": 10**6000, "f": 2.5}
    read = strict(escaping.json_line(value))
    assert (read["a"], read["b"], read["c"], read["d"], read["f"]) == (None, [None, None], r"\xff", None, 2.5)
    assert int(read["e"], 16) == 10**6000


def test_exceptions_whose_text_fails_or_is_endless():
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("again")

    assert escaping.exception(Broken()) == "Broken: its text cannot be read (RuntimeError)"
    assert len(escaping.exception(ValueError("x" * 10**7))) < 400


@pytest.mark.parametrize("door", [escaping.markdown, escaping.code, escaping.terminal, escaping.json_line, escaping.plot_label])
@pytest.mark.parametrize("unit", ["x", " ", "`", "\\", "_", "*", "\n", "0", "a b ", "http://", "\x1b", "\ud800", "= "])
def test_time_is_linear_in_the_text(door, unit):
    """200,000 units of any kind in a second or two: a quadratic pattern takes minutes."""
    start = time.process_time()
    door(unit * 200_000)
    assert time.process_time() - start < 5
