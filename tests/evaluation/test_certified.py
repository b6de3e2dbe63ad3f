"""Certified rates and voting victims, on classifiers whose answers are known in closed form or by enumeration."""

import json
import math
import re
from itertools import combinations, product
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from helpers import victims
from torch import nn

from advalign import interpolation, yaml_files
from advalign.errors import BudgetError, ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.suites import certified
from advalign.evaluation.suites.certified import Masking, Smoothing
from advalign.evaluation.suites.fingerprint import suite_fingerprint
from advalign.functional import certify
from advalign.models import Network, load
from advalign.models.encode import Encoder
from advalign.models.scratch import train_tokenizer
from advalign.targets import ClassifierTarget, RanMask, Smoothed, random_copies
from advalign.types import Edit, Example, Outputs

ROOT = Path(__file__).parents[2]
WORDS = ["a", "b", "o", "x"]


class Toy(Network):
    """A network that is linear in the sum of its word vectors: margin = w . sum_t h_t + bias over real tokens."""

    def __init__(self, values, dim=3, bias=0.0, margin=None):
        tok = train_tokenizer("words", [" ".join(values)])
        tok.add_special_tokens({"mask_token": "<mask>"})
        super().__init__(nn.Module(), Encoder(tok, bidirectional=True, max_length=64), "classifier")
        self.w = torch.arange(1, dim + 1).double()
        table = torch.zeros(len(tok), dim, dtype=torch.float64)
        for word, value in values.items():
            table[tok.convert_tokens_to_ids(word)] = value * self.w / self.w.norm() ** 2  # w . h = value
        self.model.table = nn.Parameter(table)
        self.bias, self.margin = bias, margin
        self.rows = []

    def width(self, site):
        return self.model.table.shape[1]

    def mean_embedding_norm(self):
        return float(self.model.table.detach().norm(dim=1).mean())

    def forward(self, tokens, needs, edits=None, temperature=None):
        self.rows.append(tokens.ids.shape[0])
        hidden = self.model.table[tokens.ids]
        if edits:
            hidden = hidden + edits["embedding"].add
        value = ((hidden * tokens.mask[..., None]).sum(1) * self.w).sum(1) + self.bias
        value = value if self.margin is None else self.margin(value)
        return Outputs(class_logits=torch.stack([torch.zeros_like(value), value], 1))


def toy(**more):
    return Toy({"a": 2.0, "b": -3.0, "o": 0.5, "x": 9.0}, **more)


def examples(*texts):
    return [Example(prompt=t, label=label, id=f"e{i}") for i, (t, label) in enumerate(texts)]


# ----------------------------------------------------------------------------------------------------------- smoothing


@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_the_radius_of_a_linear_classifier_is_its_distance_and_does_not_depend_on_sigma(sigma):
    """R = |m| / (sqrt(T) ||w||): T tokens move together. Bounded by it with probability 1 - alpha, and near it with many copies."""
    net = toy()
    (example,) = examples(("a a o b", 1))  # m = 2 + 2 + 0.5 - 3 = 1.5
    exact = 1.5 / (math.sqrt(4) * math.sqrt(14))
    certificate = Smoothing(sigma=sigma, relative_to="absolute", n0=500, n=10_000, alpha=0.001).certify(net, "s", example, 0)
    assert certificate.correct
    assert 0.8 * exact < certificate.size <= exact
    # And the certificate cannot be larger: the shortest edit of that length and a little more turns the base classifier round.
    direction = net.w.expand(4, 3) / (2 * net.w.norm())
    for size, answer in ((0.999, 1), (1.001, 0)):
        logits = net(ClassifierTarget(net).tokens([example]), {"class_logits"}, {"embedding": Edit(-size * exact * direction[None])})
        assert int(logits.class_logits.argmax()) == answer


def test_the_radius_is_capped_where_all_copies_agree():
    (example,) = examples(("a a a", 1))
    certificate = Smoothing(sigma=1e-3, relative_to="absolute", n=500, alpha=0.01).certify(toy(), "s", example, 0)
    assert certificate.size == pytest.approx(1e-3 * NormalDist().inv_cdf(0.01 ** (1 / 500)), rel=1e-9)
    assert certificate.probability == pytest.approx(0.01 ** (1 / 500))


def test_relative_sigma_is_the_same_noise_in_another_unit():
    net = toy()
    (example,) = examples(("a o", 1))
    unit = net.mean_embedding_norm()
    relative = Smoothing(sigma=2.0, n=300).certify(net, "s", example, 0)
    absolute = Smoothing(sigma=2.0 * unit, relative_to="absolute", n=300).certify(net, "s", example, 0)
    assert relative.probability == absolute.probability
    assert 0 < relative.size == pytest.approx(absolute.size / unit)


def test_a_bound_exceeds_the_truth_as_often_as_alpha_allows():
    """p_A of the linear classifier is Phi(m / (sigma sqrt(T) ||w||)) = Phi(1/2); 300 examples at alpha = 0.2: the bound is too high on
    60 at most in expectation, four deviations are 28."""
    net = toy()
    sigma = 2.0 / (math.sqrt(1) * math.sqrt(14)) / 0.5
    truth = NormalDist().cdf(0.5)
    config = Smoothing(sigma=sigma, relative_to="absolute", n0=20, n=60, alpha=0.2)
    bounds = [config.certify(net, "s", Example(prompt="a", label=1, id=str(i)), 0).probability for i in range(300)]
    too_high = sum(b > truth for b in bounds)
    assert 0 < too_high <= 88
    assert len(set(bounds)) > 10  # every example has copies of its own


def test_a_coin_is_abstained_from():
    """bias 0 and words of value 0: every copy is a fair coin, so nothing is certified, and abstaining is not being right."""
    net = Toy({"a": 0.0})
    certificate = Smoothing(sigma=1.0, relative_to="absolute", n=400).certify(net, "s", examples(("a a", 1))[0], 0)
    assert (certificate.predicted, certificate.correct, certificate.size) == (None, False, 0.0)
    assert 0.35 < certificate.probability <= 0.5


def test_streams_are_the_example_s_own(monkeypatch):
    """Other examples, another order and another number of copies at once change nothing; another seed, name or id does."""
    net = toy()
    three = examples(("a o b", 1), ("o o", 1), ("a b", 0))
    config = {"s": Smoothing(sigma=1.0, n=200), "m": Masking(rate=0.5, n=5, n0=3)}
    all_at_once = certified.run(config, net, three)
    backwards = certified.run(config, net, three[::-1])
    monkeypatch.setattr(random_copies, "BATCH_TOKENS", 7)
    in_parts = certified.run(config, net, three)
    alone = certified.run(config, net, three[1:2])
    for name in config:
        assert all_at_once[name] == backwards[name][::-1] == in_parts[name]
        assert all_at_once[name][1:2] == alone[name]
    assert max(net.rows) > 7  # until then, more than one at once
    other = [certified.run(config, net, three, seed=1)["s"], certified.run({"t": config["s"]}, net, three)["t"]]
    assert all([c.probability for c in all_at_once["s"]] != [c.probability for c in o] for o in other)


# ------------------------------------------------------------------------------------------------------- masked words


def vote_of(net, text, kept):
    """(class, share) over all sets, one forward each."""
    split = text.split()
    copies = [" ".join(w if i in s else "<mask>" for i, w in enumerate(split)) for s in combinations(range(len(split)), kept)]
    votes = [int(net(net.encoder.classify([copy]), {"class_logits"}).class_logits.argmax()) for copy in copies]
    top = max((0, 1), key=votes.count)
    return top, votes.count(top) / len(votes)


def test_exact_votes_are_those_of_every_mask_and_no_substitution_within_the_certificate_changes_them():
    """All 81 texts of four words: the class and its share are those of enumeration; where one word is certified, none of the
    4 * 4 substitutions changes the vote, whatever classifier votes (this one turns round beyond a value of 4)."""
    net = toy(bias=-0.2, margin=lambda v: torch.where(v > 4, -v, v))
    config = Masking(rate=0.75, n=10, words=(1,))
    cache = {t: vote_of(net, " ".join(t), 1) for t in product(WORDS, repeat=4)}
    certain = fragile = 0
    for text in product("abo", repeat=4):
        certificate = config.certify(net, "m", Example(prompt=" ".join(text), label=1, id="e"), 0)
        top, share = cache[text]
        assert (certificate.predicted, certificate.probability) == ((top, share) if share > 0.5 else (None, certificate.probability))
        assert certificate.copies == 4
        others = [cache[(*text[:i], w, *text[i + 1 :])] for i in range(4) for w in WORDS]
        changed = any(other[0] != top or other[1] <= 0.5 for other in others)
        certain += certificate.size >= 1
        fragile += changed
        assert not (certificate.size >= 1 and changed), text
    assert certain > 0
    assert fragile > 0


def test_sampled_votes_have_the_bound_of_their_counts():
    """Twelve words, four kept: 495 sets, 200 drawn. The bound is below the exact share and not far; equal seeds are equal."""
    net = toy()
    text = "a b a o a b a o a b a o"
    config = Masking(rate=0.7, n0=50, n=200, alpha=0.01)
    certificate = config.certify(net, "m", Example(prompt=text, label=1, id="e"), 0)
    top, share = vote_of(net, text, 4)
    assert certificate.predicted == top == 1
    assert share - 0.2 < certificate.probability < share
    assert certificate.size == certify.ranmask_words(certificate.probability, words=12, num_kept=4)
    assert certificate == config.certify(net, "m", Example(prompt=text, label=1, id="e"), 0)


def test_what_stands_for_a_masked_word_does_not_tell_how_long_it_was():
    """Certified for ANY substitute: a word of one piece and one of seven are both one mask token in every copy that hides them."""
    texts = ["unbelievable", "it was fun", "fun was it"]
    net = load("scratch:encoder-tiny", head="classifier", tokenizer={"kind": "bpe", "size": 265}, texts=texts, max_length=32)
    pieces = [len(net.encoder.tokenizer(w, add_special_tokens=False)["input_ids"]) for w in ("fun", "unbelievable")]
    assert pieces[0] < pieces[1]
    hidden = [random_copies.mask_words(["it", "was", w], {0, 1}, "<unk>") for w in ("fun", "unbelievable")]
    assert hidden == ["it was <unk>"] * 2
    assert net.encoder.tokenizer.unk_token_id in net.encoder.classify(hidden, read=["<unk>"]).ids[0]


def test_rates_count_right_and_certified_examples():
    certificates = [
        certified.Certificate(certificate="m", example=str(i), predicted=p, correct=p == 1, size=s, probability=0.9, copies=10)
        for i, (p, s) in enumerate([(1, 3), (1, 1), (1, 0), (0, 5), (None, 0)])
    ]
    rows = certified.rates("m", Masking(words=(1, 2)), certificates)
    # Right: three. Within one word: the first two; within two: the first. The wrong one is certified to be wrong: it does not count.
    assert [(r["within"], r["certified accuracy"], r["abstained"], r["n"]) for r in rows] == [
        (0, 0.6, 0.2, 5), (1, 0.4, 0.2, 5), (2, 0.2, 0.2, 5),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- in a suite


def test_a_suite_certifies_and_reports_beside_its_attacks_and_resumes(tmp_path):
    described = {
        "data": [{"prompt": e.prompt, "label": e.label, "id": e.id} for e in victims.sentences(12)],
        "attacks": {"noise": {"kind": "embedding", "adversary": {"kind": "noise"}, "restarts": 1}},
        "examples": 3,
        "certified": {
            "smoothing": {"sigma": 0.4, "n0": 10, "n": 20, "radii": [0, 0.2]},
            "words": {"kind": "ranmask", "rate": 0.7, "replace": "unknown", "words": [1], "n": 20},
            "guess": {"kind": "ranmask", "rate": 0.7, "replace": "unknown", "words": [1], "n": 20, "beta": "estimate"},
        },
    }
    suite, network = Suite.load(described), victims.classifier()
    whole = suite.run(network, tmp_path / "whole")
    rows = {(r["certificate"], r["within"]): r for r in whole.summary()["certified"]}
    assert set(rows) == {("smoothing", 0), ("smoothing", 0.2), ("words", 0), ("words", 1), ("guess", 0), ("guess", 1)}
    assert rows["smoothing", 0]["certified accuracy"] >= rows["smoothing", 0.2]["certified accuracy"]
    assert rows["words", 0]["certified accuracy"] > 0.5
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["certified"] == whole.summary()["certified"]
    text = whole.markdown()
    assert "## Certified" in text
    assert "ESTIMATED: no certificate" in text
    assert "## Certified" not in Suite.load(described | {"certified": {}}).run(network).markdown()
    # Killed inside the fifth line: the same command ends with the same file.
    first = (tmp_path / "whole" / "certified.jsonl").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "suite.json").write_bytes((tmp_path / "whole" / "suite.json").read_bytes())
    (tmp_path / "cut" / "certified.jsonl").write_bytes(b"".join(first.splitlines(keepends=True)[:4]) + b'{"certif')
    again = suite.run(network, tmp_path / "cut")
    assert (tmp_path / "cut" / "certified.jsonl").read_bytes() == first
    assert again.summary()["certified"] == whole.summary()["certified"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"smoothin": {"sigma": 1}}, "no kind of certificate 'smoothin'.*Did you mean 'smoothing'"),
        ({"smoothing": {}}, "suite.certified.smoothing: Smoothing needs sigma"),
        ({"smoothing": {"sigma": 0}}, "smoothing.sigma: 0 given"),
        ({"smoothing": {"sigma": 1, "alfa": 0.1}}, "no field of Smoothing 'alfa'.*Did you mean 'alpha'"),
        ({"smoothing": {"sigma": 1, "alpha": 1.0}}, "smoothing.alpha: 1 given"),
        ({"smoothing": {"sigma": 1, "n": 0}}, "smoothing.n: 0 given"),
        ({"smoothing": {"sigma": 1, "radii": [-1]}}, "smoothing.radii.0: -1 given"),
        ({"ranmask": {"rate": 1.0}}, "ranmask.rate: 1 given"),
        ({"ranmask": {"beta": "two"}}, "ranmask.beta: no choice 'two'"),
        ({"ranmask": {"replace": "masc"}}, "ranmask.replace: no replacement 'masc'.*Did you mean 'mask'"),
        ({"ranmask": 3}, "certified.ranmask: 3 given"),
        ("smoothing", "suite.certified: 'smoothing' given; a mapping"),
    ],
)
def test_refused(config, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Suite.load({"data": [], "attacks": {}, "certified": config})


def test_refused_for_what_cannot_be_certified():
    one = {"data": [{"prompt": "one plus one =", "answer": "two", "label": 0, "id": "e"}], "attacks": {}}
    with pytest.raises(ConfigError, match="head 'policy' given; only the vote of a classifier"):
        Suite.load(one | {"certified": {"ranmask": {}}}).run(victims.generator_model(steps=0))
    with pytest.raises(ConfigError, match=r"certified.ranmask.replace: the tokenizer has no mask token.*give `replace: unknown`"):
        Suite.load(one | {"certified": {"ranmask": {}}}).run(victims.classifier(steps=0))
    with pytest.raises(ConfigError, match="relative_to: no unit 'norm'"):
        Suite.load(one | {"certified": {"smoothing": {"sigma": 1, "relative_to": "norm"}}}).run(victims.classifier(steps=0))
    with pytest.raises(ConfigError, match="only a classifier's copies can vote"):
        RanMask(victims.generator_model(steps=0), 0.5)
    with pytest.raises(ConfigError, match="0 copies given"):
        RanMask(toy(), 0.5, 0)
    with pytest.raises(ConfigError, match="no combination 'votes'"):
        Smoothed(toy(), sigma=1.0, combine="votes")
    tokens = toy().encoder.classify(["a b"])
    with pytest.raises(ConfigError, match="an edit that replaces tokens"):
        RanMask(toy(), 0.5)(tokens, {"class_logits"}, {"embedding": Edit(tokens=tokens)})


# ---------------------------------------------------------------------------------------------------------- the victims


def test_a_vote_over_all_masks_is_the_enumerated_one():
    net = toy()
    text = "a b o a b"
    top, share = vote_of(net, text, 2)  # 5 - round(3) = 2 kept, ten sets
    target = ClassifierTarget(RanMask(net, rate=0.6, votes=10))
    logits = target.predict([text])[0]
    assert int(logits.argmax()) == top
    # Half a vote is added to each of two classes: (10 share + 1/2) / 11.
    assert logits.exp()[top].item() == pytest.approx((10 * share + 0.5) / 11, abs=1e-6)
    # One query; equal copies ("a <mask> ... " twice) run once, so distinct copies are the forwards.
    copies = {tuple(w if i in s else "_" for i, w in enumerate(text.split())) for s in combinations(range(5), 2)}
    assert (target.num_queries, target.num_forwards) == (1, len(copies))
    mean = ClassifierTarget(RanMask(net, rate=0.6, votes=10, combine="mean")).predict([text])[0]
    probabilities = [
        net(net.encoder.classify([" ".join(w if i in s else "<mask>" for i, w in enumerate(text.split()))]), {}).class_logits.softmax(1)[
            0, 1
        ]
        for s in combinations(range(5), 2)
    ]
    assert mean.exp()[1].item() == pytest.approx(float(sum(probabilities).detach()) / 10, abs=1e-6)


ENSEMBLES = {
    "ranmask": lambda net, **more: RanMask(net, rate=0.5, votes=7, **more),
    "smoothed": lambda net, **more: Smoothed(net, sigma=1.0, copies=7, **more),
}


@pytest.mark.parametrize("make", ENSEMBLES.values(), ids=ENSEMBLES)
def test_an_ensemble_answers_the_same_whatever_is_asked_beside(make):
    net = toy()
    texts = ["a b o a b o x", "b b", "a o a o b b a b o x", "b", "o x b a b a"]
    one, other = ClassifierTarget(make(net)), ClassifierTarget(make(net), batch_tokens=1)
    together = one.predict(texts)
    torch.testing.assert_close(together, torch.cat([other.predict([t]) for t in texts[::-1]]).flip(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(together, one.predict(texts), rtol=0, atol=0)
    assert one.num_queries == 2 * other.num_queries == 10
    assert not torch.equal(ClassifierTarget(make(net, seed=1)).predict(texts), together)
    one.limit, one.num_queries = 2, 0
    with pytest.raises(BudgetError, match="3 queries, 2 allowed"):
        one.predict(texts[:3])


def test_every_copy_of_a_smoothed_row_is_a_forward():
    net = toy()
    target = ClassifierTarget(Smoothed(net, sigma=1.0, copies=7))
    target.predict(["a b", "o"])
    assert (target.num_queries, target.num_forwards) == (2, 14)
    assert sum(net.rows) == 14
    assert target.num_tokens == 7 * 3


def test_smoothed_share_is_the_gaussian_s():
    """One word of value 2, ||w||^2 = 14, sigma absolute: P(class 1) = Phi(2 / (sigma sqrt 14)); 4000 copies, four deviations 0.03."""
    sigma = 0.7
    net = Smoothed(toy(), sigma=sigma, copies=4000, relative_to="absolute")
    share = ClassifierTarget(net).predict(["a"])[0].softmax(0)[1].item()
    assert share == pytest.approx(NormalDist().cdf(2 / (sigma * math.sqrt(14))), abs=0.03)


@pytest.mark.parametrize("make", ENSEMBLES.values(), ids=ENSEMBLES)
def test_edits_reach_every_copy_and_gradients_are_those_of_the_mean(make):
    """A zero edit changes nothing; the gradient of the vote's logits is that of the mean's, which central differences confirm."""
    net = toy(margin=lambda v: torch.tanh(v))
    tokens = net.encoder.classify(["a b o a b"])
    zero = torch.zeros(1, 5, 3, dtype=torch.float64)
    vote, mean = make(net), make(net, combine="mean")
    plain = vote(tokens, {"class_logits"}).class_logits
    assert torch.equal(vote(tokens, {"class_logits"}, {"embedding": Edit(zero)}).class_logits, plain)
    torch.testing.assert_close(ClassifierTarget(vote).predict(["a b o a b"])[0].argmax(), plain[0].argmax())
    leaf = zero.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(vote(tokens, {"class_logits"}, {"embedding": Edit(leaf)}).class_logits[0, 1], leaf)
    assert gradient.abs().min() > 0 or isinstance(vote, RanMask)
    for t, d in ((0, 0), (3, 2), (4, 1)):
        step = zero.clone()
        step[0, t, d] = 1e-5
        up, down = (mean(tokens, {"class_logits"}, {"embedding": Edit(s)}).class_logits[0, 1] for s in (step, -step))
        assert gradient[0, t, d].item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-4, abs=1e-8)


def test_an_edit_of_a_masked_word_is_not_seen():
    """One word of two is kept, by two copies: an edit of the first reaches the copy that keeps it, whose margin it turns."""
    net = toy()
    ensemble = RanMask(net, rate=0.5, votes=2, combine="mean")
    tokens = net.encoder.classify(["a b"])  # copies "a _" with margin 2 and "_ b" with margin -3
    add = torch.zeros(1, 2, 3, dtype=torch.float64)
    add[0, 0] = -5 * net.w / net.w.norm() ** 2  # margin of the first copy: 2 - 5
    logits = ensemble(tokens, {"class_logits"}, {"embedding": Edit(add)}).class_logits[0]
    assert logits.exp()[1].item() == pytest.approx(1 / (1 + math.exp(3)), rel=1e-9)


def test_a_folder_of_results_tells_ensembles_of_the_same_weights_apart():
    suite, net = Suite(data=[], attacks={}), victims.classifier()
    unknown = {"replace": "unknown"}
    ensembles = [net, RanMask(net, 0.5, 10, **unknown), RanMask(net, 0.7, 10, **unknown), RanMask(net, 0.5, 11, **unknown)]
    fingerprints = {suite_fingerprint(suite, e, []) for e in [*ensembles, Smoothed(net, sigma=0.5), Smoothed(net, sigma=0.6)]}
    assert len(fingerprints) == 6


def test_an_ensemble_is_attacked_and_certified_as_it_is_deployed():
    """The whole suite on a vote: text attacks and embedding attacks run, and the certificate is about the classifier inside."""
    e = victims.sentences(12)
    suite = Suite.load(
        {
            "data": [{"prompt": x.prompt, "label": x.label, "id": x.id} for x in e],
            "attacks": {"pgd": {"kind": "embedding", "restarts": 1, "adversary": {"kind": "pgd", "radius": 1.0, "steps": 3}}},
            "examples": 4,
            "certified": {"smoothing": {"sigma": 0.4, "n0": 5, "n": 30}},
        }
    )
    net = victims.classifier()
    on_vote = suite.run(RanMask(net, 0.5, 10, replace="unknown"))
    assert on_vote.clean["accuracy"] > 0.8
    assert on_vote.row(on_vote.arms[0])["attack success"] > 0
    assert on_vote.summary()["certified"] == suite.run(net).summary()["certified"]


def test_pairs_keep_their_second_text():
    seen = []

    def classify(firsts, seconds=None, *, read):
        assert list(read) == ["<mask>"]
        seen.extend(zip(firsts, seconds, strict=True))
        return inner(firsts, read=read)

    net = toy()
    inner = net.encoder.classify
    net.encoder.classify = classify
    config = Masking(rate=0.5, n=5)
    config.certify(net, "m", Example(prompt="a b", pair="o o o", label=1, id="e"), 0)
    ClassifierTarget(RanMask(net, 0.5, 5)).predict(["a b"], ["x"])
    assert set(seen) == {("a <mask>", "o o o"), ("<mask> b", "o o o"), ("a <mask>", "x"), ("<mask> b", "x")}


def test_suites_shown_and_shipped_load(data_root):
    page = (ROOT / "docs" / "certified.md").read_text(encoding="utf-8")
    shipped = (ROOT / "configs" / "suites" / "certified.yaml").read_text(encoding="utf-8")
    for text in (*re.findall(r"```yaml\n(.*?)```", page, re.DOTALL), shipped):
        suite = Suite.load(interpolation.resolve(yaml_files.parse_value(text, "suite")))
        assert suite.certified["ranmask"] == Masking(rate=0.7, n=1000, words=(1, 2, 3))
        assert suite.certified["smoothing"].sizes == (0, 0.05, 0.1, 0.2)
