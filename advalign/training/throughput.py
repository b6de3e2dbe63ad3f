"""How fast a run is: tokens per second, and MFU, the fraction of the machine's matmul peak that the models need.

MFU = operations the step needed (`engine/cost.py`, for the rows that it ran) / seconds / the device's matmul peak, measured once.
Operations that are done twice to save memory (checkpointing) count once. Written to `speed.jsonl`, not to `log.jsonl`, which two equal runs
share byte for byte.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from statistics import median

import torch

from advalign.engine.cost import Size, count_operations
from advalign.engine.learner import LearnerRuntime
from advalign.engine.plan import Plan
from advalign.models.model_cost import ModelCost, model_cost
from advalign.types import RolloutGroup, TokenRows, Tokens

RECENT = 1000
"""Steps whose numbers a meter keeps."""


class Meter:
    """Counts tokens and operations of a run, step by step."""

    def __init__(self, learners: Mapping[str, LearnerRuntime], world_size: int = 1, copies: Mapping[str, str] | None = None) -> None:
        """`copies`: {frozen copy: its learner}."""
        self.learners, self.world_size, self.copies = learners, world_size, dict(copies or {})
        self.steps: deque[dict[str, float]] = deque(maxlen=RECENT)
        """Numbers of the last steps."""
        self.costs: dict[str, ModelCost] = {}
        """{learner: cost of its model}"""
        self.current: dict[str, float] = {}
        """Numbers of the current step."""

    @contextmanager
    def step(self) -> Iterator[None]:
        """Times what runs inside."""
        self.current = dict.fromkeys(("seconds", "sampled_tokens", "trained_tokens", "operations"), 0.0)
        start = time.perf_counter()
        yield
        device = next(iter(self.learners.values())).network.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.current["seconds"] = time.perf_counter() - start
        self.steps.append(self.numbers())

    def updated(self, learner: str, plan: Plan, rows: Mapping[str, TokenRows]) -> None:
        """Counts one update on these rows."""
        sizes = {source: size_of(r.tokens) for source, r in rows.items()}
        self.current["trained_tokens"] = self.current.get("trained_tokens", 0.0) + sum(size.tokens for size in sizes.values())
        copies = {copy: self._cost(owner) for copy, owner in self.copies.items() if copy in plan.frozen and owner != learner}
        self._add(sum(count_operations(plan, self._cost(learner), sizes, copies).values()))

    def sampled(self, learner: str, items: object) -> None:
        """Counts a draw of a source: its groups of rollouts; other items cost nothing."""
        groups = [g for g in items if isinstance(g, RolloutGroup)] if isinstance(items, Iterable) else []
        if not groups or learner not in self.learners:
            return
        cost = self._cost(learner)
        for group in groups:
            prompt, responses = len(group.prompt_ids), [len(r.response_ids) for r in group.rollouts if not r.offpolicy]
            self.current["sampled_tokens"] = self.current.get("sampled_tokens", 0.0) + sum(responses)
            self._add(cost.forward(prompt, 1, prompt) + sum(cost.forward(n, n, 2 * prompt + n) for n in responses))

    @property
    def tokens(self) -> float:
        """Sampled and trained on in the step that was timed last."""
        return self.current["sampled_tokens"] + self.current["trained_tokens"]

    def numbers(self) -> dict[str, float]:
        """Numbers of the step that was timed last."""
        seconds = max(self.current["seconds"], 1e-9)
        network = next(iter(self.learners.values())).network
        mfu = self.current["operations"] / seconds / matmul_peak(network.device, network.dtype) / self.world_size
        return {**self.current, "tokens_per_second": self.tokens / seconds, "mfu": mfu}

    def summary(self) -> str:
        """Medians over the last steps, as text."""
        last = "the last " if len(self.steps) == self.steps.maxlen else ""
        middle = {name: median(step[name] for step in self.steps) for name in ("seconds", "tokens_per_second", "mfu")}
        percent = f"{middle['mfu']:.0%}".replace("%", " %")
        return (
            f"a step took {middle['seconds']:.3g} s: {middle['tokens_per_second']:,.0f} tokens per second (sampled and trained on), "
            f"MFU {percent} (of measured matmul peak); medians of {last}{len(self.steps)} steps"
        )

    def _add(self, operations: float) -> None:
        self.current["operations"] = self.current.get("operations", 0.0) + operations

    def _cost(self, learner: str) -> ModelCost:
        if learner not in self.costs:
            network = self.learners[learner].network
            self.costs[learner] = model_cost(network.model, head=network.head, dtype=network.dtype)
        return self.costs[learner]


def size_of(tokens: Tokens) -> Size:
    """The size of rows."""
    return Size(float(tokens.mask.sum()), float(tokens.target.sum()), float(tokens.lengths.double().mean()))


@lru_cache(maxsize=8)
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matmul, the fastest of five."""
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


__all__ = ["Meter", "matmul_peak", "size_of"]
