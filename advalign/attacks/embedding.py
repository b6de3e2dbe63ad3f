"""The strongest continuous attack: an adversary with restarts, its best iterate kept per example."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from advalign import plugins
from advalign.errors import ConfigError
from advalign.interfaces import Adversary, Attack, PerturbationContext, Target, maximise
from advalign.ranges import Count, OneOf
from advalign.types import NEUTRAL, Budget, Edit, Example, Outputs, Proposal, ThreatModel, Tokens

LOSSES = ("margin", "cross_entropy", "targeted")
GOALS = ("raise", "lower")


def _default_adversary() -> Adversary:
    adversary: Adversary = plugins.resolve("adversaries", "pgd")(steps=20, step_size=0.25)
    return adversary


@dataclass(frozen=True, kw_only=True)
class Embedding(Attack):
    """δ* = argmax over restarts and iterates of score(h + δ), the iterates those of `adversary` (see kind `pgd`).

    Classifiers: iterates are chosen by the margin max_{k ≠ y} z_k - z_y (after f_6 of arXiv:1608.04644).
    Cross-entropy is blind where the softmax is saturated: logits times 1000 look robust to it and not to the margin.
    Generators: ascends, and chooses by, the mean negative log-likelihood of the reference response.
    Ours: δ = 0 is always a candidate; every evaluated iterate and the last one count; a delta is per example (`share` is ignored).
    The random stream is keyed by (seed, restart, example id), so results do not depend on `batch_size`.
    """

    adversary: Adversary = field(default_factory=_default_adversary)
    """The ascent, with its own restarts, and the threat model."""
    restarts: Count = 3
    """How often the whole ascent is run, each time from another random stream."""
    loss: Annotated[str, OneOf(LOSSES, "loss")] = "margin"
    """Loss to ascend on classifiers: margin, cross_entropy, or targeted (log p of the likeliest wrong class)."""
    batch_size: Annotated[Count, NEUTRAL] = 32
    """Examples of one call."""
    goal: Annotated[str, OneOf(GOALS, "goal")] | None = None
    """On generators: raise the loss of the reference response, or lower it (the response is then what the attacker wants to hear,
    arXiv:2402.09063). None: what the judge of the suite, or the target of `advalign attack`, asks for; without either, raise."""

    access: ClassVar[str] = "gradients"
    moves_reference: ClassVar[bool] = True

    @property
    def own_goal(self) -> str | None:
        return self.goal

    def aimed(self, goal: str) -> Self:
        return self if self.goal is not None else replace(self, goal=goal)

    @property
    def examples_at_once(self) -> int | None:
        return self.batch_size

    def __post_init__(self) -> None:
        if self.adversary.trains_every_pass or self.adversary.family != "continuous":
            kind = plugins.kind_of(type(self.adversary))
            raise ConfigError(f"embedding.adversary: '{kind}' is for training alone; give one with its own ascent, such as pgd or apgd.")

    @property
    def threat(self) -> ThreatModel:
        return self.adversary.threat

    @property
    def gradient_steps(self) -> int:
        return self.adversary.passes

    def at_radius(self, radius: float) -> Self:
        return replace(self, adversary=replace(self.adversary, radius=radius))

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One edit per example; at most `budget.queries` evaluations of each."""
        seed = rng.getrandbits(63)
        threat = self.threat if budget.radius is None else replace(self.threat, radius=min(self.threat.radius, budget.radius))
        tokens = target.tokens(examples).to(target.device)
        ascent = _Ascent(self, target, tokens, examples, budget.queries)
        for restart in range(self.restarts):
            ascent.run(target.perturbation_context(threat, tokens, examples, (seed, restart)))
        lengths = tokens.lengths.tolist()
        return [Proposal(edits={site: add[n, :length].cpu() for site, add in ascent.best.items()}) for n, length in enumerate(lengths)]

    def objective(self, outputs: Outputs, tokens: Tokens, examples: Sequence[Example]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
        """The loss to ascend, and the score by which an iterate is chosen."""
        if outputs.class_logits is None:
            assert outputs.logprobs is not None
            nll = -(outputs.logprobs * tokens.target).sum(1) / tokens.target.sum(1).clamp(min=1)
            loss = -nll if self.goal == "lower" else nll
            return loss, loss
        logits = outputs.class_logits
        labels = torch.tensor([e.label for e in examples], device=logits.device)
        margin = _margin(logits, labels)
        if self.loss == "targeted":
            return logits.log_softmax(1).masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf).amax(1), margin
        return (margin if self.loss == "margin" else F.cross_entropy(logits, labels, reduction="none")), margin


class _Ascent:
    """One run over some examples: the best delta of each so far, and the evaluations left."""

    def __init__(self, attack: Embedding, target: Target, tokens: Tokens, examples: Sequence[Example], queries: int | None) -> None:
        self.attack, self.target, self.tokens, self.examples = attack, target, tokens, examples
        self.queries_left = float("inf") if queries is None else queries
        self.best: dict[str, Tensor] = {}
        self.scores: Tensor | None = None

    def run(self, context: PerturbationContext) -> None:
        """One restart: the adversary's inner loop, and its final edits."""
        if self.scores is None:
            zero = {site: torch.zeros(len(self.examples), *shape, dtype=context.dtype) for site, shape in context.shapes.items()}
            self.best = {site: z.to(context.allowed.device) for site, z in zero.items()}
            self._evaluate({site: Edit(z) for site, z in self.best.items()}, gradients=False)
        final = maximise(self.attack.adversary, context, self._evaluate)
        if final is not None:
            self._evaluate(final, gradients=False)

    def _evaluate(self, edits: Mapping[str, Edit], gradients: bool = True) -> tuple[Tensor, Mapping[str, Tensor]] | None:
        """Losses and gradients under some edits, which may become the best; None where no evaluation is left."""
        if self.queries_left < 1:
            return None
        self.queries_left -= 1
        result = self.target.climb(self.tokens, self.examples, edits, self.attack.objective, gradients)
        if self.scores is None:
            self.scores = result.scores
            return result.losses, result.gradients
        better = result.scores > self.scores
        self.scores = torch.where(better, result.scores, self.scores)
        deltas = {site: edit.add for site, edit in edits.items() if edit.add is not None}
        self.best = {site: torch.where(better[:, None, None], deltas[site], old) for site, old in self.best.items()}
        return result.losses, result.gradients


def _margin(logits: Float[Tensor, "N C"], labels: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """max_{k != y} z_k - z_y: positive where the prediction is wrong."""
    is_label = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(is_label, -torch.inf).amax(1) - logits[is_label]


__all__ = ["Embedding"]
