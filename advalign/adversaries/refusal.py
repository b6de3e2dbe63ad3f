"""Ablation of the refusal direction: an adversary that removes the model's own sign of danger."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from advalign import data
from advalign.adversaries._unbounded import UnboundedAdversary
from advalign.errors import ConfigError
from advalign.interfaces import Memory, PerturbationContext
from advalign.models import Network, perturb
from advalign.models.inference import batches_in_order, evaluation_mode, map_batches
from advalign.models.padding import pad
from advalign.ranges import Count, Fraction, PositiveFraction, Whole
from advalign.types import Edit, Prompt, Tokens


@dataclass(frozen=True, kw_only=True)
class RefusalDirection(UnboundedAdversary[PerturbationContext]):
    """h ← h − (h · r) r at the outputs of the last blocks, r = (mean h(harmful) − mean h(harmless)) / norm   (ReFAT, arXiv:2409.20089).

    h is taken at the last token of the prompt. There is no inner loop: apart from measuring r, the cost is that of plain training.
    """

    family: ClassVar[str] = "direction"
    memory_scope: ClassVar[str] = "global"

    harmful: Any
    """Data reference of the harmful prompts."""
    harmless: Any
    """Data reference of the harmless prompts."""
    layer: Whole | None = None
    """Block whose direction all blocks share (as in arXiv:2406.11717); None: each block has the direction of its own output."""
    last: PositiveFraction = 0.75
    """Fraction of the blocks, from the end, whose output is ablated ("the last 75 % of layers")."""
    number: Count = 32
    """Prompts of each kind that are drawn to measure r."""
    every: Count = 4
    """Updates after which r is measured again; the first update measures it too."""
    probability: Fraction = 0.5
    """Probability that a row is attacked ("with probability 0.5")."""
    steps: int = field(default=0, init=False)
    """No gradient steps."""

    def describe(self) -> tuple[str, ...]:
        whose = "each block's own" if self.layer is None else f"layer:{self.layer}'s"
        return (f"{whose} refusal direction taken out of the last {self.last:.3g} of the blocks with probability {self.probability:.3g}",)

    def start(self, context: PerturbationContext) -> PerturbationContext:
        if context.network is None:
            raise ConfigError("refusal: its direction is measured on the network, and the context has none.")
        memory = context.memory
        if "directions" not in memory or memory["age"] >= self.every:
            rng = random.Random(repr(context.key))
            memory["directions"], memory["age"] = self.measure(context.network, rng), 0
        return context

    def ask(self, state: PerturbationContext) -> dict[str, Edit]:
        return {site: Edit(ablate=r.to(state.allowed.device), where=state.allowed) for site, r in state.memory["directions"].items()}

    def tell(self, state: PerturbationContext, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> PerturbationContext:
        return state

    def end_update(self, memory: Memory, all_reduce: Callable[[Tensor], Tensor]) -> None:
        memory["age"] = memory.get("age", 0) + 1

    def measure(self, network: Network, rng: random.Random) -> dict[str, Float[Tensor, "D"]]:
        """{site: direction of norm 1} of every block that is ablated."""
        stack = len(perturb.blocks(network.backbone))
        ablated = [f"layer:{k}" for k in range(stack - max(round(self.last * stack), 1), stack)]
        read = ablated if self.layer is None else [f"layer:{self.layer}"]
        means = []
        for name, reference in (("harmful", self.harmful), ("harmless", self.harmless)):
            prompts = _prompts(json.dumps(reference, sort_keys=True, default=str), name)
            means.append(last_states(network, rng.sample(prompts, min(self.number, len(prompts))), read))
        directions = {site: _between(means[0][site], means[1][site], site) for site in read}
        return {site: directions[site if self.layer is None else read[0]] for site in ablated}


def last_states(network: Network, prompts: Sequence[Prompt], sites: Sequence[str], batch_size: int = 16) -> dict[str, Float[Tensor, "D"]]:
    """The mean hidden state at the last token of the prompts, per site, without gradient and without dropout."""
    rows = network.encoder.prompts(prompts)
    tokens = pad(rows, [len(ids) for ids in rows], network.encoder.pad_id)

    def read(part: Tokens, numbers: Int[Tensor, "N"]) -> dict[str, Tensor]:
        hidden = network(part.to(network.device), {f"hidden:{site}" for site in sites}).hidden
        last = {
            site: hidden[site][torch.arange(len(numbers), device=network.device), part.lengths.to(network.device) - 1] for site in sites
        }
        return {site: states.to(torch.promote_types(states.dtype, torch.float32)) for site, states in last.items()}

    with evaluation_mode(network):
        states = map_batches(read, tokens, batches_in_order(len(rows), batch_size))
    return {site: reduce(torch.add, [part.sum(0) for part in column.split(batch_size)]) / len(rows) for site, column in states.items()}


def _between(harmful: Float[Tensor, "D"], harmless: Float[Tensor, "D"], site: str) -> Float[Tensor, "D"]:
    difference = harmful - harmless
    size = difference.norm()
    if not size > 1e-6 * harmful.norm():  # less is rounding
        raise ConfigError(f"refusal: harmful and harmless prompts have the same mean at {site}, so there is no direction between them.")
    return difference / size


@lru_cache(maxsize=8)
def _prompts(reference: str, name: str) -> list[Prompt]:
    prompts = [example.prompt for example in data.examples(json.loads(reference))]
    if not prompts:
        raise ConfigError(f"refusal.{name}: {reference} holds no prompts.")
    return prompts


__all__ = ["RefusalDirection"]
