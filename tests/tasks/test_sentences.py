"""The task `sentences`: what it asks for, by hand, by a slow loop over the corpus, and what never crosses from one split to another."""

import json
import random
from itertools import combinations

import pytest
from helpers.corpus import RANKS, sentences

from advalign import data
from advalign.errors import AdvalignError, ConfigError
from advalign.tasks import Sentences
from advalign.tasks._common import hash_fraction
from advalign.tasks._sentences import one_sentence, split_sentences, words_of

MANY = 10**6


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return Sentences(data=sentences(tmp_path_factory.mktemp("corpus")), ranks=RANKS)


def everything(task):
    return {name: task.examples(name, MANY, random.Random(0)) for name in ("train", "test", "ood")}


# --------------------------------------------------------------------------------------------------------- verify


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("The dog ran to the park.", ()),
        ("Park, dog!", ()),
        ("is the DOG in the Park?", ()),
        ("  the dog ran to the park.  ", ()),
        ("the dog ran to the park", ("sentence",)),
        ("the dog ran. the park is big.", ("sentence",)),  # two sentences
        ("the dog ran to the park..", ("sentence",)),
        ("the dog ran\nto the park.", ("sentence",)),
        ("the dogs ran to the park.", ("words",)),  # another word
        ("the dog's park is big.", ("words",)),
        ("the dog-park is a park.", ("words",)),
        ("the big red dog ran all the way to the park.", ("length",)),  # 11 words, 9 allowed
        ("the dog ran to a b c d park.", ()),  # 9 words
        ("", ("words", "sentence")),
        (".", ("words", "sentence")),
        ("dog " * 10, ("words", "length", "sentence")),
    ],
)
def test_what_breaks_which_constraint(task, text, broken):
    example = task._example(("park", "dog"), 9, "train")
    assert example.prompt == "with dog, park, at most 9 words:"
    assert {name for name, wrong in task.violations(example, text).items() if wrong} == set(broken)
    assert example.verify(text) == float(not broken)


def test_texts_become_sentences():
    texts = ['Tim  ran home. He said, "I am here."  Was he\nhappy? Yes! Tim ran home.', "no end of this line here", "It was (very) late."]
    # Shorter than 2 words: "Yes!"; quoted and bracketed ones are left out; the same sentence counts once.
    assert split_sentences(texts, 2, 5) == ["Tim ran home.", "Was he happy?"]


def test_words_are_whole_and_lower_case():
    assert words_of("Tim's well-known DOG, 3 cats_and été!") == ["tim's", "well-known", "dog", "cats", "and", "été"]


# --------------------------------------------------------------------------------------------------------- splits


def test_every_prompt_comes_from_a_sentence_that_meets_it_and_slow_loops_agree(task):
    corpus = data.rows(task.data)
    lines = [row["text"] for row in corpus]
    for name, examples in everything(task).items():
        for example in random.Random(1).sample(examples, 20):
            words, limit = example.meta["words"], example.meta["limit"]
            meeting = [line for line in lines if set(words) <= set(words_of(line)) and len(line.split()) <= limit]
            assert task.demonstrate(example, random.Random(0)) in meeting
            # Asked for its own length plus 0 to slack.
            assert any(0 <= limit - len(line.split()) <= task.slack for line in meeting), name


def test_no_held_out_combination_is_asked_for_in_training_not_even_inside_a_perturbed_prompt(task):
    def held_out(words):
        return [hash_fraction(" ".join(sorted(pair))) < task.held_out for pair in combinations(words, 2)]

    rng, all_of = random.Random(0), everything(task)
    pairs = {name: {e.meta["words"] for e in examples} for name, examples in all_of.items()}
    assert pairs["train"].isdisjoint(pairs["test"])
    assert all(held_out(words) == [False] for words in pairs["train"])
    assert all(held_out(words) == [True] for words in pairs["test"])
    assert all(len(words) == 3 and any(held_out(words)) for words in pairs["ood"])
    inserted = Sentences(data=task.data, ranks=task.ranks, insert=1.0)
    for example in rng.sample(all_of["train"], 60):
        for maker in (task, inserted):
            near = maker.perturb(example, maker.demonstrate(example, rng), rng)
            assert not any(held_out(near.meta["words"])), near.prompt


def test_a_held_out_sentence_is_never_shown_in_training(task):
    rng, all_of = random.Random(0), everything(task)
    shown = {task.demonstrate(e, rng) for e in all_of["train"] for _ in range(3)}
    withheld = {task.demonstrate(e, rng) for name in ("test", "ood") for e in all_of[name] for _ in range(3)}
    assert shown.isdisjoint(withheld)
    total = len(all_of["train"]) + len(all_of["test"])
    # Each pair is held out with probability 0.2, by its hash; about 400 pairs occur, so their fraction has standard deviation 0.02.
    assert 0.1 < len(all_of["test"]) / total < 0.3


def test_more_required_words_and_wider_limits(tmp_path):
    path = sentences(tmp_path)
    three = Sentences(data=path, num_words=3, slack=0, ranks=RANKS)
    for example in three.examples("train", 20, random.Random(0)):
        text = three.demonstrate(example, random.Random(0))
        assert len(example.meta["words"]) == 3
        assert len(text.split()) <= example.meta["limit"]
    assert {len(e.meta["words"]) for e in three.examples("ood", 20, random.Random(0))} == {4}


# -------------------------------------------------------------------------------------------------------- perturb


def change(example, near):
    before, after = example.meta, near.meta
    if len(after["words"]) > len(before["words"]):
        return "insert"
    return "limit" if after["words"] == before["words"] else "word"


def test_perturbations_change_one_thing_and_insert_at_their_rate(task):
    rng, counts = random.Random(0), {"word": 0, "limit": 0, "insert": 0}
    examples = task.examples("train", 200, rng)
    for example in examples:
        text = task.demonstrate(example, rng)
        near = task.perturb(example, text, rng)
        kind = change(example, near)
        counts[kind] += 1
        broken = [name for name, wrong in task.violations(near, text).items() if wrong]
        assert broken == [{"word": "words", "insert": "words", "limit": "length"}[kind]]
        if kind == "word":
            assert len(set(near.meta["words"]) & set(example.meta["words"])) == 1
            assert near.meta["limit"] == example.meta["limit"]
        if kind == "limit":
            assert near.meta["limit"] < len(text.split())
    # Binomial(200, 0.2): 40 with standard deviation 5.7; the corpus meets nearly every insertion.
    assert abs(counts["insert"] - 40) < 5 * 6
    assert min(counts["word"], counts["limit"]) > 20


def test_without_insertion_only_the_last_resort_inserts(task):
    never, rng = Sentences(data=task.data, ranks=task.ranks, insert=0.0), random.Random(0)
    for example in never.examples("train", 100, rng):
        assert change(example, never.perturb(example, never.demonstrate(example, rng), rng)) != "insert"


# -------------------------------------------------------------------------------------------------------- refusals


def test_texts_are_found_under_their_usual_columns(tmp_path):
    lines = [row["text"] for row in data.rows(sentences(tmp_path))]
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"story": " ".join(lines[i : i + 5])}) for i in range(0, len(lines), 5)), encoding="utf-8")
    ours, theirs = Sentences(data=str(path), ranks=RANKS), Sentences(data=str(tmp_path / "corpus.txt"), ranks=RANKS)
    assert {e.prompt for e in ours.examples("train", MANY, random.Random(0))} == {
        e.prompt for e in theirs.examples("train", MANY, random.Random(0))
    }
    (tmp_path / "other.jsonl").write_text('{"prose": "the dog ran."}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tasks.sentences.data: no column of texts 'prose'"):
        Sentences(data=str(tmp_path / "other.jsonl")).examples("train", 1, random.Random(0))


def test_too_little_text_is_refused_with_what_it_gives(tmp_path):
    (tmp_path / "few.txt").write_text("the dog ran to the park.\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"1 sentences of .* give too few prompts \(train 1, test 0, ood 0\)|train 0"):
        Sentences(data=str(tmp_path / "few.txt"), ranks=(0, 9)).examples("train", 1, random.Random(0))


def test_what_no_sentence_meets_cannot_be_demonstrated(task):
    with pytest.raises(AdvalignError, match="no sentence of the data meets 'with zebra, zoo, at most 4 words:'"):
        task.demonstrate(task._example(("zoo", "zebra"), 4, "train"), random.Random(0))


@pytest.mark.parametrize(
    "wrong",
    [{"num_words": 0}, {"slack": -1}, {"shortest": 2}, {"longest": 3}, {"ranks": (9, 9)}, {"held_out": 0.0}, {"insert": 1.5}],
)
def test_fields_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sentences(data="nowhere.txt", **wrong)


def test_one_sentence_is_decided_in_linear_time():
    assert not one_sentence("a" * 200_000)
    assert not one_sentence("." * 200_000)
    assert not one_sentence(" \n" * 100_000)
