"""Configurations with a few changes are built or refused in one sentence; so are their first steps (`make test-inputs`: 3,000)."""

import random

import pytest
from helpers.processes import ran
from inputs import mutants as mt
from inputs.base import changed


def test_mutants_are_built_or_refused_in_a_sentence() -> None:
    """In a process of its own, since the tests' run-time checks of types answer before the library does."""
    code, printed = ran("inputs.fuzz", "--trees", "60", "--texts", "30", "--drawn", "20", "--steps", "3")
    assert code == 0, printed


def test_mutants_are_the_same_every_time_and_differ_from_their_files() -> None:
    assert [m.name for m in mt.mutants(30)] == [m.name for m in mt.mutants(30)]
    files = {str(path.relative_to(mt.ROOT / "configs")): mt.read(path) for path in mt.FILES}
    same = [m.name for m in mt.mutants(300) if m.tree == files[m.name.partition(" ")[0]]]
    assert len(same) < 30, same  # a value may be replaced by itself


@pytest.mark.parametrize(
    "action",
    [mt._replaced, mt._dropped, mt._renamed, mt._added, mt._moved, mt._swapped, mt._mangled, mt._copied, mt._nudged, mt._shortened],
)
def test_every_change_leaves_a_tree(action) -> None:
    for number in range(20):
        tree = changed(mt.read(mt.FILES[number]), {})
        paths = list(mt.places(tree))
        rng = random.Random(number)
        tree, what = action(tree, rng.choice(paths), paths, rng)
        assert isinstance(tree, dict)
        assert what
