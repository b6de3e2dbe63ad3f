"""How a search moves: by gradient, at random, or along what the language model would write."""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from advalign.attacks._suffix import Suffix, swapped
from advalign.attacks._token_search import TokenSearchRun


def descend(search: TokenSearchRun, *, steps: int, candidates: int, top: int, momentum: float = 0.0, buffer: int = 0) -> None:
    """`steps` times: a gradient at one suffix, `candidates` single swaps among its `top` tokens per position, their exact losses.

    buffer 0: the next step starts from the step's best candidate, even where that is worse. buffer b: from the best of the b best so
    far, which start as the initial suffix and b - 1 random ones.
    """
    memory: Tensor | None = None
    kept = _started(search, buffer)
    current = min(kept, key=lambda s: kept[s]) if buffer and kept else search.start
    for _ in range(steps):
        # One query goes to the gradient.
        if search.left < 2 or search.over:
            return
        input_gradients = search.input_gradients(current)
        memory = input_gradients if memory is None else momentum * memory + (1 - momentum) * input_gradients
        options = search.options(memory, top)
        number = int(min(candidates, search.left))
        scored = search.score([swapped(current, options, search.rng) for _ in range(number)])
        if not scored:
            continue
        best = min(scored, key=lambda s: scored[s])
        if not buffer:
            current = best
            continue
        kept[best] = scored[best]
        kept = {s: kept[s] for s in sorted(kept, key=lambda s: kept[s])[:buffer]}
        current = next(iter(kept))


def spread(search: TokenSearchRun, *, steps: int, candidates: int, top: int) -> None:
    """As `descend` without its options, for one suffix behind several prompts: it starts with the first prompt, and the next one joins
    when greedy decoding gives the response to all so far."""
    everyone, current = search.prompts, search.start
    search.prompts = everyone[:1]
    for _ in range(steps):
        if search.left < 2 or search.over:
            break
        options = search.options(search.input_gradients(current), top)
        number = int(min(candidates, search.left))
        scored = search.score([swapped(current, options, search.rng) for _ in range(number)])
        current = min(scored, key=lambda s: scored[s]) if scored else current
        if len(search.prompts) < len(everyone) and search.says.get(current):
            search.prompts = everyone[: len(search.prompts) + 1]
            search.forget()
            search.score([current])
    search.prompts = everyone


def wander(search: TokenSearchRun, *, steps: int, candidates: int, span: int, contiguous: bool) -> None:
    """`steps` times: `candidates` copies of the current suffix with up to `span` tokens redrawn; it moves where one is better. The bare
    prompt, which may be better still, is no place to start from."""
    current = search.start
    loss = search.score([current]).get(current, math.inf)
    for _ in range(steps):
        if search.over:
            return
        number = scheduled(search, loss, span)
        scored = search.score([redrawn(current, number, search.open, search.rng, contiguous) for _ in range(candidates)])
        best = min(scored, key=lambda s: scored[s], default=current)
        if scored.get(best, math.inf) < loss:
            current, loss = best, scored[best]


def scheduled(search: TokenSearchRun, loss: float, span: int) -> int:
    """How many tokens change at once: span, span // 2, span // 4 where the wanted token's probability is at most 0.01, at most 0.1,
    above; a random number where the loss is no log-probability."""
    if search.aim.objective == "margin":
        return search.rng.randint(1, span)
    # Raised losses are negated: -x stands for a probability of exp(-x) as x does.
    chance = math.exp(-abs(loss))
    return max(1, span if chance <= 0.01 else span // 2 if chance <= 0.1 else span // 4)


def redrawn(suffix: Suffix, number: int, open_ids: Sequence[int], rng: random.Random, contiguous: bool) -> Suffix:
    """`number` tokens, neighbours or not, become uniform ones."""
    number = min(number, len(suffix))
    first = rng.randrange(len(suffix) - number + 1)
    places = range(first, first + number) if contiguous else rng.sample(range(len(suffix)), number)
    new = list(suffix)
    for place in places:
        new[place] = rng.choice(open_ids)
    return tuple(new)


def beam(search: TokenSearchRun, *, beams: int, branches: int, length: int, temperature: float) -> None:
    """Suffixes that grow token by token: each of `beams` samples `branches` next tokens from the model, the best `beams` of all go on."""
    alive: list[Suffix] = [()]
    for step in range(length):
        if search.over:
            return
        number = beams * branches if step == 0 else branches
        grown = [(*s, token) for s in alive if search.left >= 1 for token in _continued(search, s, number, temperature)]
        # A suffix that merges with what follows is lost, so more are drawn than are scored.
        scored = search.score(grown)
        if not scored:
            return
        alive = sorted(scored, key=lambda s: scored[s])[:beams]


def _continued(search: TokenSearchRun, suffix: Suffix, number: int, temperature: float) -> list[int]:
    """Distinct next tokens of prompt + suffix, drawn from the model's own distribution without replacement (Gumbel top-k)."""
    prompt = search.prompts[0]
    search.left -= 1
    search.queries += 1
    prompt.queries += 1
    # The distribution behind the suffix is what predicts a token that is not looked at.
    logits = prompt.prefix.read([[*suffix, 0]], 1, lambda z: z[:, 0])[0].double()
    scores = logits / temperature
    keep = torch.full_like(scores, -torch.inf)
    keep[search.open] = 0
    noise = torch.rand(len(scores), generator=torch.Generator().manual_seed(search.rng.getrandbits(63)), dtype=torch.float64)
    scores = scores + keep - (-noise.clamp(min=1e-300).log()).log()
    return scores.topk(min(number, len(search.open))).indices.tolist()


def _started(search: TokenSearchRun, buffer: int) -> dict[Suffix, float]:
    """The buffer's first entries: the initial suffix, and random ones."""
    if not buffer:
        return {}
    random_ones = [redrawn(search.start, len(search.start), search.open, search.rng, True) for _ in range(buffer - 1)]
    return dict(search.score([search.start, *random_ones]))


__all__ = ["beam", "descend", "redrawn", "scheduled", "spread", "wander"]
