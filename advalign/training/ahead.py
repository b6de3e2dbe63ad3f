"""Generation in the background, from copies of the weights, while the learners go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from advalign.models import Network
from advalign.models.sharing import frozen_copy
from advalign.types import Example, RolloutGroup, Sampling


class Background:
    """One worker thread. Every job reads weights of its own: copies of the network when it was submitted, used again once the job is
    done, so there are as many as jobs wait at once. Of networks that share a base only adapter and head are copied."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.worker: ThreadPoolExecutor | None = None
        self.free: dict[int, list[Network]] = {}

    def submit(
        self, network: Network, version: int, examples: Sequence[Example], n: int, sampling: Sampling, generator: torch.Generator
    ) -> Callable[[], list[RolloutGroup]]:
        """A function that waits for the rollouts and returns them, or raises what the engine raised."""
        self.worker = self.worker or ThreadPoolExecutor(1, "rollouts")
        spare = self.free.setdefault(id(network), [])
        snapshot = _refreshed(spare.pop(), network) if spare else frozen_copy(network, moving=True)
        stream = _stream(network.device)
        job = self.worker.submit(self._run, stream, snapshot, version, list(examples), n, sampling, generator)

        def wait() -> list[RolloutGroup]:
            try:
                return job.result()
            finally:
                spare.append(snapshot)

        return wait

    def _run(
        self,
        stream: Any,
        network: Network,
        version: int,
        examples: Sequence[Example],
        n: int,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> list[RolloutGroup]:
        with stream:
            self.engine.sync(network, version)
            return with_version(self.engine.generate(network, examples, n, sampling, generator), version)


def with_version(groups: list[RolloutGroup], version: int) -> list[RolloutGroup]:
    """The groups, whose rollouts know the version of the weights that sampled them."""
    for group in groups:
        for rollout in group.rollouts:
            rollout.policy_version = version
    return groups


@torch.no_grad()
def _refreshed(copy: Network, now: Network) -> Network:
    for old, new in zip([*copy.parameters(), *copy.buffers()], [*now.parameters(), *now.buffers()], strict=True):
        if old is not new:
            old.copy_(new)
    return copy


def _stream(device: torch.device) -> Any:
    """On a GPU a stream of its own, which begins behind what has been asked of the device so far: the copy of the weights."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
