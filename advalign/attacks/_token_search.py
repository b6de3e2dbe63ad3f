"""One search for a suffix: exact losses of suffixes, each sent once, what they cost, and the best so far.

A suffix is scored behind the cached prompt (`target.prefix`), with logits at the response's positions alone. It must survive decoding
and encoding (`_suffix.SuffixEncoder`).
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from advalign.attacks._suffix import Suffix, SuffixEncoder
from advalign.errors import BudgetError, ConfigError
from advalign.functional import targeted
from advalign.interfaces import Target
from advalign.types import Budget, Example, FoundSuffix

OBJECTIVES = ("nll", "first", "mellowmax", "margin")
GOALS = ("lower", "raise")
OMEGA = 1.0  # of mellowmax; nanoGCG's default


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What is sought; see the fields of `SuffixSearch`."""

    length: int
    initial: str = "!"
    objective: str = "nll"
    goal: str = "lower"

    def loss(self, logits: Float[Tensor, "N R V"], ids: Int[Tensor, "R"]) -> Float[Tensor, "N"]:
        """The loss to lower, of N responses."""
        if self.objective == "margin":
            margin = targeted.token_margin(logits, ids)
            return targeted.hinge(margin if self.goal == "lower" else -margin)
        nll = targeted.token_nll(logits, ids)
        sign = 1.0 if self.goal == "lower" else -1.0
        if self.objective == "first":
            return nll[:, 0] * sign
        return (nll.mean(1) if self.objective == "nll" else targeted.mellowmax(nll, omega=OMEGA)) * sign


class Prompt:
    """The row of one example: ids before a suffix, after it, and the response."""

    def __init__(self, target: Target, encoder: SuffixEncoder, example: Example, start: int, length: int) -> None:
        ids, limit = encoder.encoder.prompt(example.prompt), encoder.encoder.max_length
        self.example, self.encoder = example, encoder
        self.before, self.after = ids[:start], ids[start:]
        free = limit - len(ids) - length
        if free < 1:
            raise BudgetError(
                f"example '{example.id}': a prompt of {len(ids)} tokens and a suffix of {length} leave no room for a response in "
                f"max_length {limit}; raise max_length or shorten them."
            )
        self.response = encoder.encoder.response(reference_response(example))[:free]
        self.ids = torch.tensor(self.response, device=target.device)
        self.prefix, self.queries = target.prefix(self.before), 0

    def fit(self, suffixes: Sequence[Suffix]) -> list[bool]:
        """Which suffixes are read back as the prompt, exactly these ids and the rest of the template."""
        rows = self.encoder.prompts(self.example.prompt, suffixes)
        return [ids == [*self.before, *s, *self.after] for s, ids in zip(suffixes, rows, strict=True)]

    def text(self, suffix: Suffix) -> str:
        """The prompt with a suffix; with an empty one the bare prompt."""
        return self.encoder.text(self.example.prompt, suffix) if suffix else self.example.text

    def tail(self, suffix: Suffix) -> list[int]:
        """The ids after `before`."""
        return [*suffix, *self.after, *self.response]


class TokenSearchRun:
    """Losses of suffixes, the mean over `prompts` (one, except for universal suffixes)."""

    def __init__(self, target: Target, examples: Sequence[Example], aim: Aim, budget: Budget, rng: random.Random) -> None:
        self.aim, self.rng, self.encoder = aim, rng, SuffixEncoder(target.network.encoder)
        self.start: Suffix = self.encoder.initial(examples[0].prompt, aim.initial, aim.length, rng)
        self.prompts = [Prompt(target, self.encoder, e, self.encoder.anchor(e.prompt, self.start), aim.length) for e in examples]
        self.queries_left = math.inf if budget.queries is None else budget.queries
        self.end = math.inf if budget.seconds is None else time.monotonic() + budget.seconds * len(examples)
        self.open_ids = [i for i in range(self.encoder.vocabulary_size) if i not in set(self.encoder.special_ids)]
        self.queries, self.trace = 0, [(0, math.inf)]
        self.reset()

    def reset(self) -> None:
        """Forgets all losses; for another start or other prompts."""
        self.losses: dict[Suffix, float] = {}
        self.elicits: dict[Suffix, bool] = {}  # whether greedy decoding gives the response
        self.best, self.best_suffix = math.inf, self.start

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or nothing can be gained."""
        optimal = self.aim.objective == "margin" and self.best <= 0
        return self.queries_left < 1 or optimal or time.monotonic() >= self.end

    def score(self, suffixes: Sequence[Suffix]) -> dict[Suffix, float]:
        """Losses of the suffixes that survive; a suffix is sent once. All of one length."""
        distinct = list(dict.fromkeys(suffixes))
        new = [s for s in distinct if s not in self.losses]
        for prompt in self.prompts:
            new = [s for s, fits in zip(new, prompt.fit(new), strict=True) if fits] if new else []
        new = new[: int(min(self.queries_left, len(new)))]
        if new:
            self._send(new)
        return {s: self.losses[s] for s in distinct if s in self.losses}

    def input_gradients(self, suffix: Suffix) -> Float[Tensor, "n V"]:
        """d loss / d one-hot rows of the suffix, summed over prompts (over their norms per position, where there are several)."""
        self.queries_left -= 1
        self.queries += 1
        total: Tensor | None = None
        losses, margins = [], []
        for prompt in self.prompts:

            def loss(logits: Tensor, ids: Tensor = prompt.ids) -> Tensor:
                margins.append(float(targeted.worst_margin(logits.detach(), ids)))
                return self.aim.loss(logits, ids)

            prompt.queries += 1
            value, gradient = prompt.prefix.input_gradients(prompt.tail(suffix), slice(0, len(suffix)), len(prompt.response), loss)
            if len(self.prompts) > 1:
                gradient = gradient / gradient.norm(dim=1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
            total = gradient if total is None else total + gradient
            losses.append(value)
        if suffix not in self.losses:
            self._record(suffix, sum(losses) / len(losses), max(margins))
        assert total is not None
        self.trace.append((self.queries, self.best))
        return total.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # says nothing, and spoils no mean of gradients

    def options(self, input_gradients: Float[Tensor, "n V"], top: int) -> Int[Tensor, "n k"]:
        """Per position the `top` tokens that lower the loss most, to first order; special tokens are excluded."""
        input_gradients = input_gradients.clone()
        input_gradients[:, self.encoder.special_ids] = torch.inf
        input_gradients[:, self.encoder.vocabulary_size :] = torch.inf  # rows of the matrix that pad the vocabulary
        return input_gradients.topk(min(top, len(self.open_ids)), largest=False).indices

    def result(self, prompt: Prompt | None = None) -> FoundSuffix:
        """The best suffix behind one of the prompts; None: the first."""
        prompt = prompt or self.prompts[0]
        return FoundSuffix(
            text=prompt.text(self.best_suffix),
            suffix=self.best_suffix,
            loss=self.best,
            queries=prompt.queries,
            trace=tuple(self.trace[1:]),
            elicits=self.elicits.get(self.best_suffix, False),
            note=prompt.prefix.note,
        )

    def _send(self, new: Sequence[Suffix]) -> None:
        tables = []
        for prompt in self.prompts:

            def read(logits: Tensor, ids: Tensor = prompt.ids) -> Tensor:
                return torch.stack([self.aim.loss(logits, ids), targeted.worst_margin(logits, ids)], 1).double()

            prompt.queries += len(new)
            tables.append(prompt.prefix.read([prompt.tail(s) for s in new], len(prompt.response), read))
        losses, margins = torch.stack([t[:, 0] for t in tables]).mean(0), torch.stack([t[:, 1] for t in tables]).amax(0)
        self.queries_left -= len(new)
        self.queries += len(new)
        for suffix, loss, margin in zip(new, losses.tolist(), margins.tolist(), strict=True):
            self._record(suffix, loss, margin)
        self.trace.append((self.queries, self.best))

    def _record(self, suffix: Suffix, loss: float, margin: float) -> None:
        loss = math.inf if math.isnan(loss) else loss  # nan compares with nothing, and could be taken for the least
        self.losses[suffix], self.elicits[suffix] = loss, margin <= 0
        if loss < self.best:
            self.best, self.best_suffix = loss, suffix


def reference_response(example: Example) -> str:
    """The response that a suffix is to bring about."""
    response = example.reference
    if response is None:
        raise ConfigError(
            f"example '{example.id}': no reference response; give meta['response'] or an answer for the suffix to bring about."
        )
    return response


__all__ = ["GOALS", "OBJECTIVES", "Aim", "Prompt", "TokenSearchRun", "reference_response"]
