"""Writing with required words, over any corpus: "with dog, park, at most 9 words:" asks for one such sentence with both."""

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from typing import Any

from advalign.errors import AdvalignError
from advalign.interfaces import Task
from advalign.ranges import Count, Fraction, Natural, OpenFraction
from advalign.tasks._common import check_split, hash_fraction, require
from advalign.tasks._sentences import Corpus, Request, build_corpus, one_sentence, words_of
from advalign.types import Example


@dataclass(frozen=True, kw_only=True)
class Sentences(Task):
    """verify(text) = 1[all required words are in it] · 1[at most n words] · 1[one sentence, ended by . ! or ?]; case does not matter.

    The constrained writing of GAPO (arXiv:2503.20194, section 3) on real text: every sentence of `data` asks for some of its own words,
    and for its own length plus 0 to `slack`. A sentence belongs to the split of the words it asks for; "ood" asks for one word more,
    around a held-out combination. `perturb` modifies a word or the limit, or requires one more word; some sentence of the corpus meets
    it. The paper's constraints are a product's; its proportions of modified and inserted ones are not stated.
    """

    data: Any
    """Reference to texts, which are split into sentences without quotations."""
    num_words: Count = 2
    """Words that a prompt asks for."""
    slack: Natural = 2
    """Most words that the limit exceeds the sentence's own length by."""
    shortest: Count = 5
    """Least length of a sentence, in words."""
    longest: Count = 14
    """Greatest length of a sentence, in words."""
    ranks: tuple[Natural, Natural] = (60, 600)
    """Words are asked for by their rank in the corpus: the default leaves out the 60 most frequent, which are not content, and those so
    rare that few sentences have them."""
    held_out: OpenFraction = 0.2
    """Fraction of the combinations of words that is "test", by hash."""
    insert: Fraction = 0.2
    """Probability that `perturb` requires one more word first."""

    def __post_init__(self) -> None:
        path = "tasks.sentences"
        ordered = self.num_words < self.shortest <= self.longest
        require(ordered, f"{path}.shortest, longest: {self.shortest}, {self.longest} are not two lengths, num_words < shortest <= longest.")
        require(self.ranks[0] < self.ranks[1], f"{path}.ranks: {list(self.ranks)} are not two ranks with 0 <= first < last.")

    def examples(self, split: str, number: int, rng: random.Random) -> list[Example]:
        check_split("sentences", split)
        requests = self._corpus().requests[split]
        return [self._example(words, limit, split) for words, limit in rng.sample(requests, min(number, len(requests)))]

    def demonstrate(self, example: Example, rng: random.Random) -> str:
        """A real sentence: of the training part for a training prompt, of the held-out part for the others."""
        sentences = self._corpus().meeting(example.meta["words"], example.meta["limit"], self._held_out(example))
        if not sentences:
            raise AdvalignError(f"tasks.sentences: no sentence of the data meets '{example.prompt}'.")
        return rng.choice(sentences)

    def perturb(self, example: Example, text: str, rng: random.Random) -> Example:
        """GAPO's preferential prompt: another word, a lower limit, or a word more, so that `text` now violates it and a real sentence
        does not. A training prompt never asks for a held-out combination."""
        ways = rng.sample([self._other_word, self._lower_limit], 2)
        place = 0 if rng.random() < self.insert else 2
        for way in [*ways[:place], self._one_more, *ways[place:]]:
            for words, limit in way(example, text, rng):
                if self._stays(example, words) and self._corpus().meeting(words, limit, self._held_out(example)):
                    return self._example(words, limit, example.meta["split"])
        return self._any_violated(example, text, rng)

    def violations(self, example: Example, text: str) -> dict[str, bool]:
        """Which constraints `text` breaks: words, length, sentence (one, and ended)."""
        return violations(text, example.meta)

    def vocabulary(self) -> list[str]:
        """Every sentence, and prompts with every word that can be asked for."""
        corpus = self._corpus()
        limits = [f"at most {n} words:" for n in range(1, self.longest + self.slack + 1)]
        return [*corpus.sentences, *(f"with {word}, {word}," for word in corpus.words), *limits]

    def _corpus(self) -> Corpus:
        return _built(json.dumps(dataclasses.asdict(self), sort_keys=True))

    def _example(self, words: Sequence[str], limit: int, split: str) -> Example:
        words = tuple(sorted(words))
        meta = {"words": words, "limit": limit, "split": split}
        prompt = f"with {', '.join(words)}, at most {limit} words:"
        return Example(prompt=prompt, id=f"sentences/{'-'.join(words)}-{limit}", meta=meta, verify=partial(_verify, constraints=meta))

    def _held_out(self, example: Example) -> bool:
        return bool(example.meta["split"] != "train")

    def _stays(self, example: Example, words: Sequence[str]) -> bool:
        """Training prompts ask for no held-out combination; of the others, a changed one of as many words asks for a held-out one."""
        held_out = any(hash_fraction(" ".join(sorted(c))) < self.held_out for c in combinations(words, self.num_words))
        return held_out == self._held_out(example)

    def _other_word(self, example: Example, text: str, rng: random.Random) -> Iterator[Request]:
        words, limit, used = example.meta["words"], example.meta["limit"], set(words_of(text))
        for replaced in rng.sample(words, len(words)):
            others = tuple(word for word in words if word != replaced)
            candidates = self._corpus().co_occurring(others, self._held_out(example))
            for word in rng.sample(candidates, len(candidates)):
                if word not in used and word not in words:
                    yield (*others, word), limit

    def _any_violated(self, example: Example, text: str, rng: random.Random) -> Example:
        """Any prompt of the split that `text` violates: in a small corpus nothing nearer may be met."""
        requests = self._corpus().requests[example.meta["split"]]
        for words, limit in rng.sample(requests, len(requests)):
            new = self._example(words, limit, example.meta["split"])
            if new.prompt != example.prompt and any(self.violations(new, text).values()):
                return new
        raise AdvalignError(f"tasks.sentences: no prompt of split '{example.meta['split']}' is violated by '{text[:40]}'.")

    def _lower_limit(self, example: Example, text: str, rng: random.Random) -> Iterator[Request]:
        lengths = range(self.shortest, min(len(text.split()), example.meta["limit"]))
        yield from ((example.meta["words"], limit) for limit in rng.sample(lengths, len(lengths)))

    def _one_more(self, example: Example, text: str, rng: random.Random) -> Iterator[Request]:
        words, used = example.meta["words"], set(words_of(text))
        candidates = self._corpus().co_occurring(words, self._held_out(example))
        yield from (((*words, word), example.meta["limit"]) for word in rng.sample(candidates, len(candidates)) if word not in used)


@lru_cache(maxsize=8)
def _built(options: str) -> Corpus:
    return build_corpus(json.loads(options))


def violations(text: str, constraints: Mapping[str, Any]) -> dict[str, bool]:
    """{constraint: broken?}."""
    return {
        "words": not set(constraints["words"]) <= set(words_of(text)),
        "length": len(text.split()) > constraints["limit"],
        "sentence": not one_sentence(text),
    }


def _verify(text: str, *, constraints: Mapping[str, Any]) -> float:
    return float(not any(violations(text, constraints).values()))


__all__ = ["Sentences"]
