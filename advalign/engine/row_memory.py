"""What adversaries keep by row, the same on all processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advalign.engine import micro as mb
from advalign.engine.plan import Plan
from advalign.engine.process_group import ProcessGroup
from advalign.interfaces import Adversary
from advalign.interfaces.adversary import Memory


class RowMemories:
    """The row memories of the adversaries of one learner. Every process moves those of its rows, and they are merged after an update."""

    def __init__(self, processes: ProcessGroup) -> None:
        self.processes = processes
        self.shared: dict[str, dict[str, Any]] = {}
        """{adversary: the row memory that all processes share}"""

    def begin_update(self, plan: Plan, memory: dict[str, Memory]) -> None:
        """Before the first update: what an adversary keeps by row is the same on all processes."""
        for name, adversary in plan.adversaries.items():
            if adversary.memory_scope == "rows" and name not in self.shared:
                self.shared[name] = dict(adversary.row_memory(memory.setdefault(name, {})))

    def end_update(self, plan: Plan, memory: dict[str, Memory]) -> None:
        """After the last micro-batch: the row memories of all processes are merged, and adversaries end their update."""
        for name, adversary in plan.adversaries.items():
            own = memory.setdefault(name, {})
            if self.processes.world_size > 1 and adversary.memory_scope == "rows":
                self._merge(name, adversary, own)
            adversary.end_update(own, self.processes.all_reduce)

    def _merge(self, name: str, adversary: Adversary, memory: Memory) -> None:
        rows, shared = adversary.row_memory(memory), self.shared[name]
        changed: Mapping[str, Any] = {row: sites for row, sites in rows.items() if shared.get(row) is not sites}
        for row in changed:
            del rows[row]
        local = {f"{row}\t{site}": x for row, sites in changed.items() for site, x in sites.items() if mb.has_row_key(row)}
        for tensors in self.processes.all_gather_tensors(local):
            for row_and_site, x in tensors.items():
                row, _, site = row_and_site.partition("\t")
                rows.setdefault(row, {})[site] = x
        self.shared[name] = dict(rows)
