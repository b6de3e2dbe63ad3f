"""max_{x' in T(x)} loss(f(x'), y) over edits of characters or words, by the recipes of TextAttack 0.3.11 (arXiv:2005.05909)."""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from advalign.attacks import _textattack_resources as resources
from advalign.attacks._pretrained import model_path
from advalign.attacks._textattack_import import load
from advalign.attacks._textattack_patches import seeded
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Attack, Target
from advalign.ranges import Words, number
from advalign.types import CONTENT, Budget, Example, Proposal

__all__ = ["TextAttack"]

# Our name, TextAttack's class, and the arguments without which the recipe would have to download something.
RECIPES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "deepwordbug": ("DeepWordBugGao2018", ()),
    "pruthi": ("Pruthi2019", ()),
    "input-reduction": ("InputReductionFeng2018", ()),
    "bad-characters": ("BadCharacters2021", ()),
    "pwws": ("PWWSRen2019", ("synonyms",)),
    "leap": ("LEAP2023", ("synonyms",)),
    "iga": ("IGAWang2019", ("lexicon",)),
    "textbugger": ("TextBuggerLi2018", ("lexicon", "encoder")),
    "textfooler": ("TextFoolerJin2019", ("lexicon", "encoder")),
    "bae": ("BAEGarg2019", ("masked_lm", "encoder")),
    "bert-attack": ("BERTAttackLi2020", ("masked_lm", "encoder")),
    "clare": ("CLARE2020", ("masked_lm", "encoder", "synonyms")),
    "a2t": ("A2TYoo2021", ("lexicon", "encoder")),
    "checklist": ("CheckList2020", ()),
}

# Recipes this adapter refuses, and why.
REFUSED: Mapping[str, tuple[str, str]] = {
    "hotflip": ("HotFlipEbrahimi2017", "it needs the gradient of a word-level LSTM"),
    "alzantot": ("GeneticAlgorithmAlzantot2018", "it needs Google's 1-billion-word language model; 'iga' is the genetic search without it"),
    "faster-alzantot": ("FasterGeneticAlgorithmJia2019", "it needs a downloaded language model; 'iga' is the genetic search without it"),
    "kuleshov": ("Kuleshov2017", "it needs skip-thought vectors and GPT-2"),
    "pso": ("PSOZang2020", "it needs HowNet; 'leap' is a particle swarm over synonyms"),
    "morpheus": ("MorpheusTan2020", "its victim maps text to text"),
    "seq2sick": ("Seq2SickCheng2018BlackBox", "its victim maps text to text"),
    "french": ("FrenchRecipe", "it needs flair's French tagger of named entities"),
    "spanish": ("SpanishRecipe", "it needs flair's tagger of named entities"),
    "chinese": ("ChineseRecipe", "it needs HowNet and a Chinese masked language model"),
}


@dataclass(frozen=True, kw_only=True)
class TextAttack(Attack):
    """max over edited texts x' of 1 - p(y | x'), by a recipe of TextAttack (arXiv:2005.05909), e.g. DeepWordBug (arXiv:1801.04354).

    Ours differs: nothing is downloaded; only texts sent to the target are queries (TextAttack also counts cache hits); each
    example has its own random stream, so that results do not depend on order. In a pair only the prompt is edited. a2t takes
    one gradient per example: dropout off, no padding, one forward (`access` is "gradients" then).
    """

    recipe: Words = "deepwordbug"
    """A name of `RECIPES`, or TextAttack's own class name; it is built unmodified."""
    lexicon: Annotated[Words, CONTENT] | None = None
    """JSON of word -> substitutes, in place of counter-fitted vectors; for checklist JSON of word -> PER or LOC, in place of flair's tagger
    of named entities (without it: capitalised words on TextAttack's own lists of names and of places)."""
    synonyms: Annotated[Words, CONTENT] | None = None
    """JSON of word -> {n, v, a, r: words}, in place of WordNet and of a part-of-speech tagger."""
    stopwords: Annotated[Words, CONTENT] | None = None
    """Text file of words, in place of our list."""
    encoder: Annotated[Words, CONTENT] | None = None
    """Sentence encoder (folder, hub id or package:module/folder), in place of the Universal Sentence Encoder."""
    similarity: Annotated[float, number(-1, 1)] | None = None
    """In place of the recipe's threshold, which was tuned for the Universal Sentence Encoder."""
    masked_lm: Annotated[Words, CONTENT] | None = None
    """Masked language model, in place of BERT."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the recipe's `build`."""

    access: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        for name, (cls, why) in REFUSED.items():
            if self.recipe in (name, cls):
                raise ConfigError(f"attacks.textattack.recipe: '{self.recipe}' cannot be run on a target: {why}.")
        _, needs = RECIPES[self._kind]
        missing = [name for name in needs if self._references[name] is None]
        if missing:
            raise ConfigError(
                f"attacks.textattack: recipe '{self.recipe}' needs {' and '.join(f'`{name}`' for name in missing)}: "
                "nothing is downloaded, so what it works with is an argument."
            )
        for name in ("lexicon", "synonyms", "stopwords"):
            resources.check(name, self._references[name])
        if self._kind == "a2t":
            object.__setattr__(self, "access", "gradients")

    @property
    def _references(self) -> Mapping[str, str | None]:
        """The files and models of the recipe, by argument."""
        return {
            "lexicon": self.lexicon,
            "synonyms": self.synonyms,
            "stopwords": self.stopwords,
            "encoder": self.encoder,
            "masked_lm": self.masked_lm,
        }

    @property
    def _kind(self) -> str:
        """Our name of the recipe."""
        for name, (cls, _) in RECIPES.items():
            if self.recipe in (name, cls):
                return name
        raise unknown("attacks.textattack.recipe", "recipe", self.recipe, [*RECIPES, *REFUSED])

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One proposal per example; `text` is None where nothing was found, and `note` says why.
        The harness checks words and radius of the budget; queries and seconds are kept here, per example."""
        for example in examples:
            if example.label is None:
                raise ConfigError(f"attacks.textattack: example '{example.id}' has no label; the recipes attack classifiers.")
            if example.pair is not None and self._kind == "bad-characters":
                raise ConfigError(f"attacks.textattack: example '{example.id}' is a pair; 'bad-characters' edits single texts.")
        stream = rng.getrandbits(64)
        adapter, loaded = load(), self._resources()
        options = {"goal_function_type": "targeted_classification", **self.options} if self._kind == "bad-characters" else self.options
        with seeded(stream), adapter.offline(loaded):
            attack = adapter.build(RECIPES[self._kind][0], target, loaded, options)
            return [_attack(adapter, attack, example, budget, stream) for example in examples]

    def _resources(self) -> dict[str, Any]:
        """What the recipe works with, read from its files."""
        loaded: dict[str, Any] = {"stopwords": resources.read_stopwords(self.stopwords), "similarity": self.similarity}
        if self.lexicon is not None and self._kind == "checklist":
            loaded["entities"] = resources.read_entities("lexicon", self.lexicon)
        elif self.lexicon is not None:
            loaded["lexicon"], _ = resources.read_lexicon("lexicon", self.lexicon)
        if self.synonyms is not None:
            loaded["synonyms"], tags = resources.read_lexicon("synonyms", self.synonyms)
            if any(tags.values()):
                loaded["tags"] = tags
        for name, reference in (("encoder", self.encoder), ("masked_lm", self.masked_lm)):
            if reference is not None:
                loaded[name] = model_path(reference, "attacks.textattack")
        return loaded


def _attack(adapter: Any, attack: Any, example: Example, budget: Budget, stream: int) -> Proposal:
    """The outcome is a function of (stream, example): every other state is put back."""
    queries = math.inf if budget.queries is None else budget.queries
    seconds = math.inf if budget.seconds is None else budget.seconds
    if queries < 1:
        return Proposal(refused="the budget holds no query")
    if not adapter.num_words(example.text):
        return Proposal(refused="the text has no words")
    key = "\0".join([str(stream), example.text, example.pair or "", str(example.label)])
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    with seeded(int.from_bytes(digest[:8], "big")):
        try:
            result, sent = adapter.run(attack, example, queries, seconds)
        except adapter.OutOfBudget:
            spent = attack.goal_function.model.num_sent
            return Proposal(note=f"nothing found within the budget: stopped after {spent} queries")
    if result.goal_status == adapter.SKIPPED:
        return Proposal(note="skipped: the prediction is wrong before any edit")
    text = adapter.text_of(result)
    if result.goal_status == adapter.MAXIMIZING:
        before, after = adapter.num_words(example.text), adapter.num_words(text)
        return Proposal(text=text, note=f"prediction kept with {after} of {before} words, {sent} queries")
    if result.goal_status == adapter.SUCCEEDED:
        return Proposal(text=text, note=f"found after {sent} queries")
    return Proposal(note=f"nothing found after {sent} queries")
