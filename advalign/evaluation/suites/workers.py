"""The chunks of a suite, by one process or several. What a chunk gives is a function of the chunk; only the order is kept here."""

import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from advalign.errors import ConfigError
from advalign.evaluation.suites.harness import Arm, Harness
from advalign.evaluation.suites.judging import Judgement
from advalign.types import AttackResult, Example

Chunk = tuple[Arm, Sequence[Example], Sequence[Judgement]]

# What the forked processes work on: models are inherited, never pickled.
_shared: dict[str, Any] = {}


def spread(harness: Harness, work: Sequence[Chunk], workers: int) -> Iterator[list[AttackResult]]:
    """Results chunk by chunk, in the order of `work`."""
    if workers < 1:
        raise ConfigError(f"suite: {workers} workers given; at least 1.")
    if workers == 1 or len(work) < 2:
        yield from (harness.run(*chunk) for chunk in work)
        return
    device = getattr(harness.network, "device", torch.device("cpu"))
    if torch.device(device).type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError(
            f"suite: {workers} workers given, and the model is on {device}; several processes share a model on a CPU only, where the "
            "system can fork; a larger batch_size of the attacks is what fills an accelerator."
        )
    _shared.update(harness=harness, work=work)
    try:
        with multiprocessing.get_context("fork").Pool(min(workers, len(work)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.imap(_run, range(len(work)))
    finally:
        _shared.clear()


def _run(number: int) -> list[AttackResult]:
    return list(_shared["harness"].run(*_shared["work"][number]))


__all__ = ["spread"]
