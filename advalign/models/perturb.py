"""Perturbation sites, and the state an inner loop must leave as it found it.

At the embedding an edit is an explicit input, at "layer:k" a hook applies it to the OUTPUT of block k. Both kinds of edit, an
addition of an already masked tensor and the removal of a direction, store nothing for the backward pass, so that the
recomputation of a non-reentrant checkpoint is right even after the hook is gone; a masked or multiplicative hook would not be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    """Apply every edit that is not at the embedding while the block runs."""
    with ExitStack() as stack:
        for site, edit in edits.items():
            if site != "embedding":
                hook = _on_hidden(lambda hidden, edit=edit: applied(hidden, edit))
                stack.callback(layer(site, backbone).register_forward_hook(hook).remove)
        yield


def applied(hidden: Float[Tensor, "B T D"], edit: Edit) -> Float[Tensor, "B T D"]:
    """Hidden states under an edit. Sums are made in the precision of the edit: a radius of 1e-5 would vanish in bfloat16."""
    if edit.ablate is not None:
        where = edit.where if edit.where is not None else torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        hidden = _Ablated.apply(hidden, edit.ablate.to(hidden), where)
    return hidden if edit.add is None else (hidden.to(edit.add.dtype) + edit.add).to(hidden.dtype)


class _Ablated(torch.autograd.Function):
    """h - (h . r) r at some positions. The projection is symmetric, so it is its own backward and needs no h; what it keeps it
    keeps on the context and not among the saved tensors, which a checkpoint would miss when it recomputes without the hook."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, direction: Tensor, where: Tensor) -> Tensor:
        ctx.direction, ctx.where = direction, where
        return _without(hidden, direction, where)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _without(gradient, ctx.direction.to(gradient), ctx.where), None, None


def _without(x: Tensor, direction: Tensor, where: Tensor) -> Tensor:
    return x - (x @ direction)[..., None] * direction * where[..., None].to(x.dtype)


@contextmanager
def captured(backbone: nn.Module, sites: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Fills with {site: hidden states} while the blocks run, edits included. ("embedding" is up to the caller.)"""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in sites:
            if site != "embedding":
                hook = _on_hidden(lambda hidden, site=site: found.__setitem__(site, hidden))
                stack.callback(layer(site, backbone).register_forward_hook(hook).remove)
        yield found


def _on_hidden(change: Any) -> Any:
    """A hook that lets `change` replace the hidden states a block returns; None leaves them."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        new = change(output[0] if isinstance(output, tuple) else output)
        return None if new is None else (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


class SharedPrefix:
    """The blocks below the first perturbed one, run once for all passes of an inner loop: nothing there depends on the edits,
    and no gradient with respect to them flows there. `first`: the lowest block with an edit."""

    def __init__(self, backbone: nn.Module, sites: Iterable[str]) -> None:
        stack = list(blocks(backbone))
        self.first = min(stack.index(layer(site, backbone)) for site in sites)
        self.stack = stack
        self.output: Any = None

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Inside, the first forward remembers what block `first` gives before its edit; later ones start from there. The rows
        must stay the same, and nothing below may be random."""
        if self.output is None:
            with ExitStack() as stack:
                for block in self.stack[: self.first + 1]:
                    _replace(stack, block, torch.no_grad()(block.forward))
                stack.callback(self.stack[self.first].register_forward_hook(self._remember, prepend=True).remove)
                yield
            return
        with ExitStack() as stack:
            for block in self.stack[: self.first + 1]:
                _replace(stack, block, lambda *args, **kwargs: self.output)
            yield

    def _remember(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.output = output


def _replace(stack: ExitStack, block: nn.Module, forward: Any) -> None:
    """Another `forward` for one block, until the stack unwinds."""
    before = block.__dict__.get("forward")
    block.forward = forward  # type: ignore[method-assign]
    stack.callback(lambda: block.__dict__.pop("forward") if before is None else block.__dict__.__setitem__("forward", before))


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


def as_it_was(network: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What a checkpoint wants as `context_fn`: the recomputation sees training and evaluation modes, compiled blocks and the attention
    kernels allowed as they are now, for a backward may come after dropout has been switched on again (random states alone do not
    bring back that it was off), and outside `twice_differentiable`."""
    compiled = [(m, m._compiled_call_impl) for m in network.modules() if m._compiled_call_impl is not None]
    return nullcontext(), _Modes([(m, m.training) for m in network.modules()], compiled, _plain_attention())


class _Modes(AbstractContextManager[None]):
    """Entered once per recomputation: a second derivative needs two."""

    def __init__(self, wanted: list[tuple[nn.Module, bool]], compiled: list[tuple[nn.Module, Any]], plain: bool) -> None:
        self.wanted, self.compiled, self.plain = wanted, compiled, plain
        self.entered: list[ExitStack] = []

    def __enter__(self) -> None:
        stack = ExitStack()
        for module, before in [(m, m.training) for m, training in self.wanted if m.training != training]:
            module.training = not before
            stack.callback(setattr, module, "training", before)
        for module, call in self.compiled:
            stack.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
            module._compiled_call_impl = call
        if self.plain:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        self.entered.append(stack)

    def __exit__(self, *error: object) -> None:
        self.entered.pop().close()


def _plain_attention() -> bool:
    fused = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    return torch.backends.cuda.math_sdp_enabled() and not any(fused)


@contextmanager
def twice_differentiable(enabled: bool = True) -> Iterator[None]:
    """Fused attention has no second derivative: inside, attention is plain matrix products, and gradients are on."""
    if not enabled:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        yield


@contextmanager
def same_random_state(enabled: bool = True) -> Iterator[None]:
    """Whatever is drawn inside, the global random state afterwards is the one before."""
    with torch.random.fork_rng(enabled=enabled):
        yield
