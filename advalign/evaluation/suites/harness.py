"""One call of one attack, judged: the attack proposes; the harness asks the model again, measures what was spent and how far the
proposal went, and decides."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from advalign.engine.rng import rng
from advalign.errors import BudgetError, ConfigError
from advalign.evaluation.suites.budget import distance, violation
from advalign.evaluation.suites.judging import ClassifierJudge, GeneratorJudge, Judgement, attempts
from advalign.targets.cache import AnswerCache
from advalign.targets.target import target_of
from advalign.types import AttackResult, Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One attack, at one radius where it has one. `draws`: its attempts are drawn alike, so that more of them can be thought of."""

    name: str
    attack: str
    radius: float | None = None
    draws: bool = False


@dataclass(frozen=True, kw_only=True)
class Harness:
    """What every attack of a suite is run with. `cache`: answers of the model on disk, for attacks that ask about texts."""

    network: Any
    judge: ClassifierJudge | GeneratorJudge
    attacks: Mapping[str, Any]
    budget: Budget
    seed: int
    cache: AnswerCache | None = field(default=None)

    def run(self, arm: Arm, examples: Sequence[Example], before: Sequence[Judgement]) -> list[AttackResult]:
        """A function of its arguments alone: neither order, nor company beyond the chunk, nor the process matters."""
        attack, budget = self.attacks[arm.attack], self.budget
        if arm.radius is not None:
            attack = attack.at_radius(arm.radius)
        if attack.threat is not None:
            stated = attack.threat.radius
            budget = replace(budget, radius=stated if budget.radius is None else min(stated, budget.radius))
        found: dict[int, AttackResult] = {}
        for i, (example, judgement) in enumerate(zip(examples, before, strict=True)):
            if judgement.undetermined:
                found[i] = _result(arm, example, judgement, "undetermined", note=judgement.note)
            elif not judgement.correct and not self.judge.attacks_wrong:
                found[i] = _result(arm, example, judgement, "skipped")
        todo = [i for i in range(len(examples)) if i not in found]
        if todo:
            done = self._propose(arm, attack, budget, [examples[i] for i in todo], [before[i] for i in todo])
            found |= dict(zip(todo, done, strict=True))
        return [found[i] for i in range(len(examples))]

    def _propose(
        self, arm: Arm, attack: Any, budget: Budget, examples: Sequence[Example], before: Sequence[Judgement]
    ) -> list[AttackResult]:
        # Only classifiers have answers worth keeping by text.
        options = {"cache": self.cache} if self.cache is not None and getattr(self.network, "head", "") == "classifier" else {}
        target = target_of(self.network, **options)
        target.limit = None if budget.queries is None else budget.queries * len(examples)
        # An attack that takes several examples at once keys its own streams by example id; others get the stream of theirs.
        stream = rng(self.seed, arm.attack) if attack.examples_at_once is not None else rng(self.seed, arm.attack, examples[0].id)
        start = time.perf_counter()
        try:
            proposals = attack.propose(target, examples, budget, stream)
        except BudgetError as error:
            return [_result(arm, e, v, "over_budget", note=str(error)) for e, v in zip(examples, before, strict=True)]
        except ConfigError:
            raise
        except Exception as error:
            note = f"{type(error).__name__}: {error}"
            return [_result(arm, e, v, "error", note=note) for e, v in zip(examples, before, strict=True)]
        seconds, meter = (time.perf_counter() - start) / len(examples), target.meter()
        target.limit = None
        queries = _queries(proposals, int(meter["queries"]), len(examples))
        spent = {name: value / len(examples) for name, value in meter.items() if name != "queries"}
        # Draws are an example's own, so an attack that wants them is asked about one at a time.
        key = ("attempts", self.seed, arm.name, *(e.id for e in examples)) if attack.samples_answers else ()
        after = self.judge.after(examples, before, proposals, key)
        return [
            _judged(arm, e, v, ws, p, _furthest(target, attack, e, p, ws), budget, queries=n, seconds=seconds, spent=spent)
            for e, v, ws, p, n in zip(examples, before, after, proposals, queries, strict=True)
        ]


def _queries(proposals: Sequence[Proposal], metered: int, number: int) -> list[int]:
    """What each example cost: the attack's own count where it accounts for everything the meter saw, else the meter's mean."""
    stated = [p.queries for p in proposals if p.queries is not None]
    if len(stated) == number and sum(stated) >= metered:
        return stated
    return [metered // number] * number


def _furthest(target: Any, attack: Any, example: Example, proposal: Proposal, after: Sequence[Judgement]) -> float:
    """The distance of what broke the example; where nothing did, the largest that was tried."""
    texts = attempts(example, proposal)
    if proposal.edits is not None or len(texts) == 1:
        return distance(target, attack, example, proposal)
    sizes = [distance(target, attack, example, Proposal(text=text)) for text in texts]
    broke = [size for size, judgement in zip(sizes, after, strict=True) if _breaks(judgement)]
    return min(broke) if broke else max(sizes)


def _breaks(judgement: Judgement) -> bool:
    return not judgement.correct and not judgement.undetermined


def _judged(
    arm: Arm,
    example: Example,
    before: Judgement,
    after: Sequence[Judgement],
    proposal: Proposal,
    size: float,
    budget: Budget,
    *,
    queries: int,
    seconds: float,
    spent: Mapping[str, float],
) -> AttackResult:
    # The harness's own words first; then the text that was tried, which says more than what the attack says about it.
    if proposal.refused:
        return _result(arm, example, before, "error", note=f"not tried: {proposal.refused}", queries=queries, seconds=seconds, spent=spent)
    note = violation(budget, size=size, edited=proposal.edits is not None, queries=queries, seconds=seconds)
    broke = [i for i, judgement in enumerate(after) if _breaks(judgement)]
    silent = [judgement for judgement in after if judgement.undetermined]
    if note:
        status = "over_budget"
    elif not before.correct:
        status = "skipped"
    elif broke:
        status = "succeeded"
    else:
        status = "undetermined" if silent else "failed"
    shown = broke[0] if broke else 0
    text = proposal.attempts[shown] if proposal.attempts else proposal.text
    forced = "" if proposal.forced is None else f"[forced: {proposal.forced}]"
    tried = " ".join(part for part in (text, forced) if part)
    note = note or (silent[0].note if status == "undetermined" else "") or tried or proposal.note
    counts = {"attempts": len(after), "broken": len(broke), "queries": queries, "seconds": seconds, "spent": spent}
    return _result(arm, example, before, status, after=after[shown], distance=size, note=note, **counts)


def _result(arm: Arm, example: Example, before: Judgement, status: str, *, after: Judgement | None = None, **rest: Any) -> AttackResult:
    metrics = {f"{name}_before": rounded(x) for name, x in before.metrics.items()}
    if after is not None:
        metrics |= {f"{name}_after": rounded(x) for name, x in after.metrics.items()}
    rest["distance"] = rounded(rest.get("distance", 0.0))
    shown = "" if after is None else after.shown
    return AttackResult(example=example.id, attack=arm.name, status=status, before=before.shown, after=shown, metrics=metrics, **rest)


def rounded(value: float) -> float:
    """Four decimals: what a batch of another size changes in a float32 is not part of a result."""
    return round(value, 4)


__all__ = ["Arm", "Harness"]
