"""How a search moves: by gradient, at random, or along what the language model would write."""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from advalign.attacks._suffix import Suffix, swap_one
from advalign.attacks._token_search import TokenSearchRun


def descend(run: TokenSearchRun, *, steps: int, candidates: int, top: int, momentum: float = 0.0, buffer: int = 0) -> None:
    """`steps` times: a gradient at one suffix, `candidates` single swaps among its `top` tokens per position, their exact losses.

    buffer 0: the next step starts from the step's best candidate, even where that is worse. buffer b: from the best of the b best so
    far, which start as the initial suffix and b - 1 random ones.
    """
    mean: Tensor | None = None
    best_losses = _first_buffer(run, buffer)
    current = min(best_losses, key=lambda s: best_losses[s]) if buffer and best_losses else run.start
    for _ in range(steps):
        # One query goes to the gradient.
        if run.queries_left < 2 or run.finished:
            return
        input_gradients = run.input_gradients(current)
        mean = input_gradients if mean is None else momentum * mean + (1 - momentum) * input_gradients
        options = run.options(mean, top)
        number = int(min(candidates, run.queries_left))
        scored = run.score([swap_one(current, options, run.rng) for _ in range(number)])
        if not scored:
            continue
        best = min(scored, key=lambda s: scored[s])
        if not buffer:
            current = best
            continue
        best_losses[best] = scored[best]
        best_losses = {s: best_losses[s] for s in sorted(best_losses, key=lambda s: best_losses[s])[:buffer]}
        current = next(iter(best_losses))


def descend_jointly(run: TokenSearchRun, *, steps: int, candidates: int, top: int) -> None:
    """As `descend` without momentum and buffer, for one suffix behind several prompts: it starts with the first prompt, and the next one
    joins when greedy decoding gives the response to all so far."""
    prompts, current = run.prompts, run.start
    run.prompts = prompts[:1]
    for _ in range(steps):
        if run.queries_left < 2 or run.finished:
            break
        options = run.options(run.input_gradients(current), top)
        number = int(min(candidates, run.queries_left))
        scored = run.score([swap_one(current, options, run.rng) for _ in range(number)])
        current = min(scored, key=lambda s: scored[s]) if scored else current
        if len(run.prompts) < len(prompts) and run.elicits.get(current):
            run.prompts = prompts[: len(run.prompts) + 1]
            run.reset()
            run.score([current])
    run.prompts = prompts


def search_randomly(run: TokenSearchRun, *, steps: int, candidates: int, span: int, contiguous: bool) -> None:
    """`steps` times: `candidates` copies of the current suffix with up to `span` tokens redrawn; it moves where one is better. The bare
    prompt, which may be better still, is never the current suffix."""
    current = run.start
    loss = run.score([current]).get(current, math.inf)
    for _ in range(steps):
        if run.finished:
            return
        number = num_changes(run, loss, span)
        scored = run.score([redraw(current, number, run.open_ids, run.rng, contiguous) for _ in range(candidates)])
        best = min(scored, key=lambda s: scored[s], default=current)
        if scored.get(best, math.inf) < loss:
            current, loss = best, scored[best]


def num_changes(run: TokenSearchRun, loss: float, span: int) -> int:
    """How many tokens change at once: span, span // 2, span // 4 where the wanted token's probability is at most 0.01, at most 0.1,
    above; a random number where the loss is not a log-probability."""
    if run.aim.objective == "margin":
        return run.rng.randint(1, span)
    # Raised losses are negated: -x stands for a probability of exp(-x) as x does.
    chance = math.exp(-abs(loss))
    return max(1, span if chance <= 0.01 else span // 2 if chance <= 0.1 else span // 4)


def redraw(suffix: Suffix, number: int, open_ids: Sequence[int], rng: random.Random, contiguous: bool) -> Suffix:
    """`number` tokens, neighbours or not, become uniform ones."""
    number = min(number, len(suffix))
    first = rng.randrange(len(suffix) - number + 1)
    places = range(first, first + number) if contiguous else rng.sample(range(len(suffix)), number)
    new = list(suffix)
    for place in places:
        new[place] = rng.choice(open_ids)
    return tuple(new)


def beam(run: TokenSearchRun, *, beams: int, branches: int, length: int, temperature: float) -> None:
    """Suffixes that grow token by token: each of `beams` samples `branches` next tokens from the model, the best `beams` of all go on."""
    suffixes: list[Suffix] = [()]
    for step in range(length):
        if run.finished:
            return
        number = beams * branches if step == 0 else branches
        grown = [(*s, token) for s in suffixes if run.queries_left >= 1 for token in _next_tokens(run, s, number, temperature)]
        # A suffix that merges with what follows is lost, so more are drawn than are scored.
        scored = run.score(grown)
        if not scored:
            return
        suffixes = sorted(scored, key=lambda s: scored[s])[:beams]


def _next_tokens(run: TokenSearchRun, suffix: Suffix, number: int, temperature: float) -> list[int]:
    """Distinct next tokens of prompt + suffix, drawn from the model's own distribution without replacement (Gumbel top-k)."""
    prompt = run.prompts[0]
    run.queries_left -= 1
    run.queries += 1
    prompt.queries += 1
    # Token 0 is a placeholder: what is read is the distribution that predicts it.
    logits = prompt.prefix.read([[*suffix, 0]], 1, lambda z: z[:, 0])[0].double()
    scores = logits / temperature
    keep = torch.full_like(scores, -torch.inf)
    keep[run.open_ids] = 0
    noise = torch.rand(len(scores), generator=torch.Generator().manual_seed(run.rng.getrandbits(63)), dtype=torch.float64)
    scores = scores + keep - (-noise.clamp(min=1e-300).log()).log()
    return scores.topk(min(number, len(run.open_ids))).indices.tolist()


def _first_buffer(run: TokenSearchRun, buffer: int) -> dict[Suffix, float]:
    """Losses of the buffer's first entries: the initial suffix, and random ones."""
    if not buffer:
        return {}
    drawn = [redraw(run.start, len(run.start), run.open_ids, run.rng, True) for _ in range(buffer - 1)]
    return dict(run.score([run.start, *drawn]))


__all__ = ["beam", "descend", "descend_jointly", "num_changes", "redraw", "search_randomly"]
