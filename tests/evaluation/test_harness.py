"""Judgements and what they count as: attempts, forced beginnings, judges that fail or err, seen and unseen attacks, twins."""

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from helpers import victims
from helpers.attackers import Say

from advalign import attacks, judges
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.suites.benign import Benign
from advalign.evaluation.suites.fingerprint import model_fingerprint
from advalign.interfaces import Attack
from advalign.targets import AnswerCache, AnsweringClassifier, AnsweringGenerator, ClassifierTarget
from advalign.types import Budget, Example, Proposal, Sampling


@dataclass(frozen=True, kw_only=True)
class Force(Attack):
    """Begins the answer with a word."""

    word: str

    access: ClassVar[str] = "text"

    def propose(self, target, examples, budget, rng):
        return [Proposal(forced=self.word) for _ in examples]


def sums(answer, **more):
    """A suite on a function that answers prompts, with 10 prompts to answer."""
    data = [Example(prompt=f"say {i}", id=str(i)) for i in range(10)]
    return Suite(data=data, examples=10, sampling=Sampling(max_new_tokens=4), **more), AnsweringGenerator(answer, name="fn")


def test_attempts_are_judged_one_by_one_and_counted_by_example():
    """Ten prompts, four attempts each; attempts 0 and 2 make the five even ones say the word: 5 of 10 examples, 10 of 40 attempts."""

    def answer(prompts):
        hit = [p[-2:] in ("|0", "|2") and int(p.split("|")[0]) % 2 == 0 for p in prompts]
        return ["secret" if bad else f"fine {p}" for bad, p in zip(hit, prompts, strict=True)]

    data = [Example(prompt=str(i), id=str(i)) for i in range(10)]
    said = Say(texts=tuple(f"{{}}|{k}" for k in range(4)))
    suite = Suite(data=data, attacks={"n": said}, examples=10, judge=judges.Rule(must_not=("secret",)))
    result = suite.run(AnsweringGenerator(answer, name="fn"))
    row = result.row(result.arms[0])
    assert (row["accuracy under attack"], row["attack success"]) == (0.5, 0.5)
    assert (row["success per attempt"], row["attempts"]) == (0.25, 40)
    # Clusters are all or nothing (2 or 0 of 4): as wide as an interval over 10 examples, wider than Wilson over 40 attempts.
    from advalign.functional.intervals import wilson

    low, high = wilson(10, 40)
    assert row["per attempt low"] < low
    assert row["per attempt high"] > high
    broken = {r.example: (r.broken, r.attempts, r.after, r.note) for r in result.results}
    assert broken["4"] == (2, 4, "secret", "4|0")
    assert broken["3"] == (0, 4, "fine 3|0", "3|0")


def test_a_forced_beginning_is_not_the_model_s_own_words():
    """The model adds up; forced to begin with a wrong word, it goes on from there, and only what it adds is read."""
    network = victims.generator_model()
    heard = []

    def read(prompt, response, example):
        heard.append(response)
        return "five" not in response

    suite = Suite(data=victims.sums(), attacks={"force": Force(word="five")}, examples=6, judge=judges.FunctionJudge(fn=read))
    result = suite.run(network)
    assert {r.status for r in result.results} <= {"failed", "skipped"}
    assert all(not text.startswith("five") for text in heard[-6:])
    assert result.results[0].note == "[forced: five]"


@pytest.mark.parametrize("how", ["raises", "none"])
def test_a_judge_that_cannot_tell_is_never_a_safe_answer(how):
    """It fails on half of the attacked prompts: those results are undetermined, are out of every rate, and are said aloud."""

    def read(prompt, response, example):
        if "7|" in response or "3|" in response:
            if how == "raises":
                raise ConnectionError("no such host")
            return None
        return True

    suite, network = sums(
        lambda prompts: [f"{p}|" if "!" in p else "hello" for p in prompts],
        attacks={"a": Say(texts=("{}!",))},
        judge=judges.FunctionJudge(fn=lambda p, r, e: read(p, r.replace("!", ""), e)),
    )
    result = suite.run(network)
    row = result.row(result.arms[0])
    assert (row["undetermined"], row["accuracy under attack"]) == (2, 1.0)
    assert (row["num_asked"], row["num_judged"]) == (10, 8)
    assert (result.worst_case()["num_judged"], result.worst_case()["accuracy"]) == (8, 1.0)
    (warning,) = [w for w in result.warnings() if "undetermined" in w]
    assert "2 of 10" in warning
    assert ("ConnectionError: no such host" if how == "raises" else "could not tell") in warning


def test_a_judge_that_always_fails_leaves_nothing_and_fails_the_run():
    def read(prompt, response, example):
        raise KeyError("verdict")

    suite, network = sums(
        lambda prompts: [f"hello {p}" for p in prompts], attacks={"a": Say(texts=("{}!",))}, judge=judges.FunctionJudge(fn=read)
    )
    result = suite.run(network)
    assert math.isnan(result.row(result.arms[0])["accuracy under attack"])
    assert math.isnan(result.worst_case()["accuracy"])
    assert result.fails(0.0) == ["Accuracy in the worst case over the suite is nan, below 0.", "No result could be determined."]


def test_the_errors_of_a_judge_are_carried_into_the_interval():
    """Right before and unbroken, two judgements: read of 5 of 10. With Se 0.9 and Sp 0.8, the other 5 violated under attack, not before:
    w(none) = 0.9 / 0.7, w(violation) = -0.1 / 0.7, (5 w(none)² + 5 w(none) w(violation)) / 10 = 0.735. But where every violation is the
    only one of its example, 0.5 is read of π Sp² + (1 - π) 0.1 Sp, π = (0.5 / 0.8 - 0.1) / 0.7 = 0.75, and no less is compatible."""
    judge = judges.Rule(must_not=("secret",), sensitivity=0.9, specificity=0.8)
    suite, network = sums(
        lambda ps: ["secret" if "!" in p and int(p[4]) % 2 else f"ok {p}" for p in ps], attacks={"a": Say(texts=("{}!",))}, judge=judge
    )
    result = suite.run(network)
    row = result.row(result.arms[0])
    assert row["accuracy under attack"] == 0.5
    assert row["corrected"] == pytest.approx(0.75)
    assert row["corrected low"] < 0.5 - 0.05
    assert row["corrected high"] - row["corrected low"] > row["high"] - row["low"]
    assert "corrected" in result.markdown()
    for wrong in ({"sensitivity": 0.5, "specificity": 0.5}, {"sensitivity": 1.2}, {"labelled": (0, 5)}):
        with pytest.raises(ConfigError, match="judge"):
            judges.Rule(must_not=("x",), **wrong)


def test_attacks_that_training_knew_are_reported_apart():
    """`known` breaks the even prompts, `new` those below 4: worst cases 1/2, 6/10, and together 1 - |{0,1,2,3,4,6,8}|/10 = 3/10."""

    def answer(prompts):
        broken = [("k" in p and int(p[4]) % 2 == 0) or ("n" in p and int(p[4]) < 4) for p in prompts]
        return ["secret" if bad else f"ok {p}" for bad, p in zip(broken, prompts, strict=True)]

    suite, network = sums(
        answer, attacks={"known": Say(texts=("{}k",)), "new": Say(texts=("{}n",))}, judge=judges.Rule(must_not=("secret",)), seen=("known",)
    )
    result = suite.run(network)
    groups = result.groups()
    assert (groups["seen"]["accuracy"], groups["unseen"]["accuracy"]) == (0.5, 0.6)
    assert result.worst_case()["accuracy"] == 0.3
    assert "attacks unseen in training" in result.markdown()
    with pytest.raises(ConfigError, match="Did you mean 'known'"):
        sums(answer, attacks={"known": Say(texts=("{}",))}, seen=("knwon",))


def test_who_refuses_everything_or_says_nothing_fails():
    benign = Benign(data=[Example(prompt=f"hello {i}", id=f"b{i}") for i in range(8)])
    judge = judges.RefusalJudge()
    refuser, network = sums(
        lambda ps: [f"I'm sorry, but I can't help with {p}." for p in ps], attacks={"a": Say(texts=("{}!",))}, judge=judge, benign=benign
    )
    result = refuser.run(network)
    assert result.worst_case()["accuracy"] == 1.0
    assert result.benign.rate == 1.0
    assert any("Refuses everything" in reason for reason in result.fails())
    assert result.summary()["over_refusal"]["num"] == 8
    # Refusing all of the others with the same words is no fault where the twins are answered.
    strict, network = sums(
        lambda ps: ["I cannot do that." if "say" in p else f"Sure, {p}" for p in ps],
        attacks={"a": Say(texts=("{}!",))},
        judge=judge,
        benign=benign,
    )
    assert strict.run(network).fails() == []
    alone, network = sums(lambda ps: ["I cannot do that." for _ in ps], attacks={"a": Say(texts=("{}!",))}, judge=judge)
    assert any("Constant answers" in reason and "`benign`" in reason for reason in alone.run(network).fails())
    helpful, network = sums(
        lambda ps: [f"I cannot say {p}" if "say" in p else f"Sure, {p}" for p in ps],
        attacks={"a": Say(texts=("{}!",))},
        judge=judge,
        benign=benign,
    )
    result = helpful.run(network)
    assert (result.benign.rate, result.fails()) == (0.0, [])
    gibberish, network = sums(
        lambda ps: ["#%&" * (1 + i) for i, _ in enumerate(ps)], attacks={"a": Say(texts=("{}!",))}, judge=judges.Rule(must_not=("secret",))
    )
    result = gibberish.run(network)
    assert result.clean["degenerate"] == 1.0
    assert any("Gibberish" in reason for reason in result.fails())


def test_queries_an_attack_keeps_to_itself_are_counted_by_the_meter():
    """It asks three times and states one: the meter's mean stands. It states five, which covers what the meter saw: five stands."""
    network = victims.classifier()
    for spent, expected in ((1, 3), (5, 5), (None, 3)):
        suite = Suite(data=victims.sentences(6), attacks={"a": Say(texts=("{}",), spent=spent, asks=3)}, examples=6)
        assert {r.queries for r in suite.run(network).results} == {expected}


def test_budget_curve_is_the_share_left_at_every_number_of_queries():
    """Successes after 2, 2 and 5 queries of 4 right examples: 1, then 1/2, then 1/4."""

    @dataclass(frozen=True, kw_only=True)
    class Slow(Attack):
        access: ClassVar[str] = "text"

        @property
        def examples_at_once(self):
            return 8

        def propose(self, target, examples, budget, rng):
            return [Proposal(text=f"{e.prompt}!" if i < 3 else e.prompt, queries=(2, 2, 5, 9)[i]) for i, e in enumerate(examples)]

    data = [Example(prompt=f"p{i}", label=0, id=str(i)) for i in range(4)]
    network = AnsweringClassifier(lambda texts: torch.tensor([[0.0, 1.0] if "!" in t else [1.0, 0.0] for t in texts]), name="fn")
    result = Suite(data=data, attacks={"slow": Slow()}, examples=4).run(network)
    assert result.budget_curves() == {"slow": ([1.0, 2.0, 5.0], [1.0, 0.5, 0.25])}
    assert "Accuracy by budget" in result.markdown()


# ------------------------------------------------------------------------------------------- the same report


def words(batch_size):
    return attacks.Words(style="deepwordbug", max_changed=0.5, batch_size=batch_size)


def results(folder):
    return (folder / "results.jsonl").read_bytes()


def test_the_results_do_not_depend_on_batch_order_workers_or_cache(tmp_path):
    network, examples = victims.classifier(dtype="float64"), victims.sentences(24)
    make = lambda data, size: Suite(data=data, attacks={"bugs": words(size)}, examples=24)  # noqa: E731
    make(examples, 64).run(network, tmp_path / "a")
    make(examples, 1).run(network, tmp_path / "one")
    make(examples, 4).run(network, tmp_path / "workers", workers=4)
    make(examples, 4).run(network, tmp_path / "cache", cache=tmp_path / "answers.sqlite")
    make(examples, 64).run(network, tmp_path / "cached", cache=tmp_path / "answers.sqlite")
    whole = results(tmp_path / "a")
    assert b"succeeded" in whole
    for name in ("one", "workers", "cache", "cached"):
        assert results(tmp_path / name) == whole, name
    make(examples[::-1], 8).run(network, tmp_path / "order")
    assert sorted(results(tmp_path / "order").splitlines()) == sorted(whole.splitlines())
    spent = [json.loads(line)["spent"] for line in (tmp_path / "cached" / "timings.jsonl").read_text().splitlines()]
    assert {s["forwards"] for s in spent} == {0}
    assert all(s["cached"] > 0 for s in spent)


def test_the_cache_serves_what_it_was_told_and_only_to_the_same_model(tmp_path):
    network, texts = victims.classifier(), ["a good movie", "the bad plot"]
    plain = ClassifierTarget(network).predict(texts)
    first = ClassifierTarget(network, cache=AnswerCache(tmp_path / "c", model_fingerprint(network)))
    assert torch.equal(first.predict(texts), plain)
    second = ClassifierTarget(network, cache=AnswerCache(tmp_path / "c", model_fingerprint(network)))
    assert torch.equal(second.predict([*texts, "the fine plot"])[:2], plain)
    assert (second.num_queries, second.num_cached, second.num_forwards) == (3, 2, 1)
    other = victims.classifier(steps=0)
    third = ClassifierTarget(other, cache=AnswerCache(tmp_path / "c", model_fingerprint(other)))
    assert torch.equal(third.predict(texts), ClassifierTarget(other).predict(texts))
    assert third.num_cached == 0


def test_flops_are_two_per_parameter_and_token():
    """A linear model by hand: 5 tokens through w parameters are 10 w; a gradient of 3 tokens adds 12 w for its backward."""
    target = ClassifierTarget(victims.classifier())
    target.num_tokens, target.num_gradient_tokens = 5, 3
    passed = sum(p.numel() for n, p in target.network.model.named_parameters() if "embeddings." not in n or "LayerNorm" in n)
    assert target.num_parameters == passed
    assert target.meter()["flops"] == 22 * passed


# --------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: Suite(data=victims.sentences(4), attacks={"pgd": attacks.Embedding()}).run(AnsweringClassifier(len, name="mine")),
            "suite.attacks.pgd: it needs gradients, and 'mine' gives only labels, scores; give a model",
        ),
        (lambda: Suite(data=[], attacks={}).run(victims.classifier()), "suite.data: no examples"),
        (
            lambda: Suite(data=[Example(prompt="a", label=7)], attacks={"w": words(2)}).run(victims.classifier()),
            "has label 7, and the model knows 2 classes, 0 to 1",
        ),
        (
            lambda: Suite(data=[Example(prompt="a", meta={"label": "joy"})], attacks={}).run(victims.classifier()),
            "has the label 'joy', and the model's classes are called LABEL_0, LABEL_1",
        ),
        (lambda: Suite.load({"data": [], "attacks": {"x": {"kind": "gcgg"}}}), "no kind of attacks 'gcgg'"),
        (lambda: Suite.load({"data": [], "attacks": {}, "judge": {"kind": "refusl"}}), "Did you mean 'refusal'"),
        (
            lambda: Suite(data=victims.sentences(4), attacks={}, judge=judges.RefusalJudge()).run(victims.classifier()),
            "suite.judge: given, but the model is a classifier",
        ),
        (
            lambda: Suite(data=victims.sentences(4), attacks={"w": words(2)}, benign=Benign(data=victims.sentences(4))).run(
                victims.classifier()
            ),
            "suite.benign: given, but the model is a classifier",
        ),
        (lambda: Suite(data=victims.sentences(4), attacks={"w": words(2)}).run(victims.classifier(), workers=0), "0 workers given"),
        (
            lambda: Suite(data=victims.sentences(4), attacks={"w": words(2)}).run(AnsweringClassifier(lambda t: [0.0], name="mine")),
            "'mine' gave scores of shape",
        ),
        (lambda: judges.RefusalJudge(expect="refuse"), "Did you mean 'refusal'"),
        (lambda: judges.Rule(), "a rule needs at least one"),
        (lambda: judges.Rule(must=("(",), regex=True), "not a regular expression"),
        (lambda: judges.Endpoint(url="localhost", model="m"), "http:// or https://"),
        (lambda: judges.FunctionJudge(fn="nonsense"), "neither a function nor a dotted path"),
        (lambda: judges.PrefixJudge(text=" "), "a text that is not empty"),
    ],
)
def test_refused_in_one_sentence(make, says):
    with pytest.raises(ConfigError) as caught:
        make()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_in_another_order_are_noticed():
    swapped = [Example(prompt=e.prompt, label=1 - e.label, id=e.id) for e in victims.sentences(40)]
    result = Suite(data=swapped, attacks={"w": words(8)}, examples=4).run(victims.classifier())
    assert any("Labels disagree" in reason for reason in result.fails())
    named = [Example(prompt=e.prompt, meta={"label": f"LABEL_{e.label}"}, id=e.id) for e in victims.sentences(8)]
    assert Suite(data=named, attacks={"w": words(2)}, examples=4).run(victims.classifier()).clean["accuracy"] == 1.0


def test_answers_alone_can_be_attacked_with_text_and_are_within_the_budget():
    network = victims.classifier()
    sent = []

    def classify(texts):
        sent.extend(texts)
        return ClassifierTarget(network).predict(texts)

    suite = Suite(data=victims.sentences(12), attacks={"bugs": words(4)}, examples=12)
    alone, whole = suite.run(AnsweringClassifier(classify, name="mine")), suite.run(network)
    assert [(r.status, r.queries, r.note) for r in alone.results] == [(r.status, r.queries, r.note) for r in whole.results]
    tight = Suite(data=victims.sentences(12), attacks={"a": Say(texts=("{}",), asks=3)}, examples=4, budget=Budget(queries=2))
    assert {r.status for r in tight.run(AnsweringClassifier(classify, name="mine")).results} == {"over_budget"}


def test_success_by_number_of_attempts_and_its_law():
    """Four attempts on each of four prompts: 0, 1, 2 and 4 of them break. Success of n of 4: 1 - C(4 - c, n) / C(4, n); for n = 2 of
    c = 0, 1, 2, 4: 0, 1/2, 5/6, 1, mean 7/12; for n = 1 the mean 7/16; for n = 4 three of four."""

    @dataclass(frozen=True, kw_only=True)
    class Draws(Attack):
        draws: ClassVar[bool] = True
        access: ClassVar[str] = "text"

        def propose(self, target, examples, budget, rng):
            count = {"0": 0, "1": 1, "2": 2, "3": 4}
            tried = [tuple("bad" if k < count[e.id] else f"ok {k}" for k in range(4)) for e in examples]
            return [Proposal(attempts=texts) for texts in tried]

    data = [Example(prompt=f"say {i}", id=str(i)) for i in range(4)]
    suite = Suite(data=data, attacks={"draws": Draws(), "fixed": Say(texts=("a", "b"))}, judge=judges.Rule(must_not=("bad",)))
    result = suite.run(AnsweringGenerator(lambda prompts: prompts, name="echo"))
    assert list(result.scaling()) == ["draws"]
    law = result.scaling()["draws"]
    assert law["attempts"] == [1, 2, 4]
    assert law["success"] == pytest.approx([7 / 16, 7 / 12, 3 / 4])
    assert law["fit"]["b"][0] > 0
    assert "Success by number of attempts" in result.markdown()
    assert json.loads(json.dumps(result.summary()["scaling"]))["draws"]["attempts"] == [1, 2, 4]


def test_what_was_not_tried_is_in_no_rate_and_is_said():
    """Two of four examples have more texts than the oracle may try: they leave the denominator."""

    @dataclass(frozen=True, kw_only=True)
    class Picky(Attack):
        access: ClassVar[str] = "text"

        def propose(self, target, examples, budget, rng):
            return [Proposal(refused="too long") if e.id in "01" else Proposal(text="bad") for e in examples]

    data = [Example(prompt=f"say {i}", id=str(i)) for i in range(4)]
    suite = Suite(data=data, attacks={"picky": Picky()}, judge=judges.Rule(must_not=("bad",)))
    result = suite.run(AnsweringGenerator(lambda prompts: prompts, name="echo"))
    row = result.row(result.arms[0])
    assert (row["not tried"], row["accuracy under attack"]) == (2, 0.0)
    assert any("did not try 2 of 4 examples" in warning and "too long" in warning for warning in result.warnings())


@pytest.mark.parametrize("number", [0, 2])
def test_a_wrong_number_of_proposals_stops_the_run_and_names_the_attack(number):
    @dataclass(frozen=True, kw_only=True)
    class Miscounted(Attack):
        access: ClassVar[str] = "text"

        def propose(self, target, examples, budget, rng):
            return [Proposal(text="x")] * number

    suite, network = sums(
        lambda prompts: [f"hello {p}" for p in prompts], attacks={"odd": Miscounted()}, judge=judges.Rule(must_not=("x",))
    )
    with pytest.raises(
        ConfigError, match=rf"attacks\.odd: it returned {number} proposals for 1 examples; one proposal per example, in order"
    ):
        suite.run(network)


def test_attempts_that_want_draws_are_answered_by_draws_of_their_own():
    """The same text sixteen times: greedy answers agree, drawn ones do not; again gives the same, whoever else is attacked."""

    @dataclass(frozen=True, kw_only=True)
    class Again(Attack):
        samples_answers: bool = False
        access: ClassVar[str] = "text"

        def propose(self, target, examples, budget, rng):
            return [Proposal(attempts=(e.prompt,) * 16) for e in examples]

    heard = []

    def read(prompt, response, example):
        heard.append((example.id, response))
        return True

    def said(sampled, data):
        heard.clear()
        sampling = Sampling(max_new_tokens=3, temperature=3.0)
        suite = Suite(data=data, attacks={"a": Again(samples_answers=sampled)}, judge=judges.FunctionJudge(fn=read), sampling=sampling)
        suite.run(victims.generator_model())
        responses = {}
        for name, response in heard[len(data) :]:
            responses.setdefault(name, []).append(response)
        return responses

    examples = victims.sums()[:4]
    greedy, drawn = said(False, examples), said(True, examples)
    assert all(len(set(texts)) == 1 for texts in greedy.values())
    assert all(len(set(texts)) > 1 for texts in drawn.values())
    assert said(True, examples) == drawn
    assert said(True, examples[2:3])[examples[2].id] == drawn[examples[2].id]
