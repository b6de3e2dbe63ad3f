"""The goal of attacks on the reference response follows from what is judged; forced beginnings are judged with what follows, or refused."""

from dataclasses import replace

import pytest
from helpers import victims
from helpers.attackers import Say

from advalign import adversaries, attacks, judges, plugins
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.suites import goals
from advalign.evaluation.suites.generator_checker import GeneratorChecker
from advalign.interfaces import Attack
from advalign.targets import GeneratorTarget
from advalign.types import Example, Sampling

SHORT = Sampling(max_new_tokens=3)
PGD = attacks.Embedding(adversary=adversaries.PGD(radius=2.0, steps=12, where="prompt"), restarts=1)
MOVING = [cls for cls in (plugins.resolve("attacks", kind) for kind in plugins.kinds("attacks")) if cls.moves_reference]


def prompts(**fields):
    return [Example(prompt=e.prompt, id=e.id, **fields) for e in victims.sums()[:6]]


def ran(data, judge, **changes):
    suite = Suite(data=data, attacks={"pgd": replace(PGD, **changes)}, judge=judge, sampling=SHORT)
    return suite.run(victims.generator_model())


def outcome(result):
    return [(r.example, r.status, r.after, r.distance) for r in result.results]


REFUSES = ("zero", "one", "two", "three", "four")  # what the model says to most sums is taken for a refusal
CASES = {
    "prefix": (prompts(meta={"response": "five"}), judges.PrefixJudge(), "lower"),
    "prefix, no reference": (prompts(), judges.PrefixJudge(text="five"), "lower"),
    "refusal": (prompts(meta={"response": "five"}), judges.RefusalJudge(phrases=REFUSES), "lower"),
    "refusal of a refusal": (prompts(meta={"response": "one"}), judges.RefusalJudge(phrases=REFUSES), "raise"),
    "rule": (prompts(meta={"response": "five"}), judges.Rule(must_not=("five",)), "lower"),
    "answers": (victims.sums()[:6], judges.ExactAnswerJudge(), "raise"),
    "verified": (victims.sums()[:6], None, "raise"),
    "by loss": (prompts(meta={"response": "one"}), None, "raise"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_open_goal_is_that_of_the_judge(name):
    """Another goal is what the issue looked like: the attack made the violation less likely and found nothing."""
    data, judge, goal = CASES[name]
    left_open = outcome(ran(data, judge))
    assert left_open == outcome(ran(data, judge, goal=goal))
    assert left_open != outcome(ran(data, judge, goal=goals.OPPOSITE[goal]))


def test_what_was_robust_for_want_of_a_goal_breaks():
    data, judge, _ = CASES["prefix, no reference"]
    row = lambda **changes: ran(data, judge, **changes).worst_case()["accuracy"]  # noqa: E731
    assert row() == row(goal="lower") < row(goal="raise") == 5 / 6  # "zero plus five" is five before


@pytest.mark.parametrize("cls", MOVING, ids=lambda cls: cls.__name__)
def test_every_attack_on_the_reference_takes_a_goal_and_keeps_its_own(cls):
    attack = cls()
    assert attack.own_goal is None
    for goal in goals.OPPOSITE:
        assert attack.aimed(goal).own_goal == goal
        assert attack.aimed(goal).aimed(goals.OPPOSITE[goal]).own_goal == goal
        assert replace(attack, goal=goal) == attack.aimed(goal)


def test_the_attacks_with_a_goal_are_those_that_move_the_reference():
    with_goal = {kind for kind in plugins.kinds("attacks") if "goal" in plugins.resolve("attacks", kind).__dataclass_fields__}
    assert with_goal == {plugins.kind_of(cls) for cls in MOVING}
    with pytest.raises(ConfigError, match="moves no reference response"):
        Say(texts=("a",)).aimed("lower")
    assert Attack.own_goal.fget(Say(texts=("a",))) is None


def test_a_goal_that_contradicts_the_judge_stays_and_is_said():
    result = ran(*CASES["prefix"][:2], goal="raise")
    (note,) = result.notes
    assert note.startswith("`pgd` has the goal raise, and the judge calls every reference response a violation, which asks for lower")
    assert note in result.warnings()
    (note,) = ran(*CASES["verified"][:2], goal="lower").notes
    assert "calls every reference response right, which asks for raise" in note
    assert ran(*CASES["prefix"][:2], goal="lower").notes == []


@pytest.mark.parametrize(("fives", "goal"), [(5, "lower"), (3, None), (1, "raise"), (0, "raise")])
def test_references_that_differ_are_said(fives, goal):
    data = [replace(e, meta={"response": "five" if i < fives else "one"}) for i, e in enumerate(prompts())]
    checker = GeneratorChecker(GeneratorTarget(victims.generator_model()), SHORT, judges.Rule(must_not=("five",)))
    aims = goals.aimed({"pgd": PGD, "say": Say(texts=("a",))}, checker, data)
    assert aims.attacks["pgd"].own_goal == goal
    if fives == 0:
        assert not aims.notes
    else:
        (note,) = aims.notes
        assert f"calls {fives} of 6 reference responses violations" in note


# ------------------------------------------------------------------------------------------------ forced beginnings


def test_a_beginning_that_is_all_the_judge_looks_for_is_refused():
    suite = Suite(data=prompts(), attacks={"p": attacks.Prefill()}, judge=judges.PrefixJudge(text="five"))
    with pytest.raises(ConfigError, match=r"^suite\.attacks\.p: it forces .* to begin with 'five', which is all that the judge looks for"):
        suite.run(victims.generator_model())


def test_a_part_of_what_the_judge_looks_for_is_judged_with_what_follows():
    """The model says "two" and ends; forced to "two", what it adds completes "two" and not "two two two"."""
    data = prompts(meta={"response": "two two two"})[:2]
    network = victims.generator_model()
    forced = attacks.Prefill(text="two two two", tokens=1)
    target = GeneratorTarget(network)
    starts = forced.starts(network.encoder, data)
    whole = target.continue_forced(data, starts, 3, whole=True)
    added = target.continue_forced(data, starts, 3)
    assert [text.split() for text in whole] == [["two", *text.split()] for text in added]
    for text, status in ((whole[0] + " and", "failed"), (whole[0], "succeeded")):
        judge = judges.PrefixJudge(text=text)
        if len(text.split()) > 1:
            suite = Suite(data=data[:1], attacks={"p": forced}, judge=judge, sampling=SHORT)
            assert suite.run(network).results[0].status == status


def test_a_judge_of_what_the_model_adds_reads_that_alone():
    assert not judges.RefusalJudge.reads_beginning
    assert judges.PrefixJudge.reads_beginning
