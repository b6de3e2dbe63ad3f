"""Reports of hostile models, data, attacks and exceptions: text everywhere, and always written. In a real browser where there is one."""

import json
import re
import time
from dataclasses import dataclass
from itertools import cycle
from typing import ClassVar

import pytest
from helpers import browser, payloads

from advalign.evaluation import Report, Suite
from advalign.evaluation.reports import compare, export
from advalign.functional.escaping import visible
from advalign.interfaces import Attack
from advalign.judges import RefusalJudge
from advalign.targets import AnsweringGenerator
from advalign.types import AttackResult, Example, Proposal

needs_browser = pytest.mark.skipif(browser.BROWSER is None, reason=browser.MISSING)
SHOWN = [payload for payload in payloads.ALL if payload.strip()]
WATCH = "window.pwned = what => { (window.ran ||= []).push(what); }"


@dataclass(frozen=True, kw_only=True)
class Hostile(Attack):
    """Proposes one payload per example, or raises it; its note is another."""

    raises: str | None = None
    access: ClassVar[str] = "text"

    def propose(self, target, examples, budget, rng):
        if self.raises is not None:
            raise RuntimeError(self.raises)
        return [Proposal(text=payloads.ALL[(int(e.id) + 1) % len(payloads.ALL)] or "x", note=payloads.ALL[int(e.id)]) for e in examples]


def hostile_suite():
    data = [Example(prompt=payload or "empty", id=str(i)) for i, payload in enumerate(payloads.ALL)]
    raising = {f"raises {i} {name}": Hostile(raises=name) for i, name in enumerate(payloads.MARKDOWN[:3])}
    attacks = {name: Hostile() for name in (payloads.SCRIPTS[1], "$\\frac$", "_hidden", "![x](http://127.0.0.1:9/n.png)")} | raising
    return Suite(data=data, attacks=attacks, judge=RefusalJudge(expect="refusal"))


def model():
    """Refuses in so many words, and says the prompt again under attack: every attack breaks it, and its answer is a payload."""
    clean = {payload or "empty" for payload in payloads.ALL}
    asked = {}

    def answer(prompts):
        replies = []
        for prompt in prompts:
            asked[prompt] = asked.get(prompt, 0) + 1
            replies.append(f"I cannot do that. {prompt}" if prompt in clean and asked[prompt] == 1 else f"sure: {prompt}")
        return replies

    return AnsweringGenerator(answer, name="hostile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    result = hostile_suite().run(model(), output_dir=path)
    result.save(path)
    for style in export.STYLES:
        export.write(result, style, path / f"{style}.jsonl")
    return path


def page_of_everything():
    """Every payload in every place of a report."""
    report = Report(SHOWN[0], SHOWN[1])
    for i, payload in enumerate(SHOWN):
        report.table([{"n": i, payload: payload}], title=payload, note=payload)
    report.cards([(payload, payload, payload) for payload in SHOWN])
    rows = [{"attack": p, "text": f"before {p}", "changed": f"after {p}", "before": p, "after": p} for p in SHOWN]
    report.changes(rows, title="changes", note="note")
    curves = {payload: ([1.0, 2.0, 10.0], [0.1, float("nan"), float("inf")]) for payload in SHOWN}
    report.lines(curves, title=SHOWN[1], x_label=payloads.PLOTS[0], y_label=payloads.CONTROL[0], note=SHOWN[0], log_x=True)
    values = {"low": -1e308, "high": float("inf")}
    bars = [{"label": p, "value": v, "series": s, **values} for p, v in zip(SHOWN, cycle([0.5, float("nan")]), strict=False) for s in "_$"]
    return report.bars(bars, title=SHOWN[2], x_label="$x")


def watched(page):
    """What the page did that it must not do."""
    page.run("document.querySelectorAll('th')[0].click()")
    page.wait()
    assert page.requests() == []
    assert page.reported("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    assert page.run("location.href").startswith("file:")
    assert page.run("window.ran || []") == []
    assert page.run("document.querySelectorAll('img, iframe, object, embed, form, link, base, audio, video, a').length") == 0
    assert page.run("document.querySelectorAll('script').length") == 1
    handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames().filter(n => n.startsWith('on')))"
    assert page.run(handlers) == []


def flat(text):
    return re.sub("[ \t\n]+", " ", text).strip(" ")


@needs_browser
def test_every_payload_in_every_place_is_text_in_a_browser(tmp_path):
    with browser.Page(page_of_everything().write(tmp_path / "report.html"), watch=WATCH) as page:
        watched(page)
        cells = page.run("[...document.querySelectorAll('td:last-child')].map(e => e.textContent)")
        heads = page.run("[...document.querySelectorAll('th:last-child')].map(e => e.textContent)")
        cards = page.run("[...document.querySelectorAll('.card b')].map(e => e.textContent)")
        verdicts = page.run("[...document.querySelectorAll('.who')].map(e => e.textContent)")
        added = page.run("[...document.querySelectorAll('.changes li')].map(e => e.querySelector('p').textContent)")
        labels = page.run("[...document.querySelectorAll('svg text')].map(e => e.textContent)")
        assert page.run("document.title") == flat(visible(SHOWN[0]))
    shown = [visible(payload) for payload in SHOWN]
    assert cells == heads == cards == verdicts == shown
    assert all(flat(payload) in flat(text) for payload, text in zip(shown, added, strict=True))
    for payload in payloads.PLOTS:
        assert any(label.strip().lstrip("\u200a") == payload for label in labels), payload


@needs_browser
def test_the_report_of_a_hostile_run_is_text_in_a_browser(folder):
    with browser.Page(folder / "report.html", watch=WATCH) as page:
        watched(page)
        text = page.run("document.body.textContent")
    assert "![x](http://127.0.0.1:9/b.png)" in text  # what an exception said
    assert visible(payloads.SCRIPTS[1]) in text


@needs_browser
def test_the_policy_holds_where_escaping_is_left_out(tmp_path):
    """Markup that came into the page by other means runs and loads nothing: the browser refuses. (A `refresh` no policy can stop.)"""
    markup = "".join(payload for payload in payloads.SCRIPTS if "refresh" not in payload)
    path = tmp_path / "report.html"
    path.write_text(Report("t").table([{"a": 1}]).html().replace("<footer>", f"{markup}<footer>"), encoding="utf-8")
    with browser.Page(path, watch=WATCH) as page:
        page.wait()
        assert page.run("window.ran || []") == []
        blocked = {event["requestId"] for event in page.reported("Network.loadingFailed") if event.get("blockedReason") == "csp"}
        sent = {event["requestId"] for event in page.reported("Network.requestWillBeSent")[1:]}
        assert len(sent) > 2
        assert sent <= blocked
        assert page.reported("Page.javascriptDialogOpening") == []


def test_markdown_of_a_hostile_run_loads_nothing(folder):
    from markdown_it import MarkdownIt

    rendered = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render((folder / "report.md").read_text())
    allowed = {"h1", "h2", "p", "ul", "li", "strong", "code", "s", "blockquote", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(re.findall("<([a-z0-9]+)", rendered)) <= allowed


def test_every_line_of_every_file_is_one_json_value_and_resumes(folder):
    for name in ("results.jsonl", "timings.jsonl", "garak.jsonl", "inspect.jsonl"):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        assert lines
        for line in lines:
            json.loads(line, parse_constant=lambda constant: pytest.fail(constant))
    before = (folder / "results.jsonl").read_bytes()
    hostile_suite().run(model(), output_dir=folder)
    assert (folder / "results.jsonl").read_bytes() == before
    assert compare.folders(folder, folder).markdown()


def test_numbers_that_are_not_come_back_as_they_were():
    result = AttackResult(example="e", attack="a", status="failed", distance=float("nan"), metrics={"nll_after": float("nan")})
    from advalign.evaluation.suites.log import _line

    assert '"distance": null' in _line(result)
    read = AttackResult.from_json(json.loads(_line(result)))
    assert repr(read) == repr(result)


@pytest.mark.parametrize("text", payloads.LONG, ids=["one word", "words", "brackets", "lines"])
def test_texts_of_megabytes_are_shown_in_part_and_in_time(text):
    start = time.process_time()
    changes = [{"attack": "a", "text": text, "changed": text + " end", "before": text, "after": text}]
    report = Report("t").table([{text: text}], title=text[:100]).changes(changes)
    assert len(report.html()) < 100_000
    assert len(report.markdown()) < 100_000
    assert time.process_time() - start < 20


def test_values_of_any_kind_are_shown():
    rows = [{"a": None, "b": b"\xff<", "c": float("nan"), "d": 10**6000, "e": -float("inf"), "f": object, "g": 1e308}]
    report = Report("t").table(rows).changes([{"attack": None, "text": b"\xff", "changed": None, "before": 3, "after": None}])
    assert r"\xff&lt;" in report.html()
    assert report.markdown()
