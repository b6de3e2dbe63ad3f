"""Frozen copies of learners: references, averages, previous iterates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advalign.engine.learner import LearnerRuntime
from advalign.engine.optimizer import HALF
from advalign.models import Network
from advalign.models.sharding import local_shard, reshard
from advalign.training.run_spec import Frozen


class FrozenCopies:
    """Frozen copies by name, each created when it is first needed."""

    def __init__(self, specs: Mapping[str, Frozen], learners: Mapping[str, LearnerRuntime]) -> None:
        self.specs, self.learners = specs, learners
        self.networks: dict[str, Network] = {}
        """The copies that exist."""
        self.averages: dict[str, dict[str, Tensor]] = {}
        """{copy: {parameter of half precision: its average in float32}}; the copy has them rounded."""
        self.versions: dict[str, int] = {}
        """The version of the learner whose weights a copy holds."""

    def get(self, name: str) -> Network:
        """The copy, created from the current weights where it does not exist."""
        if name not in self.networks:
            spec = self.specs[name]
            self.networks[name] = self.learners[spec.learner].frozen_copy(moving=spec.ema is not None or spec.refresh is not None)
            self.versions[name] = self.learners[spec.learner].version
        return self.networks[name]

    def average(self, learner: str) -> None:
        """After a step of `learner`: its averages follow it."""
        for name, spec in self.specs.items():
            if spec.learner == learner and spec.ema is not None:
                self.blend(name, 1 - spec.ema)

    def refresh(self, step: int) -> None:
        """Before step `step`: snapshots that are renewed every so many steps."""
        for name, spec in self.specs.items():
            if name in self.networks and spec.refresh is not None and step % spec.refresh == 0:
                self.blend(name, 1.0)

    @torch.no_grad()
    def blend(self, name: str, fraction: float) -> None:
        """w <- (1 - fraction) w + fraction w_learner; buffers are those of the learner."""
        runtime = self.learners[self.specs[name].learner]
        copy, current = self.get(name), runtime.network
        reshard(copy)
        reshard(current)
        for (parameter, mean), value in zip(copy.named_parameters(), current.parameters(), strict=True):
            if fraction == 1:
                local_shard(mean).copy_(local_shard(value))
            elif mean.dtype in HALF and mean is not value:  # a small step would be lost in rounding
                average = self.averages.setdefault(name, {}).setdefault(parameter, local_shard(mean).float())
                local_shard(mean).copy_(average.lerp_(local_shard(runtime.masters.exact(value)).float(), fraction))
            else:
                local_shard(mean).lerp_(local_shard(value), fraction)
        for old, buffer in zip(copy.buffers(), current.buffers(), strict=True):
            old.copy_(buffer)
        self.versions[name] = runtime.version
