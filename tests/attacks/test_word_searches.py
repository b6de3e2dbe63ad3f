"""Searches over substitutions against the oracle that tries all of them; constraints against what they say; gradients against loops."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers import victims
from torch.nn import functional as F

from advalign import attacks
from advalign.attacks import _words_constraints as constraints
from advalign.attacks import _words_edits as spelling
from advalign.attacks import _words_models as models
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.interfaces import Target
from advalign.targets import ClassifierTarget
from advalign.types import Budget, Example

WEIGHTS = {"good": 3.0, "great": 5.0, "fine": 1.5, "superb": 4.0, "lovely": 2.0, "bad": -3.0, "awful": -4.5, "dull": -2.0, "dire": -1.5}
ISH = {word: [f"{word}ish", "plain"] for word in WEIGHTS}


class Bag(Target):
    """Logits (0, bias + sum of the words' weights + weights of pairs of words that stand together)."""

    def __init__(self, weights=WEIGHTS, bias=0.1, pairs=None):
        self.weights, self.bias, self.pairs, self.sent = weights, bias, pairs or {}, []

    def score(self, text):
        words = text.split()
        return (
            self.bias
            + sum(self.weights.get(w, 0.0) for w in words)
            + sum(v for (a, b), v in self.pairs.items() if a in words and b in words)
        )

    def predict(self, texts, pairs=None):
        self.sent += list(dict.fromkeys(texts))
        return torch.tensor([[0.0, self.score(text)] for text in texts], dtype=torch.float64)


def reviews(number=30, words=8, seed=0):
    rng, bag, examples = random.Random(seed), Bag(), []
    pool = [*WEIGHTS, "movie", "plot", "ocean", "table", "actor", "music"]
    while len(examples) < number:
        text = " ".join(rng.sample(pool, words))
        examples.append(Example(prompt=text, label=int(bag.score(text) > 0), id=f"r{len(examples)}"))
    return examples


@pytest.fixture
def lexicon(tmp_path):
    def write(table, name="lexicon.json"):
        (tmp_path / name).write_text(json.dumps(table))
        return str(tmp_path / name)

    return write


def run(attack, examples, bag=None, budget=None, seed=0):
    return attack.propose(bag or Bag(), examples, budget or Budget(), random.Random(seed))


def success(proposals):
    return [p.text is not None for p in proposals]


# ------------------------------------------------------------------------------------------------ the oracle


def by_hand(example, table, edits, bag):
    """The fewest substitutions that flip `bag`, by loops over all of them; None beyond `edits`."""
    words = example.prompt.split()
    for size in range(1, edits + 1):
        for places in itertools.combinations([i for i, w in enumerate(words) if w in table], size):
            for chosen in itertools.product(*(table[words[i]] for i in places)):
                new = list(words)
                for i, word in zip(places, chosen, strict=True):
                    new[i] = word
                if (bag.score(" ".join(new)) > 0) != bool(example.label):
                    return size
    return None


def test_exhaustive_finds_the_fewest_edits_there_are(lexicon):
    examples, bag = reviews(40), Bag()
    attack = attacks.Exhaustive(lexicon=lexicon(ISH), max_changed=1.0)
    sizes = [
        None if p.text is None else sum(a != b for a, b in zip(e.prompt.split(), p.text.split(), strict=True))
        for e, p in zip(examples, run(attack, examples, bag), strict=True)
    ]
    assert sizes == [by_hand(e, ISH, 2, bag) for e in examples]
    assert {1, 2, None} == set(sizes)


def test_exhaustive_counts_its_texts_and_refuses_too_many(lexicon):
    """Three words of 2, 2 and 2 substitutes: 6 texts of one edit and 3 * 4 of two; with the text itself 19 queries."""
    example = Example(prompt="good table great fine", label=1, id="x")
    attack = attacks.Exhaustive(lexicon=lexicon(ISH), max_changed=1.0)
    assert attack.count(example) == 18
    run(attack, [example], bag := Bag(bias=100.0))
    assert len(bag.sent) == len(set(bag.sent)) == 19
    run(attacks.Exhaustive(lexicon=lexicon(ISH), max_changed=0.25), [example], bag := Bag(bias=100.0))
    assert len(bag.sent) == 7  # floor(0.25 * 4) = 1 word
    # One more than is allowed: it is not asked about, and the other one, of two words, is.
    short = Example(prompt="good table", label=1, id="y")
    refused, tried = run(attacks.Exhaustive(lexicon=lexicon(ISH), texts=17, max_changed=1.0), [example, short], bag := Bag(bias=100.0))
    assert refused.refused == "18 texts within 2 substitutions, 17 are allowed"
    assert not tried.refused
    assert all(len(text.split()) == 2 for text in bag.sent)


def searches(path, **fields):
    options = {"lexicon": path, "max_changed": 0.25, **fields}
    return {
        "greedy": attacks.Words(style="textfooler", **options),
        "gain": attacks.Words(style="textfooler", rank="gain", **options),
        "pwws": attacks.Words(style="pwws", **options),
        "beam": attacks.Beam(width=3, **options),
        "population": attacks.Population(size=20, generations=4, **options),
    }


def test_no_search_beats_the_oracle_and_on_a_linear_bag_greedy_is_optimal(lexicon):
    """floor(0.25 * 8) = 2 substitutions, which the oracle tries all. In the linear bag every substitute has weight 0, so the largest
    fall first is best; with pairs of words that count together it is not, and the gap is what greedy missed."""
    path, examples = lexicon(ISH), reviews(60)
    # Two substitutes that say something only together, which nothing that looks one word ahead can know.
    pairs = {(f"{a}ish", f"{b}ish"): -8.0 for a, b in itertools.combinations(("fine", "lovely", "superb", "good"), 2)}
    for bag in (Bag(), Bag(pairs=pairs)):
        right = [e for e in examples if (bag.score(e.prompt) > 0) == bool(e.label)]
        best = success(run(attacks.Exhaustive(lexicon=path, max_changed=0.25), right, bag))
        rates = {"oracle": sum(best)}
        for name, attack in searches(path).items():
            successes = success(run(attack, right, bag))
            assert all(b >= f for b, f in zip(best, successes, strict=True)), name
            rates[name] = sum(successes)
        if not bag.pairs:
            assert rates["greedy"] == rates["gain"] == rates["beam"] == rates["oracle"] > 5
        else:
            assert rates["greedy"] < rates["oracle"]
            assert rates["beam"] >= rates["greedy"]


def test_a_beam_that_keeps_everything_is_the_oracle(lexicon):
    path, examples = lexicon(ISH), reviews(40, seed=3)
    pairs = {("fineish", "lovelyish"): -20.0, ("goodish", "dullish"): 15.0}
    wide = attacks.Beam(lexicon=path, width=10_000, max_changed=0.25)
    oracle = attacks.Exhaustive(lexicon=path, max_changed=0.25)
    assert success(run(wide, examples, Bag(pairs=pairs))) == success(run(oracle, examples, Bag(pairs=pairs)))


def test_a_wider_beam_finds_the_pair_that_a_narrow_one_drops(lexicon):
    """Score 0.1 + 3 + 1.5 + 2 = 6.6. goodish alone leaves 3.6, and with any other 1.6 at best; fineish leaves 5.1, lovelyish 4.6, and
    both together 3.1 - 8 < 0: a beam of 1 keeps goodish, one of 3 keeps all three."""
    table = {w: [f"{w}ish"] for w in ("good", "fine", "lovely")}
    example = Example(prompt="good table fine lovely", label=1, id="x")
    bag = Bag(pairs={("fineish", "lovelyish"): -8.0})
    for width, texts in ((1, None), (3, "good table fineish lovelyish")):
        (proposal,) = run(attacks.Beam(lexicon=lexicon(table), width=width, max_changed=0.5), [example], bag)
        assert proposal.text == texts
    # Two places of four words: those whose [UNK] costs most are good (3) and lovely (2).
    run(attacks.Beam(lexicon=lexicon(table), width=3, places=2, max_changed=0.5), [example], few := Bag(bias=5.0))
    assert not any("fineish" in text for text in few.sent)


def test_the_population_recombines_what_it_found(lexicon):
    """All five good words must go. A child has at most the changes of both parents and one more: 1, 3, 7 after 1, 2, 3 generations,
    so that two cannot reach five, and without crossing five would be needed."""
    example = Example(prompt="good great fine superb lovely", label=1, id="x")
    path = lexicon({w: [f"{w}ish"] for w in WEIGHTS})
    options = {"lexicon": path, "size": 12, "max_changed": 1.0}
    (late,) = run(attacks.Population(generations=12, **options), [example], bag := Bag(bias=-0.1))
    (early,) = run(attacks.Population(generations=2, **options), [example], Bag(bias=-0.1))
    (four,) = run(attacks.Population(generations=4, **options), [example], Bag(bias=-0.1))
    assert late.text == four.text == "goodish greatish fineish superbish lovelyish"
    assert early.text is None
    assert len(bag.sent) == len(set(bag.sent))
    # Elitism: what has been reached is never lost, so the number of changed words of the best text never falls.
    limited = attacks.Population(generations=12, **{**options, "max_changed": 0.4})
    run(limited, [example], bag := Bag(bias=-0.1))
    assert max(sum(w.endswith("ish") for w in text.split()) for text in bag.sent) == 2


ALL = ("greedy", "gain", "pwws", "beam", "population", "exhaustive")


def named(name, path, **fields):
    options = {"max_changed": 0.4, **fields}
    return attacks.Exhaustive(lexicon=path, **options) if name == "exhaustive" else searches(path, **options)[name]


@pytest.mark.parametrize("name", ALL)
def test_order_company_and_batches_do_not_matter(name, lexicon):
    examples, path = reviews(10, seed=5), lexicon(ISH)
    together = [(p.text, p.note) for p in run(named(name, path, batch_size=64), examples)]
    mixed = random.Random(1).sample(range(10), 10)
    permuted = run(named(name, path), [examples[i] for i in mixed])
    assert [(p.text, p.note) for p in permuted] == [together[i] for i in mixed]
    assert [(p.text, p.note) for e in examples for p in run(named(name, path, batch_size=1), [e])] == together


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("queries", [1, 9])
def test_no_search_spends_more_than_its_budget_and_each_says_what_it_spent(name, queries, lexicon):
    for example in reviews(4):
        for limit in (queries, None):
            (proposal,) = run(named(name, lexicon(ISH)), [example], bag := Bag(), Budget(queries=limit))
            assert len(bag.sent) == len(set(bag.sent)) == proposal.queries
            assert limit is None or len(bag.sent) <= limit


# --------------------------------------------------------------------------------------------- constraints


def test_parts_of_speech_by_lookup(lexicon):
    """good: adjective; banana: noun, run: noun or verb; walk: verb. A noun may stand for a verb only where that is allowed."""
    path = lexicon({"good": {"a": []}, "banana": {"n": []}, "run": {"n": [], "v": []}, "walk": {"v": []}, "fine": {"a": [], "r": []}})
    rule, strict = constraints.WordConstraints(tags=path), constraints.WordConstraints(tags=path, verb_is_noun=False)
    assert rule.agrees("good", "fine")
    assert not rule.agrees("good", "banana")
    assert rule.agrees("good", "qwerty")  # what is not listed may stand for anything
    assert rule.agrees("banana", "walk")
    assert not strict.agrees("banana", "walk")
    assert strict.agrees("runs", "walked")  # by their stems
    table = lexicon({"good": ["banana", "fine"]}, "near.json")
    attack = attacks.Words(style="textfooler", lexicon=table, max_changed=1.0, constraints={"tags": path})
    run(attack, [Example(prompt="good table", label=1, id="x")], bag := Bag())
    assert bag.sent == ["good table", " table", "fine table"]


@pytest.mark.parametrize("name", ALL)
def test_the_edit_distance_is_kept_by_every_search(name, lexicon):
    """goodish is 3 characters from good: within 5 characters one word may change, within 6 two."""
    path = lexicon({w: [f"{w}ish"] for w in WEIGHTS})
    for characters, words in ((2, 0), (5, 1), (6, 2)):
        run(named(name, path, constraints={"characters": characters}), reviews(6, seed=2), bag := Bag(bias=0.1))
        changed = [sum(w.endswith("ish") for w in text.split()) for text in bag.sent]
        assert max(changed) <= words
    assert max(changed) == 2


def test_edit_distance_is_levenshteins():
    assert spelling.distance("kitten", "sitting") == 3
    assert spelling.distance("", "abc") == spelling.distance("abc", "") == 3
    rng = random.Random(0)
    for _ in range(50):
        a, b = ("".join(rng.choices("ab", k=rng.randrange(6))) for _ in range(2))
        slow = {}
        for i, j in itertools.product(range(len(a) + 1), range(len(b) + 1)):
            if min(i, j) == 0:
                slow[i, j] = max(i, j)
            else:
                slow[i, j] = min(slow[i - 1, j] + 1, slow[i, j - 1] + 1, slow[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
        assert spelling.distance(a, b) == slow[len(a), len(b)]


def test_a_short_text_may_be_given_some_words(lexicon):
    """floor(0.1 * 8) = 0 words; at_least 2 gives two; a budget of edits binds all the same."""
    example = Example(prompt="good great table table movie plot actor music", label=1, id="x")
    options = {"style": "textfooler", "lexicon": lexicon(ISH), "max_changed": 0.1}
    assert run(attacks.Words(**options), [example])[0].refused == "no word may change"
    (two,) = run(attacks.Words(**options, constraints={"at_least": 2}), [example], Bag(bias=-0.5))
    assert sum(a != b for a, b in zip(example.prompt.split(), two.text.split(), strict=True)) == 2
    assert run(attacks.Words(**options, constraints={"at_least": 2}), [example], Bag(bias=-0.5), Budget(edits=0.1))[0].text is None


def test_windows_hold_the_word_and_what_stands_between():
    words = list("abcdefg")
    pieces = spelling.pieces("<a b,c d e-f; g>")
    assert pieces[1::2] == ["a", "b", "c", "d", "e-f", "g"]
    assert constraints.window(pieces[1::2], pieces, 0, 3) == "a b,c"
    assert constraints.window(pieces[1::2], pieces, 3, 3) == "c d e-f"
    assert constraints.window(pieces[1::2], pieces, 5, 3) == "d e-f; g"
    for place, size in itertools.product(range(7), range(2, 8)):
        shown = constraints.window(words, spelling.pieces(" ".join(words)), place, size).split()
        assert words[place] in shown
        assert len(shown) == size


class Fake:
    """An encoder whose similarity of two texts is the share of equal words, place by place; it counts what it is asked."""

    def __init__(self):
        self.asked = []

    def cosines(self, pairs, device="cpu"):
        self.asked.append(list(pairs))
        return [sum(a == b for a, b in zip(x.split(), y.split(), strict=True)) / len(x.split()) for x, y in pairs]


@pytest.fixture
def fake(monkeypatch):
    encoder = Fake()
    monkeypatch.setattr(models, "similarity", lambda given: encoder)
    return encoder


def test_similarity_is_to_the_original_or_to_the_text_before(lexicon, fake):
    """Of eight words each change costs 1/8: at 0.85 one change is within, two are not; against the text before, any number is."""
    example = Example(prompt="good great fine superb lovely movie plot actor", label=1, id="x")
    options = {"style": "textfooler", "lexicon": lexicon({w: [f"{w}ish"] for w in WEIGHTS}), "max_changed": 1.0}
    for against, most in (("original", 1), ("previous", 5)):
        attack = attacks.Words(**options, constraints={"encoder": "fake", "similarity": 0.85, "against": against})
        run(attack, [example], bag := Bag(bias=1.0))
        assert max(sum(w.endswith("ish") for w in text.split()) for text in bag.sent) == most
    # In a window of two words one change costs a half; a text shorter than its window passes unseen.
    for window, most in ((2, 0), (9, 5)):
        attack = attacks.Words(**options, constraints={"encoder": "fake", "similarity": 0.85, "window": window})
        run(attack, [example], bag := Bag(bias=1.0))
        assert max(sum(w.endswith("ish") for w in text.split()) for text in bag.sent) == most


def test_of_what_fools_the_model_the_most_similar_is_taken(lexicon, monkeypatch):
    near = {"good bad": 0.9, "bad bad": 0.81, "awful bad": 0.95, "dire bad": 0.5}

    class Table:
        def cosines(self, pairs, device):
            return [near[text] for _, text in pairs]

    monkeypatch.setattr(models, "similarity", lambda given: Table())
    table = {"good": ["bad", "awful", "dire"]}
    attack = attacks.Words(style="textfooler", lexicon=lexicon(table), max_changed=1.0, constraints={"encoder": "fake", "similarity": 0.8})
    (proposal,) = run(attack, [Example(prompt="good bad", label=1, id="x")], bag := Bag(bias=1.0))
    assert proposal.text == "awful bad"
    assert "dire bad" not in bag.sent


def test_questions_of_many_examples_are_answered_together(lexicon, fake):
    examples = reviews(16, seed=7)
    attack = attacks.Words(style="textfooler", lexicon=lexicon(ISH), max_changed=0.5, constraints={"encoder": "fake", "similarity": 0.1})
    run(attack, examples)
    together, fake.asked = len(fake.asked), []
    for example in examples:
        run(attack, [example])
    assert together * 4 <= len(fake.asked)


def test_an_encoder_is_exact_and_reads_a_sentence_once(minilm):
    encoder = models.Similarity(minilm)
    texts = ["the movie was good", "the movie was not good at all , it was dreadful", "good"]
    pairs = [(a, b) for a in texts for b in texts]
    cosines = encoder.cosines(pairs)
    slow = {}
    for text in texts:  # one by one, without padding
        batch = encoder.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            slow[text] = encoder.model(**batch).last_hidden_state[0].mean(0)
    expected = [F.cosine_similarity(slow[a], slow[b], dim=0).item() for a, b in pairs]
    assert cosines == pytest.approx(expected, abs=1e-5)
    encoder.cosines(pairs)
    assert encoder.num_encoded == 3


def test_a_masked_language_model_is_read_at_its_mask_alone(minilm):
    """The top words of the full model's logits at the mask, whole words only, padded with others or alone."""
    model = models.MaskedLM(minilm)
    texts = ["the movie was [MASK]", "a [MASK] plot and a very long list of other words behind it"]
    filled = model.fill(texts, 5)
    for text, words in zip(texts, filled, strict=True):
        batch = model.tokenizer(text, return_tensors="pt")
        at = batch["input_ids"][0].tolist().index(model.tokenizer.mask_token_id)
        with torch.no_grad():
            order = model.model(**batch).logits[0, at].argsort(descending=True).tolist()
        names = [name for name in model.tokenizer.convert_ids_to_tokens(order) if name.isalpha()]
        assert words == names[:5]
    assert model.fill(texts[::-1], 5) == filled[::-1]


def test_substitutes_in_context_depend_on_what_was_already_changed(lexicon, monkeypatch):
    """The model of language here fills in the word before the mask: after a change it is asked about the changed text."""

    class Echo:
        mask = "[MASK]"

        def fill(self, texts, number, device="cpu"):
            return [[text.split()[max(text.split().index("[MASK]") - 1, 0)] + "ish"] for text in texts]

    monkeypatch.setattr(models, "masked_lm", lambda given: Echo())
    attack = attacks.Words(style="bae", masked_lm="echo", max_changed=1.0)
    # After the text and three leave-one-out texts: great (5) costs most, then good. The first becomes tableish, after table;
    # the second then stands behind tableish.
    run(attack, [Example(prompt="table great good", label=1, id="x")], bag := Bag(bias=10.0))
    assert bag.sent[4:6] == ["table tableish good", "table tableish tableishish"]


# ------------------------------------------------------------------------------------------------ gradients


def test_ranking_by_gradient_is_one_query_and_one_gradient_for_all_words(lexicon):
    """The order is that of a loop: the L1 norm of the mean gradient over a word's tokens, by autograd on one row at a time."""
    network, examples = victims.classifier(dtype="float64"), victims.sentences(6)
    table = {word: ["the"] for word in (*victims.GOOD, *victims.BAD, "movie", "plot", "acting")}
    attack = attacks.Words(style="a2t", lexicon=lexicon(table), max_changed=1.0)
    assert (attack.access, attacks.Words.access) == ("gradients", "text")
    sent = {}
    for example in examples:
        target, texts = ClassifierTarget(network), []
        predict = target.predict
        target.predict = lambda given, pairs=None, p=predict, t=texts: (t.extend(given), p(given, pairs))[1]
        (proposal,) = attack.propose(target, [example], Budget(), random.Random(0))
        assert target.num_gradients == 1
        assert proposal.queries == target.num_queries
        sent[example.id] = texts
    for example in examples:
        tokens = network.encoder.classify([example.prompt])
        leaf = network.model.get_input_embeddings()(tokens.ids).detach().requires_grad_()
        logits = network.model(inputs_embeds=leaf, attention_mask=tokens.mask.long()).logits
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([example.label])), leaf)
        norms = gradient[0].abs().sum(1)[1:-1] if tokens.ids.shape[1] == len(example.prompt.split()) + 2 else gradient[0].abs().sum(1)
        words = example.prompt.split()
        assert len(norms) == len(words)
        order = sorted((i for i, w in enumerate(words) if w in table), key=lambda i: -norms[i])
        first = [a != b for a, b in zip(words, sent[example.id][1].split(), strict=True)].index(True)
        assert first == order[0]


def test_gradients_of_several_examples_are_those_of_each_alone(lexicon):
    network, examples = victims.classifier(dtype="float64"), victims.sentences(8)
    attack = attacks.Words(style="a2t", lexicon=lexicon({w: ["the"] for w in (*victims.GOOD, *victims.BAD)}), max_changed=0.5)
    together = attack.propose(shared := ClassifierTarget(network), examples, Budget(), random.Random(0))
    alone = [attack.propose(ClassifierTarget(network), [e], Budget(), random.Random(0))[0] for e in examples]
    assert [(p.text, p.note) for p in together] == [(p.text, p.note) for p in alone]
    assert any(success(together))
    assert shared.num_gradients == sum("skipped" not in p.note for p in together)
    (none,) = attack.propose(ClassifierTarget(network), examples[:1], Budget(queries=1), random.Random(0))
    assert none.queries == 1


def test_sixteen_in_flight_need_a_quarter_of_the_forwards():
    """Every character edit of 16 examples, one by one and together: the same texts, the same result."""
    network, examples = victims.classifier(), victims.sentences(16)
    attack = attacks.Words(style="deepwordbug", max_changed=0.5)
    together = attack.propose(shared := ClassifierTarget(network), examples, Budget(), random.Random(0))
    alone, forwards = [], 0
    for example in examples:
        alone += attack.propose(target := ClassifierTarget(network), [example], Budget(), random.Random(0))
        forwards += target.num_forwards
    assert [p.text for p in together] == [p.text for p in alone]
    assert shared.num_forwards * 4 <= forwards


@pytest.mark.parametrize(
    ("cls", "bad", "match"),
    [
        (attacks.Beam, {"width": 0}, "attacks.beam.width: 0 given"),
        (attacks.Population, {"size": 1}, "attacks.population.size: 1 given"),
        (attacks.Exhaustive, {"edits": 0}, "attacks.exhaustive.edits: 0 given"),
        (attacks.Beam, {"sources": ("synonym",)}, "Did you mean 'synonyms'"),
        (attacks.Words, {"style": "bae"}, r"masked_lm: style 'bae' takes masked_lm from a language model; none is given"),
        (attacks.Words, {"constraints": {"similarty": 0.9}}, "no constraint 'similarty'.*Did you mean 'similarity'"),
        (attacks.Words, {"constraints": {"against": "orginal"}}, "Did you mean 'original'"),
        (attacks.Words, {"constraints": {"window": 1}}, "window: 1 given; a whole number of at least 2"),
    ],
)
def test_nonsense_is_refused(cls, bad, match):
    with pytest.raises(ConfigError, match=match):
        cls(**bad)


@pytest.mark.parametrize("kind", ["words", "beam", "population", "exhaustive"])
def test_the_configuration_on_its_page_builds_in_a_suite(kind):
    page = Path(attacks.__file__).parents[2] / "docs" / "algorithms" / f"{kind}.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    built = [a for block in blocks for a in Suite.load({"data": [{"prompt": "x", "label": 0}], **yaml.safe_load(block)}).attacks.values()]
    assert {type(attack).__name__.lower() for attack in built} == {kind}
    assert all(isinstance(attack.constraints, constraints.WordConstraints) for attack in built)
