"""Evaluation during a run: prepared responses by hand, a real model against a slow loop, in and out of distribution."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from helpers.rollout import TextEngine
from helpers.runs import game, imitation, policy, same, weights

from advalign import Evaluation, Sampling, TrainingArguments, config, data
from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Reward
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.rewards.exact_answer import ExactAnswer
from advalign.rewards.function import Function
from advalign.training import evaluate
from advalign.types import Example, Rollout, RolloutGroup


def rollout(text, length=1, finished=True):
    return Rollout(response_ids=list(range(length)), sampler_logprobs=[0.0] * length, text=text, finished=finished)


def group(example, *texts):
    return RolloutGroup(example=example, prompt_ids=[1], rollouts=[text if isinstance(text, Rollout) else rollout(text) for text in texts])


SUM = Example(prompt="1 + 1 =", answer="2")
CAPITAL = Example(prompt="capital of France?", answer="Paris")


# ---------------------------------------------------------------------------------------------- prepared responses


def test_pass_and_majority_of_prepared_responses_by_hand():
    groups = [
        group(SUM, "so 2", "that is 2.0", "3", "2"),  # right, right, wrong, right; votes 2 2 3 2
        group(CAPITAL, "Rome", "The answer is Paris.", "paris", "rome."),  # only a marked word is an answer; votes rome paris paris rome
    ]
    logs = evaluate.verified(groups)
    assert logs["accuracy"] == (3 + 1) / 8
    assert logs["pass@1"] == (3 + 1) / 8
    # Three of four right: every pair holds one. One of four: C(3, 2) = 3 of the C(4, 2) = 6 pairs miss it.
    assert logs["pass@2"] == (1 + 1 / 2) / 2
    assert logs["pass@4"] == 1
    # k = 4: three votes for 2, right; rome and paris twice each, rome was first, wrong.
    assert logs["maj@4"] == 1 / 2
    # k = 2: (2 2) right, (3 2) a tie for the first, wrong; (rome paris) rome, wrong, (paris rome) paris, but not marked, wrong.
    assert logs["maj@2"] == (1 / 2 + 0) / 2
    assert set(logs) == {"accuracy", "pass@1", "pass@2", "pass@4", "maj@2", "maj@4"}


def test_three_samples_report_one_two_and_three():
    logs = evaluate.verified([group(SUM, "3", "2", "2")])
    assert set(logs) == {"accuracy", "pass@1", "pass@2", "pass@3", "maj@2", "maj@3"}
    assert (logs["maj@2"], logs["maj@3"]) == (0, 1)  # (3 2) goes to the first; (3 2 2) to the two


def test_what_a_response_votes_for():
    def votes(example, *texts):
        return [evaluate._vote(example, text) for text in texts]

    # The reference is a number: numbers are equal as numbers, marked or last; a text without one stands for itself.
    half = Example(prompt="?", answer="0.5")
    assert len(set(votes(half, "1/2", "it is 0.50", "\\boxed{\\frac{1}{2}}", "3 of 6, so #### .5"))) == 1
    assert len(set(votes(half, "0.5", "0.25", "none", "nothing"))) == 4
    solution = Example(prompt="?", answer="48 + 24 = 72\n#### 72")
    assert len(set(votes(solution, "72", "24 + 48 is 72", "72 clips"))) == 1
    # It is not, or there is none: a number at the end of an expression is not its answer.
    cards = Example(prompt="make 24", verify=lambda text: 1.0)
    assert len(set(votes(cards, "(1 + 2) * 8 = 24", "4 * 6 = 24", "4*6=24"))) == 2
    assert len(set(votes(CAPITAL, "Paris", "PARIS.", "The answer is Paris.", "Paris or Rome"))) == 2


def test_prompts_that_nobody_can_verify_are_left_out():
    open_ended = Example(prompt="Write a poem.")
    assert evaluate.verified([group(open_ended, "roses", "violets")]) == {}
    assert evaluate.verified([group(open_ended, "roses", "violets"), group(SUM, "2", "3")])["accuracy"] == 0.5


# ---------------------------------------------------------------------------------------------------------- verifiers


def shortest(completions):
    return [-len(text) for text in completions]


def test_a_verifier_picks_and_its_picks_are_graded():
    groups = [group(SUM, "it is 2", "3", "that is 2"), group(SUM, "2", "perhaps 3", "5 or 6")]
    logs = evaluate.verified(groups, Function(fn=shortest))
    # The shortest of three: "3", wrong, and "2", right.
    assert logs["best_of@3/accuracy"] == 1 / 2
    # Pairs of the first: those with "3" are wrong, (it is 2, that is 2) right: 1/3. Of the second: (2, .) right twice, then wrong: 2/3.
    assert logs["best_of@2/accuracy"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert logs["best_of@1/accuracy"] == logs["pass@1"] == logs["accuracy"] == 3 / 6


def test_a_perfect_verifier_makes_pass_at_n():
    groups = [group(SUM, "2", "3", "4", "2"), group(SUM, "5", "6", "7", "8"), group(SUM, "1", "1", "1", "2")]
    logs = evaluate.verified(groups, ExactAnswer())
    for k in (1, 2, 4):
        assert logs[f"best_of@{k}/accuracy"] == pytest.approx(logs[f"pass@{k}"], abs=1e-15)
    assert logs["pass@4"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("number", "sentence"), [(1, "1 scores for 2"), (3, "3 scores for 2")])
def test_a_verifier_gives_one_score_per_response(number, sentence):
    @dataclass(frozen=True, kw_only=True)
    class Wrong(Reward):
        def start(self, context):
            return lambda groups: [0.0] * number

    with pytest.raises(RewardError, match=f"evaluations: Wrong gave {sentence} responses"):
        evaluate.verified([group(SUM, "2", "3")], Wrong())


def test_a_learner_as_verifier_is_asked_with_its_own_network():
    held = Evaluation(
        data="task:constraints",
        number=4,
        samples=4,
        verifier=DiscriminatorReward(learner="discriminator"),
        sampling=Sampling(max_new_tokens=4),
    )
    trainer = game(evaluations={"held": held})
    logs = trainer.evaluate()
    # The same rollouts again, by hand: score all, sort, take the top one; no two scores are equal.
    examples = data.examples("task:constraints", split="test", limit=4, seed=0)
    network, generator = trainer.learners["policy"].network, torch.Generator().manual_seed(0)
    groups = trainer.rollout_engine.generate(network, examples, 4, held.sampling, generator)
    picked = []
    for g in groups:
        texts, done = [r.text for r in g.rollouts], [r.finished for r in g.rollouts]
        scores, _ = trainer.context.score("discriminator", [g.example.prompt] * 4, texts, done)
        top = [g.example.verify(t) for t, s in zip(texts, scores, strict=True) if s == max(scores)]
        picked.append(sum(top) / len(top))
    assert logs["held/best_of@4/accuracy"] == pytest.approx(sum(picked) / 4)


def test_a_verifier_in_a_configuration():
    text = {
        "data": "task:arithmetic",
        "samples": 8,
        "verifier": {"kind": "discriminator", "learner": "discriminator", "form": "probability"},
    }
    built = config.sections({"evaluations": {"held": text}})["evaluations"]["held"]
    assert built.verifier == DiscriminatorReward(learner="discriminator", form="probability")
    page = (Path(evaluate.__file__).parents[2] / "docs" / "evaluation_in_training.md").read_text(encoding="utf-8")
    shown = config.sections(yaml.safe_load(re.findall(r"^## A policy\n\n((?:    .*\n)+)", page, re.MULTILINE)[0]))
    assert [e.split for e in shown["evaluations"].values()] == ["test", "ood"]
    assert shown["evaluations"]["ood"].verifier == DiscriminatorReward(learner="discriminator")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"learner": "discrimnator"},
            r"evaluations\.held\.learner: no learner 'discrimnator'\. Known: discriminator, policy\. Did you mean 'discriminator'\?",
        ),
        (
            {"verifier": DiscriminatorReward(learner="critic")},
            r"evaluations\.held\.verifier\.learner: no learner 'critic'\. Known: discriminator, policy\.",
        ),
        ({"samples": 0}, r"evaluations.samples: 0 given"),
        ({"number": 0}, r"evaluations.number: 0 given"),
    ],
)
def test_refused_before_anything_is_loaded(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        game(evaluations={"held": Evaluation(data="task:constraints", **fields)})


# ------------------------------------------------------------------------------------------------ lengths and entropy


def test_lengths_by_hand():
    groups = [group(SUM, rollout("a", 3), rollout("b", 8, finished=False)), group(SUM, rollout("c", 5), rollout("d", 4))]
    assert evaluate.lengths(groups) == {
        "completions/mean_length": 5.0,
        "completions/min_length": 3.0,
        "completions/max_length": 8.0,
        "completions/clipped_ratio": 0.25,
    }


def test_entropy_and_its_curve_against_a_slow_loop():
    trainer = imitation()
    network, encoder = trainer.model, trainer.model.encoder
    examples = data.examples("task:constraints", split="test", limit=3, seed=0)
    ids = encoder.responses(["red", "red blue green pink red blue", "gold red"])  # 2, 7 and 3 tokens with their ends
    groups = [
        RolloutGroup(
            example=e, prompt_ids=encoder.prompt(e.prompt), rollouts=[Rollout(response_ids=i, sampler_logprobs=[], text="", finished=True)]
        )
        for e, i in zip(examples, ids, strict=True)
    ]
    by_token = []
    for g, response in zip(groups, ids, strict=True):
        sequence = torch.tensor([[*g.prompt_ids, *response]])
        with torch.no_grad():
            p = network.model.eval()(input_ids=sequence).logits[0].softmax(-1)
        entropies = -(p * p.log()).sum(-1)
        # Token t is predicted at position t - 1.
        by_token.append(entropies[len(g.prompt_ids) - 1 : -1].tolist())
    assert [len(row) for row in by_token] == [2, 7, 3]
    logs = evaluate.entropy(network, groups, 8192)
    # 2, 3, 7 tokens: half of the responses reach 3, so positions 1 and 2 are reported, 4 is not.
    assert set(logs) == {"entropy", "entropy/token_1", "entropy/token_2"}
    assert logs["entropy"] == pytest.approx(sum(map(sum, by_token)) / 12, abs=1e-5)
    for k in (1, 2):
        assert logs[f"entropy/token_{k}"] == pytest.approx(sum(row[k - 1] for row in by_token) / 3, abs=1e-5)


# ---------------------------------------------------------------------------------------------------- the whole thing


def test_the_reference_likelihood_is_that_of_the_demonstrations_and_falls_when_they_are_learned():
    held = Evaluation(data="task:constraints", split="train", number=4, sampling=Sampling(max_new_tokens=2))
    trainer = imitation(60, evaluations={"held": held}, args=TrainingArguments(max_steps=60))
    before = trainer.evaluate()["held/nll"]
    # An untrained model is nearly uniform over its vocabulary.
    assert before == pytest.approx(math.log(len(trainer.model.encoder.tokenizer.get_vocab())), rel=0.05)
    shown = data.demonstrations("task:constraints", split="train", limit=4, seed=0)
    total, count = 0.0, 0
    with torch.no_grad():
        for e in shown:
            prompt, response = trainer.model.encoder.prompt(e.prompt), trainer.model.encoder.response(e.meta["response"])
            logprobs = trainer.model.model.eval()(input_ids=torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
            total -= sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(response))
            count += len(response)
    assert before == pytest.approx(total / count, abs=1e-5)
    trainer.train(progress=False)
    assert trainer.evaluate()["held/nll"] < 0.8 * before


def test_in_and_out_of_distribution_are_two_entries():
    fields = {"number": 6, "samples": 2, "sampling": Sampling(max_new_tokens=3)}
    task = {"task": {"kind": "arithmetic", "digits": 1}}
    evaluations = {name: Evaluation(data=task, split=split, **fields) for name, split in (("heldout", "test"), ("ood", "ood"))}
    model = policy(tokenizer={"kind": "characters", "data": "task:arithmetic"}, max_length=96)
    prompts = {}

    def answer(example, i):
        """What one digit can hold: right in distribution, and wrong where two digits are added."""
        return example.answer if int(example.answer) < 19 else "9"

    class Noting(TextEngine):
        def generate(self, network, examples, n, sampling, generator):
            prompts[examples[0].meta["split"]] = [e.prompt for e in examples]
            return super().generate(network, examples, n, sampling, generator)

    logs = imitation(model=model, evaluations=evaluations, rollout=Noting(answer)).evaluate()
    assert (logs["heldout/accuracy"], logs["heldout/pass@2"]) == (1, 1)
    assert (logs["ood/accuracy"], logs["ood/pass@2"]) == (0, 0)
    assert len(prompts["test"]) == len(prompts["ood"]) == 6
    assert not set(prompts["test"]) & set(prompts["ood"])
    assert {len(p.split()[0]) for p in prompts["test"]} == {1}
    assert {len(p.split()[0]) for p in prompts["ood"]} == {2}
    assert {n.partition("/")[2] for n in logs if n.startswith("ood/")} == {n.partition("/")[2] for n in logs if n.startswith("heldout/")}


def test_an_evaluation_is_the_same_every_time_and_changes_nothing():
    held = Evaluation(data="task:constraints", number=3, samples=4, sampling=Sampling(max_new_tokens=4))
    trainer = imitation(evaluations={"held": held})
    network = trainer.model.train()
    before, state = weights(network), torch.get_rng_state()
    first = trainer.evaluate()
    assert trainer.evaluate() == first
    assert same(before, weights(network))
    assert torch.equal(state, torch.get_rng_state())
    assert network.training
    assert {"accuracy", "unique", "entropy", "nll", "pass@1", "pass@2", "pass@4", "maj@2", "maj@4"} <= {n[5:] for n in first}
