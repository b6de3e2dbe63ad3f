"""Sums of whole numbers: "37 + 45 =" asks for "82"."""

import random
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from typing import Annotated

from advalign.errors import AdvalignError
from advalign.interfaces import Task
from advalign.ranges import OpenFraction, Words, whole
from advalign.tasks._common import check_split, distinct_indices, hash_fraction, require
from advalign.types import Example

NUMBER = re.compile(r"(?<![0-9.])-?[0-9]+(?:\.[0-9]+)?")
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Task):
    """verify(text) = 1[the last number in the text = a ∘ b], operands in [0, 10^digits); ood: more digits in both operands.

    The length-generalisation probe of scratchpad and addition studies (arXiv:2112.00114, section 4), with our own split: a prompt belongs
    to "test" by its hash, so no seed can bring it into "train".
    """

    digits: Annotated[int, whole(1, 18)] = 2
    """Most digits of an operand."""
    operations: Words = "+"
    """Distinct signs out of + - *."""
    ood_extra: Annotated[int, whole(1, 18)] = 1
    """Digits more, out of distribution."""
    test_fraction: OpenFraction = 0.1
    """Of the prompts below 10^digits, by hash."""

    def __post_init__(self) -> None:
        good = set(self.operations) <= set(APPLY) and len(set(self.operations)) == len(self.operations)
        require(good, f"tasks.arithmetic.operations: '{self.operations}' is not a choice of distinct signs out of {''.join(APPLY)}.")

    def examples(self, split: str, number: int, rng: random.Random) -> list[Example]:
        check_split("arithmetic", split)
        low, high = self._operands(split)
        width = high - low
        draws = (
            (low + index // width % width, self.operations[index // width**2], low + index % width)
            for index in distinct_indices(len(self.operations) * width**2, rng)
        )
        return [self._example(*draw, split) for draw in islice((d for d in draws if self._split(*d) == split), number)]

    def demonstrate(self, example: Example, rng: random.Random) -> str:
        return str(example.answer)

    def perturb(self, example: Example, text: str, rng: random.Random) -> Example:
        """Another operand (after 1000 failed tries: two), in the same split, so that `text` is wrong."""
        a, op, b, split = (example.meta[key] for key in ("a", "op", "b", "split"))
        low, high = self._operands(split)
        for attempt in range(20_000):
            new_a, new_b = rng.randrange(low, high), rng.randrange(low, high)
            if attempt < 1000:
                new_a, new_b = rng.choice([(new_a, b), (a, new_b)])
            if self._split(new_a, op, new_b) == split and not right(text, APPLY[op](new_a, new_b)):
                return self._example(new_a, op, new_b, split)
        raise AdvalignError(f"tasks.arithmetic: no prompt of split '{split}' is violated by '{text[:40]}'; allow more digits.")

    def vocabulary(self) -> list[str]:
        return [*"0123456789", *self.operations, "-", "=", " "]

    def _operands(self, split: str) -> tuple[int, int]:
        return (10**self.digits, 10 ** (self.digits + self.ood_extra)) if split == "ood" else (0, 10**self.digits)

    def _split(self, a: int, op: str, b: int) -> str:
        if max(a, b) >= 10**self.digits:
            return "ood"
        return "test" if hash_fraction(f"{a}{op}{b}") < self.test_fraction else "train"

    def _example(self, a: int, op: str, b: int, split: str) -> Example:
        answer = APPLY[op](a, b)
        return Example(
            prompt=f"{a} {op} {b} =",
            answer=str(answer),
            id=f"arithmetic/{a}{op}{b}",
            meta={"a": a, "op": op, "b": b, "split": split},
            verify=partial(_verify, answer=answer),
        )


def right(text: str, answer: int) -> bool:
    """Is the last number of `text` the answer? Only its last 200 characters are read, so no text is expensive."""
    numbers = NUMBER.findall(text[-200:])
    return bool(numbers) and Fraction(numbers[-1]) == answer


def _verify(text: str, *, answer: int) -> float:
    return float(right(text, answer))


__all__ = ["Arithmetic"]
