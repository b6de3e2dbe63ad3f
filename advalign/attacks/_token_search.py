"""What every search for a suffix shares: exact losses of suffixes, each sent once, what they cost, and the best so far.

A suffix is scored behind the cached prompt (`target.prefix`), with logits at the response's positions alone. It must survive decoding
and encoding (`_suffix.Places`). Every example is searched by itself with a stream of its own, so results do not depend on company.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign import plugins
from advalign.attacks._suffix import Places, Suffix
from advalign.errors import BudgetError, ConfigError, unknown
from advalign.functional import targeted
from advalign.interfaces import Attack
from advalign.types import Budget, Example, Proposal

OBJECTIVES = ("nll", "first", "mellowmax", "margin")
GOALS = ("lower", "raise")
OMEGA = 1.0  # of mellowmax; nanoGCG's default


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What is sought; the names are explained at `SuffixSearch`."""

    length: int
    initial: str = "!"
    objective: str = "nll"
    goal: str = "lower"

    def loss(self, logits: Float[Tensor, "N R V"], ids: Tensor) -> Float[Tensor, "N"]:
        if self.objective == "margin":
            margin = targeted.token_margin(logits, ids)
            return targeted.hinge(margin if self.goal == "lower" else -margin)
        nll = targeted.token_nll(logits, ids)
        found = {"nll": lambda: nll.mean(1), "first": lambda: nll[:, 0], "mellowmax": lambda: targeted.mellowmax(nll, omega=OMEGA)}
        return found[self.objective]() * (1.0 if self.goal == "lower" else -1.0)


@dataclass(frozen=True, kw_only=True)
class FoundSuffix:
    """The best text (None: the example's own) and its loss; what the search spent; `trace`: (queries, best loss so far) after every
    call, for curves of loss over budget; `says`: whether greedy decoding gives the response."""

    text: str | None
    suffix: Suffix
    loss: float
    queries: int
    trace: tuple[tuple[int, float], ...]
    says: bool = False
    note: str = ""

    def proposal(self, aim: Aim) -> Proposal:
        unit = "" if aim.objective == "margin" else " nats" if aim.objective == "first" else " nats per token"
        shown = self.loss if aim.goal == "lower" or aim.objective == "margin" else -self.loss
        note = f"{shown:.4f}{unit}" + (f"; {self.note}" if self.note else "")
        return Proposal(text=self.text, note=note, queries=self.queries)


class Prompt:
    """One example among the ids of its row: what stands before a suffix, behind it, and the response."""

    def __init__(self, target: Any, places: Places, example: Example, start: int, length: int) -> None:
        encoder, bare = target.network.encoder, places.encoder.prompt(example.prompt)
        self.example, self.places = example, places
        self.before, self.behind = bare[:start], bare[start:]
        room = encoder.max_length - len(bare) - length
        if room < 1:
            raise BudgetError(
                f"example '{example.id}': a prompt of {len(bare)} tokens and a suffix of {length} leave no room for a response in "
                f"max_length {encoder.max_length}; raise max_length or shorten them."
            )
        self.response = encoder.response(wanted(example))[:room]
        self.ids = torch.tensor(self.response, device=target.network.device)
        self.prefix, self.queries = target.prefix(self.before), 0

    def fit(self, suffixes: Sequence[Suffix]) -> list[bool]:
        """Which are read back as the prompt, exactly these ids and what the template puts behind."""
        rows = self.places.encoder.prompts([self.text(s) for s in suffixes])
        return [ids == [*self.before, *s, *self.behind] for s, ids in zip(suffixes, rows, strict=True)]

    def text(self, suffix: Suffix) -> str:
        return self.places.text(self.example.prompt, suffix) if suffix else self.example.prompt

    def tail(self, suffix: Suffix) -> list[int]:
        return [*suffix, *self.behind, *self.response]


class TokenSearchRun:
    """Losses of suffixes, the mean over `prompts` (one, but for universal suffixes)."""

    def __init__(self, target: Any, examples: Sequence[Example], aim: Aim, budget: Budget, rng: random.Random) -> None:
        self.aim, self.rng, self.places = aim, rng, Places(target.network.encoder)
        self.start: Suffix = self.places.first(examples[0].prompt, aim.initial, aim.length, rng)
        self.prompts = [Prompt(target, self.places, e, self.places.anchor(e.prompt, self.start), aim.length) for e in examples]
        self.left = math.inf if budget.queries is None else budget.queries
        self.end = math.inf if budget.seconds is None else time.monotonic() + budget.seconds * len(examples)
        self.open = [i for i in range(self.places.size) if i not in set(self.places.closed)]
        self.queries, self.trace = 0, [(0, math.inf)]
        self.forget()

    def forget(self) -> None:
        """Losses over other prompts than now are worth nothing."""
        self.known: dict[Suffix, float] = {}
        self.says: dict[Suffix, bool] = {}
        self.best, self.best_suffix = math.inf, self.start

    @property
    def over(self) -> bool:
        """Nothing is left, or nothing can be gained."""
        done = self.aim.objective == "margin" and self.best <= 0
        return self.left < 1 or done or time.monotonic() >= self.end

    def score(self, suffixes: Sequence[Suffix]) -> dict[Suffix, float]:
        """Losses of those that survive; what was sent before is not sent again. All of one length."""
        asked = list(dict.fromkeys(suffixes))
        new = [s for s in asked if s not in self.known]
        for prompt in self.prompts:
            new = [s for s, fits in zip(new, prompt.fit(new), strict=True) if fits] if new else []
        new = new[: int(min(self.left, len(new)))]
        if new:
            self._send(new)
        return {s: self.known[s] for s in asked if s in self.known}

    def input_gradients(self, suffix: Suffix) -> Float[Tensor, "n V"]:
        """d loss / d one-hot rows of the suffix, summed over prompts (over their norms per position, where there are several)."""
        self.left -= 1
        self.queries += 1
        total: Tensor | None = None
        losses, margins = [], []
        for prompt in self.prompts:

            def loss(logits: Tensor, ids: Tensor = prompt.ids) -> Tensor:
                margins.append(float(targeted.worst_margin(logits.detach(), ids)))
                return self.aim.loss(logits, ids)

            prompt.queries += 1
            value, found = prompt.prefix.input_gradients(prompt.tail(suffix), slice(0, len(suffix)), len(prompt.response), loss)
            if len(self.prompts) > 1:
                found = found / found.norm(dim=1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
            total = found if total is None else total + found
            losses.append(value)
        if suffix not in self.known:
            self._told(suffix, sum(losses) / len(losses), max(margins))
        assert total is not None
        self.trace.append((self.queries, self.best))
        return total

    def options(self, input_gradients: Float[Tensor, "n V"], top: int) -> Tensor:
        """Per position the `top` tokens that lower the loss most, to first order; tokens that are no text are none of them."""
        input_gradients = input_gradients.clone()
        input_gradients[:, self.places.closed] = torch.inf
        input_gradients[:, self.places.size :] = torch.inf  # rows of the matrix that pad the vocabulary
        return input_gradients.topk(min(top, len(self.open)), largest=False).indices

    def found(self, prompt: Prompt | None = None) -> FoundSuffix:
        """For one of the prompts, the first if none is named."""
        prompt = prompt or self.prompts[0]
        return FoundSuffix(
            text=prompt.text(self.best_suffix),
            suffix=self.best_suffix,
            loss=self.best,
            queries=prompt.queries,
            trace=tuple(self.trace[1:]),
            says=self.says.get(self.best_suffix, False),
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
        self.left -= len(new)
        self.queries += len(new)
        for suffix, loss, margin in zip(new, losses.tolist(), margins.tolist(), strict=True):
            self._told(suffix, loss, margin)
        self.trace.append((self.queries, self.best))

    def _told(self, suffix: Suffix, loss: float, margin: float) -> None:
        self.known[suffix], self.says[suffix] = loss, margin <= 0
        if loss < self.best:
            self.best, self.best_suffix = loss, suffix


@dataclass(frozen=True, kw_only=True)
class SuffixSearch(Attack):
    """Abstract: a suffix of at most `length` tokens that brings the reference response about, or keeps it away.

    objective: the response's mean negative log-likelihood ("nll"), its first token's ("first"), the mellowmax over its tokens'
    ("mellowmax"), or the mean hinge of their margins ("margin", after f_6 of arXiv:1608.04644). goal "raise" climbs it instead.
    """

    length: int = 20
    objective: str = "nll"
    goal: str = "lower"

    head: ClassVar[str] = "policy"

    @property
    def aim(self) -> Aim:
        return Aim(length=self.length, initial=getattr(self, "initial", "!"), objective=self.objective, goal=self.goal)

    def drive(self, search: TokenSearchRun) -> None:
        """Moves until the steps or the budget are used up."""
        raise NotImplementedError

    def search(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[FoundSuffix]:
        """What was found and what it cost, example by example. The bare prompt is scored first and is a candidate like any other."""
        self.refuse_other_heads(target)
        stream, found = rng.getrandbits(63), []
        for example in examples:
            search = TokenSearchRun(target, [example], self.aim, budget, random.Random(f"{stream}/{example.id}/{example.prompt}"))
            if search.left >= 2:
                if search.prompts[0].before:  # else nothing stands before the response
                    search.score([()])
                self.drive(search)
            found.append(search.found() if search.queries else NOTHING)
        return found

    def resume(self, target: Any, example: Example, suffix: Suffix, rng: random.Random) -> FoundSuffix:
        """A search that goes on from `suffix`, which is scored anew: the weights may have moved since it was found. Empty: from
        `initial`. The bare prompt is no candidate here."""
        self.refuse_other_heads(target)
        search = TokenSearchRun(target, [example], self.aim, Budget(), rng)
        if suffix:
            search.start = tuple(suffix)
            search.forget()
        search.score([search.start])
        self.drive(search)
        return search.found()

    def propose(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One text per example, as far as the budget reaches."""
        return [found.proposal(self.aim) for found in self.search(target, examples, budget, rng)]

    def check(self, *counts: str) -> None:
        """Refuses counts below 1 and names that do not exist."""
        for name in ("length", *counts):
            if getattr(self, name) < 1:
                raise ConfigError(f"attacks.{plugins.kind_of(type(self))}.{name}: {getattr(self, name)} given; at least 1.")
        for name, known in (("objective", OBJECTIVES), ("goal", GOALS)):
            if getattr(self, name) not in known:
                raise unknown(f"attacks.{plugins.kind_of(type(self))}.{name}", name, getattr(self, name), known)

    def refuse_other_heads(self, target: Any) -> None:
        if target.network.head != self.head:
            kind = plugins.kind_of(type(self))
            raise ConfigError(f"attacks.{kind}: a suffix is sought for a language model; this one has head '{target.network.head}'.")


def wanted(example: Example) -> str:
    response = example.meta.get("response", example.answer)
    if response is None:
        raise ConfigError(
            f"example '{example.id}': no reference response; give meta['response'] or an answer for the suffix to bring about."
        )
    return str(response)


NOTHING = FoundSuffix(text=None, suffix=(), loss=math.inf, queries=0, trace=(), note="no budget")

__all__ = ["GOALS", "OBJECTIVES", "Aim", "FoundSuffix", "TokenSearchRun", "SuffixSearch", "wanted"]
