"""One call of one attack, judged: the attack proposes; the harness asks the model again, measures what was spent and how far the
proposal went, and decides."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from advalign.engine.rng import rng
from advalign.errors import BudgetError, ConfigError
from advalign.evaluation.suites.budget import distance, exceeded, violation
from advalign.evaluation.suites.checker import AnswerChecker, Judgement, attempted_texts
from advalign.functional import escaping
from advalign.interfaces import Attack, Target
from advalign.models import Network
from advalign.targets import AnswerCache, BlackBoxModel, target_of
from advalign.types import AttackResult, Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One attack, at one radius where it has one."""

    name: str
    """The attack's, and its radius: `pgd@0.1`."""
    attack: str
    """The attack's name in the suite."""
    radius: float | None = None
    """In the attack's own unit."""
    draws: bool = False
    """Its attempts are independent draws, so success can be given as a function of their number."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an attack spent on one example."""

    queries: int = 0
    """Distinct texts or edits sent."""
    seconds: float = 0.0
    """Wall clock."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """The rest of the meter, by name."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attack on one example."""

    arm: Arm
    """The attack."""
    example: Example
    """The example."""
    before: Judgement
    """Of the clean answer."""

    def result(
        self, status: str, *, note: str = "", after: Judgement | None = None, size: float = 0.0, cost: Cost | None = None, **counts: int
    ) -> AttackResult:
        """The result with this status. `counts`: attempts and broken."""
        cost = cost or Cost()
        metrics = {f"{name}_before": rounded(x) for name, x in self.before.metrics.items()}
        if after is not None:
            metrics |= {f"{name}_after": rounded(x) for name, x in after.metrics.items()}
        return AttackResult(
            example=self.example.id,
            attack=self.arm.name,
            status=status,
            queries=cost.queries,
            seconds=cost.seconds,
            spent=cost.spent,
            distance=rounded(size),
            before=self.before.shown,
            after="" if after is None else after.shown,
            note=note,
            metrics=metrics,
            **counts,
        )

    def judged(self, proposal: Proposal, after: Sequence[Judgement], budget: Budget, size: float, cost: Cost) -> AttackResult:
        """The result of a proposal, whose attempts were judged as `after` and moved the example by `size`."""
        if proposal.refused:
            return self.result("not_tried", note=proposal.refused, cost=cost)
        broken = [i for i, judgement in enumerate(after) if judgement.breaks]
        status, reason = self._status(proposal, after, budget, size, cost)
        shown = broken[0] if broken else 0
        # The harness's own words first; then the text that was tried, which says more than the attack's note about it.
        note = reason or _tried(proposal, shown) or proposal.note
        return self.result(status, note=note, after=after[shown], size=size, cost=cost, attempts=len(after), broken=len(broken))

    def _status(self, proposal: Proposal, after: Sequence[Judgement], budget: Budget, size: float, cost: Cost) -> tuple[str, str]:
        """The status of a judged proposal, and the reason, where the harness has one."""
        overspent = violation(budget, size=size, edited=proposal.edits is not None, queries=cost.queries)
        undetermined = [judgement for judgement in after if judgement.undetermined]
        if not self.before.correct:
            return "skipped", overspent
        if late := exceeded("seconds", cost.seconds, budget.seconds):
            return "timed_out", late
        if overspent:
            return "over_budget", overspent
        if any(judgement.breaks for judgement in after):
            return "succeeded", ""
        if undetermined:
            return "undetermined", undetermined[0].note
        if not any(judgement.sent for judgement in after):
            return "not_tried", after[0].note
        if size == 0 and proposal.edits is not None and budget.radius == 0:
            return "not_tried", "a radius of 0 allows no edit"
        # One query is the attack's look at the example itself.
        if size == 0 and cost.queries <= 1 and len(after) == 1 and proposal.forced is None:
            return "not_tried", f"nothing was changed{proposal.note and f' ({proposal.note})'}"
        return "failed", ""


@dataclass(frozen=True, kw_only=True)
class Harness:
    """What every attack of a suite runs with."""

    model: Network | BlackBoxModel
    """The model under attack; every call gets a fresh target of it."""
    checker: AnswerChecker
    """Judges answers before and after."""
    attacks: Mapping[str, Attack]
    """By name."""
    budget: Budget
    """Of every attack, per example."""
    seed: int
    """Of every random stream, beside the attack's name and the example's id."""
    cache: AnswerCache | None = None
    """Answers of the model on disk, for attacks on texts."""

    def run(self, arm: Arm, examples: Sequence[Example], before: Sequence[Judgement]) -> list[AttackResult]:
        """A function of its arguments alone: order, other chunks and the process do not matter."""
        attack, budget = self._attack(arm), self.budget
        if attack.threat is not None:
            stated = attack.threat.radius
            budget = replace(budget, radius=stated if budget.radius is None else min(stated, budget.radius))
        cases = [Case(arm=arm, example=e, before=judgement) for e, judgement in zip(examples, before, strict=True)]
        results: dict[int, AttackResult] = {}
        for i, case in enumerate(cases):
            if case.before.undetermined:
                results[i] = case.result("undetermined", note=case.before.note)
            elif not case.before.correct and not self.checker.attacks_wrong:
                results[i] = case.result("skipped")
        attacked = [i for i in range(len(cases)) if i not in results]
        if attacked:
            results |= dict(zip(attacked, self._run_attack(attack, budget, [cases[i] for i in attacked]), strict=True))
        return [results[i] for i in range(len(cases))]

    def _attack(self, arm: Arm) -> Attack:
        attack = self.attacks[arm.attack]
        if arm.radius is None:
            return attack
        moved = attack.at_radius(arm.radius)
        assert moved is not None  # arms have a radius only where the attack has one
        return moved

    def _run_attack(self, attack: Attack, budget: Budget, cases: Sequence[Case]) -> list[AttackResult]:
        try:
            return self._propose_and_judge(attack, budget, cases)
        except ConfigError:
            raise
        except Exception as error:
            if len(cases) > 1 and not attack.joint:  # which example it was does not depend on company
                return [self._run_attack(attack, budget, [case])[0] for case in cases]
            if isinstance(error, BudgetError):
                note = escaping.message(error)
                return [case.result("over_budget" if case.before.correct else "skipped", note=note) for case in cases]
            return [case.result("error", note=escaping.exception(error)) for case in cases]

    def _propose_and_judge(self, attack: Attack, budget: Budget, cases: Sequence[Case]) -> list[AttackResult]:
        arm, examples = cases[0].arm, [case.example for case in cases]
        target = target_of(self.model, cache=self.cache)
        target.limit = None if budget.queries is None else budget.queries * len(cases)
        # An attack that takes several examples at once keys its own streams by example id; others get the stream of theirs.
        stream = rng(self.seed, arm.attack) if attack.examples_at_once is not None else rng(self.seed, arm.attack, examples[0].id)
        start = time.perf_counter()
        proposals = attack.propose(target, examples, budget, stream)
        seconds = time.perf_counter() - start
        _check_count(arm.attack, proposals, len(cases))
        costs = _costs(target, proposals, seconds)
        target.limit = None
        # Draws are an example's own, so an attack that wants them is asked about one at a time.
        key = ("attempts", self.seed, arm.name, *(e.id for e in examples)) if attack.samples_answers else ()
        after = self.checker.after(examples, [case.before for case in cases], proposals, key)
        return [
            case.judged(proposal, judgements, budget, _size(target, attack, case.example, proposal, judgements), cost)
            for case, proposal, judgements, cost in zip(cases, proposals, after, costs, strict=True)
        ]


def _check_count(name: str, proposals: Sequence[Proposal], number: int) -> None:
    if len(proposals) != number:
        raise ConfigError(
            f"attacks.{name}: it returned {len(proposals)} proposals for {number} examples; one proposal per example, in order, is needed."
        )


def _costs(target: Target, proposals: Sequence[Proposal], seconds: float) -> list[Cost]:
    """What each example cost. Queries: the attack's own count where it covers everything the meter counted, else the meter's mean."""
    number, meter = len(proposals), target.meter()
    metered = int(meter.pop("queries"))
    stated = [p.queries for p in proposals if p.queries is not None]
    queries = stated if len(stated) == number and sum(stated) >= metered else [metered // number] * number
    spent = {name: value / number for name, value in meter.items()}
    return [Cost(queries=n, seconds=seconds / number, spent=spent) for n in queries]


def _size(target: Target, attack: Attack, example: Example, proposal: Proposal, after: Sequence[Judgement]) -> float:
    """The distance of what broke the example; where nothing did, the largest that was tried."""
    if proposal.edits is not None:
        return distance(target, attack, example, proposal)
    texts = attempted_texts(example, proposal)
    sizes = [distance(target, attack, example, Proposal(text=text)) for text in texts]
    breaking = [size for size, judgement in zip(sizes, after, strict=True) if judgement.breaks]
    return min(breaking) if breaking else max(sizes)


def _tried(proposal: Proposal, shown: int) -> str:
    """The text of one attempt, and the forced beginning of its response."""
    text = proposal.attempts[shown] if proposal.attempts else proposal.text
    forced = "" if proposal.forced is None else f"[forced: {proposal.forced}]"
    return " ".join(part for part in (text, forced) if part)


def rounded(value: float) -> float:
    """Four decimals: what a batch of another size changes in a float32 is not part of a result."""
    return round(value, 4)


__all__ = ["Arm", "Case", "Cost", "Harness"]
