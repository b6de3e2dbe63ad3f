"""What the attacks on words share: where substitutes come from, and what an edited text must keep."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from advalign.attacks import _words_edits as edits
from advalign.attacks._words_constraints import WordConstraints
from advalign.attacks._words_driver import run
from advalign.attacks._words_search import Asking, Seen, WordSearch
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Attack
from advalign.types import Budget, Example, Proposal

SOURCES = ("synonyms", "masked_lm", *edits.CHARACTERS)


@dataclass(frozen=True, kw_only=True)
class WordAttack(Attack):
    """Abstract. sources: "synonyms" (`lexicon`: JSON word -> substitutes, or -> {part of speech: substitutes}), "masked_lm" (what a
    masked language model puts in the word's place: a folder, hub id or package:module/folder), "characters" (swap, substitute,
    delete, insert), "bugs" (homoglyph, space, swap, delete inside). At most `candidates` per word and source of looked-up words.
    At most floor(max_changed * words) words change; stop words never do. constraints: fields of `WordConstraints`."""

    lexicon: str | None = None
    masked_lm: str | None = None
    sources: tuple[str, ...] | None = None
    candidates: int = 8
    max_changed: float = 0.3
    constraints: WordConstraints | Mapping[str, Any] = field(default_factory=WordConstraints)
    batch_size: int = 32

    access: ClassVar[str] = "text"
    name: ClassVar[str] = "words"

    @property
    def examples_at_once(self) -> int | None:
        return self.batch_size

    def __post_init__(self) -> None:
        object.__setattr__(self, "constraints", WordConstraints.of(self.constraints))
        for name in self.origins:
            if name not in SOURCES:
                raise unknown(f"attacks.{self.name}.sources", "source", name, SOURCES)
        for source, given, what in (("synonyms", "lexicon", "a JSON file, word -> words"), ("masked_lm", "masked_lm", "a language model")):
            if source in self.origins and getattr(self, given) is None:
                raise ConfigError(f"attacks.{self.name}.{given}: {self.label} takes {source} from {what}; none is given.")
        if self.candidates < 1 or self.batch_size < 1 or not 0 < self.max_changed <= 1:
            raise ConfigError(
                f"attacks.{self.name}: candidates {self.candidates}, batch_size {self.batch_size}, max_changed {self.max_changed} given; "
                "the first two are at least 1, max_changed is in (0, 1]."
            )

    @property
    def label(self) -> str:
        return f"'{self.name}'"

    @property
    def origins(self) -> tuple[str, ...]:
        if self.sources is not None:
            return tuple(self.sources)
        named = [name for name, given in (("synonyms", self.lexicon), ("masked_lm", self.masked_lm)) if given is not None]
        return tuple(named) or ("characters",)

    def search(self, search: WordSearch, now: Seen) -> Asking:
        raise NotImplementedError

    def propose(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One proposal per example; `text` is None where nothing was found, and `note` says why."""
        for example in examples:
            if example.label is None:
                raise ConfigError(f"attacks.{self.name}: example '{example.id}' has no label; the attack is on classifiers.")
        return run(self, target, examples, budget, rng)

    def options(self, word: str, rng: random.Random) -> list[str]:
        """What a word may become whatever stands around it. Sources take turns in filling the cap."""
        if not edits.is_open(word):
            return []
        lists = []
        fixed = [name for name in self.origins if name != "masked_lm"]
        share = math.ceil(self.candidates / max(len(fixed), 1))
        for name in fixed:
            number = self.candidates if name == "synonyms" else share
            table = edits.lexicon(str(self.lexicon)) if name == "synonyms" else {}
            lists.append(
                edits.synonyms(word, table, number) if name == "synonyms" else edits.respelled(word, edits.CHARACTERS[name], number, rng)
            )
        return list(dict.fromkeys(option for found in lists for option in found))[: self.candidates]
