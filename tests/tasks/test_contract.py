"""Every task: splits that share no prompt, demonstrations that are right, perturbations that are violated and can be met."""

import random
import time
from fractions import Fraction
from itertools import combinations_with_replacement, permutations, product

import pytest
from helpers.corpus import RANKS, sentences

from advalign import plugins
from advalign.errors import ConfigError
from advalign.tasks import Arithmetic, Constraints, GeneralPoints, Sentences

TASKS = plugins.all("tasks")
SPLITS = ("train", "test", "ood")
MANY = 10**6  # more than any of these spaces holds, so that whole splits are compared


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """The task with its defaults; one that asks for data gets a small corpus."""
    given = {"data": sentences(tmp_path_factory.mktemp("corpus")), "ranks": RANKS}
    return lambda cls, **fields: cls(**fields, **(given if cls is Sentences else {}))


def small(cls):
    """Fields that make a space which can be listed whole."""
    return {"Arithmetic": {"digits": 1, "operations": "+-*"}, "GeneralPoints": {"cards": 3}}.get(cls.__name__, {})


@pytest.mark.parametrize("cls", TASKS)
def test_splits_never_share_a_prompt_whatever_the_generator(cls, make):
    task = make(cls, **small(cls))
    first = {split: {e.prompt for e in task.examples(split, MANY, random.Random(0))} for split in SPLITS}
    other = {split: {e.prompt for e in task.examples(split, MANY, random.Random(1))} for split in SPLITS}
    assert all(first.values())
    for a, b in permutations(SPLITS, 2):
        assert first[a].isdisjoint(other[b])
    assert first == other, "a whole split is the same set for every generator"


@pytest.mark.parametrize("cls", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_demonstrations_are_right_and_perturbations_are_violated_yet_possible(cls, split, make):
    task, rng = make(cls), random.Random(0)
    examples = task.examples(split, 30, rng)
    assert len(examples) == len({e.prompt for e in examples}) == len({e.id for e in examples}) == 30
    everything = {e.prompt for e in task.examples(split, MANY, rng)} if cls is not Arithmetic else None
    for example in examples:
        text = task.demonstrate(example, rng)
        near = task.perturb(example, text, rng)
        assert example.verify(text) == 1
        assert near.verify(text) == 0
        assert near.prompt != example.prompt
        assert near.verify(task.demonstrate(near, rng)) == 1
        again = task.perturb(near, task.demonstrate(near, rng), rng)
        assert again.prompt != near.prompt
        if everything is not None and near.meta.keys() == {"length", "with", "without", "split"} and len(near.prompt.split()) == 7:
            assert near.prompt in everything, "a modified slot stays inside its split"


@pytest.mark.parametrize("cls", TASKS)
@pytest.mark.parametrize("text", ["", "nonsense", "red " * 300, "1 + 1", "9" * 5000, "(" * 10_000, "٣ + ٤", "\x00", "=", "\n" * 50])
def test_any_text_is_scored_quickly_and_can_be_perturbed_against(cls, text, make):
    task, rng = make(cls), random.Random(0)
    example = task.examples("train", 1, rng)[0]
    begin = time.perf_counter()
    assert example.verify(text) == 0
    assert time.perf_counter() - begin < 0.1
    assert task.perturb(example, text, rng).verify(text) == 0


@pytest.mark.parametrize("cls", TASKS)
def test_the_generator_handed_in_decides_everything(cls, make):
    def transcript(seed):
        task, rng = make(cls), random.Random(seed)
        examples = task.examples("train", 5, rng)
        texts = [task.demonstrate(e, rng) for e in examples]
        return [(e.prompt, t, task.perturb(e, t, rng).prompt) for e, t in zip(examples, texts, strict=True)]

    assert transcript(3) == transcript(3) != transcript(4)


@pytest.mark.parametrize("cls", TASKS)
def test_the_vocabulary_covers_prompts_and_responses(cls, make):
    task, rng = make(cls), random.Random(0)
    letters = set(" ".join(task.vocabulary()))
    words = {word for text in task.vocabulary() for word in text.split()}
    for split in SPLITS:
        for example in task.examples(split, 25, rng):
            text = task.demonstrate(example, rng)
            near = task.perturb(example, text, rng)
            assert set(example.prompt + text + near.prompt) <= letters
            if cls is Constraints:
                assert {*example.prompt.split(), *text.split(), *near.prompt.split()} <= words


@pytest.mark.parametrize("cls", TASKS)
def test_an_unknown_split_is_refused_with_the_nearest(cls, make):
    with pytest.raises(ConfigError, match="Did you mean 'test'"):
        make(cls).examples("tset", 1, random.Random(0))


# ------------------------------------------------------------------------------------------------------- arithmetic


def test_arithmetic_answers_and_what_counts_as_one():
    task = Arithmetic(operations="-")
    # 3 - 45 = -42
    example = next(e for e in task.examples("train", MANY, random.Random(0)) if (e.meta["a"], e.meta["b"]) == (3, 45))
    assert (example.prompt, example.answer) == ("3 - 45 =", "-42")
    for text in ("-42", " -42 \n", "the answer is -42.", "3-45=-42", "3 - 45 = -42"):
        assert example.verify(text) == 1, text
    for text in ("42", "-42 or 7", "-42.5", "-421", "−42", "minus 42"):
        assert example.verify(text) == 0, text


def test_arithmetic_out_of_distribution_has_more_digits_and_the_split_its_fraction():
    task, rng = Arithmetic(digits=2, ood_extra=2, test_fraction=0.1), random.Random(0)
    assert all(min(e.meta["a"], e.meta["b"]) >= 100 and max(e.meta["a"], e.meta["b"]) < 10_000 for e in task.examples("ood", 500, rng))
    train, test = (len(task.examples(split, MANY, rng)) for split in ("train", "test"))
    assert train + test == 100 * 100
    # Binomial(10^4, 0.1): standard deviation 30, so five of them are 150.
    assert abs(test - 1000) < 150


@pytest.mark.parametrize("wrong", [{"digits": 0}, {"operations": "/"}, {"operations": "++"}, {"operations": ""}, {"test_fraction": 1.0}])
def test_arithmetic_refuses_what_it_cannot_do(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Arithmetic(**wrong)


# --------------------------------------------------------------------------------------------------- general points


def points(hand, split="train", target=24):
    return GeneralPoints(target=target)._example(tuple(hand), target, split)


@pytest.mark.parametrize(
    ("hand", "text", "score"),
    [
        ("2347", "(7 + 3 - 4) * 2 * 2", 0),  # 2 twice
        ("2347", "3 * (7 + 4 / 2) - 3", 0),  # = 24 with 3 twice
        ("2347", "2 * (7 + 3) + 4", 1),  # 20 + 4
        ("2347", "2*(7+3)+4 = 24", 1),
        ("2347", "Let me see: 2 * 10 + 4\n2 * (3 + 7) + 4", 1),  # the last line counts
        ("2347", "2 * (3 + 7) + 4\nor something else", 0),
        ("2347", "2 * (7 + 3) + 4 = 25", 0),
        ("2347", "7 * 4 - 2 - 3", 0),  # = 23
        ("3388", "8 / (3 - 8 / 3)", 1),  # 8 / (1/3), exact only in fractions
        ("1556", "6 * 5 - 5 - 1", 1),
        ("1345", "6 / (1 - 3 / 4)", 0),  # right with a 6, which is not in the hand
        ("1346", "6 / (1 - 3 / 4)", 1),
        (("A", "J", "Q", "4"), "10 + 10 + 4 * 1", 1),  # faces count 10
        (("A", "J", "Q", "4"), "11 + 12 + 1 * 4", 0),
    ],
)
def test_general_points_by_hand(hand, text, score):
    hand = tuple("A" if card == "1" else card for card in hand)
    assert points(hand).verify(text) == score


def test_general_points_out_of_distribution_rule():
    # J Q K = 11 12 13: 12 + 13 - 11 + 10 = 24, where under the training rule 10 + 10 - 10 + 10 = 20
    hand = ("J", "Q", "K", "10")
    assert points(hand, "ood").verify("12 + 13 - 11 + 10") == 1
    assert points(hand, "train").verify("10 + 10 - 10 + 10") == 0
    assert "J 11 Q 12 K 13" in points(hand, "ood").prompt
    assert all({"J", "Q", "K"} & set(e.meta["cards"]) for e in GeneralPoints().examples("ood", 300, random.Random(0)))


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9", "9**9**9**9", "2 // 3", "2 * (7 + 3) + 4" + " " * 10**6 + "x", "(" * 5000 + "2" + ")" * 5000, "-" * 5000,
        "2 + 3 + 4 / (7 - 7)", "7 / (4 - 2 - 3 + 1)", "２ * (７ + ３) + ４", "²*(7+3)+4", "2 * (7 + 3) + 4)", "(2 * (7 + 3) + 4",
        "2 (7 + 3) + 4", "+2*(7+3)+4", "__import__('os').system('true') or 2*(7+3)+4", "2*(7+3)+4;", "lambda: 24", "24", "24 = 24",
        "2.0*(7+3)+4", "2*(7+3)+4 == 24", "2*(7+3)+4 # 24", "0x2*(7+3)+4", "1_0", "2e0*(7+3)+4", "()", "2*(7+3)+", "2 3 4 7", "9" * 10**6,
        "1" + "+1" * 10**5,
    ],
)  # fmt: skip
def test_hostile_expressions_score_nothing_and_cost_nothing(text):
    begin = time.perf_counter()
    assert points("2347").verify(text) == 0
    assert time.perf_counter() - begin < 0.2


def brute_force(numbers, target):
    """Slow oracle: five bracketings x orders x signs of four numbers."""
    ops = ("+", "-", "*", "/")
    shapes = ("(({}{}{}){}{}){}{}", "({}{}({}{}{})){}{}", "({}{}{}){}({}{}{})", "{}{}(({}{}{}){}{})", "{}{}({}{}({}{}{}))")
    for a, b, c, d in set(permutations(numbers)):
        for p, q, r in product(ops, repeat=3):
            for shape in shapes:
                try:
                    if eval(shape.format(*(f"Fraction({a})", p, f"Fraction({b})", q, f"Fraction({c})", r, f"Fraction({d})"))) == target:
                        return True
                except ZeroDivisionError:
                    pass
    return False


def test_the_solver_agrees_with_brute_force():
    from advalign.tasks._points import solvable, solve

    known = {(3, 3, 8, 8): True, (1, 3, 4, 6): True, (5, 5, 5, 9): True, (1, 1, 1, 1): False, (7, 7, 7, 7): False}
    assert {hand: solvable(hand, 24) for hand in known} == known
    rng = random.Random(0)
    for _ in range(3):
        hand = tuple(sorted(rng.randint(1, 13) for _ in range(4)))
        assert solvable(hand, 24) == brute_force(hand, 24) == (solve(hand, Fraction(24), rng) is not None)


def test_how_many_hands_make_24():
    from advalign.tasks._points import solvable

    # The known count of the game: 1362 of the 1820 hands of four cards out of thirteen ranks can make 24.
    hands = list(combinations_with_replacement(range(1, 14), 4))
    assert (len(hands), sum(solvable(hand, 24) for hand in hands)) == (1820, 1362)


def test_sub_goals_of_zero_are_solved():
    from advalign.tasks._points import evaluate, solve

    # 24 + 0 * 5 * ..., where zero is made of equal cards: (7 - 7) * 5 + 9 = 9
    for seed in range(20):
        text = solve((5, 7, 7, 9), Fraction(9), random.Random(seed))
        assert text is not None
        assert evaluate(text, (5, 7, 7, 9)) == 9


def test_general_points_holds_out_numbers_not_orders():
    task, rng = GeneralPoints(cards=3), random.Random(0)
    numbers = {split: {tuple(sorted(e.meta["values"])) for e in task.examples(split, MANY, rng)} for split in ("train", "test")}
    assert numbers["train"].isdisjoint(numbers["test"])


# ------------------------------------------------------------------------------------------------------ constraints


def test_constraints_has_450_combinations_of_which_90_are_held_out():
    # lengths 3..7 (5) x word wanted (10) x word unwanted (9) = 450; ood: lengths 8, 9 -> 2 x 90 = 180
    task, rng = Constraints(), random.Random(0)
    assert {split: len(task.examples(split, MANY, rng)) for split in SPLITS} == {"train": 360, "test": 90, "ood": 180}
    train = [task.combinations("train")[i] for i in range(360)]
    assert {n for n, _, _ in train} == {3, 4, 5, 6, 7}
    assert len({a for _, a, _ in train}) == len({b for _, _, b in train}) == 10


def test_constraints_by_hand():
    task = Constraints()
    example = task._example(4, ("red",), ("blue",), "train")
    assert example.prompt == "length 4 with red without blue :"
    kinds = ("length", "with", "without", "vocabulary")
    for text, broken in {
        "green red gold red": (),
        "green red gold": ("length",),
        "green gold pink gold": ("with",),
        "green red blue gold": ("without",),
        "green red banana gold": ("vocabulary",),
        "blue": ("length", "with", "without"),
        "": ("length", "with"),
        "RED green gold pink": ("with", "vocabulary"),
    }.items():
        assert task.violations(example, text) == {kind: kind in broken for kind in kinds}, text
        assert example.verify(text) == float(not broken)


def test_a_range_of_lengths():
    task = Constraints(slack=1)
    example = task._example(3, ("red",), ("blue",), "train")
    assert example.prompt == "length 3 to 4 with red without blue :"
    assert [example.verify(" ".join(["red"] * n)) for n in (2, 3, 4, 5)] == [0, 1, 1, 0]
    lengths = {len(task.demonstrate(example, random.Random(seed)).split()) for seed in range(20)}
    assert lengths == {3, 4}


def test_perturbations_modify_every_slot_and_insert_at_their_rate():
    task, rng = Constraints(insert=0.2), random.Random(0)
    changed = {"length": 0, "with": 0, "without": 0, "inserted": 0}
    for example in task.examples("train", 300, rng) * 4:
        near = task.perturb(example, task.demonstrate(example, rng), rng)
        inserted = len(near.meta["with"]) + len(near.meta["without"]) == 3
        slots = [slot for slot in ("length", "with", "without") if near.meta[slot] != example.meta[slot]]
        assert len(slots) == 1
        changed["inserted" if inserted else slots[0]] += 1
    # Binomial(1200, 0.2): 240 with standard deviation 14; the rest is split over three slots, 320 each, standard deviation 15.3.
    assert abs(changed["inserted"] - 240) < 5 * 14
    assert all(abs(changed[slot] - 320) < 5 * 16 for slot in ("length", "with", "without"))


def test_demonstrations_vary_and_repeat_no_neighbour():
    task, rng = Constraints(), random.Random(0)
    example = task._example(6, ("red",), ("blue",), "train")
    texts = [task.demonstrate(example, rng) for _ in range(300)]
    assert len(set(texts)) > 290
    assert all(a != b for text in texts for a, b in zip(text.split(), text.split()[1:], strict=False))
    assert {text.split().index("red") for text in texts} == set(range(6)), "the wanted word stands anywhere"


@pytest.mark.parametrize("wrong", [{"words": 4}, {"words": 99}, {"held_out": 450}, {"slack": 4}, {"insert": 1.5}, {"ood_extra": 0}])
def test_constraints_refuses_what_it_cannot_do(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Constraints(**wrong)
