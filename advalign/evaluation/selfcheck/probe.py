"""The measurements behind self-checks: every attack is measured again on the same examples, whatever it reports.

score   the margin max_{k != y} z_k - z_y of a classifier, the mean negative log-likelihood of the reference response of a generator
gain    score under attack - clean score
broken  margin > 0; negative log-likelihood risen by log 2 (its per-token probability halved)

Axes: N examples, T tokens, D hidden.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.adversaries.pgd import PGD
from advalign.attacks.embedding import Embedding
from advalign.engine.rng import generator, rng
from advalign.functional import balls
from advalign.interfaces import Edits, PerturbationContext
from advalign.targets.target import NetworkTarget, stack
from advalign.types import Budget, Edit, Example, ThreatModel, Tokens

Adds = Mapping[str, Tensor]
"""{site: "N T D"}: the deltas of one batch."""

Measure = Callable[[Sequence[Example], Tokens, PerturbationContext], Adds]
"""(batch, its rows, what an adversary is given) -> deltas."""


class AttackProbe:
    """One target, some examples and a threat model. Edits are passed and returned per example."""

    def __init__(
        self, target: NetworkTarget, examples: Sequence[Example], threat: ThreatModel, *, seed: int = 0, batch_size: int = 32
    ) -> None:
        self.target, self.examples, self.threat, self.seed = target, list(examples), threat, seed
        self._batches = [self.examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
        self.clean = self.scores()

    @property
    def floor(self) -> float:
        """Gains below this are rounding: 8 units in the last place of the mean clean score, and of 1, because a log-likelihood near 0
        is rounded like the logits it comes from."""
        return 8 * torch.finfo(self.target.network.dtype).eps * max(1.0, self.clean.abs().mean().item())

    def scores(self, edits: Sequence[Edits] | None = None) -> Float[Tensor, "N"]:
        """Scores of the examples, each under its own edit."""
        scores, done = [], 0
        for batch in self._batches:
            tokens = self._tokens(batch)
            part = None if edits is None else edits[done : done + len(batch)]
            adds = {} if part is None else stack(part, tokens.ids.shape[1], self.target.device)
            scores.append(self.target.climb(tokens, batch, adds, Embedding().objective, False).scores)
            done += len(batch)
        return torch.cat(scores).double().cpu()

    def gain(self, edits: Sequence[Edits]) -> Float[Tensor, "N"]:
        """Score under each example's edit minus its clean score."""
        return self.scores(edits) - self.clean

    def broken(self, gain: Float[Tensor, "N"]) -> Bool[Tensor, "N"]:
        """Where an attack of that gain succeeds."""
        return self.clean + gain > 0 if self.target.head == "classifier" else gain >= math.log(2)

    def beaten(self, first: Float[Tensor, "N"], second: Float[Tensor, "N"]) -> float:
        """Fraction of examples on which gain `first` is larger than gain `second` by 5 % and `second` did not break the example."""
        return ((first > 1.05 * second.clamp(min=0) + self.floor) & ~self.broken(second)).double().mean().item()

    def attack(
        self,
        *,
        steps: int,
        step_size: float | None = None,
        radius: float | None = None,
        restarts: int = 1,
        loss: str = "margin",
        random_start: bool = True,
        gradients_of: NetworkTarget | None = None,
    ) -> list[Edits]:
        """Best iterates of PGD. All calls share their random starts, so a run with more steps or restarts contains one with fewer.

        `gradients_of`: another target, whose gradients are used instead.
        """
        threat = asdict(self.threat if radius is None else replace(self.threat, radius=radius))
        del threat["share"]  # one delta per example
        pgd = PGD(steps=steps, step_size=step_size, random_start=random_start, **threat)
        attack = Embedding(adversary=pgd, restarts=restarts, loss=loss)
        edits: list[Edits] = []
        for batch in self._batches:
            proposals = attack.propose(gradients_of or self.target, batch, Budget(), rng(self.seed, "self-check"))
            edits += [p.edits or {} for p in proposals]
        return edits

    def input_gradients(self, loss: str = "margin") -> list[Edits]:
        """Gradient of the loss at delta = 0, on allowed positions."""

        def measure(batch: Sequence[Example], tokens: Tokens, context: PerturbationContext) -> Adds:
            step = self.target.climb(tokens, batch, _edits(_zero(context)), Embedding(loss=loss).objective)
            return {site: balls.masked(g.detach().to(context.dtype), context.allowed) for site, g in step.gradients.items()}

        return self._per_example(measure)

    def along(self, directions: Sequence[Edits], fraction: float = 1.0) -> list[Edits]:
        """The steepest step of `fraction` times the radius along each direction: on the ball's boundary for a fraction of 1."""
        size = fraction * self.threat.radius * self.target.unit(self.threat)
        return [{site: size * self._steepest(d[None])[0] for site, d in edit.items()} for edit in directions]

    def random(self, *key: object) -> list[Edits]:
        """Gaussian directions on allowed positions."""

        def measure(batch: Sequence[Example], tokens: Tokens, context: PerturbationContext) -> Adds:
            return self._directions(batch, context, (self.seed, "random", *key), shared=False)

        return self._per_example(measure)

    def gradient_free(self, queries: int, pairs: int = 5) -> list[Edits]:
        """Evolution strategy in the same ball, scores only: delta moves along sum (s(delta + u) - s(delta - u)) u of antithetic pairs,
        |u| half the radius   (after the estimator of arXiv:1703.03864, section 2). Half of the directions are the same at all tokens.
        Every point that was evaluated is a candidate, so it is a random search too."""

        def measure(batch: Sequence[Example], tokens: Tokens, context: PerturbationContext) -> Adds:
            def step(start: Adds, direction: Adds, size: float) -> tuple[dict[str, Tensor], Tensor]:
                moved = {site: self._inside(x + size * context.radius * direction[site], context.radius) for site, x in start.items()}
                return moved, self.target.climb(tokens, batch, _edits(moved), Embedding().objective, False).scores

            zero = total = _zero(context)
            centre, scores = step(zero, zero, 0.0)
            best = centre
            for round_ in range(max(1, queries // (2 * pairs + 1))):
                for pair in range(pairs):
                    directions = self._directions(batch, context, (self.seed, "gradient-free", round_, pair), shared=pair % 2 == 0)
                    unit = {site: self._steepest(u) for site, u in directions.items()}
                    (up, high), (down, low) = step(centre, unit, 0.5), step(centre, unit, -0.5)
                    best, scores = _better(*_better(best, scores, up, high), down, low)
                    difference = (high - low).to(context.dtype)[:, None, None]
                    total = {site: old + difference * unit[site] for site, old in total.items()}
                centre, centre_scores = step(centre, {site: self._steepest(g) for site, g in total.items()}, 0.5)
                best, scores = _better(best, scores, centre, centre_scores)
                total = {site: 0.9 * old for site, old in total.items()}
            return best

        return self._per_example(measure)

    def _per_example(self, measure: Measure) -> list[Edits]:
        """What `measure` gives for every batch, as edits of single examples."""
        edits: list[Edits] = []
        for batch in self._batches:
            tokens = self._tokens(batch)
            adds = measure(batch, tokens, self.target.perturbation_context(self.threat, tokens, batch, (self.seed, "self-check")))
            edits += [{site: add[i, :n].cpu() for site, add in adds.items()} for i, n in enumerate(tokens.lengths.tolist())]
        return edits

    def _tokens(self, batch: Sequence[Example]) -> Tokens:
        return self.target.tokens(batch).to(self.target.device)

    def _directions(
        self, batch: Sequence[Example], context: PerturbationContext, key: Sequence[object], *, shared: bool
    ) -> dict[str, Tensor]:
        streams = [generator(*key, example.id) for example in batch]

        def draw(dim: int) -> Callable[[int, torch.Generator], Tensor]:
            def normal(length: int, stream: torch.Generator) -> Tensor:
                return torch.randn(1 if shared else length, dim, generator=stream, dtype=context.dtype).expand(length, dim)

            return normal

        return {
            site: balls.fill(context.allowed, dim, draw(dim), generators=streams, dtype=context.dtype)
            for site, (_, dim) in context.shapes.items()
        }

    def _steepest(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        return balls.steepest(x, ball=self.threat.ball, scope=self.threat.scope)

    def _inside(self, x: Float[Tensor, "N T D"], radius: float) -> Float[Tensor, "N T D"]:
        return balls.project(x, ball=self.threat.ball, scope=self.threat.scope, radius=radius)


def _zero(context: PerturbationContext) -> dict[str, Tensor]:
    shape = context.allowed.shape
    return {site: torch.zeros(*shape, dim, dtype=context.dtype, device=context.allowed.device) for site, (_, dim) in context.shapes.items()}


def _edits(adds: Adds) -> dict[str, Edit]:
    return {site: Edit(add) for site, add in adds.items()}


def _better(best: Adds, scores: Tensor, other: Adds, other_scores: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Of two deltas per example the one with the higher score."""
    wins = other_scores > scores
    adds = {site: torch.where(wins[:, None, None], other[site], add) for site, add in best.items()}
    return adds, torch.where(wins, other_scores, scores)


__all__ = ["AttackProbe"]
