"""The fingerprint of a suite: every field that judgements depend on changes it; order of keys, paths, batches and processes do not."""

import dataclasses
import functools
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from helpers import victims
from helpers.attackers import Say, broken

from advalign import adversaries, attacks, interfaces, judges, plugins
from advalign.attacks._words_constraints import WordConstraints
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.suites import certified, fingerprint
from advalign.evaluation.suites.benign import Benign
from advalign.models import load
from advalign.targets import AnsweringClassifier
from advalign.types import NEUTRAL, Budget, Conversation, Example, Message, Sampling

CLASSES = [
    *(Suite, Budget, Sampling, Benign, Example, Conversation, Message, WordConstraints, *certified.KINDS.values()),
    *(plugins.resolve(group, kind) for group in ("attacks", "judges", "adversaries") for kind in plugins.kinds(group)),
]
UNSEEN = {
    "Suite.data",  # by content
    "Suite.seen",  # how worst cases are grouped
    "Benign.data",
    "Example.location",
    "Embedding.batch_size",
    "Prefill.batch_size",
    "TokenSearch.batch_size",
    *(f"{name}.batch_size" for name in ("Beam", "Exhaustive", "Population", "Words")),
}


@dataclass(frozen=True)
class Changed:
    """No field has this value."""

    number: int = 7


def filled(cls: type) -> Any:
    """An instance whose fields are their defaults, or a text; it never started."""
    instance = object.__new__(cls)
    for field in dataclasses.fields(cls):
        value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        object.__setattr__(instance, field.name, f"some {field.name}" if value is dataclasses.MISSING else value)
    return instance


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_counts_unless_it_is_declared_neutral(cls):
    before = fingerprint.described(filled(cls))
    for field in dataclasses.fields(cls):
        for value in (Changed(), "another", 12345.678, None if field.default is not None else False, ("a", "b"), {"a": 1}):
            moved = filled(cls)
            object.__setattr__(moved, field.name, value)
            differs = fingerprint.described(moved) != before
            assert differs != (f"{cls.__name__}.{field.name}" in UNSEEN), (field.name, value)


def test_the_neutral_fields_are_those_of_the_list():
    declared = {f"{cls.__name__}.{name}" for cls in CLASSES for name, marks in fingerprint.marks_of(cls).items() if NEUTRAL in marks}
    assert declared == UNSEEN


# ---------------------------------------------------------------------------------------------- what does not count


def suite(**fields):
    words = attacks.Words(style="deepwordbug", max_changed=0.5, batch_size=3)
    pgd = attacks.Embedding(adversary=adversaries.PGD(radius=0.5, steps=2), restarts=1, batch_size=5)
    return Suite(**({"data": victims.sentences(12), "attacks": {"words": words, "pgd": pgd}, "examples": 8} | fields))


def of(the_suite, model=None, examples=None):
    model = model or victims.classifier()
    return fingerprint.suite_fingerprint(the_suite, model, examples or the_suite.examples_for(model))


def test_order_of_keys_whole_numbers_and_the_file_they_are_from_do_not_count(tmp_path):
    rows = [{"prompt": e.prompt, "label": e.label, "id": e.id} for e in victims.sentences(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = {
        "attacks": {
            "a": {"kind": "words", "max_changed": 0.5, "candidates": 4},
            "b": {"kind": "embedding", "adversary": {"kind": "pgd", "radius": 1.0, "steps": 2}},
        },
        "budget": {"queries": 50, "edits": 1.0},
        "data": str(path),
    }
    written = of(Suite.load(plain))
    rng = random.Random(0)

    def shuffled(value):
        items = [(key, shuffled(entry)) for key, entry in value.items()] if isinstance(value, dict) else value
        return dict(rng.sample(items, len(items))) if isinstance(value, dict) else value

    for _ in range(5):
        assert of(Suite.load(shuffled(plain))) == written
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "other.jsonl")
    assert of(Suite.load(plain | {"data": {"path": str(moved)}})) == written
    assert of(Suite.load(plain | {"budget": {"queries": 50, "edits": 1}, "seen": ["a"], "data": str(moved)})) == written
    assert of(Suite.load(plain | {"budget": {"queries": 51, "edits": 1}, "data": str(moved)})) != written


def test_workers_caches_folders_batches_and_the_order_of_attacks_go_on_with_the_same_results(tmp_path):
    network, first = victims.classifier(), suite()
    first.run(network, tmp_path / "a", workers=2, cache=tmp_path / "cache")
    whole = (tmp_path / "a" / "results.jsonl").read_bytes()
    pgd, words = replace(first.attacks["pgd"], batch_size=2), replace(first.attacks["words"], batch_size=7)
    (tmp_path / "a" / "results.jsonl").write_bytes(whole[: len(whole) // 2])
    replace(first, attacks={"words": words, "pgd": pgd}, seen=("pgd",)).run(network, tmp_path / "a")
    assert (tmp_path / "a" / "results.jsonl").read_bytes() == whole
    (tmp_path / "a").rename(tmp_path / "b")
    turned = replace(first, attacks={"pgd": pgd, "words": words})
    result = turned.run(network, tmp_path / "b")
    lines = whole.splitlines()
    assert (tmp_path / "b" / "results.jsonl").read_bytes().splitlines() == [*lines[8:], *lines[:8]]
    assert len(result.results) == 16


def test_a_model_is_its_content_and_not_its_folder(tmp_path):
    network = victims.classifier()
    for name in ("here", "there"):
        network.save_pretrained(tmp_path / name)
    here, there = (load(str(tmp_path / name)) for name in ("here", "there"))
    assert of(suite(), here) == of(suite(), there) == of(suite(), network)


SCRIPT = """
import sys
sys.path[:0] = {path!r}
import functools
from helpers.attackers import Say, broken
from advalign import attacks, judges
from advalign.evaluation.suites import fingerprint
from advalign.types import Example
parts = [
    attacks.FunctionAttack(fn=broken), Say(texts=("a",)), {{"a", "b", "c", "d"}}, frozenset({{1, "x"}}), functools.partial(broken, rng=3),
    Example(prompt="x", verify=broken, meta={{"b": 1, "a": [2.0]}}), judges.Rule(must_not=("x",)),
]
text = fingerprint.described(parts)
"""


def test_another_process_describes_functions_sets_and_classes_alike():
    """Other addresses in memory, other hashes of texts."""
    script, here = SCRIPT.format(path=[p for p in sys.path if p]), {}
    exec(script, here)
    assert " at 0x" not in here["text"]
    assert "helpers.attackers.Say#" in here["text"]
    command = [sys.executable, "-c", script + "print(text)"]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    assert subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.strip() == here["text"]


# ------------------------------------------------------------------------------------------------------ what counts


@pytest.mark.parametrize(
    "field", [{"prompt": "x"}, {"label": 0}, {"answer": "x"}, {"pair": "x"}, {"meta": {"secret": "x"}}, {"id": "x"}, {"verify": len}]
)
def test_the_content_of_data_counts(field):
    data = [Example(prompt="a good movie", label=1, id="1"), Example(prompt="a bad movie", label=0, id="2")]
    other = [replace(data[0], **field), data[1]]
    assert of(suite(), examples=data) != of(suite(), examples=other)
    assert of(suite(), examples=data) != of(suite(), examples=data[::-1])  # which ones are drawn depends on the order


def test_the_content_of_files_that_attacks_read_counts_and_their_place_does_not(tmp_path):
    for name, word in (("a", "fine"), ("b", "fine"), ("c", "lovely")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"good": [word]}))
    a, b, c = (of(suite(attacks={"w": attacks.Words(style="textfooler", lexicon=str(tmp_path / f"{x}.json"))})) for x in "abc")
    assert a == b != c


def test_code_and_what_functions_hold_count():
    def judge(limit):
        return judges.FunctionJudge(fn=lambda prompt, response, example: len(response) < limit)

    assert fingerprint.described(judge(3)) == fingerprint.described(judge(3))
    assert fingerprint.described(judge(3)) != fingerprint.described(judge(4))
    other = judges.FunctionJudge(fn=lambda prompt, response, example: len(response) > 3)
    assert fingerprint.described(judge(3)) != fingerprint.described(other)
    named, held = attacks.FunctionAttack(fn="helpers.attackers.broken"), attacks.FunctionAttack(fn=broken)
    assert fingerprint.described(named) == fingerprint.described(held)
    texts = {fingerprint.described(functools.partial(max, key=key)) for key in (len, str, abs)}
    assert len(texts) == 3


def test_weights_and_how_a_model_reads_and_stops_count(tmp_path):
    network = victims.generator_model()
    network.save_pretrained(tmp_path / "model")

    def hashed(change=lambda network: None, **options):
        model = load(str(tmp_path / "model"), head="policy", **options)
        change(model)
        return fingerprint.model_fingerprint(model)

    def weight(model):
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1e-3

    def stop(model):
        model.model.generation_config.eos_token_id = [3, 5]

    def config(model):
        model.model.config.rms_norm_eps = 0.1

    plain = hashed()
    assert plain == hashed()
    assert len({plain, hashed(weight), hashed(stop), hashed(config), hashed(max_length=16), hashed(dtype="float64")}) == 6


def test_goals_budgets_and_seeds_count():
    alike = suite()
    others = [
        suite(seed=1),
        suite(examples=7),
        suite(budget=Budget(queries=10)),
        suite(radii=(0.1,)),
        suite(attacked_turn="tool"),
        suite(attacks=alike.attacks | {"say": Say(texts=("{}!",))}),
        suite(attacks={"words": alike.attacks["words"]}),
        suite(attacks={"other": alike.attacks["words"], "pgd": alike.attacks["pgd"]}),
        suite(attacks=alike.attacks | {"pgd": attacks.Embedding(adversary=adversaries.PGD(radius=0.5, steps=3), restarts=1)}),
    ]
    examples = alike.examples_for(victims.classifier())
    assert len({of(s, examples=examples) for s in (alike, suite(), *others)}) == 1 + len(others)
    model = AnsweringClassifier(len, name="other")
    assert of(alike, model, examples) != of(alike, AnsweringClassifier(len, name="mine"), examples)


def test_the_version_of_the_library_counts(monkeypatch):
    before = of(suite())
    monkeypatch.setattr(fingerprint, "VERSION", fingerprint.VERSION + 1)
    assert of(suite()) != before


def test_another_suite_is_refused_in_a_folder_of_results_until_it_is_overwritten(tmp_path):
    network, first = victims.classifier(), suite(attacks={"say": Say(texts=("{} !",))})
    first.run(network, tmp_path / "out")
    written = (tmp_path / "out" / "results.jsonl").read_bytes()
    for resume in (True, False):
        with pytest.raises(ConfigError, match=r"holds the results of another suite, model or data.*overwrite=True"):
            replace(first, seed=1).run(network, tmp_path / "out", resume=resume)
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == written
    replace(first, seed=1).run(network, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "results.jsonl").read_bytes() != written or first.seed == 0


def test_every_attack_of_the_package_is_walked():
    assert {cls for cls in CLASSES if issubclass(cls, interfaces.Attack)} == {
        plugins.resolve("attacks", kind) for kind in plugins.kinds("attacks")
    }
