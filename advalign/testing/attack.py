"""The contract of an attack: it proposes, within its budget, from the generator it is given, and decides nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from advalign.errors import ConfigError
from advalign.evaluation.suites.budget import distance
from advalign.interfaces import Attack
from advalign.models import Network
from advalign.targets import target_of
from advalign.testing import _networks
from advalign.testing._rules import explained, is_plugin, require, same, seed_global_generators, snapshot
from advalign.types import Budget, Example, Proposal

QUERIES = 30
ACCESS = ("text", "logprobs", "gradients")


def check_attack(
    attack: Attack, network: Network | None = None, examples: Sequence[Example] | None = None, *, jointly: bool = False
) -> None:
    """Raises AssertionError for the first rule that the attack breaks.

    `network` and `examples`: of your own; without them, an untrained tiny model with the attack's `head` (classifier, where it attacks
    any), three short reviews or three sums. `jointly`: True for an attack that seeks one change for all examples together.
    """
    is_plugin(attack, Attack, "attacks")
    require(attack.access in ACCESS, attack, f"access is '{attack.access}'; it is one of {', '.join(ACCESS)}.")
    require(attack.head in (None, "classifier", "policy"), attack, f"head is '{attack.head}'; classifier, policy or None.")
    case = _Case(attack, network or _networks.network(attack.head or "classifier"), examples)
    _leaves_the_model_alone(case)
    _reproducible(case)
    _within_budget(case)
    if attack.examples_at_once is not None and not jointly:
        _alone_as_in_company(case)
    _radius(case)


@dataclass(frozen=True)
class _Case:
    attack: Attack
    network: Network
    own_examples: Sequence[Example] | None

    @property
    def examples(self) -> list[Example]:
        if self.own_examples is not None:
            return list(self.own_examples)
        if self.network.head != "classifier":
            return _networks.questions()[7:10]
        target = target_of(self.network)
        reviews = _networks.reviews()[:3]
        labels = target.predict([e.prompt for e in reviews]).argmax(1).tolist()
        return [Example(prompt=e.prompt, label=label, id=e.id) for e, label in zip(reviews, labels, strict=True)]

    def propose(self, budget: Budget, examples: Sequence[Example], seed: int = 0) -> tuple[list[Proposal], list[Any]]:
        """Proposals for all examples, asked for in chunks as a suite does, and the target of each chunk."""
        size = self.attack.examples_at_once or 1
        proposals: list[Proposal] = []
        targets = []
        for start in range(0, len(examples), size):
            chunk, target = examples[start : start + size], target_of(self.network)
            with self.head_declared(), explained(self.attack, "propose raised; an attack that finds nothing proposes Proposal()"):
                new = self.attack.propose(target, chunk, budget, random.Random(f"{seed}/{start}"))
            self._check_proposals(new, chunk)
            proposals += new
            targets.append(target)
        return proposals, targets

    @contextmanager
    def head_declared(self) -> Iterator[None]:
        """An attack on generators that does not say so is run on a classifier, which refuses its questions."""
        try:
            yield
        except ConfigError as error:
            undeclared = self.attack.head is None and self.network.head == "classifier" and "is not available" in str(error)
            require(not undeclared, self.attack, f'declare `head = "policy"`: a classifier cannot answer it ({error})')
            raise

    def _check_proposals(self, proposals: Any, chunk: Sequence[Example]) -> None:
        plugin = self.attack
        require(
            isinstance(proposals, list),
            plugin,
            f"propose returns a {type(proposals).__name__}; return a list with one Proposal per example.",
        )
        require(
            len(proposals) == len(chunk), plugin, f"propose returns {len(proposals)} proposals for {len(chunk)} examples; one per example."
        )
        for proposal in proposals:
            kind = type(proposal).__name__
            sentence = f"propose returns a {kind} where a Proposal belongs; an attack proposes, and the harness decides what succeeded."
            require(type(proposal) is Proposal, plugin, sentence)
            texts = (*proposal.attempts, *(x for x in (proposal.text, proposal.forced) if x is not None))
            require(
                all(isinstance(text, str) for text in texts), plugin, "a proposal holds something that is no text where a text belongs."
            )


def _leaves_the_model_alone(case: _Case) -> None:
    network, plugin = case.network, case.attack
    network.train()
    before = snapshot(network.state_dict())
    _, targets = case.propose(Budget(queries=QUERIES), case.examples)
    require(network.training, plugin, "the model is in another mode afterwards; leave train() and eval() alone.")
    require(all(p.grad is None for p in network.parameters()), plugin, "parameters have gradients afterwards; use torch.autograd.grad.")
    require(same(dict(before), dict(network.state_dict())), plugin, "the weights of the model are others afterwards.")
    used = sum(target.num_gradients for target in targets) > 0
    require(not used or plugin.access == "gradients", plugin, f"it takes gradients, and access is '{plugin.access}'; declare 'gradients'.")


def _reproducible(case: _Case) -> None:
    examples, runs = case.examples, []
    before = snapshot(examples)
    for seed in (0, 1):
        seed_global_generators(seed)
        runs.append([_content(p) for p in case.propose(Budget(queries=QUERIES), examples)[0]])
    require(same(runs[0], runs[1]), case.attack, "equal generators give other proposals; draw from the rng handed in, from nothing else.")
    require(same(before, examples), case.attack, "it changes its examples.")


def _content(proposal: Proposal) -> tuple[Any, ...]:
    edits = None if proposal.edits is None else dict(proposal.edits)
    return proposal.text, edits, proposal.attempts, proposal.forced


def _within_budget(case: _Case) -> None:
    plugin, examples = case.attack, case.examples
    size = plugin.examples_at_once or 1
    for queries in (QUERIES, 3):
        proposals, targets = case.propose(Budget(queries=queries), examples)
        for number, target in enumerate(targets):
            allowed = queries * len(examples[number * size : (number + 1) * size])
            spent = f"it asks {target.num_queries} queries where the budget allows {allowed} ({queries} per example)"
            require(target.num_queries <= allowed, plugin, f"{spent}; stop at budget.queries (target.num_queries counts).")
        for proposal in proposals:
            attempts = len(proposal.attempts)
            sentence = f"{attempts} attempts where the budget allows {queries} queries; judging an attempt asks the model once."
            require(attempts <= queries, plugin, sentence)
    if plugin.threat is None:
        return
    target = target_of(case.network)
    radius = plugin.threat.radius
    for example, proposal in zip(examples, case.propose(Budget(queries=QUERIES, radius=radius), examples)[0], strict=True):
        far = distance(target, plugin, example, proposal) if proposal.edits is not None else 0.0
        require(
            far <= radius * (1 + 1e-5), plugin, f"an edit goes {far:.6g}, and its threat model allows {radius:.6g} (inf: off its region)."
        )


def _alone_as_in_company(case: _Case) -> None:
    budget, examples = Budget(queries=QUERIES), case.examples
    together = case.propose(budget, examples)[0]
    size = case.attack.examples_at_once or 1
    if size >= len(examples):
        backwards = case.propose(budget, examples[::-1])[0][::-1]
        for example, first, second in zip(examples, together, backwards, strict=True):
            equal = _close(_content(first), _content(second))
            sentence = f"the proposal for '{example.id}' depends on the order of the examples; key its streams by example.id."
            require(equal, case.attack, sentence)


def _close(first: Any, second: Any) -> bool:
    edits = (first[1] or {}, second[1] or {})
    near = edits[0].keys() == edits[1].keys() and all(torch.allclose(x, edits[1][site], atol=1e-4) for site, x in edits[0].items())
    return near and first[0] == second[0] and first[2:] == second[2:]


def _radius(case: _Case) -> None:
    plugin = case.attack
    moved = plugin.at_radius(0.5)
    if plugin.threat is None:
        return
    require(moved is not None, plugin, "it has a threat model and at_radius gives None; return the attack with another radius.")
    assert moved is not None
    right = moved.threat is not None and abs(moved.threat.radius - 0.5) < 1e-12
    require(right, plugin, "at_radius(0.5) gives an attack whose threat model has another radius.")


__all__ = ["check_attack"]
