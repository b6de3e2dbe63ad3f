"""How far a proposal went, and whether that is within its budget."""

import math

from advalign.engine.ascent import allowed_positions
from advalign.functional import balls
from advalign.interfaces import Attack, Target
from advalign.types import Budget, Example, Proposal


def distance(target: Target, attack: Attack, example: Example, proposal: Proposal) -> float:
    """In the attack's own unit: the norm of the edit over the unit of its radius (largest over sites and balls), or the fraction of
    words changed. Infinite for an edit outside the attack's stated threat model."""
    if proposal.edits is None:
        return changed_words(example.text, example.text if proposal.text is None else proposal.text)
    threat = attack.threat
    if threat is None:
        return math.inf
    allowed = allowed_positions(threat.where, target.tokens([example]))[0]
    sizes = [0.0]
    for site, add in proposal.edits.items():
        # An edit has one row per token of the example, so one that is longer or outside its region breaks the rules.
        if site not in threat.sites or add.shape[0] != allowed.shape[0] or bool(add[~allowed].abs().sum() != 0):
            return math.inf
        sizes.append(float(balls.norm(add[None].double(), ball=threat.ball, scope=threat.scope).max()) / target.unit(threat))
    return max(sizes)


def violation(budget: Budget, *, size: float, edited: bool, queries: int) -> str:
    """What a proposal overspent beside time, in words; empty if it kept its budget."""
    limits = [
        ("queries", queries, budget.queries),
        ("radius", size if edited else 0.0, budget.radius),
        ("fraction of words changed", 0.0 if edited else size, budget.edits),
    ]
    return "; ".join(over for name, spent, limit in limits if (over := exceeded(name, spent, limit)))


def exceeded(name: str, spent: float, limit: float | None) -> str:
    """How much was spent of which limit; empty if it was kept."""
    # A float32 delta of norm r may measure r (1 + 1e-7) in float64.
    return f"{name} {spent:.6g} of {limit:.6g}" if limit is not None and spent > limit * (1 + 1e-5) else ""


def changed_words(first: str, second: str) -> float:
    """Levenshtein distance in words over the number of words of the first text."""
    a, b = first.split(), second.split()
    previous = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        current = [i]
        for j, other in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (word != other)))
        previous = current
    return previous[-1] / max(len(a), 1)


__all__ = ["changed_words", "distance", "exceeded", "violation"]
