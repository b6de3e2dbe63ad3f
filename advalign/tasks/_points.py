"""Exact arithmetic on a hand of cards: which numbers it can make, one way to make them, and a parser that evaluates nothing else."""

import random
import re
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import combinations

TOKEN = re.compile(r"\s*([0-9]{1,4}|[-+*/()])")
MAX_CHARACTERS = 200
MAX_TOKENS = 40
Hand = tuple[int, ...]


def halves(hand: Hand) -> list[tuple[Hand, Hand]]:
    """Every way to split a hand in two non-empty hands, both orders."""
    places = range(len(hand))
    chosen = {c for size in range(1, len(hand)) for c in combinations(places, size)}
    return sorted({(tuple(hand[i] for i in c), tuple(hand[i] for i in places if i not in c)) for c in chosen})


@cache
def reachable(hand: Hand) -> frozenset[Fraction]:
    """Every number that uses each card of the sorted `hand` exactly once with + - * /."""
    if len(hand) == 1:
        return frozenset({Fraction(hand[0])})
    values: set[Fraction] = set()
    for left, right in halves(hand):
        for a in reachable(left):
            for b in reachable(right):
                values.update((a + b, a - b, a * b))
                if b:
                    values.add(a / b)
    return frozenset(values)


def partners(a: Fraction, target: Fraction, options: frozenset[Fraction]) -> list[tuple[str, Fraction]]:
    """(op, b) with `a op b = target` and b among the options."""
    if a == 0 == target:
        return [("*", min(options))]
    candidates = [("+", target - a), ("-", a - target)]
    if a:
        candidates.append(("*", target / a))
    if a and target:
        candidates.append(("/", a / target))
    return [(op, b) for op, b in candidates if b in options]


def ways(hand: Hand, target: Fraction) -> list[tuple[Hand, Fraction, str, Hand, Fraction]]:
    """Top-level choices (left hand, its value, op, right hand, its value) that make the target."""
    return [
        (left, a, op, right, b)
        for left, right in halves(hand)
        for a in sorted(reachable(left))
        for op, b in partners(a, target, reachable(right))
    ]


@cache
def solvable(hand: Hand, target: int) -> bool:
    """Can the sorted `hand` make the target? Only hands of up to three cards are ever enumerated."""
    goal = Fraction(target)
    return any(partners(a, goal, reachable(right)) for left, right in halves(hand) for a in reachable(left))


def solve(hand: Hand, target: Fraction, rng: random.Random) -> str | None:
    """A random expression that makes the target, or None."""
    if len(hand) == 1:
        return str(hand[0]) if hand[0] == target else None
    options = ways(tuple(sorted(hand)), target)
    if not options:
        return None
    left, a, op, right, b = rng.choice(options)
    first, second = solve(left, a, rng), solve(right, b, rng)
    wrap = [f"({part})" if len(cards) > 1 else part for part, cards in ((first, left), (second, right))]
    return f"{wrap[0]} {op} {wrap[1]}"


def tokenise(text: str) -> list[str] | None:
    """Numbers of up to four ASCII digits, signs and brackets; None for anything else, or for anything long."""
    text = text.strip()
    if not text or len(text) > MAX_CHARACTERS:
        return None
    tokens, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(match[1])
        at = match.end()
    return tokens if len(tokens) <= MAX_TOKENS else None


def evaluate(text: str, hand: Hand) -> Fraction | None:
    """The value of `text`, or None unless it is an expression that uses each card exactly once.

    expression = term (("+" | "-") term)* · term = factor (("*" | "/") factor)* · factor = number | "(" expression ")"
    The cards are counted before anything is computed: at most four numbers below 10^4 are ever combined.
    """
    tokens = tokenise(text)
    if tokens is None or Counter(int(t) for t in tokens if t.isdigit()) != Counter(hand):
        return None
    try:
        value, end = _expression(tokens, 0)
    except (ValueError, ZeroDivisionError):
        return None
    return value if end == len(tokens) else None


def _expression(tokens: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _term(tokens, at)
    while at < len(tokens) and tokens[at] in "+-":
        other, end = _term(tokens, at + 1)
        value = value + other if tokens[at] == "+" else value - other
        at = end
    return value, at


def _term(tokens: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _factor(tokens, at)
    while at < len(tokens) and tokens[at] in "*/":
        other, end = _factor(tokens, at + 1)
        value = value * other if tokens[at] == "*" else value / other
        at = end
    return value, at


def _factor(tokens: list[str], at: int) -> tuple[Fraction, int]:
    if at < len(tokens) and tokens[at].isdigit():
        return Fraction(int(tokens[at])), at + 1
    if at < len(tokens) and tokens[at] == "(":
        value, end = _expression(tokens, at + 1)
        if end < len(tokens) and tokens[end] == ")":
            return value, end + 1
    raise ValueError("not an expression")
