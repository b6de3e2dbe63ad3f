"""How fast a run is: tokens per second, and which share of the machine's floating-point operations the models need.

mfu = operations the step needed (`engine/cost.py`, for the rows that were there) / seconds / what the device does in a product of
matrices, measured once. Operations that are done twice to save memory (checkpointing) count once. In `speed.jsonl`, and not in
`log.jsonl`, which two equal runs share byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from statistics import median
from typing import Any

import torch

from advalign.engine.cost import Size, operations
from advalign.engine.plan import Plan
from advalign.models.model_cost import ModelCost, model_cost
from advalign.types import RolloutGroup


class Meter:
    """Of one run. `shapes`: of its learners; `now`: of the current step; `processes` share its work; `copies`: {frozen copy: whose}."""

    def __init__(self, learners: Mapping[str, Any], processes: int = 1, copies: Mapping[str, str] | None = None) -> None:
        self.learners, self.processes, self.copies = learners, processes, dict(copies or {})
        self.steps: list[dict[str, float]] = []
        self.shapes: dict[str, ModelCost] = {}
        self.now: dict[str, float] = {}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Times what runs inside."""
        self.now = dict.fromkeys(("seconds", "sampled_tokens", "trained_tokens", "operations"), 0.0)
        start = time.perf_counter()
        yield
        device = next(iter(self.learners.values())).network.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.now["seconds"] = time.perf_counter() - start
        self.steps.append(self.numbers())

    def updated(self, learner: str, plan: Plan, rows: Mapping[str, Any]) -> None:
        """One update was made on these rows."""
        sizes = {source: size_of(r.tokens) for source, r in rows.items()}
        self.now["trained_tokens"] = self.now.get("trained_tokens", 0.0) + sum(size.tokens for size in sizes.values())
        others = {copy: self._shape(of) for copy, of in self.copies.items() if copy in plan.frozen and of != learner}
        self._add(sum(operations(plan, self._shape(learner), sizes, others).values()))

    def sampled(self, learner: str, items: Any) -> None:
        """A source was answered; groups of rollouts are counted, whatever else it drew is not."""
        groups = [g for g in items if isinstance(g, RolloutGroup)] if isinstance(items, Iterable) else []
        if not groups or learner not in self.learners:
            return
        shape = self._shape(learner)
        for group in groups:
            prompt, answers = len(group.prompt_ids), [len(r.response_ids) for r in group.rollouts if not r.offpolicy]
            self.now["sampled_tokens"] = self.now.get("sampled_tokens", 0.0) + sum(answers)
            self._add(shape.forward(prompt, 1, prompt) + sum(shape.forward(n, n, 2 * prompt + n) for n in answers))

    def numbers(self) -> dict[str, float]:
        """Of the step that was timed last."""
        seconds = max(self.now["seconds"], 1e-9)
        network = next(iter(self.learners.values())).network
        tokens = self.now["sampled_tokens"] + self.now["trained_tokens"]
        used = self.now["operations"] / seconds / ceiling(network.device, network.dtype) / self.processes
        return {**self.now, "tokens_per_second": tokens / seconds, "mfu": used}

    def summary(self) -> str:
        """Medians over the steps, for people."""
        middle = {name: median(step[name] for step in self.steps) for name in ("seconds", "tokens_per_second", "mfu")}
        return (
            f"a step took {middle['seconds']:.3g} s: {middle['tokens_per_second']:,.0f} tokens per second (sampled and trained on), "
            f"{middle['mfu']:.0%} of the operations that a product of matrices reaches on this machine (medians of "
            f"{len(self.steps)} steps)"
        )

    def _add(self, number: float) -> None:
        self.now["operations"] = self.now.get("operations", 0.0) + number

    def _shape(self, learner: str) -> ModelCost:
        if learner not in self.shapes:
            network = self.learners[learner].network
            self.shapes[learner] = model_cost(network.model, head=network.head, dtype=network.dtype)
        return self.shapes[learner]


def size_of(tokens: Any) -> Size:
    """Of rows that are there."""
    return Size(float(tokens.mask.sum()), float(tokens.target.sum()), float(tokens.lengths.double().mean()))


@lru_cache(maxsize=8)
def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of matrices, the fastest of five."""
    size = 8192 if device.type == "cuda" else 768
    a = torch.ones(size, size, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


__all__ = ["Meter", "ceiling", "size_of"]
