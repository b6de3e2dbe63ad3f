"""log p(y_t | y_<t) and H(p(. | y_<t)) of a language model. Index t is about token t: the shift by one happens here.

`linear` is the memory-lean way: for logits z = (W h + b) / temperature it runs over the vocabulary chunk by chunk with an
online log-sum-exp (arXiv:1805.02867, alg. 3), and computes each chunk again in backward, so that N x V is never held:

    log p = z_y - lse(z)        d log p / dz_v = 1[v = y] - p_v
    H = lse(z) - sum_v p_v z_v      d H / dz_v = -p_v (log p_v + H)

A logit of -inf (an entry that the vocabulary only pads) has p = 0: it adds nothing to the entropy and gets a gradient of zero.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from advalign.types import fit

LOWEST = -1e30  # of a logit: a million of them still have a sum
NO_PROBABILITY = -1e4  # exp of it is 0 in every precision


def shift_right(x: Float[Tensor, "B T *R"]) -> Float[Tensor, "B T *R"]:
    """A network's output at t is about token t + 1; the result at t is about token t, and zero at 0."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def zero_off_target(x: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """x on target, zero elsewhere. Off target x may be undefined, nan included, and gets a gradient of exactly zero."""
    return x.masked_fill(~target, 0.0)


def from_logits(logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """log p(ids[t] | ids[<t]) of a network's logits, which at t predict token t + 1; zero at t = 0."""
    logits = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    picked = logits.gather(2, ids[:, 1:, None]).squeeze(2) - logits.logsumexp(2)
    return shift_right(fit(picked, ids.shape[1]))


def linear(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, "V"] | None,
    ids: Int[Tensor, "N"],
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """(log p(ids), entropy) of softmax((W h + b) / temperature), `chunk` vocabulary entries at a time; None: as many as keep N x chunk
    at two million numbers on a processor (its cache) and 67 million on an accelerator.

    Both outputs are differentiable once (for gradient penalties use `from_head`); half-precision inputs are summed in
    float32. Where only gradients of upstream inputs are needed (autograd.grad), that of W is not computed.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        # Backward runs outside of autocast: casting here gives both passes the same logits.
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    size = chunk or max(256, (2**21 if device == "cpu" else 2**26) // max(len(ids), 1))
    return _Linear.apply(hidden, weight, bias, ids, temperature, size)  # type: ignore[no-any-return]


def from_head(
    head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "N D"],
    ids: Int[Tensor, "N"],
    *,
    temperature: float | Float[Tensor, "N 1"] = 1.0,
    chunk: int = 1024,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """`linear` for a head that is any function "N D" -> "N V": `chunk` tokens at a time, computed again in backward.
    The temperature may differ from token to token."""

    def piece(h: Tensor, i: Tensor, divisor: Tensor | float) -> tuple[Tensor, Tensor]:
        logits = head(h)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / divisor
        logp = logits.log_softmax(1)
        p = logp.exp()
        # 0 log 0 = 0. The derivative of p log p is infinite at 0, so such entries take the place of p = 1, where it is finite.
        return logp.gather(1, i[:, None]).squeeze(1), torch.special.entr(p.masked_fill(p == 0, 1)).sum(1)

    parts = hidden.split(chunk)
    divisors = temperature.split(chunk) if isinstance(temperature, Tensor) else [temperature] * len(parts)
    pieces = [checkpoint(piece, *inputs, use_reentrant=False) for inputs in zip(parts, ids.split(chunk), divisors, strict=True)]
    logprobs, entropy = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, temperature: float, chunk: int) -> Any:
        top = torch.full(ids.shape, -torch.inf, dtype=torch.promote_types(hidden.dtype, torch.float32), device=ids.device)
        total, first, picked = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
        for part, logits in _chunks(hidden, weight, bias, temperature, chunk):
            finite = logits if bias is None else logits.clamp(min=LOWEST)  # 0 x -inf would be nan
            higher = torch.maximum(top, finite.amax(1))
            p, shrink = (finite - higher[:, None]).exp(), (top - higher).exp()
            total, first, top = total * shrink + p.sum(1), first * shrink + (p * finite).sum(1), higher
            in_chunk, column = _column(ids, part)
            picked = torch.where(in_chunk, logits.gather(1, column[:, None]).squeeze(1), picked)
        lse = top + total.log()
        entropy = lse - first / total
        ctx.save_for_backward(hidden, weight, bias, ids, lse, entropy)
        ctx.temperature, ctx.chunk, ctx.nodes = temperature, chunk, [_node(hidden), _node(weight), _node(bias)]
        ctx.set_materialize_grads(False)
        return picked - lse, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> Any:
        hidden, weight, bias, ids, lse, entropy = ctx.saved_tensors
        needed = [need and _executed(node) for need, node in zip(ctx.needs_input_grad[:3], ctx.nodes, strict=True)]
        grads = [
            torch.zeros_like(x, dtype=lse.dtype if i == 0 else x.dtype) if need else None
            for i, (x, need) in enumerate(zip((hidden, weight, bias), needed, strict=True))
        ]
        for part, logits in _chunks(hidden, weight, bias, ctx.temperature, ctx.chunk):
            logp = logits - lse[:, None]
            if bias is not None:
                logp.clamp_(min=NO_PROBABILITY)
            dz = torch.zeros_like(logp)
            if grad_entropy is not None:
                dz -= grad_entropy[:, None] * (logp + entropy[:, None])
            if grad_logprobs is not None:
                dz -= grad_logprobs[:, None]
            dz *= logp.exp()
            if grad_logprobs is not None:
                in_chunk, column = _column(ids, part)
                dz.scatter_add_(1, column[:, None], torch.where(in_chunk, grad_logprobs, 0.0)[:, None])
            dz = (dz / ctx.temperature).to(hidden.dtype)
            if grads[0] is not None:
                grads[0] += dz @ weight[part]
            if grads[1] is not None:
                grads[1][part] = dz.t() @ hidden
            if grads[2] is not None:
                grads[2][part] = dz.sum(0)
        return (None if grads[0] is None else grads[0].to(hidden.dtype), *grads[1:], None, None, None)


def _chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, weight.shape[0], chunk):
        part = slice(start, min(start + chunk, weight.shape[0]))
        logits = hidden @ weight[part].t()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        yield part, (logits if bias is None else logits + bias[part]) / temperature


def _column(ids: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Whether an id lies in this chunk, and its column there (any column where it does not)."""
    return (ids >= part.start) & (ids < part.stop), (ids - part.start).clamp(0, part.stop - part.start - 1)


def _node(x: Tensor | None) -> Any:
    """The graph node that receives the gradient of x; of a leaf, its accumulator."""
    if x is None or not x.requires_grad:
        return None
    with torch.enable_grad():
        return x.grad_fn or x.view_as(x).grad_fn.next_functions[0][0]  # type: ignore[union-attr]


def _executed(node: Any) -> bool:
    """Whether the running backward pass will use that gradient. An inner loop needs gradients of edits only, and would otherwise
    pay for the gradient of W at every step: `needs_input_grad` describes the forward pass alone."""
    try:
        return bool(torch._C._will_engine_execute_node(node))  # type: ignore[attr-defined]
    except RuntimeError:  # torch cannot tell for a leaf that is an input of autograd.grad: it is used
        return True
