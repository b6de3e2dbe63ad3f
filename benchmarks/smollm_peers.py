"""This library beside its peers on SmolLM2-135M-Instruct: DPO against TRL 1.16, GCG against nanoGCG 0.3.0.

    pip install --no-deps nanogcg==0.3.0 && python benchmarks/smollm_peers.py --workers 1     make bench-smollm-peers

Runs of the two sides take turns, one at a time, each in a process of its own with one thread; see smollm_peers_dpo.py and
smollm_peers_gcg.py. About half a CPU-hour; writes benchmarks/results/smollm_peers.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import smollm_peers_dpo as dpo
import smollm_peers_gcg as gcg
from smollm_cells import Cell, run

DPO = {"advalign": dpo.ours, "trl": dpo.trl}
GCG = (*gcg.SEARCHES, "nanogcg")


def cells() -> Mapping[str, Cell]:
    """In the order in which they run: the sides take turns."""
    pairs: dict[str, Cell] = {f"dpo-{side}-{i}": train for i in range(dpo.ROUNDS) for side, train in DPO.items()}
    searches: dict[str, Cell] = {f"gcg-{name}-{i}": partial(_search, name, i) for i in range(gcg.CASES) for name in GCG}
    return pairs | searches


def _search(name: str, number: int, folder: object) -> Mapping[str, Any]:
    return gcg.search(name, number)


def summary(done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What can be compared so far."""
    sides = {side: [done[f"dpo-{side}-{i}"] for i in range(dpo.ROUNDS) if f"dpo-{side}-{i}" in done] for side in DPO}
    searches = {name: [done[f"gcg-{name}-{i}"] for i in range(gcg.CASES) if f"gcg-{name}-{i}" in done] for name in GCG}
    content: dict[str, Any] = {}
    if all(sides.values()):
        content["dpo"] = dpo.compared(sides["advalign"], sides["trl"])
    if len({len(rows) for rows in searches.values()}) == 1 and searches["nanogcg"]:
        content["gcg"] = gcg.compared(searches)
    return content


if __name__ == "__main__":
    run("peers", cells(), summary, hours=1.0, description=__doc__)
