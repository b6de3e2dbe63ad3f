"""Gradients of single objectives, for the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from advalign.models import Network


class ObjectiveGradients:
    """Gradient norms of the objectives of one update, and the cosines between them; `all_reduce` sums over processes."""

    def __init__(self, network: Network, all_reduce: Callable[[Tensor], Tensor]) -> None:
        self.all_reduce = all_reduce
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.sums: dict[str, list[Tensor]] = {}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Adds the gradients of one micro-batch, {objective: loss}; the graph is kept."""
        for name, loss in losses.items():
            gradients = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
            dense = [torch.zeros_like(p) if g is None else g.detach() for g, p in zip(gradients, self.parameters, strict=True)]
            before = self.sums.get(name)
            self.sums[name] = dense if before is None else [a + b for a, b in zip(before, dense, strict=True)]

    def summary(self) -> dict[str, float]:
        """`<objective>/gradient_norm` and `cosine/<objective>~<objective>`."""
        names = sorted(self.sums)
        flat = {name: self.all_reduce(torch.cat([g.flatten() for g in self.sums[name]])) for name in names}
        logs = {f"{name}/gradient_norm": float(g.norm()) for name, g in flat.items()}
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                logs[f"cosine/{first}~{second}"] = float(torch.nn.functional.cosine_similarity(flat[first], flat[second], dim=0))
        return logs
