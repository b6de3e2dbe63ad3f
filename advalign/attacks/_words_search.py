"""One example's search as a coroutine: it yields what it asks (scores of texts by the target, substitutes by a language model,
similarities by an encoder, one gradient by the target) and is sent the answer by `_words_driver`."""

import math
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advalign.attacks import _words_constraints as constraints
from advalign.attacks import _words_edits as edits
from advalign.types import Budget, Example, Proposal

Chosen = Mapping[int, str]  # {place: substitute}; a place is an odd index into the pieces of the text


@dataclass(frozen=True)
class Seen:
    """What the model said of a text: log p(y), and whether the prediction is another class."""

    label: float
    wrong: bool


@dataclass(frozen=True)
class Offer:
    """One substitution more that keeps every constraint."""

    chosen: Chosen
    word: str
    text: str
    similarity: float = 1.0


@dataclass(frozen=True)
class Ask:
    """kind: "score", "fill", "similar" or "gradient"; of what."""

    kind: str
    items: Sequence[Any] = ()


Asking = Generator[Ask, Any, Any]


class WordSearch:
    """One example. `seen`: every text sent so far, so that none is sent twice. `found`: a text that fools the model."""

    def __init__(self, attack: Any, example: Example, rng: random.Random, budget: Budget) -> None:
        self.attack, self.example, self.rng = attack, example, rng
        self.seen: dict[str, Seen] = {}
        self.num_gradients = 0
        self.left = math.inf if budget.queries is None else budget.queries
        self.pieces = edits.pieces(example.prompt)
        share = attack.max_changed if budget.edits is None else min(attack.max_changed, budget.edits)
        number = len(example.prompt.split())
        # A budget of edits binds; the attack's own share gives way to `at_least`.
        bound = number if budget.edits is None else math.floor(budget.edits * number + 1e-9)
        self.limit = min(max(math.floor(share * number + 1e-9), attack.constraints.at_least), bound)
        found = {i: attack.options(self.pieces[i], rng) for i in range(1, len(self.pieces), 2)}
        open_too = "masked_lm" in attack.origins
        self.options = {i: words for i, words in found.items() if words or (open_too and edits.is_open(self.pieces[i]))}
        self.found: str | None = None
        self.note, self.finished = "", False
        self._run = self._search()
        self.asked: Ask = next(self._run)

    @property
    def spent(self) -> int:
        return len(self.seen) + self.num_gradients

    def _search(self) -> Asking:
        (now,) = yield Ask("score", [self.example.prompt])
        if now is None:
            return "not attacked: the budget holds no query,"
        if now.wrong:
            return "skipped: the prediction is wrong before any edit,"
        if not self.options or self.limit < 1:
            return "not attacked: no word may change,"
        yield from self.attack.search(self, now)
        return "found" if self.found is not None else "nothing found"

    # ------------------------------------------------------------------------------------ what strategies use

    def text(self, chosen: Chosen) -> str:
        new = list(self.pieces)
        for place, word in chosen.items():
            new[place] = word
        return "".join(new)

    def cost(self, chosen: Chosen) -> int:
        return sum(edits.cost(word) for word in chosen.values())

    def offers(
        self, wanted: Sequence[tuple[Chosen, int]], *, whole: bool = False, words: Sequence[Sequence[str]] | None = None
    ) -> Generator[Ask, Any, list[list[Offer]]]:
        """For each (substitutions so far, place): the offers there, of `words` where they are given. `whole`: a window around every
        change is compared, not around the last one alone, and always with the original text."""
        lists = words if words is not None else (yield from self.words(wanted))
        found = [
            [Offer(new, word, self.text(new)) for word in row if self.fits(new := {**chosen, place: word}, place)]
            for (chosen, place), row in zip(wanted, lists, strict=True)
        ]
        if self.attack.constraints.encoder is None:
            return found
        flat = [(offer, before, place) for (before, place), row in zip(wanted, found, strict=True) for offer in row]
        values = yield from self._similar(flat, whole)
        lowest = self.attack.constraints.similarity
        kept = {id(o): Offer(o.chosen, o.word, o.text, v) for (o, _, _), v in zip(flat, values, strict=True) if v >= lowest}
        return [[kept[id(offer)] for offer in row if id(offer) in kept] for row in found]

    def judge(self, offers: Sequence[Offer]) -> Generator[Ask, Any, list[tuple[float, Offer]]]:
        """(log p(y), offer), the lowest first. Of those that fool the model the most similar one (without an encoder: the first)
        is what was found."""
        answers = yield Ask("score", [offer.text for offer in offers])
        wrong = [offer for offer, seen in zip(offers, answers, strict=True) if seen is not None and seen.wrong]
        if wrong and self.found is None:
            self.found = max(wrong, key=lambda offer: offer.similarity).text
        scored = [(seen.label, offer) for seen, offer in zip(answers, offers, strict=True) if seen is not None]
        return sorted(scored, key=lambda pair: pair[0])

    def words(self, wanted: Sequence[tuple[Chosen, int]]) -> Generator[Ask, Any, list[list[str]]]:
        """The substitutes at each (substitutions so far, place), whether they keep the constraints or not."""
        if "masked_lm" not in self.attack.origins:
            return [self.options[place] for _, place in wanted]
        mask = constraints.masked_lm(self.attack.masked_lm).mask
        filled = yield Ask("fill", [self.text({**chosen, place: mask}) for chosen, place in wanted])
        return [
            list(dict.fromkeys([*self.options[place], *(edits.cased(word, old) for word in words if word != old.lower())]))
            for old, place, words in ((self.pieces[place], place, words) for (_, place), words in zip(wanted, filled, strict=True))
        ]

    def fits(self, chosen: Chosen, place: int) -> bool:
        """Whether the constraints hold that need no model, the newest substitute standing at `place`."""
        rules = self.attack.constraints
        if self.cost(chosen) > self.limit or not rules.agrees(self.pieces[place], chosen[place]):
            return False
        return rules.characters is None or sum(edits.apart(self.pieces[i], w) for i, w in chosen.items()) <= rules.characters

    # ------------------------------------------------------------------------------------------------- inside

    def _similar(self, rows: Sequence[tuple[Offer, Chosen, int]], whole: bool) -> Generator[Ask, Any, list[float]]:
        """The similarity of each offer to what it is compared with: the least over its windows."""
        rules = self.attack.constraints
        before = rules.against == "previous" and not whole
        number = len(self.pieces) // 2
        if rules.window is not None and number < rules.window:
            return [1.0] * len(rows)
        pairs, owner = [], []
        for k, (offer, chosen, place) in enumerate(rows):
            old = chosen if before else {}
            for i in offer.chosen if whole and rules.window is not None else (place,):
                pairs.append((self._window(old, i), self._window(offer.chosen, i)))
                owner.append(k)
        values = yield Ask("similar", pairs)
        least = [1.0] * len(rows)
        for k, value in zip(owner, values, strict=True):
            least[k] = min(least[k], value)
        return least

    def _window(self, chosen: Chosen, place: int) -> str:
        size = self.attack.constraints.window
        if size is None:
            return self.text(chosen)
        new = list(self.pieces)
        for i, word in chosen.items():
            new[i] = word
        return constraints.window(new[1::2], new, place // 2, size)

    # -------------------------------------------------------------------------------- what the driver uses

    def wanted(self) -> list[str]:
        """The texts asked for that are new, as far as the budget reaches."""
        if self.asked.kind != "score":
            return []
        fresh = [text for text in dict.fromkeys(self.asked.items) if text not in self.seen]
        return fresh[: int(min(len(fresh), max(self.left - self.spent, 0)))]

    def tell(self, answer: Any) -> None:
        """Goes on to the next question that somebody else has to answer, or to the end."""
        while True:
            try:
                self.asked = self._run.send(answer)
            except StopIteration as end:
                self.note, self.finished = end.value, True
                return
            if self.asked.kind == "gradient" and self.left - self.spent < 1:
                answer = None
            elif self.asked.kind == "score" and not self.wanted():
                answer = self.scores()
            elif self.asked.kind in ("fill", "similar") and not self.asked.items:
                answer = []
            else:
                return

    def scores(self) -> list[Seen | None]:
        return [self.seen.get(text) for text in self.asked.items]

    def proposal(self) -> Proposal:
        return Proposal(text=self.found, note=f"{self.note or 'stopped by the clock'} after {self.spent} queries", queries=self.spent)
