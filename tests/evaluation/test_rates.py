"""Rates count what was established, and nothing else: crashes, refusals, answers that could not be judged, attacks that never ran."""

import math
import random
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from helpers import victims
from helpers.attackers import Say

from advalign import judges
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.suites import rates
from advalign.evaluation.suites.checker import Judgement
from advalign.interfaces import Attack
from advalign.targets import AnsweringClassifier, AnsweringGenerator
from advalign.types import AttackResult, Budget, Example, Proposal, Sampling

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
    assert (worst["num_judged"], worst["num_asked"]) == (known, len(clean))
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
    """Adds a mark; crashes on, or refuses, all but `works` examples."""

    works: tuple[str, ...]
    refuses: bool = False

    access: ClassVar[str] = "text"

    def propose(self, target, examples, budget, rng):
        if examples[0].id in self.works:
            return [Proposal(text=f"{e.prompt}!") for e in examples]
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
    assert (worst["accuracy"], worst["num_judged"], worst["num_asked"]) == (0.5, 2, 10)
    assert worst["accuracy over asked"] == 0.1
    reason, why = result.fails(0.3)
    assert reason.endswith(" is 0.500 on 2 of 10 examples and was not established for the others, below 0.3 of all.")
    assert why.startswith("`a` did not try 8 of 10 examples" if refuses else "`a` raised on 8 of 10 examples")
    assert result.fails(0.1) == [why]  # the rate over all that were asked for is 0.1, and the attack did not run on all
    assert result.fails() == []
    assert why in result.warnings()
    row = result.row(result.arms[0])
    assert (row["num_asked"], row["num_judged"], row["accuracy over asked"]) == (10, 2, 0.1)
    assert any("established for 2 of 10 examples" in warning for warning in result.warnings())
    assert "2 of 10 examples" in result.markdown()
    assert result.row(result.arms[0])["clean"] == 0.5
    none = replace(suite, attacks={"a": Partly(works=(), refuses=refuses)}, judge=judges.Rule(must_not=("x",)))
    assert none.run(AnsweringGenerator(lambda prompts: prompts, name="echo")).fails(0.0)[-1] == "No result could be determined."
    with pytest.raises(ConfigError, match=r"suite\.attacks: none given"):
        replace(suite, attacks={}).run(AnsweringGenerator(lambda prompts: prompts, name="echo"))


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


# ---------------------------------------------------------------------------------------- rows that do not look at each other


def test_an_example_of_a_suite_gets_what_it_gets_alone():
    """Probabilities of labels and results, with second sentences on some examples, in both orders."""
    texts = [("good movie", "the plot was bad"), ("good movie", None), ("a bad plot", "the movie was dull"), ("an awful movie", None)]
    examples = [Example(prompt=a, pair=b, label=i // 2 ^ 1, id=str(i)) for i, (a, b) in enumerate(texts)]

    def run(data):
        from advalign.attacks import Words

        suite = Suite(data=data, attacks={"say": Say(texts=("{} was",)), "words": Words()})
        result = suite.run(victims.classifier(dtype="float64"))
        measured = {(r.attack, r.example): (r.status, r.note, r.after, r.metrics) for r in result.results}
        return measured, {name: j.metrics["probability"] for name, j in result.before.items()}

    alone = [run([e]) for e in examples]
    for data in (examples, examples[::-1]):
        results, probabilities = run(data)
        for own_results, own_probability in alone:
            assert {key: results[key] for key in own_results} == own_results
            assert {key: probabilities[key] for key in own_probability} == pytest.approx(own_probability, abs=1e-12)


def test_a_generator_s_examples_are_judged_each_by_what_it_has():
    """Some with a verifier, some with a reference response alone: what an attack did to each is what it did alone."""
    sums = victims.sums()[:6]
    mixed = [e if i % 2 else Example(prompt=e.prompt, id=e.id, meta={"response": e.answer}) for i, e in enumerate(sums)]
    attacks = {"say": Say(texts=("one {}",))}

    def run(data):
        result = Suite(data=data, attacks=attacks, sampling=Sampling(max_new_tokens=4)).run(victims.generator_model())
        return {r.example: (r.status, r.after, r.metrics) for r in result.results}

    together = run(mixed)
    assert {name: x for e in mixed for name, x in run([e]).items()} == together
    assert {status for status, _, _ in together.values()} <= {"failed", "succeeded"}


def test_an_answer_that_nothing_verifies_is_judged_by_the_loss_of_its_reference():
    """An attack succeeds where -log p per token of the reference rises by log 2, by the target's own numbers."""
    from advalign.targets import GeneratorTarget

    network = victims.generator_model()
    data = [Example(prompt=e.prompt, id=e.id, meta={"response": e.answer}) for e in victims.sums()[:8]]
    result = Suite(data=data, attacks={"say": Say(texts=("two {}",))}, sampling=Sampling(max_new_tokens=4)).run(network)
    target = GeneratorTarget(network)
    before, after = target.nll(data), target.nll([replace(e, prompt=f"two {e.prompt}") for e in data])
    expected = ["succeeded" if b - a >= math.log(2) else "failed" for a, b in zip(before, after, strict=True)]
    assert [r.status for r in result.results] == expected
    assert "succeeded" in expected


def test_what_nothing_can_judge_is_undetermined():
    """Reference responses alone, neither judge nor verifier: nothing says whether a response is right. Of all examples: refused."""
    data = [Example(prompt=f"say {i}", id=str(i), meta={"response": "x"}) for i in range(3)]
    suite, model = Suite(data=data, attacks={"a": Say(texts=("{}!",))}), AnsweringGenerator(lambda p: p, name="echo")
    with pytest.raises(ConfigError, match=r"^suite\.judge: none given, and nothing else can judge the answers"):
        suite.run(model)
    result = replace(suite, data=[*data, Example(prompt="say 3", id="3", answer="3")]).run(model)
    assert [r.status for r in result.results][:3] == ["undetermined"] * 3
    assert result.clean_subset == 1.0
    assert (result.worst_case()["num_judged"], result.worst_case()["num_asked"]) == (1, 4)
    assert result.fails(0.5) != []


# --------------------------------------------------------------------------------------------- numbers that are not there


@pytest.mark.parametrize("broken", ["all", "one"])
def test_a_classifier_without_finite_numbers_is_refused(broken):
    def scores(texts):
        return [[math.nan, math.nan] if broken == "all" or "3" in t else [1.0, -math.inf] for t in texts]

    data = [Example(prompt=f"say {i}", id=str(i), label=0) for i in range(5)]
    says = "5 of 5 examples" if broken == "all" else "1 of 5 examples"
    with pytest.raises(ConfigError, match=f"^evaluation: the model gives no finite numbers .*{says}"):
        Suite(data=data, attacks={"a": Say(texts=("{}!",))}).run(AnsweringClassifier(scores, name="fn"))


def test_a_network_without_finite_numbers_is_refused():
    network = victims.classifier(steps=3)
    weight = network.model.classifier.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = math.nan
    try:
        with pytest.raises(ConfigError, match=r"^evaluation: the model gives no finite numbers"):
            Suite(data=victims.sentences(6), attacks={"say": Say(texts=("{} was",))}).run(network)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_an_attack_that_leaves_no_finite_numbers_has_shown_nothing():
    """Under attack on one of two examples the scores are nan: neither broken nor withstood."""

    def scores(texts):
        return [[math.nan, 0.0] if t == "say 0!" else [1.0, 0.0] for t in texts]

    data = [Example(prompt=f"say {i}", id=str(i), label=0) for i in range(2)]
    result = Suite(data=data, attacks={"a": Say(texts=("{}!",))}).run(AnsweringClassifier(scores, name="fn"))
    assert [r.status for r in result.results] == ["undetermined", "failed"]
    assert result.worst_case()["num_judged"] == 1
    assert any("no finite numbers" in warning for warning in result.warnings())


@pytest.mark.parametrize(("field", "value"), [("queries", 0), ("queries", -3), ("edits", math.nan), ("seconds", 0.0), ("radius", -1.0)])
def test_a_budget_in_which_nothing_can_be_shown_is_refused(field, value):
    """Every attack would be over it at once, which counts as withstood."""
    with pytest.raises(ConfigError, match=rf"budget\.{field}: .* given"):
        Suite.load({"data": [{"text": "a", "label": 0}], "attacks": {}, "budget": {field: value}})


def test_examples_that_an_attack_could_not_change_are_in_no_rate_and_are_said():
    """One word in two and one in three may not change at most a fifth: two of three were not tried, and a gate is shut."""
    from advalign.attacks import Words

    data = [Example(prompt=p, label=1, id=str(i)) for i, p in enumerate(("good", "good movie", "the plot was good really good acting"))]
    result = Suite(data=data, attacks={"words": Words(max_changed=0.2), "say": Say(texts=("{} !",))}).run(victims.classifier())
    assert {j.correct for j in result.before.values()} == {True}
    assert [r.status for r in result.results_of("words")][:2] == ["not_tried"] * 2
    (why,) = [w for w in result.warnings() if "did not try" in w]
    assert why == "`words` did not try 2 of 3 examples, which are in no rate of it (most often: no word may change)."
    assert why in result.fails(0.0)
    assert result.row(result.arms[0])["num_judged"] == 1
