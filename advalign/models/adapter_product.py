"""Products of a float32 adapter with a base in half precision, in half precision: B_16 (A_16 x_16), as under autocast.

peft casts x to float32, and adds and scales there: on a processor LoRA then takes as long as two thirds of the base. Weights, their
gradients and the optimizer stay float32, so no update is lost; what is rounded is the summand, as precisely as the output it is added to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class Product(nn.Module):
    """W x in the precision of x, with W in its own: A or B of an adapter."""

    weight: nn.Parameter
    """"O I", of the linear layer in whose place this is."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """From "... I" to "... O"; not checked at run time, since blocks may be compiled."""
        return nn.functional.linear(x, self.weight.to(x.dtype))


def multiply_in_half_precision(layers: Iterable[Any], linear: Any) -> None:
    """Of peft's layers, those of type `linear` with plain LoRA on a base in half precision; others (DoRA, embeddings, experts) stay as
    they are."""
    for layer in layers:
        if type(layer) is linear and not layer.lora_variant and layer.get_base_layer().weight.dtype in HALF:
            layer.cast_input_dtype_enabled = False
            for modules in (layer.lora_A, layer.lora_B):
                for name, module in modules.items():
                    modules[name] = Product(module.weight)


__all__ = ["HALF", "Product", "multiply_in_half_precision"]
