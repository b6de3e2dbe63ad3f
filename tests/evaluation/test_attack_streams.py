"""Every example has a random stream of its own: no example shares another's draws, and company changes nobody's."""

import random
from dataclasses import dataclass

from helpers import victims

from advalign.evaluation import Suite
from advalign.interfaces import Attack
from advalign.types import Proposal


@dataclass(frozen=True, kw_only=True)
class Dice(Attack):
    """The example's own text behind one draw, which the result then shows."""

    def propose(self, target, examples, budget, rng):
        return [Proposal(text=f"{rng.random()} {example.prompt}") for example in examples]


def draws(examples, seed=0, name="dice"):
    """{example: what it drew} of those that were attacked."""
    result = Suite(data=examples, attacks={name: Dice()}, seed=seed).run(victims.classifier())
    return {r.example: float(r.note.split()[0]) for r in result.results if r.status != "skipped"}


def test_examples_draw_from_streams_of_their_own():
    examples = victims.sentences(12, seed=2)
    found = draws(examples)
    assert len(found) > 8
    assert len(set(found.values())) == len(found)


def test_the_stream_is_that_of_the_example_in_any_order_and_company():
    examples = victims.sentences(12, seed=2)
    found = draws(examples)
    shuffled = list(examples)
    random.Random(1).shuffle(shuffled)
    assert draws(shuffled) == found
    some = draws(examples[3:7])
    assert some == {name: found[name] for name in some}


def test_other_seeds_and_other_attacks_have_other_streams():
    examples = victims.sentences(6, seed=2)
    found = draws(examples)
    assert all(draws(examples, seed=1)[name] != x for name, x in found.items())
    assert all(draws(examples, name="other")[name] != x for name, x in found.items())
