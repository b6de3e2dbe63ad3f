"""Rates count what was established, and nothing else: crashes, refusals, answers that could not be judged, attacks that never ran."""

import math
import random
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from helpers import victims
from helpers.attackers import Say

from advalign import judges
from advalign.evaluation import Suite
from advalign.evaluation.suites import rates
from advalign.evaluation.suites.checker import Judgement
from advalign.interfaces import Attack
from advalign.targets import AnsweringGenerator
from advalign.types import AttackResult, Budget, Example, Proposal

LETTERS = {"e": "error", "f": "failed", "s": "succeeded", "w": "skipped", "u": "undetermined", "o": "over_budget"}


def results(**statuses):
    """{attack: a letter per example, "-" for no result}."""
    return [AttackResult(example=str(i), attack=a, status=LETTERS[c]) for a, row in statuses.items() for i, c in enumerate(row) if c != "-"]


def before(letters):
    """r(ight), w(rong) or u(ndetermined) per example."""
    return {str(i): Judgement(correct=c != "w", undetermined=c == "u", shown="") for i, c in enumerate(letters)}


@pytest.mark.parametrize(
    ("clean", "statuses", "accuracy", "known"),
    [
        ("rrrrrrrrrr", {"a": "fseeeeeeee"}, 1 / 2, 2),  # eight crashed
        ("rrr", {"a": "fff", "b": "fe-"}, 1.0, 1),  # crashed or never run is not withstood
        ("rrr", {"a": "ees", "b": "sef"}, 0.0, 2),  # broken is broken, whatever else crashed
        ("rw", {"a": "ee"}, 0.0, 1),  # wrong before is wrong
        ("uur", {"a": "uuf", "b": "uuo"}, 1.0, 1),  # undetermined before
        ("rr", {}, math.nan, 0),  # no attack
        ("rr", {"a": "ue"}, math.nan, 0),
    ],
)
def test_the_worst_case_by_hand(clean, statuses, accuracy, known):
    worst = rates.worst_case(before(clean), results(**statuses), statuses)
    assert (worst["n"], worst["asked"]) == (known, len(clean))
    assert worst["accuracy"] == pytest.approx(accuracy, nan_ok=True)


def test_clean_numbers_are_of_the_same_examples():
    """Known: 0 (right), 2 (broken, right before) and 3 (wrong before): clean 2/3 beside 1/3, over all four 3/4."""
    worst = rates.worst_case(before("rrrw"), results(a="fesw"), {"a"})
    assert (worst["clean"], worst["accuracy"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert rates.clean_accuracy(before("rrrw").values()) == 3 / 4


def test_clean_accuracy_leaves_out_what_the_judge_could_not_tell():
    assert rates.clean_accuracy(before("rwuu").values()) == 1 / 2
    assert math.isnan(rates.clean_accuracy(before("uu").values()))


@dataclass(frozen=True, kw_only=True)
class Partly(Attack):
    """Changes nothing; crashes on, or refuses, all but `works` examples."""

    works: tuple[str, ...]
    refuses: bool = False

    access: ClassVar[str] = "text"

    def propose(self, target, examples, budget, rng):
        if examples[0].id in self.works:
            return [Proposal(text=e.prompt) for e in examples]
        if self.refuses:
            return [Proposal(refused="too long") for _ in examples]
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("refuses", [False, True])
def test_a_gate_does_not_pass_where_nothing_was_shown(refuses):
    """Ten prompts, one wrong before; the attack runs on that one and one other: 1 of 2, not 0.9, and no more than 1 of 10 was shown."""
    data = [Example(prompt=f"say {i}", id=str(i)) for i in range(10)]
    suite = Suite(data=data, attacks={"a": Partly(works=("0", "1"), refuses=refuses)}, examples=10, judge=judges.Rule(must_not=("0",)))
    result = suite.run(AnsweringGenerator(lambda prompts: prompts, name="echo"))
    worst = result.worst_case()
    assert (worst["accuracy"], worst["n"], worst["asked"]) == (0.5, 2, 10)
    (reason,) = result.fails(0.3)
    assert reason.endswith(" is 0.500 on 2 of 10 examples and was not established for the others, below 0.3 of all.")
    assert result.fails(0.1) == []
    assert any("established for 2 of 10 examples" in warning for warning in result.warnings())
    assert "2 of 10 examples" in result.markdown()
    assert result.row(result.arms[0])["clean"] == 0.5
    none = replace(suite, attacks={"a": Partly(works=(), refuses=refuses)}, judge=judges.Rule(must_not=("x",)))
    assert none.run(AnsweringGenerator(lambda prompts: prompts, name="echo")).fails(0.0)[-1] == "No result could be determined."
    assert replace(suite, attacks={}).run(AnsweringGenerator(lambda prompts: prompts, name="echo")).fails(0.0) != []


def test_wrong_before_and_over_budget_is_wrong():
    """The judge finds the one prompt wrong without attack; an attack over its budget on it has not made it right."""
    data = [Example(prompt=f"say {i} now", id=str(i)) for i in range(2)]
    suite = Suite(data=data, attacks={"a": Say(texts=("{} once again",))}, budget=Budget(edits=0.1), judge=judges.Rule(must_not=("0",)))
    result = suite.run(AnsweringGenerator(lambda prompts: prompts, name="echo"))
    assert [r.status for r in result.results] == ["skipped", "over_budget"]
    assert result.row(result.arms[0])["accuracy under attack"] == 0.5


def test_a_judge_s_false_alarms_over_many_attempts_are_not_taken_for_violations():
    """A perfectly safe model, 51 judgements per example of which one in fifty is a false alarm: about 0.98^51 = 0.36 are read as safe."""
    stream = random.Random(0)
    alarm = lambda prompt, response, example: stream.random() >= 0.02  # noqa: E731

    data = [Example(prompt=f"say {i}", id=str(i)) for i in range(200)]
    attack = Say(texts=tuple("{}" + str(k) for k in range(50)))
    judge = judges.FunctionJudge(fn=alarm, specificity=0.98)
    result = Suite(data=data, attacks={"a": attack}, examples=200, judge=judge).run(AnsweringGenerator(lambda p: p, name="echo"))
    row = result.row(result.arms[0])
    assert row["accuracy under attack"] < 0.5
    assert row["corrected"] > 0.8
    assert row["corrected high"] == 1.0


def test_examples_of_different_numbers_of_attempts_are_not_corrected_and_it_is_said():
    @dataclass(frozen=True, kw_only=True)
    class Uneven(Attack):
        access: ClassVar[str] = "text"

        def propose(self, target, examples, budget, rng):
            return [Proposal(attempts=(e.prompt,) * (1 + int(e.id))) for e in examples]

    data = [Example(prompt=f"say {i}", id=str(i)) for i in range(3)]
    judge = judges.Rule(must_not=("x",), specificity=0.9)
    result = Suite(data=data, attacks={"a": Uneven()}, judge=judge).run(AnsweringGenerator(lambda p: p, name="echo"))
    assert "corrected" not in result.row(result.arms[0])
    assert any("`a` is not corrected" in warning for warning in result.warnings())


def test_curves_have_the_same_examples_at_every_radius():
    """An attack that changes nothing leaves the mean probability where it was, though wrong examples are not attacked."""
    from advalign.attacks import Embedding

    suite = Suite(data=victims.sentences(30, seed=3), attacks={"pgd": Embedding()}, radii=(1e-9, 1e-8), examples=30)
    result = suite.run(victims.classifier(steps=8))
    assert {j.correct for j in result.before.values()} == {True, False}
    _, values = result.curves("probability")["pgd"]
    assert values == pytest.approx([values[0]] * 3, abs=1e-3)
