"""AdamW over the trained weights of a network, and its schedule. Weights of half precision are updated through float32 copies:

    m <- AdamW(m, sum of gradients in float32),    w <- round(m)        (master weights, arXiv:1710.03740, section 3.1)

Gradients of half precision are added up in float32, one backward after the other. Loss scaling of the paper: not done, since gradients
of bfloat16 have the range of float32; those of float16 below 6e-8 are zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

HALF = (torch.bfloat16, torch.float16)
UNDECAYED = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Patterns of the names of biases and norms, those of `transformers.Trainer.get_decay_parameter_names`."""


def decayed_parameters(network: nn.Module) -> set[str]:
    """Names of the parameters that weight decay shrinks: all but biases and norms, as in transformers."""
    from transformers.trainer_pt_utils import get_parameter_names  # takes a second to import

    return set(get_parameter_names(network, [nn.LayerNorm], list(UNDECAYED)))


def trained_parameters(network: nn.Module) -> list[tuple[str, Parameter]]:
    """(name, parameter) of what trains, as the optimizer numbers them: first those that decay."""
    decayed = decayed_parameters(network)
    return sorted(((n, p) for n, p in network.named_parameters() if p.requires_grad), key=lambda entry: entry[0] not in decayed)


def adamw(network: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with two groups of weights: those that decay, and biases and norms."""
    decayed, trained = decayed_parameters(network), trained_parameters(network)
    groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)


def configure(optimizer: Any, scheduler: Any, *, learning_rate: float, weight_decay: float) -> None:
    """Sets base rate and weight decay; the scheduler's factor of the rate stays."""
    optimizer.param_groups[0]["weight_decay"] = weight_decay
    for group, factor, i in zip(optimizer.param_groups, scheduler.lr_lambdas, range(len(scheduler.base_lrs)), strict=True):
        if scheduler.base_lrs[i] != learning_rate:
            scheduler.base_lrs[i] = learning_rate
            group["lr"] = learning_rate * factor(scheduler.last_epoch)


class MasterWeights:
    """float32 copies of the weights of half precision, which the optimizer updates in their place; created before the first update."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.weights: list[Parameter] = [p for group in optimizer.param_groups for p in group["params"] if p.dtype in HALF]
        self.copies: dict[Parameter, Parameter] = {}
        """{weight: its float32 copy}"""

    def exact(self, weight: Tensor) -> Tensor:
        """The copy of a weight, or the weight itself where it has none."""
        return self.copies.get(weight, weight)  # type: ignore[call-overload, no-any-return]

    def updated(self, parameters: Iterable[Parameter]) -> list[Parameter]:
        """What holds the gradients of parameters."""
        return [self.copies.get(p, p) for p in parameters]

    def begin(self) -> None:
        """Before an update: creates the copies, or lets them follow what else has changed the weights."""
        if self.weights and not self.copies:
            self._create()
        with torch.no_grad():
            for weight, copy in self.copies.items():
                weight.grad = None
                copy.copy_(torch.where(copy.to(weight.dtype) == weight, copy, weight.float()))

    def collect(self) -> None:
        """After a backward: adds the gradients of the weights to those of their copies."""
        for weight, copy in self.copies.items():
            if weight.grad is not None:
                gradient, weight.grad = weight.grad.float(), None
                copy.grad = gradient if copy.grad is None else copy.grad.add_(gradient)

    @torch.no_grad()
    def round(self) -> None:
        """After a step of the optimizer: the weights are their copies, rounded."""
        for weight, copy in self.copies.items():
            weight.copy_(copy)

    def state_dict(self) -> list[Tensor]:
        """The copies, in the optimizer's order."""
        return [copy.detach() for copy in self.copies.values()]

    def load_state_dict(self, state: list[Tensor]) -> None:
        """The inverse of `state_dict`; before the state of the optimizer is loaded, which takes the precision of its weights."""
        if not state:
            return
        if not self.copies:
            self._create()
        with torch.no_grad():
            for copy, saved in zip(self.copies.values(), state, strict=True):
                copy.copy_(saved)

    def _create(self) -> None:
        self.copies = {weight: Parameter(weight.detach().float()) for weight in self.weights}
        for group in self.optimizer.param_groups:
            group["params"] = [self.copies.get(p, p) for p in group["params"]]
