"""The word attack: exact on additive victims, the same in any company, within every constraint it states."""

import gzip
import itertools
import json
import random

import pytest
import torch

from advalign.attacks import Words, _words_edits
from advalign.errors import ConfigError
from advalign.evaluation.suites.budget import changed_words
from advalign.interfaces import Target
from advalign.types import Budget, Example

WEIGHTS = {"good": 3.0, "great": 5.0, "fine": 1.5, "superb": 4.0, "lovely": 2.0, "bad": -3.0, "awful": -4.5, "dull": -2.0, "dire": -1.5}
# Substitutes of weight 0, so that the fall of a substitution is the weight of its word: leave-one-out knows it exactly.
NEUTRAL = {word: [f"{word}ish", f"{word}y"] for word in WEIGHTS}


class Bag(Target):
    """Logits (0, b + sum of the words' weights); `sent` is every text in order, `calls` how many there were."""

    def __init__(self, weights=WEIGHTS, bias=0.1):
        self.weights, self.bias, self.sent, self.calls = weights, bias, [], 0

    def score(self, text):
        return self.bias + sum(self.weights.get(word, 0.0) for word in text.lower().split())

    def predict(self, texts, pairs=None):
        self.sent += list(dict.fromkeys(texts))
        self.calls += 1
        return torch.tensor([[0.0, self.score(text)] for text in texts], dtype=torch.float64)


def path_of(tmp_path, table, name="lexicon.json.gz"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(json.dumps(table).encode()) if name.endswith(".gz") else json.dumps(table).encode())
    return str(path)


def reviews(number=40, words=9, seed=0):
    """Sentences of filler and opinion, labelled by the bag itself, so that each is right before the attack."""
    rng, bag, examples = random.Random(seed), Bag(), []
    pool = [*WEIGHTS, "movie", "plot", "ocean", "table", "actor", "music"]
    while len(examples) < number:
        text = " ".join(rng.sample(pool, words))
        examples.append(Example(prompt=text, label=int(bag.score(text) > 0), id=f"r{len(examples)}"))
    return examples


def fewest(example, table, limit):
    """By brute force over all sets of places and all substitutes: the smallest number of edits that flips the bag, or None."""
    words, bag = example.prompt.split(), Bag()
    for size in range(1, limit + 1):
        for places in itertools.combinations([i for i, w in enumerate(words) if w in table], size):
            for chosen in itertools.product(*(table[words[i]] for i in places)):
                new = list(words)
                for i, word in zip(places, chosen, strict=True):
                    new[i] = word
                if (bag.score(" ".join(new)) > 0) != bool(example.label):
                    return size
    return None


@pytest.mark.parametrize("rank", ["leave_one_out", "unknown", "saliency", "gain"])
def test_greedy_is_optimal_on_an_additive_victim(tmp_path, rank):
    """Every fall is the same for a word wherever it stands, so taking the largest first needs the fewest edits there are."""
    attack = Words(style="textfooler", rank=rank, lexicon=path_of(tmp_path, NEUTRAL), max_changed=0.5)
    examples = reviews()
    proposals = attack.propose(Bag(), examples, Budget(), random.Random(0))
    sizes = [fewest(e, NEUTRAL, limit=4) for e in examples]
    edits = [None if p.text is None else round(changed_words(e.prompt, p.text) * 9) for e, p in zip(examples, proposals, strict=True)]
    assert edits == sizes
    assert {1, 2, 3} <= set(sizes)
    assert None in {fewest(e, NEUTRAL, limit=1) for e in examples}


def test_ranking_by_gain_is_optimal_where_importance_misleads(tmp_path):
    """great (5) may only become superb (4), a fall of 1; good (3) may become dull (-2), a fall of 5. Score 0.1 + 8: good -> dull leaves
    3.1, and great -> superb 2.1. One more word fine (1.5) -> dire (-1.5). With bias -4.9: 3.1 + 1.5; one edit, good -> dull, suffices."""
    table = {"great": ["superb"], "good": ["dull"], "fine": ["dire"]}
    example = Example(prompt="great plot good music fine table", label=1, id="a")
    options = {"style": "textfooler", "lexicon": path_of(tmp_path, table), "max_changed": 0.5}
    texts = {}
    for rank in ("leave_one_out", "gain"):
        (proposal,) = Words(**options, rank=rank).propose(Bag(bias=-4.9), [example], Budget(), random.Random(0))
        texts[rank] = proposal.text
    assert texts["gain"] == "great plot dull music fine table"
    assert texts["leave_one_out"] == "superb plot dull music fine table"


def test_saliency_weighs_gain_as_the_paper_does(tmp_path):
    """PWWS, eq. 8: order by softmax(S)_i * gain_i, both falls of p = sigmoid(z); z = 2.2 before.
    alpha: weight 2, becomes 0.5: S = s(2.2) - s(0.2) = 0.350, gain = s(2.2) - s(0.7) = 0.232; beta: weight 1, becomes -1:
    S = s(2.2) - s(1.2) = 0.132, gain = s(2.2) - s(0.2) = 0.350. e^0.350 * 0.232 = 0.329 < e^0.132 * 0.350 = 0.400: beta goes first,
    though leave-one-out begins with alpha. Neither alone is enough; both give z = 2.2 - 1.5 - 2 = -1.3."""
    weights = {"alpha": 2.0, "beta": 1.0, "alphb": 0.5, "betb": -1.0, "rest": -1.0}
    table = {"alpha": ["alphb"], "beta": ["betb"]}
    example = Example(prompt="rest alpha beta rest", label=1, id="a")
    orders = {}
    for rank in ("saliency", "leave_one_out"):
        bag = Bag(weights, bias=1.2)
        attack = Words(style="pwws", rank=rank, lexicon=path_of(tmp_path, table), max_changed=0.5)
        (proposal,) = attack.propose(bag, [example], Budget(), random.Random(0))
        assert proposal.text == "rest alphb betb rest"
        orders[rank] = bag.sent
    assert orders["saliency"] == [
        "rest alpha beta rest",
        "rest [UNK] beta rest",
        "rest alpha [UNK] rest",
        "rest alphb beta rest",
        "rest alpha betb rest",
        "rest alphb betb rest",
    ]
    assert orders["leave_one_out"][3:] == ["rest alphb beta rest", "rest alphb betb rest"]


def style(name, tmp_path, **fields):
    lexicon = {} if name == "deepwordbug" else {"lexicon": path_of(tmp_path, NEUTRAL)}
    return Words(style=name, **lexicon, **fields)


ALL_STYLES = pytest.mark.parametrize("name", ["textfooler", "textbugger", "pwws", "deepwordbug"])


@ALL_STYLES
def test_company_and_order_do_not_matter_and_the_batch_needs_fewer_calls(name, tmp_path):
    examples, attack = reviews(12), style(name, tmp_path, max_changed=0.5)
    together, batch = attack.propose(batch_target := Bag(), examples, Budget(), random.Random(0)), batch_target
    backwards = attack.propose(Bag(), examples[::-1], Budget(), random.Random(0))[::-1]
    alone, calls = [], 0
    for example in examples:
        alone += attack.propose(bag := Bag(), [example], Budget(), random.Random(0))
        calls += bag.calls
    assert [(p.text, p.note) for p in together] == [(p.text, p.note) for p in alone] == [(p.text, p.note) for p in backwards]
    assert sum(p.text is not None for p in together) >= 5
    assert batch.calls * 3 < calls


@ALL_STYLES
def test_constraints_are_kept(name, tmp_path):
    """floor(0.3 * 9) = 2 words; stop words and everything between the words stay as they are."""
    examples = [Example(prompt=f"The {e.prompt}, and it was not !", label=e.label, id=e.id) for e in reviews(30)]
    successes = 0
    for share, budget in ((0.3, Budget()), (0.9, Budget(edits=0.15))):
        proposals = style(name, tmp_path, max_changed=share).propose(Bag(), examples, budget, random.Random(0))
        for example, proposal in zip(examples, proposals, strict=True):
            if proposal.text is None:
                continue
            successes += 1
            assert changed_words(example.prompt, proposal.text) <= min(share, budget.edits or 1) + 1e-9
            assert proposal.text.startswith("The ")
            assert proposal.text.endswith(", and it was not !")
            assert (Bag().score(proposal.text) > 0) != bool(example.label)
    assert successes >= 10


@ALL_STYLES
@pytest.mark.parametrize("queries", [1, 5, 17])
def test_queries_are_counted_and_never_exceed_the_budget(name, queries, tmp_path):
    for example in reviews(8):
        for limit in (queries, None):
            (proposal,) = style(name, tmp_path).propose(bag := Bag(), [example], Budget(queries=limit), random.Random(0))
            assert len(bag.sent) == len(set(bag.sent))
            assert proposal.note.endswith(f"after {len(bag.sent)} queries")
            assert limit is None or len(bag.sent) <= limit


def test_more_queries_never_hurt_and_wrong_examples_are_left(tmp_path):
    examples, attack = reviews(30), style("textfooler", tmp_path, max_changed=0.5)
    counts = [
        sum(p.text is not None for p in attack.propose(Bag(), examples, Budget(queries=q), random.Random(0))) for q in (3, 8, 12, 40, None)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    flipped = [Example(prompt=e.prompt, label=1 - e.label, id=e.id) for e in examples]
    for proposal in attack.propose(bag := Bag(), flipped, Budget(), random.Random(0)):
        assert proposal.text is None
        assert proposal.note.startswith("skipped")
    assert len(bag.sent) == 30


def test_case_and_parts_of_speech(tmp_path):
    """Parts of speech take turns under the cap; capitals are carried over; a list of its own word is empty."""
    table = {"good": {"n": ["goodness", "commodity"], "a": ["fine", "dull", "good"], "r": ["well"]}}
    attack = Words(style="textfooler", lexicon=path_of(tmp_path, table, "lexicon.json"), candidates=4)
    assert attack.options("good", random.Random(0)) == ["goodness", "fine", "well", "commodity"]
    assert attack.options("Good", random.Random(0)) == ["Goodness", "Fine", "Well", "Commodity"]
    assert attack.options("GOOD", random.Random(0)) == ["GOODNESS", "FINE", "WELL", "COMMODITY"]
    assert attack.options("not", random.Random(0)) == attack.options("12", random.Random(0)) == []


@pytest.mark.parametrize("word", ["excellent", "plot", "an", "Zoë"])
def test_edits_of_characters_are_what_they_are_called(word):
    """Each by its multiset of letters, or by its length; never the word itself among the options."""
    for seed in range(30):
        rng = random.Random(seed)
        assert sorted(_words_edits.swap(word, rng)) == sorted(word)
        assert len(_words_edits.insert(word, rng)) == len(word) + 1 == len(_words_edits.delete(word, rng)) + 2
        assert _words_edits.space(word, rng).replace(" ", "") == word
        inside = _words_edits.delete_inside(word, rng)
        assert (inside[0], inside[-1]) == (word[0], word[-1])
        alike = _words_edits.homoglyph(word, rng)
        assert sum(a != b for a, b in zip(alike, word, strict=True)) == 1
        assert alike.encode("ascii", "ignore").decode() != alike
        options = Words(candidates=8).options(word, random.Random(seed))
        assert word not in options
        assert len(options) == len(set(options)) <= 8


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"style": "textfoolr"}, "Did you mean 'textfooler'"),
        ({"style": "textfooler"}, "synonyms from a JSON file"),
        ({"rank": "gian"}, "Did you mean 'gain'"),
        ({"sources": ("bug",)}, "Did you mean 'bugs'"),
        ({"max_changed": 0.0}, "max_changed"),
    ],
)
def test_nonsense_is_refused(bad, match):
    with pytest.raises(ConfigError, match=match):
        Words(**bad)


def test_a_missing_lexicon_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        Words(style="pwws", lexicon=str(tmp_path / "none.json")).propose(Bag(), reviews(1), Budget(), random.Random(0))
