"""check_reward passes every built-in reward, and names the slip of each broken one."""

import importlib.util
import math
import random
from dataclasses import dataclass

import pytest

from advalign import plugins
from advalign.interfaces import Reward, Scorer
from advalign.models import load
from advalign.testing import check_reward


@dataclass(frozen=True, kw_only=True)
class Brevity(Reward):
    """r = -words."""

    def start(self, context):
        return self.score

    def score(self, groups):
        return [-float(len(r.text.split())) for g in groups for r in g.rollouts]


class TooFew(Brevity):
    def score(self, groups):
        return super().score(groups)[:-1]


class PerGroup(Brevity):
    def score(self, groups):
        return [-float(len(g.rollouts[0].text.split())) for g in groups]


class Infinite(Brevity):
    def score(self, groups):
        return [-math.inf if not r.text else 1.0 for g in groups for r in g.rollouts]


class Nothing(Brevity):
    def score(self, groups):
        return [None if not r.text else 1.0 for g in groups for r in g.rollouts]


class Sorted(Brevity):
    def score(self, groups):
        return sorted(super().score(groups))


class Compares(Brevity):
    def score(self, groups):
        scores = super().score(groups)
        return [s - sum(scores) / len(scores) for s in scores]


class GlobalRandom(Brevity):
    def score(self, groups):
        return [s + random.random() for s in super().score(groups)]


class Raises(Brevity):
    """An empty response has no first word."""

    def score(self, groups):
        return [float(len(r.text.split()[0])) for g in groups for r in g.rollouts]


class Mutates(Brevity):
    def score(self, groups):
        for g in groups:
            for r in g.rollouts:
                r.text = r.text.strip() + "."
        return super().score(groups)


class PerToken(Brevity):
    """One number per word, not per id."""

    def score(self, groups):
        return [[1.0] * len(r.text.split()) for g in groups for r in g.rollouts]


class NoFunction(Brevity):
    def start(self, context):
        return self.score([])


class Forgets(Brevity):
    def start(self, context):
        class Count(Scorer):
            number = 0.0

            def __call__(self, groups):
                return Brevity().score(groups)

            def state_dict(self):
                return {"number": self.number}

            def load_state_dict(self, state):
                self.number = state["number"] + 1

        return Count()


SLIPS = {
    TooFew: "gives 6 scores for 7 rollouts",
    PerGroup: "gives 3 scores for 7 rollouts; one score per rollout, not per group",
    Infinite: "infinite scores are refused",
    Nothing: "a score is None",
    Sorted: "out of order",
    Compares: "declare scores_whole_draw",
    GlobalRandom: "draw from context.random",
    Raises: "IndexError",
    Mutates: "changes the rollouts",
    PerToken: "scores for a response of",
    NoFunction: "start returns a list",
    Forgets: "changes the state of its scorer",
}


def scorer():
    """A scorer that reads words of sums."""
    texts = ["zero one two three four five six seven eight nine ten plus ="]
    return load("scratch:tiny-gpt2?n_embd=32", head="score", tokenizer={"kind": "words"}, texts=texts, max_length=64, dtype="float64")


GIVEN = {
    "function": lambda: {"fn": lambda prompts, completions: [float(len(text)) for text in completions]},
    "discriminator": lambda: {"learner": "discriminator"},
    "model": lambda: {"model": scorer()},
}


@pytest.mark.parametrize("cls", plugins.all("rewards"), ids=lambda cls: cls.__name__)
def test_every_built_in_reward_keeps_the_contract(cls):
    if plugins.kind_of(cls) == "math" and importlib.util.find_spec("math_verify") is None:
        pytest.skip("the optional package math-verify is not installed")
    check_reward(cls(**GIVEN.get(plugins.kind_of(cls), dict)()))


def test_a_reward_of_ones_own_keeps_it():
    check_reward(Brevity(weight=0.5))


def test_a_reward_that_compares_declares_it():
    class Whole(Compares):
        scores_whole_draw = True

    check_reward(Whole())


@pytest.mark.parametrize(("cls", "says"), SLIPS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_slip_is_named(cls, says):
    with pytest.raises(AssertionError, match=rf"(?s){cls.__name__}: .*({says})"):
        check_reward(cls())
