"""What samples responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from advalign.checked import Checked
from advalign.errors import ConfigError
from advalign.types import Example, RolloutGroup, Sampling

if TYPE_CHECKING:
    from advalign.models import Network


class RolloutEngine(Checked, ABC, section="rollout"):
    """Abstract base: samples from a learner's network.

    Where a source works `ahead`, `generate` and `sync` are also called from another thread, with a copy of the network; an engine
    with a state of its own locks itself.
    """

    @property
    def logs(self) -> dict[str, float]:
        """Written to the log of every step as `rollout/<name>`."""
        return {}

    @property
    def is_remote(self) -> bool:
        """Samples outside this process: of several processes only the first one tells it that weights moved."""
        return False

    @property
    def rows_at_once(self) -> int | None:
        """The most rows that are decoded side by side; None: all of them."""
        return None

    @torch.no_grad()
    def generate(
        self, network: Network, examples: Sequence[Example], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        """`n` responses per example, one group each, in order: prompts become groups without rollouts, and `extend` samples."""
        prompts = network.encoder.prompts([e.prompt for e in examples], room=sampling.max_new_tokens)
        without_tokens = next((e.id for e, ids in zip(examples, prompts, strict=True) if not ids), None)
        if without_tokens is not None:
            raise ConfigError(
                f"rollout: the prompt of example '{without_tokens}' is empty, and the tokenizer puts no token before a text, so there is "
                "nothing to continue; give prompts, or a tokenizer that adds a beginning-of-sequence token."
            )
        groups = [RolloutGroup(example=e, prompt_ids=ids, rollouts=[]) for e, ids in zip(examples, prompts, strict=True)]
        return self.extend(network, groups, n, sampling, generator)

    @abstractmethod
    def extend(
        self, network: Network, groups: list[RolloutGroup], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        """`n` more rollouts per group, from its own `prompt_ids`, which may already hold the beginning of a response."""

    @abstractmethod
    def sync(self, network: Network, version: int) -> None:
        """The weights of `network` moved to `version`."""

    def skip(self, generator: torch.Generator, number: int, sampling: Sampling) -> bool:
        """Leaves out the random numbers of `number` responses, so that a part of a draw is sampled as one process would.
        False: it cannot, and each part has its own random stream."""
        return False
