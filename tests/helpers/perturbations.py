"""An adversary without the engine: its context, and the loop that climbs a loss given in closed form."""

import torch

from advalign import adversaries
from advalign.interfaces import PerturbationContext
from advalign.types import Tokens

SITE = "embedding"
ONE_VECTOR = (adversaries.Universal,)  # one delta for all rows, in a ball per token


def perturbation_context(allowed, radius, keys, dim=3, dtype=torch.float64, memory=None, epoch=0, step=0):
    """Rows named by `keys`, whose token ids begin with their key; allowed positions are the real tokens."""
    keys = [int(key) for key in keys]
    generators = [torch.Generator().manual_seed(key) for key in keys]
    ids = torch.tensor([[key + 1, *range(7, 6 + allowed.shape[1])] for key in keys])
    number = torch.tensor(keys)
    return PerturbationContext(
        shapes={SITE: (allowed.shape[1], dim)},
        allowed=allowed,
        radius=radius,
        dtype=dtype,
        generators=generators,
        tokens=Tokens(ids=ids, mask=allowed, target=torch.zeros_like(allowed), group=number, key=number),
        names=tuple(f"train/{key}" for key in keys),
        key=(0, "update", "policy", step, 0, epoch, 0),
        memory={} if memory is None else memory,
    )


def climb(adversary, context, loss_of):
    """One micro-batch of the engine's loop: ask, losses, gradients, tell. Returns the state and every delta that was asked."""
    state, iterates = adversary.start(context), []
    for _ in range(adversary.passes):
        delta = adversary.ask(state)[SITE].add.detach().requires_grad_()
        losses = loss_of(delta)
        (gradient,) = torch.autograd.grad(losses.sum(), delta)
        iterates.append(delta.detach())
        state = adversary.tell(state, losses.detach(), {SITE: gradient})
    return state, iterates


def end_update(adversary, memory):
    adversary.end_update(memory, lambda x: x)


def run(adversary, context, loss_of):
    """One update and its last ask. Returns the final delta and the first one; one vector moves at the end of the update."""
    first = adversary.ask(adversary.start(context))[SITE].add
    for key, generator in zip(context.tokens.key.tolist(), context.generators, strict=True):
        generator.manual_seed(key)
    state, _ = climb(adversary, context, loss_of)
    end_update(adversary, context.memory)
    return adversary.ask(adversary.start(context) if isinstance(adversary, ONE_VECTOR) else state)[SITE].add, first
