"""The same prompt, written worse: typos, distracting words, another format, another order. What it asks for does not change.

Free words are those of at least three small letters, so cards, numbers and signs are not. `typos` changes letters of free words only,
`distractors` puts words of small letters between words, `reformat` adds brackets, a sign or blanks, `reorder` moves whole clauses. So
cards, rule and target of a prompt of `general_points` can be read off the noisy prompt, and its right answers stay right. Only characters
of that task's own alphabet occur: a tokenizer of characters needs no other.
"""

import random
import re
from collections.abc import Callable, Sequence

from advalign.errors import unknown

# Written with the letters of "cards", "with" and "make" alone.
FILLERS = ("this", "is", "the", "hard", "task", "hear", "me", "dear", "wait", "take", "care", "at", "time", "that", "mark", "cheers")
FREE = re.compile(r"[a-z]{3,}")
CLAUSE = re.compile(r"(?:cards|with|make) [^a-z:]*[^a-z: ]")


def noisy(prompt: str, kind: str, rng: random.Random) -> str:
    """`prompt` under one kind of noise."""
    if kind not in KINDS:
        raise unknown("noise", "kind of noise", kind, KINDS)
    return KINDS[kind](prompt, rng)


def typos(prompt: str, rng: random.Random, number: int = 2) -> str:
    """`number` different free words get one typo each: two neighbours swapped, a letter lost, doubled or replaced."""
    words = prompt.split(" ")
    places = [i for i, word in enumerate(words) if FREE.fullmatch(word)]
    alphabet = sorted({letter for i in places for letter in words[i]})
    for i in rng.sample(places, min(number, len(places))):
        words[i] = _typo(words[i], rng, alphabet)
    return " ".join(words)


def distractors(prompt: str, rng: random.Random, number: int = 1) -> str:
    """`number` filler words before any of the words."""
    words = prompt.split(" ")
    for _ in range(number):
        words.insert(rng.randrange(len(words)), rng.choice(FILLERS))
    return " ".join(words)


def reformat(prompt: str, rng: random.Random) -> str:
    """Brackets around the hand, an equals sign before the target, one wide blank, a blank in front, or none before the colon."""
    hand, _, goal = CLAUSE.findall(prompt)
    blanks = [i for i, character in enumerate(prompt) if character == " "]
    wide = rng.choice(blanks)
    ways = (
        prompt.replace(hand, hand.replace("cards ", "cards (") + ")"),
        prompt.replace(goal, goal.replace("make ", "make = ")),
        prompt[:wide] + " " + prompt[wide:],
        " " + prompt,
        prompt.removesuffix(" :") + ":",
    )
    return rng.choice(ways)


def reorder(prompt: str, rng: random.Random) -> str:
    """Hand, rule and target in one of the five other orders."""
    clauses = CLAUSE.findall(prompt)
    moved = list(clauses)
    while moved == clauses:
        rng.shuffle(moved)
    return " ".join((*moved, ":"))


def _typo(word: str, rng: random.Random, alphabet: Sequence[str]) -> str:
    i = rng.randrange(len(word) - 1)
    left, a, b, right = word[:i], word[i], word[i + 1], word[i + 2 :]
    other = rng.choice([letter for letter in alphabet if letter != a])
    options = (left + b + a + right, left + b + right, left + a + a + b + right, left + other + b + right)
    return rng.choice([option for option in options if option != word])


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "none": lambda prompt, rng: prompt,
    "typos": typos,
    "distractors": distractors,
    "format": reformat,
    "order": reorder,
}
