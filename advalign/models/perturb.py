"""Perturbation sites, and the state that an inner loop must restore.

At the embedding an edit is an explicit input, at "layer:k" a hook applies it to the OUTPUT of block k. Both kinds of edit, an
addition of an already masked tensor and the removal of a direction, store nothing for the backward pass, so that the
recomputation of a non-reentrant checkpoint is right even after the hook is gone; a masked or multiplicative hook would not be.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from advalign.errors import ConfigError
from advalign.models import architecture
from advalign.types import Edit, fit


def blocks(backbone: nn.Module) -> nn.ModuleList:
    """The stack of transformer blocks of a backbone."""
    stack = architecture.block_stack(backbone)
    if stack is None:
        raise ConfigError(f"sites: no stack of blocks found in {type(backbone).__name__}; only the site 'embedding' can be used with it.")
    return stack


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
    """Apply every edit that is not at the embedding while the block runs. One forward runs inside."""
    with ExitStack() as stack:
        applied: set[str] = set()
        for site, edit in edits.items():
            if site != "embedding":
                hook = _on_hidden(partial(_apply_at, applied, site, edit))
                stack.callback(layer(site, backbone).register_forward_hook(hook).remove)
        yield
        _check_reached(backbone, edits, applied)


def _check_reached(backbone: nn.Module, sites: Iterable[str], reached: Container[str]) -> None:
    """Raises ConfigError where a block ran without its hook: SqueezeBERT calls `forward` of its blocks."""
    for site in sites:
        if site != "embedding" and site not in reached:
            raise ConfigError(
                f"sites: '{site}' is out of reach in {type(backbone).__name__}, whose forward runs its blocks past their hooks; only the "
                "site 'embedding' can be used with it."
            )


def _apply_at(applied: set[str], site: str, edit: Edit, hidden: Tensor) -> Tensor:
    """Hidden states of a block under an edit. Longformer pads its rows inside, to whole windows."""
    applied.add(site)
    width = hidden.shape[-2]
    add = edit.add if edit.add is None else fit(edit.add, max(width, edit.add.shape[1]))
    where = edit.where if edit.where is None else fit(edit.where, max(width, edit.where.shape[1]))
    return apply_edit(hidden, replace(edit, add=add, where=where))


def apply_edit(hidden: Float[Tensor, "*S T D"], edit: Edit) -> Float[Tensor, "*S T D"]:
    """Hidden states under an edit ("B T D"; a block of Gemma 3n returns several streams, "S B T D"). Sums are computed in the precision
    of the edit: a radius of 1e-5 would vanish in bfloat16."""
    if edit.ablate is not None:
        where = edit.where if edit.where is not None else torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        hidden = _Ablated.apply(hidden, edit.ablate.to(hidden), where)
    return hidden if edit.add is None else (hidden.to(edit.add.dtype) + edit.add).to(hidden.dtype)


class _Ablated(torch.autograd.Function):
    """h - (h . r) r at some positions. The projection is symmetric, so it is its own backward and needs no h. Direction and positions
    are attributes of the context instead of saved tensors, which a checkpoint would miss when it recomputes without the hook."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, direction: Tensor, where: Tensor) -> Tensor:
        ctx.direction, ctx.where = direction, where
        return _project_out(hidden, direction, where)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _project_out(gradient, ctx.direction.to(gradient), ctx.where), None, None


def _project_out(x: Tensor, direction: Tensor, where: Tensor) -> Tensor:
    return x - (x @ direction)[..., None] * direction * where[..., None].to(x.dtype)


@contextmanager
def captured(backbone: nn.Module, sites: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Fills with {site: hidden states} while the blocks run, edits included. ("embedding" is up to the caller.)"""
    hidden_states: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in sites:
            if site != "embedding":
                hook = _on_hidden(lambda hidden, site=site: hidden_states.__setitem__(site, hidden))
                stack.callback(layer(site, backbone).register_forward_hook(hook).remove)
        yield hidden_states
        _check_reached(backbone, sites, hidden_states)


def _on_hidden(change: Any) -> Any:
    """A hook that lets `change` replace the hidden states a block returns; None leaves them."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        several = isinstance(output, tuple | list)
        new = change(output[0] if several else output)
        return None if new is None else type(output)([new, *output[1:]]) if several else new

    return hook


class SharedPrefix:
    """The blocks below the first perturbed one, run once for all passes of an inner loop: nothing there depends on the edits,
    and no gradient with respect to them flows there."""

    stack: list[nn.Module]
    """All blocks."""
    first: int
    """Number of the lowest block with an edit."""
    outputs: dict[nn.Module, Any]
    """What each block up to that one gave, before the edit; empty before the first forward."""

    def __init__(self, backbone: nn.Module, sites: Iterable[str]) -> None:
        self.stack = list(blocks(backbone))
        self.first = min(self.stack.index(layer(site, backbone)) for site in sites)
        self.outputs = {}

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Inside, the first forward stores the outputs of the blocks up to `first`, of that one before its edit; later ones give them
        again. The rows must stay the same, and nothing below may be random."""
        if not self.outputs:
            with ExitStack() as stack:
                for block in self.stack[: self.first + 1]:
                    _replace(stack, block, torch.no_grad()(block.forward))
                    stack.callback(block.register_forward_hook(self._store, prepend=True).remove)
                yield
            return
        with ExitStack() as stack:
            for block in self.stack[: self.first + 1]:
                _replace(stack, block, partial(self._stored, block))
            yield

    def _store(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.outputs[module] = output

    def _stored(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.outputs[block]


def _replace(stack: ExitStack, block: nn.Module, forward: Any) -> None:
    """Another `forward` for one block, until the stack unwinds."""
    before = block.__dict__.get("forward")
    block.forward = forward  # type: ignore[method-assign]
    stack.callback(lambda: block.__dict__.pop("forward") if before is None else block.__dict__.__setitem__("forward", before))


@contextmanager
def without_dropout(network: nn.Module, *, except_adapter: bool = False) -> Iterator[None]:
    """Inside, dropout is off; with `except_adapter`, that of LoRA stays on. Modules that checkpoint stay in training mode, because
    transformers checkpoints only then: rates that they apply themselves are zero."""
    adapters = {m for name, m in network.named_modules() if except_adapter and "lora_dropout" in name.split(".")}
    changed = [m for m in network.modules() if m.training and m not in adapters and not architecture.checkpoints_activations(m)]
    with ExitStack() as stack:
        for module in changed:
            module.training = False
            stack.callback(setattr, module, "training", True)
        for module, name, rate in _own_rates(network):
            setattr(module, name, 0.0)
            stack.callback(setattr, module, name, rate)
        yield


def _own_rates(network: nn.Module) -> list[tuple[nn.Module, str, float]]:
    """(module, attribute, rate) of the dropout that checkpointed modules apply without a module for it (OPT, BART)."""
    checkpointed = [m for m in network.modules() if architecture.checkpoints_activations(m)]
    return [(m, n, rate) for m in checkpointed for n, rate in vars(m).items() if "drop" in n and isinstance(rate, float)]


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Inside, all modules are in evaluation mode; afterwards each is in the mode it was in."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def recompute_context(network: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """`context_fn` of a checkpoint: the recomputation sees the modes, the compiled blocks and the attention kernels of this moment. A
    backward may run after dropout is on again (random states alone do not restore that it was off), and outside `twice_differentiable`."""
    compiled = [(m, m._compiled_call_impl) for m in network.modules() if m._compiled_call_impl is not None]
    return nullcontext(), _Modes([(m, m.training) for m in network.modules()], _own_rates(network), compiled, _only_math_attention())


class _Modes(AbstractContextManager[None]):
    """Modes of a forward, restored for its recomputation; entered once per recomputation, twice for a second derivative."""

    def __init__(
        self,
        modes: list[tuple[nn.Module, bool]],
        rates: list[tuple[nn.Module, str, float]],
        compiled: list[tuple[nn.Module, Any]],
        only_math: bool,
    ) -> None:
        self.modes, self.rates, self.compiled, self.only_math = modes, rates, compiled, only_math
        self.entered: list[ExitStack] = []

    def __enter__(self) -> None:
        stack = ExitStack()
        for module, before in [(m, m.training) for m, training in self.modes if m.training != training]:
            module.training = not before
            stack.callback(setattr, module, "training", before)
        for module, name, rate in self.rates:
            stack.callback(setattr, module, name, module.__dict__[name])
            setattr(module, name, rate)
        for module, call in self.compiled:
            stack.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
            module._compiled_call_impl = call
        if self.only_math:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        self.entered.append(stack)

    def __exit__(self, *error: object) -> None:
        self.entered.pop().close()


def _only_math_attention() -> bool:
    fused = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    return torch.backends.cuda.math_sdp_enabled() and not any(fused)


@contextmanager
def twice_differentiable(enabled: bool = True) -> Iterator[None]:
    """Fused attention has no second derivative: inside, attention is two matmuls and a softmax, and gradients are on."""
    if not enabled:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        yield


@contextmanager
def same_random_state(enabled: bool = True) -> Iterator[None]:
    """Restores the global random state."""
    with torch.random.fork_rng(enabled=enabled):
        yield
