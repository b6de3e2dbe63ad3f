"""What the attacks on words share: where substitutes come from, and what an edited text must keep."""

import math
import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from advalign.attacks import _words_edits as edits
from advalign.attacks._words_constraints import WordConstraints
from advalign.attacks._words_driver import run
from advalign.attacks._words_search import Search, TextScore, WordSearch
from advalign.errors import ConfigError
from advalign.interfaces import Attack, Target
from advalign.plugins import kind_of
from advalign.ranges import Count, Distinct, Length, OneOf, PositiveFraction, Words
from advalign.types import CONTENT, NEUTRAL, Budget, Example, Proposal

SOURCES = ("synonyms", "masked_lm", *edits.CHARACTERS)


@dataclass(frozen=True, kw_only=True)
class WordAttack(Attack):
    """Abstract base of searches over substitutions of words. Stop words never change."""

    lexicon: Annotated[Words, CONTENT] | None = None
    """JSON file of word -> substitutes, or -> {part of speech: substitutes}; the source synonyms reads it."""
    masked_lm: Annotated[Words, CONTENT] | None = None
    """Masked language model (folder, hub id or package:module/folder); the source masked_lm asks it for words in context."""
    sources: Annotated[tuple[Annotated[str, OneOf(SOURCES, "source")], ...], Length(), Distinct()] | None = None
    """Where substitutes come from: synonyms, masked_lm, characters (swap, substitute, delete, insert) or bugs (homoglyph, space, swap,
    delete inside the word). None: those of lexicon and masked_lm that are given, else characters."""
    candidates: Count = 8
    """Most substitutes per word; of a masked language model, besides the others."""
    max_changed: PositiveFraction = 0.3
    """Fraction of the words that may change, rounded down."""
    constraints: WordConstraints | Mapping[str, Any] = field(default_factory=WordConstraints)
    """What an edited text must keep: fields of `WordConstraints`."""
    batch_size: Annotated[Count, NEUTRAL] = 32
    """Examples whose searches run together."""

    access: ClassVar[str] = "text"
    head: ClassVar[str | None] = "classifier"

    @property
    def examples_at_once(self) -> int | None:
        return self.batch_size

    def __post_init__(self) -> None:
        object.__setattr__(self, "constraints", WordConstraints.from_config(self.constraints))
        if "synonyms" in self.origins and self.lexicon is None:
            raise ConfigError(f"{self.path}.lexicon: {self.label} takes synonyms from a JSON file, word -> words; none is given.")
        if "masked_lm" in self.origins and self.masked_lm is None:
            raise ConfigError(f"{self.path}.masked_lm: {self.label} takes masked_lm from a language model; none is given.")

    @property
    def path(self) -> str:
        """What errors call it."""
        return f"attacks.{kind_of(type(self))}"

    @property
    def label(self) -> str:
        """The attack, or its style, in an error."""
        return f"'{kind_of(type(self))}'"

    @property
    def origins(self) -> tuple[str, ...]:
        """The sources of substitutes."""
        if self.sources is not None:
            return tuple(self.sources)
        read = [name for name, reference in (("synonyms", self.lexicon), ("masked_lm", self.masked_lm)) if reference is not None]
        return tuple(read) or ("characters",)

    @property
    def rules(self) -> WordConstraints:
        """What an edited text must keep."""
        assert isinstance(self.constraints, WordConstraints)
        return self.constraints

    @property
    def num_substitutes(self) -> int:
        """Substitutes per word that a language model gives."""
        return self.candidates

    @abstractmethod
    def search(self, search: WordSearch, clean: TextScore) -> Search:
        """The order in which substitutions are tried; ends when one succeeds or none is left."""

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One proposal per example; `text` is None where nothing was found, and `note` says why."""
        for example in examples:
            if example.label is None:
                raise ConfigError(f"{self.path}: example '{example.id}' has no label; the attack is on classifiers.")
        return run(self, target, examples, budget, rng)

    def options(self, word: str, rng: random.Random) -> list[str]:
        """Substitutes of a word that do not depend on its context. Sources take turns in filling the cap."""
        if not edits.is_open(word):
            return []
        substitutes = []
        sources = [name for name in self.origins if name != "masked_lm"]
        part = math.ceil(self.candidates / max(len(sources), 1))
        for name in sources:
            if name == "synonyms":
                substitutes += edits.synonyms(word, edits.read_lexicon(str(self.lexicon), f"{self.path}.lexicon"), self.candidates)
            else:
                substitutes += edits.respell(word, edits.CHARACTERS[name], part, rng)
        return list(dict.fromkeys(substitutes))[: self.candidates]
