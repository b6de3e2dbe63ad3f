"""Generation in the background, from copies of the weights, while the learners go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch

from advalign.interfaces import RolloutEngine
from advalign.models import Network
from advalign.models.sharing import frozen_copy
from advalign.types import Example, RolloutGroup, Sampling


class Background:
    """One worker thread that samples.

    Every job reads its own weights: a copy of the network from when it was submitted. A copy is used again once its job is done, so there
    are as many copies as jobs wait at once. Of networks that share a base only adapter and head are copied.
    """

    def __init__(self, rollout_engine: RolloutEngine | None) -> None:
        self.rollout_engine = rollout_engine
        self.worker: ThreadPoolExecutor | None = None
        self.spare: dict[int, list[Network]] = {}
        """{id of a network: copies that no job reads}"""

    def submit(
        self, network: Network, version: int, examples: Sequence[Example], n: int, sampling: Sampling, generator: torch.Generator
    ) -> Callable[[], list[RolloutGroup]]:
        """A function that waits for the rollouts and returns them, or raises what the rollout engine raised."""
        assert self.rollout_engine is not None
        rollout_engine, examples = self.rollout_engine, list(examples)
        self.worker = self.worker or ThreadPoolExecutor(1, "rollouts")
        spare = self.spare.setdefault(id(network), [])
        snapshot = _refreshed(spare.pop(), network) if spare else frozen_copy(network, moving=True)
        stream = _stream(network.device)

        def sample() -> list[RolloutGroup]:
            with stream:
                rollout_engine.sync(snapshot, version)
                return with_version(rollout_engine.generate(snapshot, examples, n, sampling, generator), version)

        job = self.worker.submit(sample)

        def wait() -> list[RolloutGroup]:
            try:
                return job.result()
            finally:
                spare.append(snapshot)

        return wait


def with_version(groups: list[RolloutGroup], version: int) -> list[RolloutGroup]:
    """The groups, after their rollouts were given the version of the weights that sampled them."""
    for group in groups:
        for rollout in group.rollouts:
            rollout.policy_version = version
    return groups


@torch.no_grad()
def _refreshed(copy: Network, current: Network) -> Network:
    for old, new in zip([*copy.parameters(), *copy.buffers()], [*current.parameters(), *current.buffers()], strict=True):
        if old is not new:
            old.copy_(new)
    return copy


def _stream(device: torch.device) -> AbstractContextManager[object]:
    """On a GPU a stream of its own, which begins behind what the device was asked so far: the copy of the weights."""
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
