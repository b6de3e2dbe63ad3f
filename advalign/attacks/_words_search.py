"""One example's search as a coroutine: it yields requests (scores of texts by the target, substitutes by a language model,
similarities by an encoder, one gradient by the target) and is sent the answers by `_words_driver`."""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from advalign.attacks import _words_edits as edits
from advalign.attacks import _words_models as models
from advalign.attacks._words_constraints import WordConstraints, window
from advalign.types import Budget, Example, Proposal

Substitutions = Mapping[int, str]
"""{place: substitute}; a place is an odd index into the pieces of the text."""


@dataclass(frozen=True)
class TextScore:
    """What the model answered to a text."""

    logprob: float
    """log p(y) of the example's label."""
    wrong: bool
    """Whether the prediction is another class."""


@dataclass(frozen=True)
class Candidate:
    """A text with one more substitution that keeps every constraint."""

    substitutions: Substitutions
    word: str
    """The newest substitute."""
    text: str
    similarity: float = 1.0
    """To the text it is compared with."""


@dataclass(frozen=True)
class Request:
    """What a search waits for."""

    kind: str
    """score (texts), fill (texts with a mask), similar (pairs of texts) or gradient."""
    items: Sequence[Any] = ()
    """The texts, or pairs of texts."""


Search = Generator[Request, Any, Any]
"""Yields requests and is sent their answers."""


class SearchStrategy(Protocol):
    """The part of a word attack that one search reads."""

    @property
    def max_changed(self) -> float:
        """Fraction of the words that may change."""

    @property
    def num_substitutes(self) -> int:
        """Substitutes per word that a language model gives."""

    @property
    def rules(self) -> WordConstraints:
        """What an edited text must keep."""

    @property
    def masked_lm(self) -> str | None:
        """Reference of the masked language model."""

    @property
    def origins(self) -> tuple[str, ...]:
        """Where substitutes come from."""

    def options(self, word: str, rng: random.Random) -> list[str]:
        """Substitutes of a word that do not depend on its context."""

    def search(self, search: WordSearch, clean: TextScore) -> Search:
        """The order in which substitutions are tried."""


class WordSearch:
    """The search of one example. No text is sent twice."""

    def __init__(self, attack: SearchStrategy, example: Example, rng: random.Random, budget: Budget) -> None:
        self.attack, self.example, self.rng = attack, example, rng
        self.scores: dict[str, TextScore] = {}  # of every text sent so far
        self.num_gradients = 0
        self.max_queries = math.inf if budget.queries is None else budget.queries
        self.pieces = edits.pieces(example.text)
        self.limit = self._limit(budget)  # words that may change
        options = {i: attack.options(self.pieces[i], rng) for i in range(1, len(self.pieces), 2)}
        in_context = "masked_lm" in attack.origins
        self.options = {i: words for i, words in options.items() if words or (in_context and edits.is_open(self.pieces[i]))}
        self.success: str | None = None  # a text that fools the model
        self.note, self.refused, self.finished = "", "", False
        self.num_candidates = 0  # texts of the search that were sent
        self._run = self._search()
        self.request: Request = next(self._run)

    @property
    def num_queries(self) -> int:
        """Texts and gradients so far."""
        return len(self.scores) + self.num_gradients

    def _limit(self, budget: Budget) -> int:
        attack, number = self.attack, len(self.example.text.split())
        fraction = attack.max_changed if budget.edits is None else min(attack.max_changed, budget.edits)
        # A budget of edits binds; the attack's own fraction gives way to `at_least`.
        bound = number if budget.edits is None else math.floor(budget.edits * number + 1e-9)
        return min(max(math.floor(fraction * number + 1e-9), attack.rules.at_least), bound)

    def _search(self) -> Search:
        (clean,) = yield Request("score", [self.example.text])
        if clean is not None and clean.wrong:
            return "skipped: the prediction is wrong before any edit,"
        if clean is None:
            self.refused = "the budget holds no query"
        elif not self.options or self.limit < 1:
            self.refused = "no word may change"
        else:
            yield from self.attack.search(self, clean)
            if not self.num_candidates and self.success is None:
                exhausted = self.num_queries >= self.max_queries
                self.refused = "the budget ended before the first substitution" if exhausted else "no substitution keeps the constraints"
        return "found" if self.success is not None else "nothing found"

    # ------------------------------------------------------------------------------------ what strategies use

    def text(self, substitutions: Substitutions) -> str:
        """The example's text with substitutions."""
        return "".join(self._substitute(substitutions))

    def cost(self, substitutions: Substitutions) -> int:
        """Words that change."""
        return sum(edits.cost(word) for word in substitutions.values())

    def candidates(
        self, moves: Sequence[tuple[Substitutions, int]], *, whole: bool = False, words: Sequence[Sequence[str]] | None = None
    ) -> Generator[Request, Any, list[list[Candidate]]]:
        """For each (substitutions so far, place): the candidates there, of `words` where they are given. `whole`: a window around every
        change is compared, not around the last one alone, and always with the original text."""
        options = words if words is not None else (yield from self.words(moves))
        rows = [
            [Candidate(new, word, self.text(new)) for word in row if self.fits(new := {**before, place: word}, place)]
            for (before, place), row in zip(moves, options, strict=True)
        ]
        if self.attack.rules.encoder is None:
            return rows
        flat = [(candidate, before, place) for (before, place), row in zip(moves, rows, strict=True) for candidate in row]
        values = yield from self._similarities(flat, whole)
        least = self.attack.rules.similarity
        similar = {id(c): Candidate(c.substitutions, c.word, c.text, v) for (c, _, _), v in zip(flat, values, strict=True) if v >= least}
        return [[similar[id(candidate)] for candidate in row if id(candidate) in similar] for row in rows]

    def score(self, candidates: Sequence[Candidate]) -> Generator[Request, Any, list[tuple[float, Candidate]]]:
        """(log p(y), candidate), the lowest first. Of those that fool the model the most similar one (without an encoder: the first)
        becomes `success`."""
        answers = yield Request("score", [candidate.text for candidate in candidates])
        wrong = [candidate for candidate, score in zip(candidates, answers, strict=True) if score is not None and score.wrong]
        if wrong and self.success is None:
            self.success = max(wrong, key=lambda candidate: candidate.similarity).text
        scored = [(score.logprob, candidate) for score, candidate in zip(answers, candidates, strict=True) if score is not None]
        self.num_candidates += len(scored)
        return sorted(scored, key=lambda pair: pair[0])

    def words(self, moves: Sequence[tuple[Substitutions, int]]) -> Generator[Request, Any, list[list[str]]]:
        """The substitutes at each (substitutions so far, place), whether they keep the constraints or not."""
        if "masked_lm" not in self.attack.origins:
            return [self.options[place] for _, place in moves]
        assert self.attack.masked_lm is not None
        mask = models.masked_lm(self.attack.masked_lm).mask
        filled = yield Request("fill", [self.text({**before, place: mask}) for before, place in moves])
        return [
            list(dict.fromkeys([*self.options[place], *(edits.cased(word, old) for word in words if word != old.lower())]))
            for old, place, words in ((self.pieces[place], place, words) for (_, place), words in zip(moves, filled, strict=True))
        ]

    def fits(self, substitutions: Substitutions, place: int) -> bool:
        """Whether the constraints hold that need no model; the newest substitute is at `place`."""
        rules = self.attack.rules
        if self.cost(substitutions) > self.limit or not rules.agrees(self.pieces[place], substitutions[place]):
            return False
        return rules.characters is None or sum(edits.distance(self.pieces[i], w) for i, w in substitutions.items()) <= rules.characters

    # ------------------------------------------------------------------------------------------------- internal

    def _substitute(self, substitutions: Substitutions) -> list[str]:
        """The pieces with substitutions."""
        new = list(self.pieces)
        for place, word in substitutions.items():
            new[place] = word
        return new

    def _similarities(self, rows: Sequence[tuple[Candidate, Substitutions, int]], whole: bool) -> Generator[Request, Any, list[float]]:
        """The similarity of each candidate to the text it is compared with: the least over its windows."""
        rules = self.attack.rules
        previous = rules.against == "previous" and not whole
        number = len(self.pieces) // 2
        if rules.window is not None and number < rules.window:
            return [1.0] * len(rows)
        pairs, owner = [], []
        for k, (candidate, before, place) in enumerate(rows):
            old = before if previous else {}
            for i in candidate.substitutions if whole and rules.window is not None else (place,):
                pairs.append((self._window(old, i), self._window(candidate.substitutions, i)))
                owner.append(k)
        values = yield Request("similar", pairs)
        least = [1.0] * len(rows)
        for k, value in zip(owner, values, strict=True):
            least[k] = min(least[k], value)
        return least

    def _window(self, substitutions: Substitutions, place: int) -> str:
        size = self.attack.rules.window
        if size is None:
            return self.text(substitutions)
        new = self._substitute(substitutions)
        return window(new[1::2], new, place // 2, size)

    # -------------------------------------------------------------------------------- what the driver uses

    def unsent(self) -> list[str]:
        """The requested texts that were not sent yet, as far as the budget reaches."""
        if self.request.kind != "score":
            return []
        new = [text for text in dict.fromkeys(self.request.items) if text not in self.scores]
        return new[: int(min(len(new), max(self.max_queries - self.num_queries, 0)))]

    def tell(self, answer: Any) -> None:
        """Goes on to the next request that a model has to answer, or to the end."""
        while True:
            try:
                self.request = self._run.send(answer)
            except StopIteration as end:
                self.note, self.finished = end.value, True
                return
            if self.request.kind == "gradient" and self.max_queries - self.num_queries < 1:
                answer = None
            elif self.request.kind == "score" and not self.unsent():
                answer = self.answers()
            elif self.request.kind in ("fill", "similar") and not self.request.items:
                answer = []
            else:
                return

    def answers(self) -> list[TextScore | None]:
        """The scores of the requested texts; None where the budget did not reach."""
        return [self.scores.get(text) for text in self.request.items]

    def proposal(self) -> Proposal:
        """What was found, and what it cost."""
        note = f"{self.note or 'stopped by the clock'} after {self.num_queries} queries"
        return Proposal(text=self.success, note=note, queries=self.num_queries, refused=self.refused)
