"""The same word problem, asked worse: the answer does not change. Every kind is a pure function of the question and a random stream.

typos        four words have one typo each: two neighbours swapped, a letter lost, doubled or replaced
distractor   a sentence with a number that the question does not ask for, before the last sentence (as GSM-IC, arXiv:2302.00093)
upper        capital letters
lines        every sentence on a line of its own, as items of a list
words        numbers up to 99 written as words
wrapped      another form of words around the question, as of another template of instructions
system       the model's own long system prompt in place of the short one (the question stays)
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DISTRACTORS = {
    "train": (
        "The bus to school takes {} minutes.", "A neighbour has {} cats.", "It rained for {} hours that day.", "The street has {} trees.",
        "The house number is {}.", "There are {} songs on the radio.",
    ),
    "test": (
        "An uncle is {} years old.", "The library opens at {} in the morning.", "The nearest town is {} miles away.",
        "A friend watched {} films last month.", "The ladder has {} steps.", "The newspaper costs {} cents.",
    ),
}  # fmt: skip
"""Sentences of training prompts are not those of held-out prompts."""
SENTENCE = re.compile(r"(?<=[.?!])\s+")
WORD = re.compile(r"[A-Za-z]{4,}")
NUMBER = re.compile(r"(?<![\d.,$])\d{1,2}(?![\d%]|[.,]\d)")


def typos(question: str, rng: random.Random, number: int = 4) -> str:
    """`number` words of at least four letters get one typo each; numbers stay."""
    places = [match.span() for match in WORD.finditer(question)]
    for start, end in sorted(rng.sample(places, min(number, len(places))), reverse=True):
        question = question[:start] + _typo(question[start:end], rng) + question[end:]
    return question


def distractor(question: str, rng: random.Random, split: str = "test") -> str:
    """One sentence with an irrelevant number, before the sentence that asks."""
    *before, asks = SENTENCE.split(question.strip())
    return " ".join([*before, rng.choice(DISTRACTORS[split]).format(rng.randint(2, 60)), asks])


def upper(question: str, rng: random.Random) -> str:
    """Capital letters."""
    return question.upper()


def lines(question: str, rng: random.Random) -> str:
    """Sentences as items of a list."""
    return "\n".join(f"- {sentence}" for sentence in SENTENCE.split(question.strip()))


def words(question: str, rng: random.Random) -> str:
    """Whole numbers up to 99 as words."""
    return NUMBER.sub(lambda match: spelled(int(match[0])), question)


def wrapped(question: str, rng: random.Random) -> str:
    """Another form of words around it."""
    return f"Below is a question from a school book.\n\n### Question:\n{question}\n\n### Answer:"


def spelled(number: int) -> str:
    """A number from 0 to 99 in words."""
    if number < len(ONES):
        return ONES[number]
    tens, ones = TENS[number // 10 - 2], number % 10
    return f"{tens}-{ONES[ones]}" if ones else tens


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "typos": typos,
    "distractor": distractor,
    "upper": upper,
    "lines": lines,
    "words": words,
    "wrapped": wrapped,
}
FAMILIES = {
    "typos": ("typos",),
    "distractors": ("distractor",),
    "reformatting": ("upper", "lines", "words"),
    "templates": ("wrapped", "system"),
}
"""Kinds of one family count as one when rates are averaged."""
NOISE = ("typos", "distractors", "reformatting")
"""Families of the target on noise; templates are reported beside them."""


def noisy(question: str, kind: str, key: str, split: str = "test") -> str:
    """The question under one kind of noise, a function of the kind and of the problem's `key`."""
    rng = random.Random(f"{kind}/{key}")
    return distractor(question, rng, split) if kind == "distractor" else KINDS[kind](question, rng)


def _typo(word: str, rng: random.Random) -> str:
    i = rng.randrange(len(word) - 1)
    left, a, b, right = word[:i], word[i], word[i + 1], word[i + 2 :]
    other = rng.choice([letter for letter in "etaoinshrdlu" if letter != a.lower()])
    options = (left + b + a + right, left + b + right, left + a + a + b + right, left + other + b + right)
    return rng.choice([option for option in options if option != word])
