"""Noise in the text of a prompt: what it asks can still be read off it, by a reader that knows nothing of how the noise was made."""

import random
import re
from collections import Counter

import pytest

from advalign.errors import ConfigError
from advalign.tasks import GeneralPoints
from advalign.tasks._noisy import CLAUSE, FILLERS, KINDS, noisy

NOISE = [kind for kind in KINDS if kind != "none"]
EASY = {"cards": 3, "lowest": 1, "target": 24}


def pairs(kind, split="test", number=200):
    """(clean example, noisy example) of the same hands."""
    clean, worse = (GeneralPoints(**EASY, noise=noise).examples(split, number, random.Random(3)) for noise in ((), [kind]))
    assert [e.id for e in clean] == [e.id for e in worse]
    return list(zip(clean, worse, strict=True))


def read(prompt):
    """(cards, values of J Q K, target): capitals and figures only, the rule found by its shape, the target by its word or its place."""
    tokens = re.findall(r"[A-Z0-9]+|make", prompt)
    if "make" in tokens:  # unharmed: the target is the next figure, wherever the clause stands
        at = tokens.index("make")
        target, tokens = tokens[at + 1], tokens[:at] + tokens[at + 2 :]
    else:
        target, tokens = tokens[-1], tokens[:-1]
    text = " ".join(tokens)
    rule = re.search(r"A 1 J (\d+) Q (\d+) K (\d+)", text)
    return tuple((text[: rule.start()] + text[rule.end() :]).split()), tuple(map(int, rule.groups())), int(target)


def distance(a, b):
    """Levenshtein's, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


@pytest.mark.parametrize("split", ["test", "ood"])
@pytest.mark.parametrize("kind", NOISE)
def test_the_question_can_be_read_and_its_answers_stay_right(kind, split):
    task = GeneralPoints(**EASY, noise=[kind])
    for clean, worse in pairs(kind, split):
        assert worse.prompt != clean.prompt
        faces = (10, 10, 10) if split == "test" else (11, 12, 13)
        assert read(worse.prompt) == read(clean.prompt) == (worse.meta["cards"], faces, worse.meta["target"])
        answer = task.demonstrate(worse, random.Random(0))
        assert worse.verify(answer) == clean.verify(answer) == 1
        assert worse.verify(answer + " + 1") == 0


@pytest.mark.parametrize("kind", NOISE)
def test_no_letter_that_the_task_does_not_have(kind):
    known = set("".join(GeneralPoints(**EASY).vocabulary()))
    assert set("".join(worse.prompt for _, worse in pairs(kind))) <= known


def test_typos_touch_two_free_words_and_each_of_them_once():
    for clean, worse in pairs("typos"):
        changed = [(a, b) for a, b in zip(clean.prompt.split(" "), worse.prompt.split(" "), strict=True) if a != b]
        assert len(changed) == 2
        for before, after in changed:
            assert before in ("cards", "with", "make")
            # One letter lost, doubled or replaced is 1; two neighbours swapped are 2, with the same letters.
            assert distance(before, after) == (2 if Counter(before) == Counter(after) else 1)


def test_a_distractor_is_one_word_more():
    places = set()
    for clean, worse in pairs("distractors"):
        words = worse.prompt.split(" ")
        (at,) = {i for i in range(len(words)) if words[i] in FILLERS}
        assert words[:at] + words[at + 1 :] == clean.prompt.split(" ")
        places.add(at)
    # Three cards: cards c c c with A 1 J 10 Q 10 K 10 make t : are 16 words, and nothing follows the colon.
    assert places == set(range(16))


def test_another_format_is_signs_and_blanks():
    seen = Counter()
    for clean, worse in pairs("format"):
        bare = re.sub(r"[()=]", "", worse.prompt.removesuffix(":")).split()
        assert [*bare, ":"] == clean.prompt.split()
        seen["(" if "(" in worse.prompt else "=" if "=" in worse.prompt else len(worse.prompt) - len(clean.prompt)] += 1
    assert set(seen) == {"(", "=", 1, -1}


def test_every_other_order_of_the_clauses_occurs():
    orders = set()
    for clean, worse in pairs("order"):
        clauses, moved = CLAUSE.findall(clean.prompt), CLAUSE.findall(worse.prompt)
        assert " ".join((*clauses, ":")) == clean.prompt
        assert sorted(moved) == sorted(clauses)
        orders.add(tuple(clauses.index(clause) for clause in moved))
    assert len(orders) == 5  # 3! - 1


def test_kinds_are_mixed_and_none_is_clean():
    kinds = ["none", "order"]
    clean, mixed = (GeneralPoints(**EASY, noise=n).examples("train", 400, random.Random(0)) for n in ((), kinds))
    same = sum(a.prompt == b.prompt for a, b in zip(clean, mixed, strict=True))
    assert abs(same - 200) < 5 * 10  # Binomial(400, 1/2): standard deviation 10
    with pytest.raises(ConfigError, match="Did you mean 'typos'"):
        GeneralPoints(noise=["typo"])
    with pytest.raises(ConfigError, match="noise"):
        GeneralPoints(noise="typos")
    with pytest.raises(ConfigError, match="Did you mean 'format'"):
        noisy("cards 2 3 with A 1 make 5 :", "formats", random.Random(0))


def test_every_target_from_the_lowest_that_two_cards_can_make():
    # By hand, over ordered pairs of values: sums, differences, products and whole quotients that are 1, 2, 3 or 4.
    worth = {"A": 1, **{str(n): n for n in range(2, 11)}, "J": 10, "Q": 10, "K": 10}
    expected = {
        (x, y, t)
        for x, a in worth.items()
        for y, b in worth.items()
        for t in range(1, 5)
        if t in (a + b, a - b, b - a, a * b) or a == t * b or b == t * a
    }
    task = GeneralPoints(cards=2, lowest=1, target=4)
    found = [(*e.meta["cards"], e.meta["target"]) for split in ("train", "test") for e in task.examples(split, 10**6, random.Random(0))]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert all(e.prompt.endswith(f"make {e.meta['target']} :") for e in task.examples("train", 50, random.Random(1)))


def test_one_target_is_asked_as_ever():
    one = GeneralPoints(cards=3).examples("test", 20, random.Random(0))
    assert [e.prompt for e in one] == [e.prompt for e in GeneralPoints(cards=3, lowest=24).examples("test", 20, random.Random(0))]
    assert {e.meta["target"] for e in one} == {24}
    with pytest.raises(ConfigError, match="lowest"):
        GeneralPoints(lowest=25)
