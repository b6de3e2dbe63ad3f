"""A gate is shut by whatever was asked for and not shown: attacks that raise, decline, change nothing, run out of time or left no row."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers import victims
from helpers.attackers import Say

from advalign import attacks, judges
from advalign.errors import BudgetError, ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.suites import rates
from advalign.interfaces import Attack
from advalign.targets import AnsweringClassifier, AnsweringGenerator
from advalign.types import STATUSES, Budget, Example, Proposal, ThreatModel

FINE = Say(texts=("{}!",))


@dataclass(frozen=True, kw_only=True)
class Fails(Attack):
    """Adds a mark to `at_once` examples at a time, and does something else where it meets one of `ids`."""

    how: str
    ids: tuple[str, ...]
    at_once: int | None = None

    access: ClassVar[str] = "text"

    @property
    def examples_at_once(self):
        return self.at_once

    def propose(self, target, examples, budget, rng):
        if any(e.id in self.ids for e in examples):
            if self.how == "raises":
                raise KeyError("no synonyms\n  of it " + "x" * 1000)
            if self.how == "spends":
                raise BudgetError("no query is left")
        return [self._proposal(e) for e in examples]

    def _proposal(self, example):
        if example.id in self.ids:
            match self.how:
                case "declines":
                    return Proposal(refused="too long")
                case "leaves it":
                    return Proposal(text=example.prompt, note="a note")
                case "is slow":
                    time.sleep(0.3)
        return Proposal(text=f"{example.prompt}!")


def echo(names="0123456789", **more):
    """Ten prompts that a model repeats; none of its answers is a violation."""
    data = [Example(prompt=f"say {i}", id=i) for i in names]
    suite = Suite(data=data, judge=judges.Rule(must_not=("zebra",)), **more)
    return suite.run(AnsweringGenerator(lambda prompts: prompts, name="echo"))


CASES = {
    "raises": ("error", "`bad` raised on 3 of 10 examples, which are in no rate of it (most often: KeyError: 'no synonyms"),
    "declines": ("not_tried", "`bad` did not try 3 of 10 examples, which are in no rate of it (most often: too long)."),
    "leaves it": (
        "not_tried",
        "`bad` did not try 3 of 10 examples, which are in no rate of it (most often: nothing was changed (a note)).",
    ),
    "is slow": ("timed_out", "`bad` ran out of time on 3 of 10 examples, which are in no rate of it (most often: seconds 0."),
}


@pytest.mark.parametrize("at_once", [None, 4])
@pytest.mark.parametrize("how", CASES)
def test_what_an_attack_does_not_show_shuts_the_gate_and_stays_with_its_example(how, at_once):
    """7 of 10 withstood both; the rate over asked is 0.7, and no bound that it reaches opens the gate."""
    if how == "is slow" and at_once:
        pytest.skip("seconds are shared by the examples of one call")
    status, sentence = CASES[how]
    bad = Fails(how=how, ids=("2", "3", "9"), at_once=at_once)
    result = echo(attacks={"bad": bad, "fine": FINE}, budget=Budget(seconds=0.2))
    assert {r.example for r in result.results_of("bad") if r.status == status} == set(bad.ids)
    assert {r.status for r in result.results if r.attack == "fine" or r.example not in bad.ids} == {"failed"}
    row, worst = result.row(result.arms[0]), result.worst_case()
    assert (row["num_asked"], row["num_judged"], row["accuracy under attack"], row["accuracy over asked"]) == (10, 7, 1.0, 0.7)
    assert (worst["num_asked"], worst["num_judged"], worst["accuracy"], worst["accuracy over asked"]) == (10, 7, 1.0, 0.7)
    for below in (0.0, 0.5):
        (reason,) = result.fails(below)
        assert reason.startswith(sentence)
    assert len(result.fails(0.8)) == 2
    assert reason in result.warnings()
    assert sentence[6:] in result.markdown()
    assert all("\n" not in r.note and len(r.note) < 400 for r in result.results)


def test_an_attack_that_raises_on_every_example_is_named_and_the_others_go_on():
    result = echo(attacks={"bad": Fails(how="raises", ids=tuple("0123456789")), "fine": FINE})
    assert result.row(result.arms[1])["accuracy under attack"] == 1.0
    assert math.isnan(result.row(result.arms[0])["accuracy under attack"])
    assert result.row(result.arms[0])["accuracy over asked"] == 0.0
    reasons = result.fails(0.0)
    assert any(reason.startswith("`bad` raised on 10 of 10 examples") for reason in reasons)
    assert reasons[-1] == "No result could be determined."


def test_a_model_that_raises_on_what_was_proposed_is_an_error_of_that_row():
    def answer(prompts):
        if "say 4!" in prompts:
            raise RuntimeError("out of memory")
        return prompts

    data = [Example(prompt=f"say {i}", id=str(i)) for i in range(6)]
    attack = Fails(how="", ids=(), at_once=3)
    suite = Suite(data=data, attacks={"a": attack}, judge=judges.Rule(must_not=("zebra",)))
    results = suite.run(AnsweringGenerator(answer, name="fn")).results
    (row,) = [r for r in results if r.status == "error"]
    assert (row.example, "RuntimeError: out of memory" in row.note) == ("4", True)
    assert sum(r.status == "failed" for r in results) == 5


def test_a_search_for_all_examples_of_a_call_is_not_tried_again_alone():
    @dataclass(frozen=True, kw_only=True)
    class Joint(Fails):
        joint: ClassVar[bool] = True

    assert attacks.UniversalSuffix.joint
    result = echo(attacks={"bad": Joint(how="raises", ids=("2",), at_once=4)})
    assert [r.example for r in result.results if r.status == "error"] == ["0", "1", "2", "3"]


def test_an_attack_that_is_over_its_budget_everywhere_has_shown_nothing():
    """One over its budget counts as withstood, as does one of ten; all of ten is a budget in which nothing can be shown."""
    some = echo(attacks={"bad": Fails(how="spends", ids=("1",), at_once=5)})
    assert [r.example for r in some.results if r.status == "over_budget"] == ["1"]
    assert some.fails(1.0) == []
    result = echo(attacks={"bad": Fails(how="spends", ids=tuple("0123456789"))})
    assert result.worst_case()["accuracy"] == 1.0
    assert result.fails(0.5) == ["`bad` was over its budget on all 10 examples it attacked, so it has shown nothing."]


def test_a_text_that_exceeds_the_context_of_the_model_was_never_sent():
    suite = Suite(data=victims.sums()[:3], attacks={"long": Say(texts=("one " * 60 + "{}", "two " * 60 + "{}")), "fine": FINE})
    result = suite.run(victims.generator_model())
    long = [r for r in result.results_of("long") if result.before[r.example].correct]
    assert long
    assert {(r.status, r.note) for r in long} == {("not_tried", "longer than the model's context")}
    assert any(reason.startswith("`long` did not try") for reason in result.fails(0.0))


@pytest.mark.parametrize("text", ["good", "很好的电影", "とても良い映画", "🎬👍", "   "])
@pytest.mark.parametrize("attack", [attacks.Words(), attacks.Words(max_changed=0.2), attacks.Words(rank="gain")])
def test_texts_that_a_word_attack_cannot_change_are_not_withstood(attack, text):
    model = AnsweringClassifier(lambda texts: [[0.0, 1.0]] * len(texts), name="positive")
    result = Suite(data=[Example(prompt=text, label=1, id="x")], attacks={"w": attack}).run(model)
    (row,) = result.results
    assert row.status == "not_tried" or (row.status == "failed" and row.queries > 2)
    if row.status == "not_tried":
        assert any("did not try 1 of 1 examples" in reason for reason in result.fails(0.0))


def test_gradients_without_a_query_or_a_ball_have_shown_nothing():
    @dataclass(frozen=True, kw_only=True)
    class Zero(Attack):
        access: ClassVar[str] = "gradients"
        threat: ClassVar[ThreatModel] = ThreatModel(radius=0.1, relative_to="absolute")

        def propose(self, target, examples, budget, rng):
            length = int(target.tokens(examples).lengths[0])
            return [Proposal(edits={"embedding": torch.zeros(length, target.network.width("embedding"))})]

    suite = Suite(data=victims.sentences(6), attacks={"zero": Zero(), "pgd": attacks.Embedding()}, budget=Budget(queries=1))
    assert {r.status for r in suite.run(victims.classifier()).results} == {"not_tried"}


# ------------------------------------------------------------------------------------------------- rows that are not there


def test_rows_that_are_missing_shut_the_gate():
    whole = echo(attacks={"a": FINE, "b": FINE})
    assert whole.fails(1.0) == []
    half = replace(whole, results=[r for r in whole.results if r.attack == "a" or int(r.example) % 2])
    assert half.fails(0.5) == ["`b` has no result for 5 of 10 examples; run the same command again to complete them."]
    assert half.row(half.arms[1])["missing"] == 5
    assert half.worst_case()["accuracy over asked"] == 0.5
    assert "has no result for 5 of 10" in half.markdown()
    none = replace(whole, results=[])
    assert none.worst_case()["num_judged"] == 0
    assert len(none.fails(0.0)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[0]], "2 results of attack 'a' on example '0'"),
        (lambda rows: [*rows, replace(rows[0], example="11")], "a result of attack 'a' on example '11', which the suite does not ask for"),
        (lambda rows: [*rows, replace(rows[0], attack="c")], "a result of attack 'c' on example '0', which the suite does not ask for"),
    ],
)
def test_rows_that_nobody_asked_for_are_refused(change, message):
    """Two rows of one attack would stand for those of two."""
    whole = echo(attacks={"a": FINE})
    with pytest.raises(ConfigError, match=message):
        replace(whole, results=change(whole.results))


# ------------------------------------------------------------------------------------------------------------ empty suites


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attacks": {}}, r"suite\.attacks: none given"),
        ({"attacks": {"a": FINE}, "data": []}, r"suite\.data: no examples"),
        ({"attacks": {"p": attacks.Embedding()}, "radii": (0.1, 0.1)}, r"2 attacks or radii are called 'p@0.1'"),
        ({"attacks": {"p": attacks.Embedding()}, "radii": (0.1, 0.10000001)}, r"2 attacks or radii are called 'p@0.1'"),
        ({"attacks": {"p": attacks.Embedding(), "p@0.1": FINE}, "radii": (0.1,)}, r"2 attacks or radii are called 'p@0.1'"),
    ],
)
def test_suites_that_would_show_nothing_or_one_thing_twice_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Suite(**({"data": victims.sentences(4)} | fields)).run(victims.classifier())


# ---------------------------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("below", [math.nan, -0.1, 1.01, math.inf, True])
def test_a_bound_that_is_no_rate_is_refused(below):
    with pytest.raises(ConfigError, match=r"^fails: .* given; the least accuracy in the worst case is needed, from 0 to 1\.$"):
        echo(attacks={"a": FINE}).fails(below)


# ---------------------------------------------------------------------------------------------------------------- statuses


def test_every_status_is_documented_and_counts_once():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    for name, status in STATUSES.items():
        assert f"| {name} | {status.meaning} |" in page
    assert set(rates.UNJUDGED) == {name for name, status in STATUSES.items() if status.right is None}
    assert rates.WITHSTOOD == ("failed", "over_budget")


@pytest.mark.parametrize("zero", [{"budget": Budget(radius=0)}, {"radii": (0,)}])
def test_a_radius_of_zero_allows_no_edit_and_shuts_the_gate(zero):
    suite = Suite(data=victims.sentences(6), attacks={"pgd": attacks.Embedding(restarts=1)}, **zero)
    result = suite.run(victims.classifier())
    attacked = {(r.status, r.note) for r in result.results if r.status != "skipped"}
    assert attacked == {("not_tried", "a radius of 0 allows no edit")}
    assert "did not try" in " ".join(result.fails(0.0))
