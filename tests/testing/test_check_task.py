"""check_task passes every built-in task, and names the slip of each broken one."""

import random
from dataclasses import dataclass, replace
from itertools import permutations

import pytest
from helpers.corpus import RANKS, sentences

from advalign import plugins
from advalign.errors import unknown
from advalign.interfaces import Task
from advalign.tasks import Sentences
from advalign.testing import check_task
from advalign.types import Example

WORDS = tuple("".join(letters) for letters in permutations("abcde"))  # 120 words
SPLITS = {"train": WORDS[:80], "test": WORDS[80:100], "ood": WORDS[100:]}


@dataclass(frozen=True, kw_only=True)
class Reverse(Task):
    """The word backwards."""

    def examples(self, split, number, rng):
        if split not in SPLITS:
            raise unknown("tasks.reverse", "split", split, SPLITS)
        words = SPLITS[split]
        return [self.example(word) for word in rng.sample(words, min(number, len(words)))]

    def example(self, word):
        return Example(prompt=word, answer=word[::-1], id=word, verify=lambda text: float(text == word[::-1]))

    def demonstrate(self, example, rng):
        return example.prompt[::-1]

    def perturb(self, example, text, rng):
        return self.example(rng.choice([word for word in WORDS if word != example.prompt]))


class OneSplit(Reverse):
    def examples(self, split, number, rng):
        return super().examples("train" if split == "test" else split, number, rng)


class WrongAnswer(Reverse):
    def demonstrate(self, example, rng):
        return example.prompt


class SamePrompt(Reverse):
    def perturb(self, example, text, rng):
        return example


class NotViolated(Reverse):
    """Another prompt with the same answer."""

    def perturb(self, example, text, rng):
        return replace(example, prompt=example.prompt + " ")


class Impossible(Reverse):
    def perturb(self, example, text, rng):
        return replace(example, prompt="x", verify=lambda text: 0.0)


class GlobalRandom(Reverse):
    def examples(self, split, number, rng):
        return super().examples(split, number, random)


class AnySplit(Reverse):
    def examples(self, split, number, rng):
        return super().examples(split if split in SPLITS else "train", number, rng)


class NoVerify(Reverse):
    def example(self, word):
        return replace(super().example(word), verify=None)


class NoIds(Reverse):
    def example(self, word):
        return replace(super().example(word), id="")


class Fragile(Reverse):
    def example(self, word):
        return replace(super().example(word), verify=lambda text: float(text.split()[0] == word[::-1]))


class Large(Reverse):
    def example(self, word):
        return replace(super().example(word), verify=lambda text: 100.0 * (text == word[::-1]))


class Repeats(Reverse):
    def examples(self, split, number, rng):
        return [*super().examples(split, number - 1, rng), self.example(SPLITS.get(split, WORDS)[0])] if split in SPLITS else []


SLIPS = {
    OneSplit: "'train' and 'test' share the prompt",
    WrongAnswer: "which verify scores 0.0, not 1",
    SamePrompt: "gives the same prompt",
    NotViolated: "is right for .* too",
    Impossible: "has no right answer",
    GlobalRandom: "draw from the rng handed in",
    AnySplit: "an unknown split is accepted",
    NoVerify: "has no `verify`",
    NoIds: "without an id",
    Fragile: "a verifier scores any text",
    Large: "a number in .0, 1.",
    Repeats: "repeats a prompt",
}


@pytest.mark.parametrize("cls", plugins.all("tasks"), ids=lambda cls: cls.__name__)
def test_every_built_in_task_keeps_the_contract(cls, tmp_path):
    given = {"data": sentences(tmp_path), "ranks": RANKS} if cls is Sentences else {}
    check_task(cls(**given), number=30)


def test_a_task_of_ones_own_keeps_it():
    check_task(Reverse())


def test_a_task_without_near_examples_keeps_it():
    class Plain(Reverse):
        perturb = Task.perturb

    check_task(Plain())


@pytest.mark.parametrize(("cls", "says"), SLIPS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_slip_is_named(cls, says):
    with pytest.raises(AssertionError, match=rf"{cls.__name__}: .*({says})"):
        check_task(cls(), number=20)
