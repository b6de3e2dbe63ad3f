"""The harness: it judges by itself, keeps budgets, flags what means nothing, and ends with the same file however often it is killed."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from helpers import victims

from advalign import adversaries, attacks, data
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.suites.budget import changed_words
from advalign.interfaces import Attack
from advalign.metrics import utility
from advalign.types import Budget, Example, Proposal, Sampling, ThreatModel

FLIP = dict(zip(victims.GOOD, victims.BAD, strict=True)) | dict(zip(victims.BAD, victims.GOOD, strict=True))


@dataclass(frozen=True, kw_only=True)
class Flipper(Attack):
    """Turns the first `words` sentiment words into their opposites; the whole sentence's sentiment where there are two."""

    words: int = 2
    queries: int = 1

    access: ClassVar[str] = "text"

    def propose(self, target, examples, budget, rng):
        proposals = []
        for example in examples:
            for _ in range(self.queries):
                target.predict([example.prompt])
            left, words = self.words, []
            for word in example.prompt.split():
                words.append(FLIP[word] if word in FLIP and left else word)
                left -= word in FLIP and left > 0
            proposals.append(Proposal(text=" ".join(words)))
        return proposals


@dataclass(frozen=True, kw_only=True)
class Liar(Attack):
    """Claims to stay in its ball and does not, in one of several ways."""

    way: str

    access: ClassVar[str] = "gradients"
    threat: ClassVar[ThreatModel] = ThreatModel(radius=0.1, relative_to="absolute")

    def propose(self, target, examples, budget, rng):
        if self.way == "crash":
            raise RuntimeError("no such word")
        proposals = []
        for example in examples:
            length = int(target.tokens([example]).lengths[0])
            add = torch.zeros(length + (self.way == "long"), target.network.width("embedding"))
            add[0, 0] = 50.0 if self.way == "far" else 0.01
            proposals.append(Proposal(edits={"layer:0" if self.way == "elsewhere" else "embedding": add}))
        return proposals


def suite(attack_map, **more):
    return Suite(data=victims.sentences(40), attacks=attack_map, examples=20, **more)


def test_harness_counts_what_a_transparent_attack_does():
    """Two of two sentiment words flipped: every right example breaks. None flipped: none does."""
    result = suite({"flip": Flipper(queries=3), "idle": Flipper(words=0, queries=2)}).run(victims.classifier())
    flip, idle = (result.row(arm) for arm in result.arms)
    assert result.clean["accuracy"] == 1.0
    assert (flip["accuracy under attack"], flip["attack success"], flip["queries"]) == (0.0, 1.0, 3.0)
    assert (idle["accuracy under attack"], idle["attack success"]) == (1.0, 0.0)
    assert (flip["low"], flip["high"]) == pytest.approx((0.0, 0.1611), abs=1e-4)  # z² / (20 + z²) = 3.8415 / 23.8415
    assert result.worst_case()["accuracy"] == 0.0
    prompts = {e.id: e.prompt for e in victims.sentences(40)}
    assert all(changed_words(prompts[r.example], r.note) * len(r.note.split()) == pytest.approx(2) for r in result.results_of("flip"))


def test_wrong_examples_are_skipped_and_count_as_wrong():
    examples = victims.sentences(20)
    mislabelled = [Example(prompt=e.prompt, label=1 - e.label if i < 5 else e.label, id=e.id) for i, e in enumerate(examples)]
    result = Suite(data=mislabelled, attacks={"idle": Flipper(words=0, queries=2)}, examples=20).run(victims.classifier())
    row = result.row(result.arms[0])
    # 5 of 20 wrong before: accuracy under attack 15/20, attack success 0/15.
    assert (row["clean"], row["accuracy under attack"], row["attack success"], row["skipped"]) == (0.75, 0.75, 0.0, 5)


@pytest.mark.parametrize("way", ["far", "long", "elsewhere", "crash"])
def test_an_attack_that_breaks_its_own_rules_does_not_succeed(way):
    result = suite({"liar": Liar(way=way)}).run(victims.classifier())
    expected = "error" if way == "crash" else "over_budget"
    assert {r.status for r in result.results} == {expected}
    if way == "crash":
        assert any("`liar` raised on 20 of 20 examples" in w and "no such word" in w for w in result.warnings())
    else:
        assert "radius" in result.results[0].note


def test_budgets_of_queries_and_words_are_the_harness_s():
    few = suite({"flip": Flipper(queries=5)}, budget=Budget(queries=4)).run(victims.classifier())
    assert {r.status for r in few.results} == {"over_budget"}
    # Sentences of 4 to 8 words with two flipped: shares 2/4 to 2/8; at most 0.3 keeps those of 7 and 8 words.
    words = suite({"flip": Flipper()}, budget=Budget(edits=0.3)).run(victims.classifier())
    lengths = {e.id: len(e.prompt.split()) for e in victims.sentences(40)}
    assert {r.status for r in words.results if lengths[r.example] >= 7} == {"succeeded"}
    assert {r.status for r in words.results if lengths[r.example] < 7} == {"over_budget"}


def test_a_constant_classifier_is_flagged_and_a_good_one_is_not():
    """A constant classifier scores 1/2 under any attack, which must not look like robustness."""
    network = victims.classifier(steps=0)
    with torch.no_grad():
        network.model.classifier.weight.zero_()
        network.model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    result = suite({"flip": Flipper()}).run(network)
    assert result.clean["accuracy"] == 0.5
    assert any("Constant predictions" in w for w in result.warnings())
    assert "Constant predictions" in result.markdown()
    assert not suite({"flip": Flipper()}).run(victims.classifier()).warnings()


def test_radii_make_curves_that_start_clean_and_fall():
    attack = attacks.Embedding(adversary=adversaries.PGD(radius=0.05, steps=4), restarts=1)
    result = suite({"pgd": attack, "flip": Flipper()}, radii=(0.1, 3.0)).run(victims.classifier())
    assert [arm.name for arm in result.arms] == ["pgd@0.1", "pgd@3", "flip"]
    radii, probability = result.curves("probability")["pgd"]
    assert radii == [0.0, 0.1, 3.0]
    assert probability[0] >= probability[1] >= probability[2]
    rows = {a.name: result.row(a) for a in result.arms}
    assert rows["pgd@3"]["accuracy under attack"] < rows["pgd@0.1"]["accuracy under attack"]
    assert all(r.distance <= 0.1 * (1 + 1e-5) for r in result.results_of("pgd@0.1"))
    assert result.worst_case()["accuracy"] == 0.0


def test_a_killed_run_ends_with_the_same_files(tmp_path):
    attack = attacks.Embedding(adversary=adversaries.PGD(radius=0.5, steps=2), restarts=1, batch_size=6)
    attack_suite = suite({"pgd": attack, "flip": Flipper()})
    attack_suite.run(victims.classifier(), tmp_path / "whole")
    whole = (tmp_path / "whole" / "results.jsonl").read_bytes()
    lines = whole.split(b"\n")
    # Killed in the middle of a line, in the middle of a chunk of six, after everything, and before anything.
    for name, part in {
        "line": whole[: len(whole) // 3],
        "chunk": b"\n".join(lines[:8]) + b"\n",
        "end": whole,
        "start": b"",
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in ("suite.json", "timings.jsonl"):
            (folder / file).write_bytes((tmp_path / "whole" / file).read_bytes())
        (folder / "results.jsonl").write_bytes(part)
        result = attack_suite.run(victims.classifier(), folder)
        assert (folder / "results.jsonl").read_bytes() == whole
        assert len(result.results) == 40
        assert len((folder / "timings.jsonl").read_text().splitlines()) == 40
    assert json.loads((tmp_path / "line" / "summary.json").read_text())["attacks"]["flip"]["accuracy under attack"] == 0.0
    with pytest.raises(ConfigError, match="another suite, model or data"):
        attack_suite.run(victims.classifier(dtype="float64"), tmp_path / "whole")


def test_results_do_not_depend_on_which_other_examples_are_attacked():
    attack = attacks.Embedding(adversary=adversaries.PGD(radius=0.5, steps=2), restarts=1)
    network, examples = victims.classifier(dtype="float64"), victims.sentences(8)
    many = Suite(data=examples, attacks={"pgd": attack}, examples=8).run(network)
    few = Suite(data=examples[3:5], attacks={"pgd": attack}, examples=2).run(network)
    by_id = {r.example: r for r in many.results}
    for r in few.results:
        assert r.status == by_id[r.example].status
        assert r.distance == pytest.approx(by_id[r.example].distance, abs=1e-9)
        assert r.metrics["probability_after"] == pytest.approx(by_id[r.example].metrics["probability_after"], abs=1e-6)


def test_generator_loss_and_verified_accuracy_under_attack():
    sampling = Sampling(max_new_tokens=4)
    attack = attacks.Embedding(adversary=adversaries.PGD(radius=1.0, where="prompt", steps=4), restarts=1)
    attack_suite = Suite(data=victims.sums(), attacks={"pgd": attack}, examples=10, radii=(0.01, 2.0), samples=3, sampling=sampling)
    result = attack_suite.run(victims.generator_model())
    assert result.clean["accuracy"] == 1.0
    assert result.clean["nll"] < 0.1
    assert result.clean["pass@1"] <= result.clean["pass@3"] <= 1.0
    assert 1 / 3 - 1e-12 <= result.clean["unique"] <= 1.0
    radii, nll = result.curves("nll")["pgd"]
    assert nll[0] <= nll[1] < nll[2]
    rows = {a.name: result.row(a) for a in result.arms}
    assert rows["pgd@0.01"]["accuracy under attack"] == 1.0
    assert rows["pgd@2"]["accuracy under attack"] < 0.7
    assert "Negative log-likelihood per token under attack" in result.markdown()


def test_generator_without_a_verifier_is_judged_by_its_loss():
    """Succeeded means: per-token probability of the reference at least halved."""
    data = [Example(prompt=e.prompt, id=e.id, meta={"response": e.answer}) for e in victims.sums()]
    attack = attacks.Embedding(adversary=adversaries.PGD(radius=1.0, steps=4), restarts=1)
    result = Suite(data=data, attacks={"pgd": attack}, examples=8, radii=(0.01, 2.0)).run(victims.generator_model())
    for r in result.results:
        halved = r.metrics["nll_after"] - r.metrics["nll_before"] >= 0.6931471805599453
        assert r.status == ("succeeded" if halved else "failed")
    assert {r.status for r in result.results_of("pgd@2")} == {"succeeded"}


def test_loading_from_yaml_and_its_mistakes(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(
        "data: [{prompt: a good movie, label: 1}]\n"
        "examples: 1\nradii: [0.1]\nbudget: {queries: 50}\n"
        "attacks:\n  pgd: {kind: embedding, restarts: 2, adversary: {kind: pgd, steps: 2, sites: [embedding]}}\n"
    )
    loaded = Suite.load(path)
    assert loaded.attacks["pgd"] == attacks.Embedding(adversary=adversaries.PGD(steps=2), restarts=2)
    assert loaded.budget == Budget(queries=50)
    assert len(loaded.run(victims.classifier()).results) == 1
    for wrong, message in [
        ({"data": []}, "Suite needs attacks"),
        ({"data": [], "attacks": {"x": {"kind": "embeding"}}}, "Did you mean 'embedding'"),
        ({"data": [], "attacks": {"x": {"kind": "embedding", "restart": 1}}}, "Did you mean 'restarts'"),
        ({"data": [], "attack": {}}, "Did you mean 'attacks'"),
        ({"data": [], "attacks": {}, "budget": {"querys": 1}}, "Did you mean 'queries'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Suite.load(wrong)
    with pytest.raises(ConfigError, match="no examples"):
        Suite(data=[], attacks={"flip": Flipper()}).run(victims.classifier())
    with pytest.raises(ConfigError, match="share the id"):
        Suite(data=[Example(prompt="a", label=0, id="x")] * 2, attacks={"flip": Flipper()}).run(victims.classifier())


def test_changed_words_is_levenshtein_over_words():
    # kept, substituted, deleted, then one inserted: 3 edits over 3 words.
    assert changed_words("a b c", "a x d e") == 1.0
    assert changed_words("a b c d", "a b c d") == 0.0
    assert changed_words("a b c d", "a c d") == 0.25


def test_pass_at_k_by_enumeration():
    """5 samples of which 2 are right, k = 3: C(3, 3) / C(5, 3) = 1/10 of the subsets hold none; with all wrong, none does."""
    assert utility.pass_at_k([2], 5, 3) == pytest.approx(0.9)
    assert utility.pass_at_k([2, 0], 5, 3) == pytest.approx(0.45)
    assert utility.pass_at_k([1, 3], 4, 1) == pytest.approx(0.5)


def test_diversity_and_entropy_by_hand():
    assert utility.unique_fraction([["a", "a ", "b", "c"], ["x", "x", "x", "x"]]) == pytest.approx((3 / 4 + 1 / 4) / 2)
    # bigrams: a b, b a, a b | a b: 2 distinct of 4
    assert utility.distinct_n(["a b a b", "a b"], 2) == pytest.approx(0.5)
    entropy = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 9.0, 4.0, 9.0]])
    target = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)
    torch.testing.assert_close(utility.entropy_curve(entropy, target), torch.tensor([2.5, 2.0, 3.0]))


def test_constant_needs_labels_that_differ():
    assert utility.constant(["1"] * 10, ["0", "1"] * 5)
    assert not utility.constant(["1"] * 10, ["1"] * 10)
    assert not utility.constant(["1", "0"] * 5, ["0", "1"] * 5)


def test_rows_of_messages_are_examples_of_a_suite():
    """A list of rows may be mappings of the fields of an example, or rows of a data set, such as a prompt of messages with its answer."""
    from advalign.evaluation.suites.data import read_examples

    row = {"prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one plus two ="}], "answer": "three"}
    (example,) = read_examples([row], data.examples, seed=0)
    assert [m.role for m in example.prompt.messages] == ["system", "user"]
    assert example.answer == "three"
    assert read_examples([{"prompt": "one plus two =", "answer": "three"}], data.examples, seed=0)[0].answer == "three"
