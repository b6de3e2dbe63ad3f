"""What engines share: prompts are put into groups, and answering a prompt is going on with an empty response."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from advalign.interfaces import RolloutEngine
from advalign.models import Network
from advalign.types import Example, RolloutGroup, Sampling


class Engine(RolloutEngine):
    """Abstract: an engine says how it goes on (`extend`)."""

    @torch.no_grad()
    def generate(
        self, network: Network, examples: Sequence[Example], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        """`n` responses per example."""
        prompts = network.encoder.prompts([e.prompt for e in examples])
        groups = [RolloutGroup(example=e, prompt_ids=ids, rollouts=[]) for e, ids in zip(examples, prompts, strict=True)]
        return self.extend(network, groups, n, sampling, generator)
