"""Evaluations of models that answer with any text: every file is written, and reads back as it was."""

import json

import pytest
from helpers import payloads
from helpers.attackers import Say

from advalign.engine.rng import seed_of
from advalign.evaluation import Suite
from advalign.evaluation.reports import compare, export
from advalign.evaluation.suites.benign import Benign
from advalign.judges import FunctionJudge
from advalign.targets import AnsweringClassifier, AnsweringGenerator
from advalign.types import Example

ANSWERS = ("None", "3", "nan", "\ud800", "x" * 300_000, "", "\0", *payloads.CONTROL)


def judge(prompt, text, example):
    """Raises an endless text on some answers, cannot tell of others, and finds a violation in the rest."""
    if "x" in text:
        raise ValueError("![x](http://127.0.0.1:9/) \x1b" + "y" * 100_000)
    return None if text == "3" else 0.0


def generator():
    return AnsweringGenerator(lambda prompts: [ANSWERS[len(p) % len(ANSWERS)] for p in prompts], name="any")


def suite():
    data = [Example(prompt="z" * i + "\ud800", id=f"\ud801/../{i}\n<b>") for i in range(len(ANSWERS))]
    attacks = {"a<b>|`c`": Say(texts=("{}!",)), "$\\frac$": Say(texts=("{}\ud800", payloads.LONG[2]))}
    benign = Benign(data=[Example(prompt="<img src=x>\ud800", id="b")])
    return Suite(data=data, attacks=attacks, judge=FunctionJudge(fn=judge), benign=benign)


def test_whatever_a_generator_answers_every_file_is_written_and_resumes(tmp_path):
    result = suite().run(generator(), output_dir=tmp_path)
    result.save(tmp_path)
    for style in export.STYLES:
        lines = export.write(result, style, tmp_path / f"{style}.jsonl").read_text(encoding="utf-8").splitlines()
        assert all(json.loads(line) for line in lines)
    assert repr(suite().run(generator(), output_dir=tmp_path).results) == repr(result.results)
    page = compare.folders(tmp_path, tmp_path).report().write(tmp_path / "compare" / "compare.html")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert r"\!" not in report
    assert r"!\[x\](http\://127.0.0.1:9/) \\x1byyy" in report
    assert len(report) < 100_000
    assert json.loads((tmp_path / "summary.json").read_text())["warnings"]


def test_whatever_a_class_is_called_and_a_text_holds_a_classifier_is_reported(tmp_path):
    names = ["<script>pwned(1)</script>\ud800", "`$\\frac$`"]
    model = AnsweringClassifier(lambda texts: [[0.0, 1.0]] * len(texts), class_names=names, name="c")
    data = [Example(prompt=f"t\ud800{i}", label=i % 2, id=str(i)) for i in range(4)]
    result = Suite(data=data, attacks={"a": Say(texts=("{}!",))}).run(model, output_dir=tmp_path, cache=tmp_path / "cache.sqlite")
    result.save(tmp_path)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "answers `` `$\\frac$` `` to almost everything" in report
    assert r"\<script\>pwned(1)\</script\>\\ud800" in report


@pytest.mark.parametrize("payload", payloads.ALL)
def test_streams_of_random_numbers_take_any_name(payload):
    assert seed_of(payload, 1) == seed_of(payload, 1) != seed_of(payload, 2)
