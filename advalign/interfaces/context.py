"""The run, as sources and rewards see it: what a plugin's `start` may hold on to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from advalign.types import Example, Prompt, Response, RolloutGroup, Sampling

if TYPE_CHECKING:
    from advalign.interfaces.source import Source, SourceRuntime
    from advalign.interfaces.target import Target
    from advalign.models.encode import Encoder


class Context(Protocol):
    """The run as a plugin sees it. Wherever a learner is named, a frozen copy may be named: an averaged discriminator, a past opponent."""

    seed: int
    """Seed of the run."""
    total_steps: int | None
    """Steps of the run at most; None: unknown."""
    step: int = 0
    """Steps of the run so far."""

    def generator(self, *key: object) -> torch.Generator:
        """A random stream that is a function of the run's seed and the key, for tensors."""

    def random(self, *key: object) -> random.Random:
        """A random stream that is a function of the run's seed and the key, for choices on the host."""

    def source(self, name: str) -> SourceRuntime[Any]:
        """The started runtime of another source."""

    def source_config(self, name: str) -> Source:
        """The configuration of another source."""

    def class_names(self, source: str) -> tuple[str, ...]:
        """The names of the classes, by index, of the classifier that reads a source; empty: they have none."""

    def current_items(self, name: str) -> Sequence[Any] | None:
        """What another source drew in the current step; None: nothing yet."""

    def generate(self, learner: str, examples: Sequence[Example], n: int, sampling: Sampling, key: tuple) -> list[RolloutGroup]:
        """`n` responses of a learner to each example; `key` names the random stream."""

    def generate_later(
        self, learner: str, examples: Sequence[Example], n: int, sampling: Sampling, key: tuple
    ) -> Callable[[], list[RolloutGroup]]:
        """As `generate`, from a copy of the current weights, in the background. The function returned waits for the responses."""

    def map_across_ranks(self, items: Sequence[Any], work: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
        """`work(items)`, one JSON value per item, divided among the processes of the run. `work` must not communicate itself."""

    def encoder(self, learner: str) -> Encoder:
        """A learner's tokenizer, and how it joins prompts and responses."""

    def version(self, learner: str) -> int:
        """How many updates a learner has made."""

    def score(
        self, learner: str, prompts: Sequence[Prompt], texts: Sequence[Response], finished: Sequence[bool]
    ) -> tuple[list[float], int]:
        """A scorer's scores of (prompt, text) pairs, without gradient, and the version of its weights."""

    def score_tokens(self, learner: str, groups: Sequence[RolloutGroup]) -> tuple[list[list[float]], int]:
        """Per rollout one score per response id, by a scorer with the sampler's tokenizer, and the version of its weights."""

    def logprobs(
        self, learner: str, prompts: Sequence[Prompt], texts: Sequence[Response], finished: Sequence[bool], *, temperature: float = 1.0
    ) -> list[float]:
        """log p(text | prompt) under a policy at a sampling temperature, summed over tokens, without gradient."""

    def target(self, learner: str) -> AbstractContextManager[Target]:
        """A learner's network as an attack sees it (`Target`), with gradients of its inputs and a meter; valid inside the `with`."""
