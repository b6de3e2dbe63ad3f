"""The strongest continuous attack: an adversary with restarts, its best iterate kept per example."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from advalign import plugins
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Adversary, Attack
from advalign.types import Budget, Edit, Example, Outputs, Proposal, ThreatModel, Tokens

LOSSES = ("margin", "cross_entropy", "targeted")
GOALS = ("raise", "lower")


def _strong() -> Any:
    return plugins.resolve("adversaries", "pgd")(steps=20, step_size=0.25)


@dataclass(frozen=True, kw_only=True)
class Embedding(Attack):
    """δ* = argmax over restarts and iterates of score(h + δ), the iterates those of `adversary` (see kind `pgd`).

    Classifiers: climbs the margin max_{k ≠ y} z_k - z_y (after f_6 of arXiv:1608.04644), the cross-entropy, or log p of the likeliest
    wrong class ("targeted"); chosen by the margin.
    Cross-entropy is blind where the softmax is saturated: logits times 1000 look robust to it and not to the margin.
    Generators: climbs, and is chosen by, the mean negative log-likelihood of the reference response (`loss` does not apply); with
    goal "lower" its negative: the response is then what the attacker wants to hear (arXiv:2402.09063).
    Ours: δ = 0 is always a candidate; every evaluated iterate and the last one count; a delta is per example (`share` is ignored).
    The random stream is keyed by (seed, restart, example id), so results do not depend on `batch_size`.
    """

    adversary: Adversary = field(default_factory=_strong)
    restarts: int = 3
    loss: str = "margin"
    batch_size: int = 32
    goal: str = "raise"

    access: ClassVar[str] = "gradients"

    @property
    def examples_at_once(self) -> int | None:
        return self.batch_size

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise unknown("embedding.goal", "goal", self.goal, GOALS)
        if self.loss not in LOSSES:
            raise unknown("embedding.loss", "loss", self.loss, LOSSES)
        if self.restarts < 1 or self.batch_size < 1:
            raise ConfigError(f"embedding: restarts {self.restarts} and batch_size {self.batch_size} given; both must be at least 1.")
        if self.adversary.trains_every_pass or self.adversary.family != "continuous":
            kind = plugins.kind_of(type(self.adversary))
            raise ConfigError(f"embedding.adversary: '{kind}' is for training alone; give one that climbs by itself, such as pgd or apgd.")

    @property
    def threat(self) -> ThreatModel:
        return self.adversary.threat

    @property
    def gradient_steps(self) -> int:
        return self.adversary.steps

    def at_radius(self, radius: float) -> Self:
        return replace(self, adversary=replace(self.adversary, radius=radius))

    def propose(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One edit per example; at most `budget.queries` evaluations of each."""
        seed = rng.getrandbits(63)
        threat = self.threat if budget.radius is None else replace(self.threat, radius=min(self.threat.radius, budget.radius))
        tokens = target.tokens(examples).to(target.network.device)
        search = _Search(self, target, tokens, examples, budget.queries)
        for restart in range(self.restarts):
            search.climb(target.perturbation_context(threat, tokens, examples, (seed, restart)))
        lengths = tokens.lengths.tolist()
        return [Proposal(edits={site: add[n, :length].cpu() for site, add in search.best.items()}) for n, length in enumerate(lengths)]

    def objective(self, outputs: Outputs, tokens: Tokens, examples: Sequence[Example]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
        """The loss that is climbed, and the score an iterate is chosen by."""
        if outputs.class_logits is None:
            assert outputs.logprobs is not None
            nll = -(outputs.logprobs * tokens.target).sum(1) / tokens.target.sum(1).clamp(min=1)
            gain = nll if self.goal == "raise" else -nll
            return gain, gain
        logits = outputs.class_logits
        labels = torch.tensor([e.label for e in examples], device=logits.device)
        margin = _margin(logits, labels)
        if self.loss == "targeted":
            return logits.log_softmax(1).masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf).amax(1), margin
        return (margin if self.loss == "margin" else F.cross_entropy(logits, labels, reduction="none")), margin


class _Search:
    """One run over some examples: the best delta so far of each, and the evaluations left."""

    def __init__(self, attack: Embedding, target: Any, tokens: Tokens, examples: Sequence[Example], queries: int | None) -> None:
        self.attack, self.target, self.tokens, self.examples = attack, target, tokens, examples
        self.left = float("inf") if queries is None else queries
        self.best: dict[str, Tensor] = {}
        self.scores: Tensor | None = None

    def climb(self, context: Any) -> None:
        """One restart: the adversary's own loop of ask and tell, and the last iterate."""
        if self.scores is None:
            zero = {site: torch.zeros(len(self.examples), *shape, dtype=context.dtype) for site, shape in context.shapes.items()}
            self.best = {site: z.to(context.allowed.device) for site, z in zero.items()}
            self._evaluate({site: Edit(z) for site, z in self.best.items()}, gradients=False)
        adversary = self.attack.adversary
        state = adversary.start(context)
        for step in range(adversary.steps + 1):
            found = self._evaluate(adversary.ask(state), gradients=step < adversary.steps)
            if found is None:
                return
            if step < adversary.steps:
                state = adversary.tell(state, found.losses, found.gradients)

    def _evaluate(self, edits: Mapping[str, Edit], gradients: bool) -> Any:
        if self.left < 1:
            return None
        self.left -= 1
        found = self.target.climb(self.tokens, self.examples, edits, self.attack.objective, gradients)
        if self.scores is None:
            self.scores = found.scores
            return found
        better = found.scores > self.scores
        self.scores = torch.where(better, found.scores, self.scores)
        asked = {site: edit.add for site, edit in edits.items() if edit.add is not None}
        self.best = {site: torch.where(better[:, None, None], asked[site], old) for site, old in self.best.items()}
        return found


def _margin(logits: Float[Tensor, "N C"], labels: Tensor) -> Float[Tensor, "N"]:
    """max_{k != y} z_k - z_y: positive where the prediction is wrong."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1) - logits[own]


__all__ = ["Embedding"]
