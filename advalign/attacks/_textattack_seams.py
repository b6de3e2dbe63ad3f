"""The seams of TextAttack 0.3.11: our victim, and offline stand-ins for what its recipes would download.

Imported by `_textattack_support.load` only, which makes the import of textattack clean. A recipe is built unmodified, by its own
`build`; while it is built, the names of its module that would download something are replaced by those below.
"""

import contextlib
import functools
import logging
import math
import os
import sys
import time
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import textattack
import torch
import transformers
from jaxtyping import Float
from textattack.constraints.grammaticality import PartOfSpeech
from textattack.constraints.pre_transformation import InputColumnModification
from textattack.constraints.semantics.sentence_encoders import SentenceEncoder
from textattack.goal_function_results import GoalFunctionResultStatus
from textattack.goal_functions import UntargetedClassification
from textattack.models.wrappers import ModelWrapper
from textattack.shared import AbstractWordEmbedding, AttackedText, WordEmbedding
from textattack.transformations import WordSwapMaskedLM
from textattack.transformations.word_swaps import WordSwap, WordSwapHomoglyphSwap
from torch import Tensor

from advalign.attacks import _textattack_support as support
from advalign.errors import ConfigError

SUCCEEDED, MAXIMIZING = GoalFunctionResultStatus.SUCCEEDED, GoalFunctionResultStatus.MAXIMIZING
SKIPPED = GoalFunctionResultStatus.SKIPPED


class OutOfBudget(Exception):
    """The search asked for more than the budget holds."""


def settle() -> None:
    """TextAttack's cache is where it would have been, and its warnings are silent."""
    install = sys.modules["textattack.shared.utils.install"]
    vars(install)["TEXTATTACK_CACHE_DIR"] = os.environ.get("TA_CACHE_DIR", os.path.expanduser("~/.cache/textattack"))
    textattack.shared.logger.setLevel(logging.ERROR)


class Victim(ModelWrapper):
    """A target as TextAttack's model: texts in, probabilities out. Padding and batching are the target's matter."""

    def __init__(self, target: Any) -> None:
        self.model, self.num_sent, self.deadline = target, 0, math.inf

    def __call__(self, text_input_list: Sequence[Any]) -> Float[Tensor, "B C"]:
        if time.monotonic() > self.deadline:
            raise OutOfBudget
        self.num_sent += len(text_input_list)
        paired = bool(text_input_list) and isinstance(text_input_list[0], tuple)
        texts = [item[0] if paired else item for item in text_input_list]
        logits = self.model.predict(texts, [item[1] for item in text_input_list] if paired else None)
        # TextAttack takes rows that sum to 1 (to 1e-6) for probabilities and puts others through a softmax: leave it no choice.
        return torch.softmax(logits.detach().cpu().double(), dim=-1)


class Substitutes(AbstractWordEmbedding):
    """A lexicon as a word embedding: neighbours are the listed ones, in their order, and are within every distance; others without."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._words = words
        self._names = list(dict.fromkeys([*words, *(w for near in words.values() for w in near)]))
        self._index = {word: i for i, word in enumerate(self._names)}

    def _name(self, index: str | int) -> str:
        return index if isinstance(index, str) else self._names[index]

    def _near(self, a: str | int, b: str | int) -> bool:
        one, other = self._name(a), self._name(b)
        return one == other or other in self._words.get(one, ()) or one in self._words.get(other, ())

    def __getitem__(self, index: str | int) -> None:
        return None

    def get_mse_dist(self, a: str | int, b: str | int) -> float:
        return 0.0 if self._near(a, b) else math.inf

    def get_cos_sim(self, a: str | int, b: str | int) -> float:
        return 1.0 if self._near(a, b) else 0.0

    def word2index(self, word: str) -> int:
        return self._index[word]

    def index2word(self, index: int) -> str:
        return self._names[index]

    def nearest_neighbours(self, index: str | int, topn: int) -> list[int]:
        return [self._index[w] for w in self._words.get(self._name(index), ())[:topn]]


class SynonymSwap(WordSwap):
    """WordNet's synonyms from a file: `WordSwapWordNet` without nltk's data."""

    words: Mapping[str, Sequence[str]] = types.MappingProxyType({})

    def __init__(self, language: str = "eng", **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def _get_replacement_words(self, word: str) -> list[str]:
        found = self.words.get(word) or self.words.get(word.lower(), ())
        return [w.capitalize() if word[:1].isupper() and word[1:].islower() else w for w in found]


class HomoglyphSwap(WordSwapHomoglyphSwap):
    """The released wheel lacks the table of intentional homoglyphs: its own one-to-one table is used for both."""

    def __init__(self, **kwargs: Any) -> None:
        try:
            super().__init__(**kwargs)
        except FileNotFoundError:
            self.homos_intentional = {key: [value] for key, value in self.homos.items()}


class Tags:
    """Parts of speech by lookup: two words agree if they can be the same part of speech; an unknown word agrees with all."""

    def __init__(self, tags: Mapping[str, frozenset[str]]) -> None:
        self._tags = tags

    def __call__(self, word: str) -> frozenset[str]:
        word = word.lower()
        for ending in ("", "s", "es", "d", "ed", "ing", "r", "er", "st", "est", "ly"):
            if word.endswith(ending) and (found := self._tags.get(word[: len(word) - len(ending)])):
                return found
        return frozenset()

    def constrain(self, constraint: Any) -> None:
        """`constraint` (a PartOfSpeech) asks this table instead of a tagger."""
        constraint._get_pos = lambda before, word, after: self(word)
        constraint._can_replace_pos = functools.partial(self._agree, constraint.allow_verb_noun_swap)

    @staticmethod
    def _agree(verb_is_noun: bool, a: frozenset[str], b: frozenset[str]) -> bool:
        swap = verb_is_noun and bool(a & {"n", "v"}) and bool(b & {"n", "v"})
        return not a or not b or bool(a & b) or swap

    def of_index(self, text: Any, index: int) -> str:
        """One tag, as flair's tagger would say it (CLARE merges by it)."""
        names = {"n": "NOUN", "v": "VERB", "a": "ADJ", "r": "ADV"}
        found = self(text.words[index])
        return next((name for letter, name in names.items() if letter in found), "X")


@functools.lru_cache(maxsize=2)
def _encoder(path: str) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return tokenizer, transformers.AutoModel.from_pretrained(path).eval()


class Encoder(SentenceEncoder):
    """Mean of a transformer's last hidden states, in place of the Universal Sentence Encoder."""

    path = ""
    similarity: float | None = None

    def __init__(self, threshold: float = 0.8, large: bool = False, metric: str = "angular", **kwargs: Any) -> None:
        super().__init__(threshold=threshold if self.similarity is None else self.similarity, metric=metric, **kwargs)

    @torch.no_grad()
    def encode(self, sentences: Sequence[str]) -> Float[Tensor, "B D"]:
        tokenizer, model = _encoder(self.path)
        unique = sorted(dict.fromkeys(sentences), key=len)
        rows: dict[str, Tensor] = {}
        for start in range(0, len(unique), 32):
            part = unique[start : start + 32]
            batch = tokenizer(part, padding=True, truncation=True, return_tensors="pt").to(model.device)
            mask = batch["attention_mask"].unsqueeze(-1)
            means = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            rows.update(zip(part, means, strict=True))
        return torch.stack([rows[sentence] for sentence in sentences])


# ------------------------------------------------------------------------------------- building and running


def build(recipe: str, target: Any, resources: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """The recipe's own attack on `target`, with the offline `resources` in place of what it would download."""
    cls = getattr(textattack.attack_recipes, recipe)
    module = sys.modules[cls.__module__]
    with contextlib.ExitStack() as stack:
        stack.enter_context(support.nltk_words(resources["stopwords"]))
        if "lexicon" in resources:
            embedding = Substitutes(resources["lexicon"])
            stack.enter_context(support.patched(WordEmbedding, counterfitted_GLOVE_embedding=staticmethod(lambda: embedding)))
        names = {name: value for name, value in _stand_ins(resources).items() if name in vars(module)}
        stack.enter_context(support.patched(module, **names))
        attack = cls.build(Victim(target), **options)
    attack.pre_transformation_constraints.append(InputColumnModification(["text", "pair"], {"pair"}))
    for constraint in attack.constraints:
        if isinstance(constraint, PartOfSpeech):
            _give_tags(constraint, resources.get("tags"))
    return attack


def _stand_ins(resources: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"WordSwapHomoglyphSwap": HomoglyphSwap, "TargetedClassification": _untargeted}
    if "synonyms" in resources:
        found["WordSwapWordNet"] = type("SynonymSwap", (SynonymSwap,), {"words": resources["synonyms"]})
    if "encoder" in resources:
        named = {"path": resources["encoder"], "similarity": resources["similarity"]}
        found["UniversalSentenceEncoder"] = type("Encoder", (Encoder,), named)
    if "masked_lm" in resources:
        path = resources["masked_lm"]
        model = transformers.AutoModelForMaskedLM
        # CLARE loads its masked language model through AutoModelForCausalLM, under a name of its own.
        found["transformers"] = types.SimpleNamespace(
            AutoModelForCausalLM=types.SimpleNamespace(from_pretrained=lambda name: model.from_pretrained(path)),
            AutoTokenizer=types.SimpleNamespace(from_pretrained=lambda name: transformers.AutoTokenizer.from_pretrained(path)),
        )
        found["WordSwapMaskedLM"] = functools.partial(_masked_swap, path)
    return found


def _masked_swap(path: str, **kwargs: Any) -> Any:
    return WordSwapMaskedLM(**{"masked_language_model": path, **kwargs})


def _untargeted(victim: Any, allow_skip: bool = True, target_class: int | None = None) -> Any:
    """Bad Characters attacks towards one class; the harness asks for any wrong class, so the goal is untargeted here."""
    return UntargetedClassification(victim, allow_skip=True)


def _give_tags(constraint: Any, tags: Mapping[str, frozenset[str]] | None) -> None:
    if tags is not None:
        return Tags(tags).constrain(constraint)
    import nltk

    try:
        nltk.pos_tag(["word"], tagset="universal")
    except LookupError:
        raise ConfigError(
            "attacks.textattack.synonyms: the recipe compares parts of speech; give `synonyms` (a JSON of word -> {n, v, a, r: words}), "
            "or install nltk's data averaged_perceptron_tagger_eng and universal_tagset."
        ) from None


@contextlib.contextmanager
def tagged(tags: Mapping[str, frozenset[str]] | None) -> Iterator[None]:
    """Inside, TextAttack's texts look parts of speech up instead of asking flair."""
    if tags is None:
        yield
        return
    table = Tags(tags)
    with support.patched(AttackedText, pos_of_word_index=lambda text, index: table.of_index(text, index)):
        yield


def run(attack: Any, text: str, pair: str | None, label: int, queries: float, seconds: float) -> tuple[Any, int]:
    """(the best result of the search, texts sent). TextAttack counts what it finds in its cache as queries: only what the target
    was sent counts here. Raises OutOfBudget when the search wants more than is left."""
    goal, victim = attack.goal_function, attack.goal_function.model
    attack.clear_cache()
    victim.num_sent, victim.deadline = 0, time.monotonic() + seconds
    goal.query_budget = queries
    attack.search_method.get_goal_results = _counted(goal, victim, queries)
    given = AttackedText(text if pair is None else OrderedDict(text=text, pair=pair))
    first, _ = goal.init_attack_example(given, label)
    if first.goal_status == SKIPPED:
        return first, victim.num_sent
    return attack.search_method(first), victim.num_sent


def _counted(goal: Any, victim: Victim, queries: float) -> Callable[..., tuple[list[Any], bool]]:
    def get_results(texts: Sequence[Any], check_skip: bool = False) -> tuple[list[Any], bool]:
        if texts and victim.num_sent >= queries:
            raise OutOfBudget
        goal.num_queries = victim.num_sent
        results, _ = goal.get_results(texts, check_skip=check_skip)
        return results, victim.num_sent >= queries or len(results) < len(texts)

    return get_results


def text_of(result: Any) -> str:
    columns = result.attacked_text.tokenizer_input
    return columns if isinstance(columns, str) else columns[0]


def num_words(text: str) -> int:
    return len(AttackedText(text).words)
