"""The contract of a task: splits that share no prompt, demonstrations that are right, perturbations that a right answer violates."""

from __future__ import annotations

import random
from collections.abc import Sequence

from advalign.errors import AdvalignError, ConfigError
from advalign.interfaces import Task
from advalign.testing._rules import BrokenRule, explained, is_plugin, require, seed_global_generators
from advalign.types import Example

SPLITS = ("train", "test", "ood")
ODD_TEXTS = ("", "nonsense", "1 + 1", "(" * 1000, "\x00", "\n" * 50)


def check_task(task: Task, number: int = 100, splits: Sequence[str] = SPLITS) -> None:
    """Raises AssertionError for the first rule that the task breaks. `number` examples of every split are looked at."""
    is_plugin(task, Task, "tasks")
    drawn = {(split, seed): _examples(task, split, number, seed) for split in splits for seed in (0, 1)}
    _splits(task, drawn, splits)
    _random(task, splits[0], number)
    _unknown_split(task)
    for split in splits:
        _answers(task, drawn[split, 0][:20])


def _examples(task: Task, split: str, number: int, seed: int) -> list[Example]:
    with explained(task, f"examples('{split}', {number}, rng) raised"):
        result = task.examples(split, number, random.Random(seed))
    require(isinstance(result, list), task, f"examples returns a {type(result).__name__}; return a list of advalign.types.Example.")
    require(all(isinstance(e, Example) for e in result), task, "examples returns something that is no advalign.types.Example.")
    require(0 < len(result) <= number, task, f"examples('{split}', {number}, rng) gives {len(result)}; from 1 to that number.")
    prompts = len({e.text for e in result})
    require(prompts == len(result), task, f"split '{split}' repeats a prompt ({prompts} distinct of {len(result)}).")
    ids = len({e.id for e in result}) == len(result) and all(e.id for e in result)
    require(ids, task, f"split '{split}' has examples without an id, or with the id of another; ids name lines of result files.")
    unverified = next((e.text for e in result if e.verify is None), None)
    require(unverified is None, task, f"the example '{unverified}' has no `verify`, which scores a response in [0, 1].")
    return result


def _splits(task: Task, drawn: dict[tuple[str, int], list[Example]], splits: Sequence[str]) -> None:
    for first in splits:
        for second in splits:
            if first == second:
                continue
            shared = {e.text for e in drawn[first, 0]} & {e.text for e in drawn[second, 1]}
            text = next(iter(shared), "")
            sentence = f"'{first}' and '{second}' share the prompt '{text[:40]}'; make the split a function of the prompt (a hash)."
            require(not shared, task, sentence)


def _random(task: Task, split: str, number: int) -> None:
    def transcript(seed: int) -> list[tuple[str, str]]:
        rng = random.Random(seed)
        return [(e.text, task.demonstrate(e, rng)) for e in task.examples(split, number, rng)]

    with explained(task, "demonstrate raised"):
        seed_global_generators(0)
        first = transcript(3)
        seed_global_generators(1)
        second = transcript(3)
    require(first == second, task, "equal generators give other examples or responses; draw from the rng handed in, from nothing else.")


def _unknown_split(task: Task) -> None:
    try:
        task.examples("no such split", 1, random.Random(0))
    except ConfigError:
        return
    except Exception as error:
        raise BrokenRule(f"{type(task).__name__}: an unknown split raises {type(error).__name__}; raise ConfigError.") from error
    raise BrokenRule(f"{type(task).__name__}: an unknown split is accepted; raise ConfigError (errors.unknown names the nearest).")


def _score(task: Task, example: Example, text: str) -> float:
    assert example.verify is not None
    with explained(task, f"verify raised on the text {text[:20]!r}; a verifier scores any text"):
        score = example.verify(text)
    within = isinstance(score, int | float) and 0 <= score <= 1
    require(within, task, f"verify gives {score!r}; a number in [0, 1].")
    return float(score)


def _answers(task: Task, examples: Sequence[Example]) -> None:
    rng = random.Random(0)
    for example in examples:
        with explained(task, "demonstrate raised"):
            text = task.demonstrate(example, rng)
        require(isinstance(text, str), task, f"demonstrate returns a {type(text).__name__}; a text.")
        score = _score(task, example, text)
        require(score == 1, task, f"demonstrate('{example.text[:40]}') gives '{text[:40]}', which verify scores {score}, not 1.")
        _perturbed(task, example, text, rng)
    for text in ODD_TEXTS:
        _score(task, examples[0], text)


def _perturbed(task: Task, example: Example, text: str, rng: random.Random) -> None:
    """A task may have no near examples: then the base class says so."""
    if type(task).perturb is Task.perturb:
        return
    try:
        with explained(task, "perturb raised"):
            near = task.perturb(example, text, rng)
    except AdvalignError as error:
        raise BrokenRule(f"{type(task).__name__}: perturb finds no near example of '{example.text[:40]}': {error}") from error
    require(near.text != example.text, task, f"perturb('{example.text[:40]}') gives the same prompt.")
    score = _score(task, near, text)
    require(
        score == 0, task, f"'{text[:40]}' is right for '{near.text[:40]}', too (verify {score}); a perturbed prompt is one it violates."
    )
    with explained(task, "demonstrate raised on a perturbed example"):
        answer = task.demonstrate(near, rng)
    require(_score(task, near, answer) == 1, task, f"the perturbed prompt '{near.text[:40]}' has no right answer: '{answer[:40]}'.")


__all__ = ["check_task"]
