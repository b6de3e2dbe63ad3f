"""Sampling divided among the processes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from advalign.engine import rng
from advalign.engine.process_group import SINGLE_PROCESS, ProcessGroup
from advalign.interfaces import RolloutEngine
from advalign.models import Network
from advalign.models.sharding import gathered
from advalign.types import Example, RolloutGroup, Sampling, from_json, to_json


class DistributedRolloutEngine(RolloutEngine):
    """A rollout engine whose prompts are divided among the processes; every process is given all responses.

    An engine that can `skip` the random numbers of the responses before its part answers as a single process would. Any other engine is
    given a random stream per part.
    """

    def __init__(self, rollout_engine: RolloutEngine, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        self.rollout_engine, self.processes = rollout_engine, processes

    @property
    def logs(self) -> dict[str, float]:
        return self.rollout_engine.logs

    @property
    def is_remote(self) -> bool:
        return self.rollout_engine.is_remote

    @property
    def rows_at_once(self) -> int | None:
        return self.rollout_engine.rows_at_once

    def sync(self, network: Network, version: int) -> None:
        """Every process updates its own engine; a remote engine (`url`) is updated by the first process."""
        with gathered(network):
            if not self.is_remote or self.processes.is_main:
                self.rollout_engine.sync(network, version)
        if self.is_remote:
            self.processes.barrier()

    def generate(
        self, network: Network, examples: Sequence[Example], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        if self.processes.world_size == 1:
            return self.rollout_engine.generate(network, examples, n, sampling, generator)
        groups = self._divided(self.rollout_engine.generate, network, examples, n, sampling, generator)
        # Each process has the examples themselves, with their verifiers.
        return [replace(group, example=example) for example, group in zip(examples, groups, strict=True)]

    def extend(
        self, network: Network, groups: list[RolloutGroup], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        if self.processes.world_size == 1:
            return self.rollout_engine.extend(network, groups, n, sampling, generator)
        extended = self._divided(self.rollout_engine.extend, network, groups, n, sampling, generator)
        return [replace(group, example=before.example) for before, group in zip(groups, extended, strict=True)]

    def skip(self, generator: torch.Generator, number: int, sampling: Sampling) -> bool:
        return self.rollout_engine.skip(generator, number, sampling)

    def _divided(
        self, answer: Any, network: Network, prompts: Sequence[Any], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        """The groups that all processes sampled for their part of the prompts, in order."""
        part = self.processes.local_range(len(prompts))
        if part.start and not self.rollout_engine.skip(generator, part.start * n, sampling):
            generator = rng.generator(generator.initial_seed(), "share", part.start)
        local_prompts = prompts[part.start : part.stop]
        with gathered(network):
            groups = answer(network, local_prompts, n, sampling, generator) if local_prompts else []
        return [from_json(values) for part in self.processes.all_gather([to_json(group) for group in groups]) for values in part]
