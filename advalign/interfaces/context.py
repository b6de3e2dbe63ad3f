"""What a plugin's `start` may hold on to: the run, seen from a leaf."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from advalign.types import Example, RolloutGroup, Sampling

if TYPE_CHECKING:
    from advalign.interfaces.source import SourceRuntime


class Context(Protocol):
    """The run as a plugin sees it. Wherever a learner is named, a frozen copy may be: an averaged discriminator, a previous opponent."""

    seed: int
    """Of the run."""
    total_steps: int | None
    """How many steps the run has at most; None: not known."""

    def generator(self, *key: object) -> torch.Generator:
        """A generator whose stream is a function of the run's seed and the key alone."""

    def random(self, *key: object) -> random.Random:
        """The same, for host-side choices."""

    def source(self, name: str) -> SourceRuntime[Any]:
        """The started runtime of another source."""

    def source_config(self, name: str) -> Any:
        """The configuration of another source (its `Source`)."""

    def current_items(self, name: str) -> Sequence[Any] | None:
        """What another source drew in the current step, or None."""

    def generate(self, learner: str, examples: Sequence[Example], n: int, sampling: Sampling, key: tuple) -> list[RolloutGroup]:
        """`n` responses of a learner to each example; `key` names the random stream."""

    def generate_later(
        self, learner: str, examples: Sequence[Example], n: int, sampling: Sampling, key: tuple
    ) -> Callable[[], list[RolloutGroup]]:
        """The same from a copy of the current weights, in the background; what is returned waits for it."""

    def map_across_ranks(self, items: Sequence[Any], work: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
        """`work(items)`, one plain value per item, shared among the processes of the run; `work` must not communicate itself."""

    def encoder(self, learner: str) -> Any:
        """A learner's tokenizer and how it joins prompts and responses."""

    def version(self, learner: str) -> int:
        """How many updates a learner has made."""

    def score(self, learner: str, prompts: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> tuple[list[float], int]:
        """A scorer's scores of (prompt, text) pairs, without gradient, and the version that gave them."""

    def score_tokens(self, learner: str, groups: Sequence[RolloutGroup]) -> tuple[list[list[float]], int]:
        """Per rollout one score per response id, by a scorer with the sampler's tokenizer, and the version that gave them."""

    def logprobs(self, learner: str, prompts: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """log p(text | prompt) under a policy, summed over tokens, without gradient."""

    def target(self, learner: str) -> AbstractContextManager[Any]:
        """A learner's network as an attack of a suite sees it, with gradients of its inputs and a meter; only inside the `with`."""
