"""A proposal over its budget has not broken the example: the example counts as withstood, and stays in every rate."""

from collections import Counter
from dataclasses import dataclass

import pytest
from helpers import victims

from advalign.evaluation import Suite
from advalign.interfaces import Attack
from advalign.types import Budget, Proposal

FLIP = dict(zip(victims.GOOD, victims.BAD, strict=True)) | dict(zip(victims.BAD, victims.GOOD, strict=True))


@dataclass(frozen=True, kw_only=True)
class Flip(Attack):
    """Every word of sentiment is replaced by its opposite: two words, whatever the length of the sentence."""

    def propose(self, target, examples, budget, rng):
        return [Proposal(text=" ".join(FLIP.get(word, word) for word in example.prompt.split())) for example in examples]


@pytest.mark.parametrize("edits", [0.01, 0.3, 1.0])
def test_over_budget_counts_as_robust(edits):
    """Sentences have 4 to 8 words, two of which change: 2 / n of the words, over the budget where 2 / n > edits."""
    examples = victims.sentences(30, seed=3)
    suite = Suite(data=examples, attacks={"flip": Flip()}, budget=Budget(edits=edits))
    result = suite.run(victims.classifier())
    right = [e for e in examples if result.before[e.id].correct]
    over = [e for e in right if 2 / len(e.prompt.split()) > edits]
    assert len(right) > 20
    status = {r.example: r.status for r in result.results}
    assert {e.id for e in over} == {name for name, s in status.items() if s == "over_budget"}
    count = Counter(status.values())
    row = result.row(result.arms[0])
    assert row["over budget"] == len(over)
    # Wrong before counts as wrong; over budget and failed as withstood.
    assert row["accuracy under attack"] == pytest.approx((len(over) + count["failed"]) / len(examples))
    assert result.worst_case()["accuracy"] == pytest.approx((len(right) - count["succeeded"]) / len(examples))
    if edits == 0.01:
        assert row["accuracy under attack"] == pytest.approx(len(right) / len(examples))
        assert row["attack success"] == 0.0
    if edits == 1.0:
        assert count["succeeded"] > 20
