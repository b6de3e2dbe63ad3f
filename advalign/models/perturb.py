"""Perturbation sites, and the state an inner loop must leave as it found it.

An edit is an addition of an already masked tensor: at the embedding it is an explicit input, at "layer:k" it is added to
the OUTPUT of block k by a hook. Adding stores nothing for the backward pass, so the recomputation of a non-reentrant
checkpoint is right even after the hook is gone; a masked or multiplicative hook would not be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advalign.errors import ConfigError
from advalign.types import Edit

BLOCKS = ("layers", "encoder.layer", "h", "transformer.layer", "encoder.layers", "block")


def blocks(backbone: nn.Module) -> nn.ModuleList:
    """The stack of transformer blocks of a backbone."""
    for path in BLOCKS:
        module: Any = backbone
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.ModuleList):
            return module
    raise ConfigError(f"sites: no stack of blocks found in {type(backbone).__name__}; only the site 'embedding' can be used with it.")


def layer(site: str, backbone: nn.Module) -> nn.Module:
    """The block behind "layer:k"; negative k counts from the end."""
    stack = blocks(backbone)
    kind, _, number = site.partition(":")
    if kind != "layer" or not number.lstrip("-").isdigit():
        raise ConfigError(f"sites: no site '{site}'. Known: embedding, layer:k with k from 0 to {len(stack) - 1}.")
    k = int(number)
    if not -len(stack) <= k < len(stack):
        raise ConfigError(f"sites: '{site}' is outside the {len(stack)} blocks of this model (layer:0 to layer:{len(stack) - 1}).")
    return stack[k]


@contextmanager
def edited(backbone: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Add every edit that is not at the embedding while the block runs."""
    with ExitStack() as stack:
        for site, edit in edits.items():
            if site != "embedding":
                handle = layer(site, backbone).register_forward_hook(_adder(edit.add))
                stack.callback(handle.remove)
        yield


def _adder(add: Tensor) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + add.to(output[0].dtype), *output[1:])
        return output + add.to(output.dtype)

    return hook


@contextmanager
def without_dropout(network: nn.Module) -> Iterator[None]:
    """Dropout off, everything else as it was. Modules that checkpoint stay in training mode, because transformers
    checkpoints only then."""
    changed = [m for m in network.modules() if m.training and not getattr(m, "gradient_checkpointing", False)]
    for module in changed:
        module.training = False
    try:
        yield
    finally:
        for module in changed:
            module.training = True


@contextmanager
def same_random_state(enabled: bool = True) -> Iterator[None]:
    """Whatever is drawn inside, the global random state afterwards is the one before."""
    with torch.random.fork_rng(enabled=enabled):
        yield
