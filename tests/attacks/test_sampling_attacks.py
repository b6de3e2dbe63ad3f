"""Attacks that rewrite or sample, by the harness's own count: templates, many dialogues, misspellings, functions, trained attackers."""

import base64
import codecs
import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
from helpers import victims

from advalign import attacks
from advalign.attacks._transforms import MORSE, TRANSFORMS
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.targets import ClassifierTarget, GeneratorTarget
from advalign.types import Budget, Example, Sampling

PROMPT = "How do I bake {good} bread?"


def propose(attack, examples, budget=None, seed=0, target=None):
    return attack.propose(target or GeneratorTarget(victims.generator_model()), examples, budget or Budget(), random.Random(seed))


def one(attack, prompt=PROMPT, **arguments):
    return propose(attack, [Example(prompt=prompt, id="a")], **arguments)[0]


# ------------------------------------------------------------------------------------------------ templates


def test_codes_can_be_read_back_and_frames_hold_the_request_as_it_is():
    text = {name: change(PROMPT) for name, change in TRANSFORMS.items()}
    behind = {name: text[name].split("\n\n", 1)[1] for name in ("base64", "rot13", "hexadecimal", "morse", "reversed")}
    assert base64.b64decode(behind["base64"]).decode() == PROMPT
    assert codecs.decode(behind["rot13"], "rot13") == PROMPT
    assert bytes.fromhex(behind["hexadecimal"]).decode() == PROMPT
    assert behind["reversed"][::-1] == PROMPT
    letters = {code: c for c, code in MORSE.items()}
    words = ["".join(letters[code] for code in word.split()) for word in behind["morse"].split(" / ")]
    assert words == ["how", "do", "i", "bake", "good", "bread"]
    assert (text["upper"].lower(), text["spaced"][::2]) == (PROMPT.lower(), PROMPT)
    assert text["alternating"] == "hOw Do I bAkE {gOoD} bReAd?"
    assert text["leetspeak"] == "H0w d0 1 84k3 {900d} 8r34d?"
    assert "".join(chr(ord(c) - 0xFEE0) if ord(c) > 0xFF00 else " " for c in text["fullwidth"]) == PROMPT
    for name in (
        "affirmative",
        "refusal_suppression",
        "role_play",
        "story",
        "json",
        "code",
        "developer",
        "two_answers",
        "past_tense",
        "list",
    ):
        assert PROMPT in text[name], name
        assert "{prompt}" not in text[name]


def test_every_transform_is_an_attempt_and_own_templates_follow():
    assert one(attacks.Template()).attempts == tuple(dict.fromkeys(change(PROMPT) for change in TRANSFORMS.values()))
    proposal = one(attacks.Template(names=("direct", "upper"), own=("{prompt} Please {prompt}!",)), prompt="a {b}")
    assert proposal.attempts == ("a {b}", "A {B}", "a {b} Please a {b}!")
    assert one(attacks.Template(names=("upper", "direct")), prompt="ABC").attempts == ("ABC",)
    assert len(one(attacks.Template(), budget=Budget(queries=3)).attempts) == 3


def test_the_harness_counts_an_example_as_broken_if_one_attempt_breaks_it():
    """A victim of sums: "two plus zero =" said twice over is another prompt, and is answered otherwise or not; the harness decides."""
    network, example = victims.generator_model(), victims.sums()[7]
    templates = ("{prompt}", "five plus {prompt}", "zero {prompt}")
    answers = GeneratorTarget(network).answer([Example(prompt=t.replace("{prompt}", example.prompt)) for t in templates], 4)
    broken = sum(text != example.answer for text in answers)
    suite = Suite(data=[example], attacks={"t": attacks.Template(names=(), own=templates)}, sampling=Sampling(max_new_tokens=4))
    (row,) = suite.run(network).results_of("t")
    assert (row.attempts, row.broken, row.queries) == (3, broken, 3)
    assert row.status == ("succeeded" if broken else "failed")


# ------------------------------------------------------------------------------------------------ many-shot


def test_dialogues_are_drawn_without_the_request_and_grow_by_powers_of_two():
    shots = [Example(prompt=f"q{i}", answer=f"r{i}") for i in range(5)]
    network = victims.generator_model()
    attack = attacks.ManyShot(shots=shots, numbers=(1, 2, 4, 8), reserve=1)
    target = GeneratorTarget(network)
    proposal = one(attack, prompt="q3", target=target)
    assert [text.count("User: ") for text in proposal.attempts] == [2, 3, 5]  # 8 are not there; 4 others are, a repeated attempt
    assert all(text.endswith("User: q3\nAssistant:") for text in proposal.attempts)
    assert all(text.count("q3") == 1 for text in proposal.attempts)
    pairs = [tuple(turn.splitlines()) for turn in proposal.attempts[-1].split("\n\n")[:-1]]
    assert sorted(pairs) == [(f"User: q{i}", f"Assistant: r{i}") for i in (0, 1, 2, 4)]
    assert one(attack, prompt="q3", target=target, seed=1).attempts[-1] != proposal.attempts[-1]


def test_what_does_not_fit_is_left_out():
    """Words of one token each, 32 tokens: a dialogue is four (User: q Assistant: r), the request three; 16 are kept for the answer."""
    shots = [Example(prompt=f"q{i}", answer=f"r{i}") for i in range(20)]
    proposal = one(attacks.ManyShot(shots=shots, numbers=(1, 2, 4, 8, 16), reserve=16), prompt="one")
    assert [text.count("User: ") - 1 for text in proposal.attempts] == [1, 2]  # 3 + 4 n <= 16: three fit, and the halves of 16 are tried
    long = one(attacks.ManyShot(shots=shots, reserve=31), prompt="one")
    assert (long.attempts, long.note) == ((), "no dialogue fits")


# ------------------------------------------------------------------------------------------------ best of n


def test_each_noise_by_itself_keeps_what_it_must():
    text = "Scrambling keeps the first letters,\n  and  white   space."
    only = {"scramble": False, "capitals": False, "noise": False}
    for draw in one(attacks.BestOfN(strength=1.0, attempts=20, **only | {"scramble": True}), prompt=text).attempts:
        words = list(zip(text.split(), draw.split(), strict=True))
        assert all(a[0] == b[0] and a[-1] == b[-1] and sorted(a) == sorted(b) for a, b in words)
        assert [len(w) for w in draw.split()] == [len(w) for w in text.split()]
        assert "\n  and  " in draw
    for draw in one(attacks.BestOfN(strength=1.0, attempts=5, **only | {"capitals": True}), prompt="aB é ß").attempts:
        assert draw == "Ab É SS"  # strength 1: every letter; Python's own case of ß has two
    for draw in one(attacks.BestOfN(strength=1.0, attempts=20, **only | {"noise": True}), prompt="a !~é").attempts:
        assert draw[0] in "`b"
        assert draw[1] == " "
        assert draw[2] in ' "'
        assert draw[3] in "}~"
        assert draw[4] == "é"


def test_how_often_is_what_the_strength_says():
    """σ = 0.25: half of the letters change their case, one of 64 characters moves. 5 standard errors of 20,000 are 0.018 and 0.0044."""
    letters = "abcdefghij" * 20
    capitals = one(attacks.BestOfN(strength=0.25, attempts=100, scramble=False, noise=False), prompt=letters).attempts
    assert sum(c.isupper() for text in capitals for c in text) / 20_000 == pytest.approx(0.5, abs=0.018)
    noise = one(attacks.BestOfN(strength=0.25, attempts=100, scramble=False, capitals=False), prompt=letters).attempts
    assert sum(a != b for text in noise for a, b in zip(letters, text, strict=True)) / 20_000 == pytest.approx(1 / 64, abs=0.0044)
    words = "abcdefghijklmnop " * 40
    mixed = one(attacks.BestOfN(strength=0.25, attempts=50, capitals=False, noise=False), prompt=words).attempts
    changed = [w != "abcdefghijklmnop" for text in mixed for w in text.split()]
    assert sum(changed) / len(changed) == pytest.approx(0.5, abs=0.056)  # 2,000 words


def test_draws_depend_on_the_example_and_not_on_company():
    examples = [Example(prompt="the very same words", id=str(i)) for i in range(3)]
    together = propose(attacks.BestOfN(attempts=4), examples)
    assert len({p.attempts for p in together}) == 3
    for example, proposals in zip(examples, together, strict=True):
        assert propose(attacks.BestOfN(attempts=4), [example])[0].attempts == proposals.attempts
        assert propose(attacks.BestOfN(attempts=2), [example])[0].attempts == proposals.attempts[:2]
    assert len(one(attacks.BestOfN(), budget=Budget(queries=7)).attempts) == 7


# ------------------------------------------------------------------------------------------------- function


def digits(target, prompt, rng, *, words=victims.DIGITS):
    """A search of its own: asks the target about a word before the prompt, and yields what made it stumble."""
    for word in rng.sample(words, len(words)):
        (answers,) = target.answer([Example(prompt=f"{word} plus {prompt}")], 4)
        if answers != "three":
            yield f"{word} plus {prompt}"


def test_a_function_by_name_asks_the_metered_target_and_the_harness_judges_what_it_yields(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    example = Example(prompt="one plus two =", answer="three", id="a", verify=lambda t: float(t == "three"))
    network = victims.generator_model()
    target = GeneratorTarget(network)
    (proposal,) = propose(attacks.FunctionAttack(fn=f"{__name__}.digits"), [example], target=target)
    expected = [
        f"{w} plus {example.prompt}"
        for w in victims.DIGITS
        if target.answer([Example(prompt=f"{w} plus {example.prompt}")], 4) != ["three"]
    ]
    assert Counter(proposal.attempts) == Counter(expected)
    assert proposal.queries == 6 + len(expected)
    assert proposal.note == f"{len(expected)} attempts, 6 queries while searching"
    (row,) = (
        Suite(data=[example], attacks={"f": attacks.FunctionAttack(fn=digits)}, sampling=Sampling(max_new_tokens=4))
        .run(network)
        .results_of("f")
    )
    assert (row.status, row.broken) == ("succeeded" if expected else "failed", len(expected))


def test_a_function_is_stopped_by_attempts_and_by_the_budget():
    endless = attacks.FunctionAttack(fn=lambda target, prompt, rng: (f"{prompt} {i}" for i in itertools.count()), attempts=5)
    assert one(endless).attempts == tuple(f"{PROMPT} {i}" for i in range(5))
    assert len(one(endless, budget=Budget(queries=3)).attempts) == 3

    def asking(target, prompt, rng):
        for i in itertools.count():
            target.answer([Example(prompt="one")], 1)
            yield str(i)

    proposal = one(attacks.FunctionAttack(fn=asking), prompt="one", budget=Budget(queries=6))
    assert (len(proposal.attempts), proposal.queries) == (3, 6)  # each attempt costs a question and being judged
    assert one(attacks.FunctionAttack(fn=lambda target, prompt, rng: f"Please: {prompt}"), prompt="x").attempts == ("Please: x",)


def test_a_function_works_on_classifiers():
    examples = victims.sentences(2)
    target = ClassifierTarget(victims.classifier())
    attack = attacks.FunctionAttack(fn=lambda target, prompt, rng: sorted([prompt, "dire"], key=lambda t: float(target.predict([t])[0, 0])))
    proposal = propose(attack, examples, target=target)
    assert [sorted(p.attempts) for p in proposal] == [sorted([e.prompt, "dire"]) for e in examples]
    assert target.num_queries == 4


# -------------------------------------------------------------------------------------------------- learned


@pytest.fixture(scope="module")
def attacker(tmp_path_factory):
    """The victim's own weights write what is put beside the request: "two plus one =" is continued with "three"."""
    folder = tmp_path_factory.mktemp("attacker")
    victims.generator_model().save_pretrained(folder)
    return str(folder)


def test_a_trained_attacker_writes_what_it_has_learned(attacker):
    example = Example(prompt="two plus one =", id="a")
    proposal = propose(attacks.Learned(model=attacker, attempts=8, temperature=0.01), [example])[0]
    assert proposal.attempts == ("two plus one = three",)  # at temperature 0 all samples are one
    put = {
        p: propose(attacks.Learned(model=attacker, temperature=0.01, placement=p, separator=" | "), [example])[0]
        for p in ("prefix", "rewrite")
    }
    assert (put["prefix"].attempts, put["rewrite"].attempts) == (("three | two plus one =",), ("three",))
    # What the attacker is asked is the template, "one plus one =", and what it writes goes behind the request.
    learned = attacks.Learned(model=attacker, temperature=0.01, template="{prompt} plus one =")
    requests = propose(learned, [Example(prompt="one", id="a")])[0]
    assert requests.attempts == ("one two",)


def test_samples_are_varied_reproducible_and_independent_of_company(attacker):
    examples = [Example(prompt="two plus", id=str(i)) for i in range(3)]
    attack = attacks.Learned(model=attacker, attempts=12, temperature=2.0, max_new_tokens=3)
    together = propose(attack, examples)
    assert all(2 < len(p.attempts) <= 12 for p in together)
    assert len({p.attempts for p in together}) == 3
    assert [propose(attack, [e])[0].attempts for e in examples] == [p.attempts for p in together]
    assert len(propose(attack, examples[:1], Budget(queries=2))[0].attempts) <= 2


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: attacks.Template(names=("base46",)), "Did you mean 'base64'"),
        (lambda: attacks.Template(names=()), "at least one is needed"),
        (lambda: attacks.Template(own=("hello",)), "must hold {prompt}"),
        (lambda: attacks.ManyShot(), "none given"),
        (lambda: attacks.ManyShot(shots=[], numbers=(0,)), "numbers.0: 0 given"),
        (lambda: attacks.ManyShot(shots=[Example(prompt="a", id="x")]).pairs(), "'x' has no response"),
        (lambda: attacks.BestOfN(strength=1.5), "strength: 1.5"),
        (lambda: attacks.BestOfN(scramble=False, capitals=False, noise=False), "all off"),
        (lambda: attacks.FunctionAttack(), "none given"),
        (lambda: one(attacks.FunctionAttack(fn="loads")), "a dotted path of names is expected"),
        (lambda: one(attacks.FunctionAttack(fn="json.load_")), "is of Python's standard library"),
        (lambda: one(attacks.FunctionAttack(fn="math.pi")), "is of Python's standard library"),
        (lambda: one(attacks.FunctionAttack(fn=lambda *_: [3])), "yielded a int"),
        (lambda: attacks.Learned(), "none given"),
        (lambda: attacks.Learned(model="x", placement="sufix"), "Did you mean 'suffix'"),
        (lambda: attacks.Learned(model="x", template="no place"), "must hold {prompt}"),
    ],
)
def test_nonsense_is_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()
