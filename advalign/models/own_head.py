"""The head of a language model: how its last hidden states become logits.

    z = s (W h + b)      z = c tanh(s (W h + b) / c)      or whatever the model's own forward does behind its backbone

Scale s and cap c come from the configuration, and are believed only where a few vectors give the logits of the model's own forward. A
model with another head (a transform in front of the decoder, two matrices, a masked vocabulary) runs its own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from advalign.models import architecture

VECTORS = 4  # that a head is tried on, at each of two sizes
LARGE = 50.0  # the largest logit of the second size: a cap shows there
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # of the largest logit; rounding in float32 and float64
HALF_TOLERANCE = 0.03
REFUSALS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)


@dataclass(frozen=True)
class HeadForm:
    """Which function of a hidden state the logits are."""

    scale: float = 1.0
    """s, of logits s (W h + b)."""
    cap: float | None = None
    """c, of logits c tanh(z / c); None: no cap."""
    own: bool = False
    """Neither fits: the model's own forward computes the logits."""
    linear: bool = True
    """Logits are s (W h + b) with W and b of one linear module, and no cap."""


class _BackboneOutput:
    """What a backbone returns, with nothing but hidden states in it."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def own_logits(model: Any, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    """Logits by the model's own forward, in which the backbone returns `hidden`."""
    with _backbone_returns(model, hidden[None]):
        return model(inputs_embeds=hidden[None], use_cache=False).logits[0]  # type: ignore[no-any-return]


@contextmanager
def _backbone_returns(model: Any, hidden: Tensor) -> Iterator[None]:
    output = _BackboneOutput(hidden)
    with ExitStack() as stack:
        for module in architecture.backbones(model):
            before = module.__dict__.get("forward")
            module.forward = lambda *inputs, **options: output
            stack.callback(_restore, module, before)
        yield


def _restore(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = forward


def apply(model: Any, form: HeadForm, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    """Logits of hidden states."""
    if form.own:
        return own_logits(model, hidden)
    logits = model.get_output_embeddings()(hidden)
    logits = logits if form.scale == 1 else logits * form.scale
    return logits if form.cap is None else form.cap * torch.tanh(logits / form.cap)


@torch.no_grad()
def find_form(model: Any) -> HeadForm:
    """The form that gives the model's own logits; the one that its configuration describes, if its forward cannot be run alone."""
    linear = isinstance(model.get_output_embeddings(), nn.Linear)
    forms = [_form(scale, architecture.logit_cap(model), linear) for scale in (1.0, *architecture.logit_scales(model))]
    if not linear:
        return HeadForm(own=True, linear=False)
    weight = model.get_output_embeddings().weight
    if weight.is_meta:
        return forms[-1]
    if weight.shape[1] != architecture.hidden_size(model) and _runs(model, weight.new_zeros(1, architecture.hidden_size(model))):
        return HeadForm(own=True, linear=False)  # a transform to another width lies between backbone and matrix
    vectors = _vectors(model, weight)
    try:
        logits = own_logits(model, vectors)
    except REFUSALS:  # the self-check at load compares what follows with the whole forward
        return forms[-1]
    return next((form for form in forms if _agree(apply(model, form, vectors), logits)), HeadForm(own=True, linear=False))


def _runs(model: Any, hidden: Tensor) -> bool:
    try:
        own_logits(model, hidden)
    except REFUSALS:
        return False
    return True


def _form(scale: float, cap: float | None, linear: bool) -> HeadForm:
    return HeadForm(scale=scale, cap=cap, linear=linear and cap is None)


def _vectors(model: Any, weight: Tensor) -> Tensor:
    """Hidden states of length sqrt(D), and some whose largest logit is LARGE."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(VECTORS, weight.shape[1], generator=generator).to(weight)
    largest = model.get_output_embeddings()(vectors).nan_to_num(0, 0, 0).abs().amax(1, keepdim=True)
    return torch.cat([vectors, vectors * (LARGE / largest.clamp(min=1e-3))])


def _agree(logits: Tensor, expected: Tensor) -> bool:
    if logits.shape != expected.shape:
        return False
    tolerance = TOLERANCE.get(logits.dtype, HALF_TOLERANCE)
    logits, expected = logits.double(), expected.double()
    largest = expected.masked_fill(expected.isinf(), 0).nan_to_num(0).abs().amax(1, keepdim=True)
    same = (logits == expected) | (logits.isnan() & expected.isnan())
    return bool((same | ((logits - expected).abs() <= tolerance * largest)).all())


__all__ = ["HeadForm", "apply", "find_form", "own_logits"]
