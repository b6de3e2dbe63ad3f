"""Functions on texts of others end: bounded time and memory, nothing written, started or sent, and the next question is answered."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advalign import bounded


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    worker = bounded.Worker("helpers.questions.act", 0.3)
    yield worker
    if worker.process is not None:
        worker.process.kill()


def test_what_does_not_end_is_ended_and_the_next_question_is_answered(worker):
    first = worker.ask("say", 1)
    assert (first.values, first.ended) == ([1, "done"], False)
    assert first.seconds < 0.3
    process = worker.process
    for what in ("loop", "regex", "tower", "recursion", "memory", "exit", "raise", "half"):
        replies = worker.ask(what, 0)
        assert replies.ended, what
        assert replies.values == (["first"] if what == "half" else [])
        assert worker.ask("say", what).values == [what, "done"]
    assert worker.process is process  # what was loaded once is loaded once


@pytest.mark.parametrize("what", ["write", "touch", "remove", "start", "shell", "connect", "fork"])
def test_a_question_changes_nothing_outside(worker, what, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    assert worker.ask(what, str(tmp_path)).ended
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was"


def test_an_interrupted_question_leaves_no_reply_for_the_next_one(worker, monkeypatch):
    read, calls = worker._read, []

    def interrupted(process):
        calls.append(process)
        if len(calls) == 3:  # ready, and the first of two replies
            raise KeyboardInterrupt
        return read(process)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.ask("say", "one")
    assert worker.ask("say", "two").values == ["two", "done"]


def test_the_process_ends_when_its_input_does():
    command = [sys.executable, "-c", bounded.command("advalign.bounded.matches", 1.0)]
    done = subprocess.run(command, input=json.dumps(["b+", 0, "search", "abb"]) + "\n", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("reply") for line in lines] == [None, True, None]  # ready, matched, done


def test_texts_of_any_kind_go_both_ways(worker):
    for text in ("\ud800", "\u2028", "\x00\r\n", "x" * 1_000_000, "é漢🙂"):
        assert worker.ask("say", text).values == [text, "done"]


@pytest.mark.parametrize(
    ("pattern", "text"), [("(a+)+$", "a" * 60 + "b"), ("(a|aa)+$", "a" * 80 + "b"), ("(.*,){20}x", "1," * 60), (r"(\w+\s?)*!", "ab " * 30)]
)
def test_a_pattern_without_end_is_undetermined_and_costs_its_time(pattern, text, monkeypatch):
    monkeypatch.setattr(bounded, "PATTERN_SECONDS", 0.2)
    allowance = bounded.Allowance(10.0)
    assert bounded.Pattern(pattern=pattern).search(text, allowance) is None
    assert 9.0 < allowance.left < 9.81


def test_patterns_match_as_those_of_python_do():
    allowance = bounded.Allowance(10.0)
    cases = [("b+", "abb", True, False), ("a(?i:B)+", "abb", True, True), ("x{e<=1}", "xx", False, False), ("", "", True, True)]
    for pattern, text, found, whole in cases:
        own = bounded.Pattern(pattern=pattern)
        assert (own.search(text, allowance), own.fullmatch(text, allowance)) == (found, whole)


def test_a_used_up_allowance_asks_nothing():
    allowance = bounded.Allowance(0.0)
    start = time.monotonic()
    assert [bounded.Pattern(pattern="(a+)+$").search("a" * 60 + "b", allowance) for _ in range(1000)] == [None] * 1000
    assert time.monotonic() - start < 1
