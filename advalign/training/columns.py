"""Outputs of one network over all rows of a draw."""

from __future__ import annotations

from collections.abc import Set

from torch import Tensor

from advalign.engine import micro as mb
from advalign.engine.process_group import SINGLE_PROCESS, ProcessGroup
from advalign.models import Network
from advalign.models.inference import batched_forward
from advalign.types import TokenRows


def columns(network: Network, rows: TokenRows, needs: Set[str], budget: int, processes: ProcessGroup = SINGLE_PROCESS) -> dict[str, Tensor]:
    """{need: "B T"} of a network over rows, on the CPU, without gradient or dropout; each process runs its part of the rows."""
    layout = mb.BatchLayout(network.packs, frozenset(["rows"]))
    per_rank = mb.partition({"rows": rows}, budget, layout=layout, parts=processes.world_size)
    micros = mb.pad_to_equal_count(per_rank, {"rows": rows})[processes.rank]
    outputs = batched_forward(
        network,
        rows.tokens,
        needs,
        batches=[micro["rows"] for micro, idle in micros if not idle],
        idle=[micro["rows"] for micro, idle in micros if idle],
        temperatures=mb.temperatures([rows]),
    )
    return {need: processes.all_reduce(outputs[need]) for need in sorted(outputs)}
