"""The chunks of a suite, in one process or several. The result of a chunk is a function of the chunk; here only their order is kept."""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from advalign.errors import ConfigError
from advalign.evaluation.suites.checker import Judgement
from advalign.evaluation.suites.harness import Arm, Harness
from advalign.types import AttackResult, Example

Chunk = tuple[Arm, Sequence[Example], Sequence[Judgement]]

# What the forked processes work on: models are inherited, never pickled.
_shared: dict[str, Any] = {}


def run_chunks(harness: Harness, chunks: Sequence[Chunk], workers: int) -> Iterator[list[AttackResult]]:
    """Results chunk by chunk, in the order of `chunks`."""
    if workers < 1:
        raise ConfigError(f"suite: {workers} workers given; at least 1.")
    if workers == 1 or len(chunks) < 2:
        yield from (harness.run(*chunk) for chunk in chunks)
        return
    device = harness.model.device
    if device.type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError(
            f"suite: {workers} workers given, and the model is on {device}; several processes share a model on a CPU only, where the "
            "system can fork; on an accelerator raise the batch_size of the attacks instead."
        )
    _shared.update(harness=harness, chunks=chunks)
    try:
        processes = min(workers, len(chunks))
        with multiprocessing.get_context("fork").Pool(processes, initializer=_start) as pool:
            yield from pool.imap(_run, range(len(chunks)))
    finally:
        _shared.clear()


def _start() -> None:
    """One thread; signals are the business of the process that forked, which ends its workers."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(number: int) -> list[AttackResult]:
    return list(_shared["harness"].run(*_shared["chunks"][number]))


__all__ = ["Chunk", "run_chunks"]
