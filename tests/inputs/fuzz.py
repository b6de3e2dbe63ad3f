"""Whatever a configuration holds, it is built or refused in one sentence of the library's own errors; so is the first step of it.

PYTHONPATH=.:tests python -m inputs.fuzz [--trees N] [--texts N] [--drawn N] [--steps N] [--seed N]

prints what is neither, and fails if there is any. All draws are seeded.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from inputs import mutants as mt
from inputs.base import text
from inputs.row import Answer, Row, command
from inputs.small import FILES, small
from inputs.world import folder

from advalign.errors import AdvalignError
from advalign.evaluation.suites.suite import Suite

Answered = tuple[str, Answer]
"""What was done to a configuration, and what was answered."""


def built(content: str, suite: bool) -> Answer:
    """What is said to a configuration that is only built: `show` of a run, reading of a suite."""
    if suite:
        row = Row(given="", says=(), run=lambda: Suite.load("m.yaml"), files={"m.yaml": content}, error=AdvalignError)
    else:
        row = command("show", "m.yaml", files={"m.yaml": content})
    return row.answer()


def trees(number: int, first: int) -> Iterator[Answered]:
    """Mutated trees."""
    for mutant in mt.mutants(number, seed=first):
        yield mutant.name, built(text(mutant.tree), mutant.suite)


def texts(number: int, first: int) -> Iterator[Answered]:
    """Mutated texts."""
    for mutant in mt.mangled_texts(number, seed=first):
        yield mutant.name, built(mutant.tree, mutant.suite)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(mt.NAMES)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=5
)


@st.composite
def configurations(draw: st.DrawFn, files: list[tuple[Path, Any, list[Any]]]) -> tuple[str, Any, bool]:
    """(what was done, tree, whether it is a suite): a configuration with any value in any place."""
    path, tree, places = draw(st.sampled_from(files))
    place, value = draw(st.sampled_from(places)), draw(VALUES)
    tree = copy.deepcopy(tree)
    mt.at(tree, place[:-1])[place[-1]] = value
    return f"{path.stem}: {'.'.join(map(str, place))} = {value!r}", tree, mt.is_suite(path)


def drawn(number: int, first: int) -> Iterator[Answered]:
    """Values drawn by hypothesis in any place; of what is wrong it shows the smallest value too."""
    answers: list[Answered] = []
    files = [(path, tree, list(mt.places(tree))) for path in mt.FILES for tree in [mt.read(path)]]

    @seed(first)
    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
    @given(configurations(files))
    def check(configuration: tuple[str, Any, bool]) -> None:
        name, tree, suite = configuration
        answers.append((name, built(text(tree), suite)))
        assert not is_wrong(answers[-1][1])

    try:
        check()
    except AssertionError:
        answers.append(("the smallest such value: " + answers[-1][0], answers[-1][1]))
    yield from answers


UNFIT = ("cooper", "raft", "grpo_vllm")
"""Runs that an untrained model cannot make: they wait for right answers, or sample with vLLM."""


def steps(number: int, first: int) -> Iterator[Answered]:
    """The smoke run of small mutants that are accepted."""
    files = [(path, small(mt.read(path))) for path in mt.FILES if not mt.is_suite(path) and path.stem not in UNFIT]
    accepted = 0
    for mutant in mt.mutants(100 * number, seed=first, trees=files, gentle=True):
        if accepted == number:
            return
        content = {**FILES, "m.yaml": text(mutant.tree)}
        if command("show", "m.yaml", files=content).answer().code == 0:
            yield mutant.name, command("train", "m.yaml", "--smoke", files=content).answer()
            accepted += 1
    raise AssertionError(f"only {accepted} of {100 * number} mutants were accepted")


def is_wrong(answer: Answer) -> bool:
    """Whether a configuration was neither accepted nor refused in a sentence."""
    return bool(answer.problem) and answer.problem != "accepted in silence"


def report(what: str, answers: Iterable[Answered]) -> int:
    """Prints what is wrong, and how many of how many; returns how many."""
    total = refused = wrong = 0
    start = time.monotonic()
    for name, answer in answers:
        total, refused = total + 1, refused + (answer.code == 2)
        if is_wrong(answer):
            wrong += 1
            print(f"{name}\n    {answer.problem}: {' '.join(answer.text.split())[:400]}", flush=True)
    print(f"{what}: {total}, of which {refused} refused and {wrong} wrong ({time.monotonic() - start:.0f} s)", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, number in (("trees", 1600), ("texts", 600), ("drawn", 800), ("steps", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=number)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, folder(Path(name)):
        wrong = report("mutated trees", trees(given.trees, given.seed))
        wrong += report("mutated texts", texts(given.texts, given.seed))
        wrong += report("values drawn by hypothesis", drawn(given.drawn, given.seed))
        wrong += report("first steps of accepted mutants", steps(given.steps, given.seed))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
