"""Word problems of MAWPS (SingleOp and AddSub) as files: drills, demonstrations, problems with answers only, held-out problems.

    python benchmarks/prepare_mawps.py --output out/mawps

Kept: problems over whole numbers up to 99 whose answer is ONE operation on two numbers of the question, and only one such
operation gives it; that operation is the demonstration, "70 - 27 = 43". Words, numbers and punctuation stand apart, for a
tokenizer of whole words. The split is a hash of the question with numbers and names masked, so that two problems which differ
in nothing else lie on one side:

    test.jsonl      30 % of the problems, as they are                                       {question, answer, response}
    problems.jsonl  35 %, as they are, WITHOUT a worked response: the reward needs none     {question, answer}
    demos.jsonl     35 %, each as it is and `copies` times with its numbers drawn anew      {question, answer, response}
    drill.jsonl     sums without words, "70 - 27 =" -> "43": the arithmetic itself          {question, answer, response}

Numbers drawn anew are augmentation of the training side: with the drill, a model from scratch learns from them to copy numbers
and to calculate. Held-out are the problems, not the arithmetic: a sum of a held-out problem may well occur in the drill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SUBSETS = ("singleop", "addsub")
NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
LIMIT = 99


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`text` has a `{}` for each number; the answer is numbers[first] operation numbers[second]."""

    text: str
    numbers: tuple[int, ...]
    first: int
    operation: str
    second: int

    @property
    def question(self) -> str:
        return self.text.format(*self.numbers)

    @property
    def answer(self) -> int:
        return calculate(self.numbers[self.first], self.operation, self.numbers[self.second])

    @property
    def response(self) -> str:
        return f"{self.numbers[self.first]} {self.operation} {self.numbers[self.second]} = {self.answer}"

    def row(self, worked: bool) -> dict[str, object]:
        return {"question": self.question, "answer": self.answer} | ({"response": self.response} if worked else {})


def calculate(a: int, operation: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[operation]


def solutions(numbers: Sequence[int], answer: int) -> list[tuple[int, str, int]]:
    """Every way to get `answer` from two of the numbers: (first, operation, second); sums and products in order of appearance."""
    found = []
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            if i < j:
                found += [(i, operation, j) for operation in "+*" if calculate(a, operation, b) == answer]
            if i != j and a - b == answer:
                found.append((i, "-", j))
            if i != j and b and a == answer * b:
                found.append((i, "/", j))
    return found


def problem(question: str, answer: float) -> Problem | str:
    """The problem, or the reason why it is left out."""
    found = NUMBER.findall(question)
    if any("." in n for n in found) or answer != int(answer):
        return "decimals"
    numbers = tuple(int(n.replace(",", "")) for n in found)
    if max((*numbers, int(answer))) > LIMIT or len(numbers) < 2:
        return "too large" if len(numbers) >= 2 else "fewer than two numbers"
    ways = solutions(numbers, int(answer))
    if len(ways) != 1:
        return "several operations fit" if ways else "no single operation fits"
    words = re.findall(r"\{\}|[a-z]+|[^\sa-z]", NUMBER.sub("{}", question).lower())
    return Problem(text=" ".join(words), numbers=numbers, first=ways[0][0], operation=ways[0][1], second=ways[0][2])


def side(question: str) -> str:
    """Which file a question belongs to: a hash of it without numbers, names, case and punctuation."""
    masked = re.sub(r"\b[A-Z][a-z]+\b", "@", NUMBER.sub("#", question))
    share = int(hashlib.sha1(" ".join(re.findall(r"[a-z@#]+", masked.lower())).encode()).hexdigest(), 16) % 100
    return "test" if share < 30 else "problems" if share < 65 else "demos"


def operands(operation: str, rng: random.Random) -> tuple[int, int]:
    """Two numbers up to 99 whose result is one, too, from 1 on."""
    if operation in "+-":
        total = rng.randint(2, LIMIT)
        part = rng.randint(1, total - 1)
        return (part, total - part) if operation == "+" else (total, part)
    small = rng.randint(2, 12)
    large = rng.randint(2, LIMIT // small)
    a, b = (small, large) if rng.random() < 0.5 else (large, small)
    return (a, b) if operation == "*" else (a * b, b)


def redrawn(p: Problem, rng: random.Random) -> Problem:
    """The same text with other numbers."""
    numbers = [rng.randint(1, LIMIT) for _ in p.numbers]
    numbers[p.first], numbers[p.second] = operands(p.operation, rng)
    return replace(p, numbers=tuple(numbers))


def sums(number: int, rng: random.Random) -> Iterator[dict[str, object]]:
    """Bare sums; addition and subtraction, which have more of them, come more often."""
    for operation in rng.choices("+-*/", weights=(4, 4, 1, 1), k=number):
        a, b = operands(operation, rng)
        answer = calculate(a, operation, b)
        yield {"question": f"{a} {operation} {b} =", "answer": answer, "response": str(answer)}


def read(folder: Path) -> Iterator[tuple[str, float]]:
    for subset in SUBSETS:
        file = folder / f"{subset}.jsonl"
        if not file.is_file():
            sys.exit(f"prepare_mawps: no file {file}; export ADVALIGN_DATA=<folder that holds math_mawps/{subset}.jsonl>.")
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield row["question"], float(row["answer"])


def prepare(folder: Path, output: Path, copies: int, drills: int = 40_000, seed: int = 0) -> dict[str, int]:
    """Write the four files; how many problems went where, and why others were left out."""
    count: Counter[str] = Counter()
    found: dict[str, list[Problem]] = {"test": [], "problems": [], "demos": []}
    for question, answer in read(folder):
        made = problem(question, answer)
        if isinstance(made, Problem):
            found[side(question)].append(made)
        else:
            count[f"left out: {made}"] += 1
    rng = random.Random(seed)
    rows = {name: [p.row(worked=name != "problems") for p in ps] for name, ps in found.items()}
    rows["drill"] = list(sums(drills, rng))
    rows["demos"] += [redrawn(p, rng).row(worked=True) for p in found["demos"] for _ in range(copies)]
    output.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        (output / f"{name}.jsonl").write_text("".join(_line(row) for row in lines), encoding="utf-8")
    return {name: len(ps) for name, ps in found.items()} | {"demonstrations": len(rows["demos"])} | dict(sorted(count.items()))


def _line(row: Mapping[str, object]) -> str:
    return json.dumps(row) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/mawps"))
    parser.add_argument("--copies", type=int, default=60)
    given = parser.parse_args()
    folder = Path(os.environ.get("ADVALIGN_DATA", "data")) / "math_mawps"
    for name, number in prepare(folder, given.output, given.copies).items():
        print(f"{name}: {number}")


if __name__ == "__main__":
    main()
