"""The adapter to TextAttack 0.3.11: our target as its model, and how a recipe is built and run on it.

Imported by `_textattack_import.load` only, which leaves no trace of the import. A recipe is built unmodified, by its own
`build`; while it is built, the names of its module that would download something are replaced by those of `_textattack_replacements`.
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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import textattack
import torch
import transformers
from jaxtyping import Float
from textattack.constraints.grammaticality import PartOfSpeech
from textattack.constraints.pre_transformation import InputColumnModification
from textattack.goal_function_results import GoalFunctionResultStatus
from textattack.goal_functions import UntargetedClassification
from textattack.models.wrappers import ModelWrapper
from textattack.shared import AttackedText, WordEmbedding
from torch import Tensor

from advalign.attacks._gradients import embedding_gradients, refuse_conversations
from advalign.attacks._textattack_patches import nltk_stopwords, patched
from advalign.attacks._textattack_replacements import (
    HomoglyphSwap,
    SentenceEncoderAdapter,
    Substitutes,
    SynonymSwap,
    Tags,
    masked_swap,
    tagged,
    unpad,
)
from advalign.errors import ConfigError
from advalign.interfaces import Target
from advalign.types import Example

SUCCEEDED, MAXIMIZING = GoalFunctionResultStatus.SUCCEEDED, GoalFunctionResultStatus.MAXIMIZING
SKIPPED = GoalFunctionResultStatus.SKIPPED


class OutOfBudget(Exception):
    """The search wants more queries or time than the budget holds."""


def restore_settings() -> None:
    """TextAttack's cache is where it would have been without our import, and its warnings are silent."""
    install = sys.modules["textattack.shared.utils.install"]
    vars(install)["TEXTATTACK_CACHE_DIR"] = os.environ.get("TA_CACHE_DIR", os.path.expanduser("~/.cache/textattack"))
    textattack.shared.logger.setLevel(logging.ERROR)


class VictimWrapper(ModelWrapper):
    """A target as TextAttack's model: texts in, probabilities out. The target pads and batches."""

    def __init__(self, target: Target) -> None:
        self.model, self.num_sent, self.deadline, self.queries = target, 0, math.inf, math.inf
        self.example = Example(prompt="")  # whose text is attacked
        # A2T reads how many words the model can take.
        self.max_length = target.max_length or 512

    def __call__(self, text_input_list: Sequence[Any]) -> Float[Tensor, "B C"]:
        if time.monotonic() > self.deadline:
            raise OutOfBudget
        self.num_sent += len(set(text_input_list))  # a target sends equal texts of one call once
        paired = bool(text_input_list) and isinstance(text_input_list[0], tuple)
        texts = [item[0] if paired else item for item in text_input_list]
        prompts = [self.example.with_text(text).prompt for text in texts]
        logits = self.model.predict(prompts, [item[1] for item in text_input_list] if paired else None)
        # TextAttack takes rows that sum to 1 (to 1e-6) for probabilities and puts others through a softmax: leave it no choice.
        return torch.softmax(logits.detach().cpu().double(), dim=-1)

    def get_grad(self, text_input: Any) -> dict[str, Any]:
        """Gradient of the predicted class's loss with respect to the embeddings: one forward, without dropout or padding.

        TextAttack's own wrapper pads to 512 tokens, runs two forwards and switches dropout on, so that its ranking is random."""
        if self.num_sent >= self.queries:
            raise OutOfBudget
        self.num_sent += 1
        refuse_conversations([self.example], "attacks.textattack.recipe")
        text, pair = text_input if isinstance(text_input, tuple) else (text_input, None)
        (gradient,), tokens = embedding_gradients(self.model, [Example(prompt=text, pair=pair)], "attacks.textattack.recipe")
        return {"ids": tokens.ids, "gradient": gradient.float().cpu().numpy()}

    def _tokenize(self, inputs: Sequence[Any]) -> list[list[str]]:
        encoder = self.model.network.encoder
        first, second = zip(*(x if isinstance(x, tuple) else (x, None) for x in inputs), strict=True)
        rows = encoder.reader.segments(first, second, limit=self.max_length, side=encoder.text_side)
        return [encoder.tokenizer.convert_ids_to_tokens(row.ids) for row in rows]


# ------------------------------------------------------------------------------------- building and running


def build(recipe: str, target: Target, resources: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """The recipe's own attack on `target`, with the offline `resources` in place of what it would download."""
    cls = getattr(textattack.attack_recipes, recipe)
    module = sys.modules[cls.__module__]
    with contextlib.ExitStack() as stack:
        stack.enter_context(nltk_stopwords(resources["stopwords"]))
        if "lexicon" in resources:
            embedding = Substitutes(resources["lexicon"])
            stack.enter_context(patched(WordEmbedding, counterfitted_GLOVE_embedding=staticmethod(lambda: embedding)))
        names = {name: value for name, value in _replacements(resources).items() if name in vars(module)}
        stack.enter_context(patched(module, **names))
        attack = cls.build(VictimWrapper(target), **options)
    unpad(attack.transformation)
    attack.pre_transformation_constraints.append(InputColumnModification(["text", "pair"], {"pair"}))
    for constraint in attack.constraints:
        if isinstance(constraint, PartOfSpeech):
            _use_tags(constraint, resources.get("tags"))
    return attack


def _replacements(resources: Mapping[str, Any]) -> dict[str, Any]:
    """{name in the recipe's module: what replaces it}"""
    replacements: dict[str, Any] = {"WordSwapHomoglyphSwap": HomoglyphSwap, "TargetedClassification": _untargeted}
    if "synonyms" in resources:
        replacements["WordSwapWordNet"] = type("SynonymSwap", (SynonymSwap,), {"words": resources["synonyms"]})
    if "encoder" in resources:
        settings = {"path": resources["encoder"], "similarity": resources["similarity"]}
        encoder = type("SentenceEncoderAdapter", (SentenceEncoderAdapter,), settings)
        replacements["UniversalSentenceEncoder"] = replacements["SBERT"] = encoder
    if "masked_lm" in resources:
        path = resources["masked_lm"]
        model = transformers.AutoModelForMaskedLM
        # CLARE loads its masked language model through AutoModelForCausalLM, under a name of its own.
        replacements["transformers"] = types.SimpleNamespace(
            AutoModelForCausalLM=types.SimpleNamespace(
                from_pretrained=lambda name: model.from_pretrained(path, trust_remote_code=False, use_safetensors=True)
            ),
            AutoTokenizer=types.SimpleNamespace(
                from_pretrained=lambda name: transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            ),
        )
        replacements["WordSwapMaskedLM"] = functools.partial(masked_swap, path)
    return replacements


def _untargeted(victim: Any, allow_skip: bool = True, target_class: int | None = None) -> Any:
    """Bad Characters attacks towards one class; here any wrong class counts, so the goal is untargeted."""
    return UntargetedClassification(victim, allow_skip=True)


def _use_tags(constraint: Any, tags: Mapping[str, frozenset[str]] | None) -> None:
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


def offline(resources: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Inside, parts of speech and named entities are looked up."""
    return tagged(resources.get("tags"), resources.get("entities"))


def run(attack: Any, example: Example, queries: float, seconds: float) -> tuple[Any, int]:
    """(the best result of the search, texts sent). TextAttack counts hits of its cache as queries; here only what the target was sent
    counts. Raises OutOfBudget when the search wants more than is left."""
    goal, victim = attack.goal_function, attack.goal_function.model
    attack.clear_cache()
    victim.num_sent, victim.deadline, victim.queries, victim.example = 0, time.monotonic() + seconds, queries, example
    goal.query_budget = queries
    attack.search_method.get_goal_results = _count_sent(goal, victim, queries)
    text, pair = example.text, example.pair
    attacked = AttackedText(text if pair is None else OrderedDict(text=text, pair=pair))
    first, _ = goal.init_attack_example(attacked, example.label)
    if first.goal_status == SKIPPED:
        return first, victim.num_sent
    return attack.search_method(first), victim.num_sent


def _count_sent(goal: Any, victim: VictimWrapper, queries: float) -> Callable[..., tuple[list[Any], bool]]:
    """TextAttack's `get_results`, with the texts sent to the target as its number of queries."""

    def get_results(texts: Sequence[Any], check_skip: bool = False) -> tuple[list[Any], bool]:
        if texts and victim.num_sent >= queries:
            raise OutOfBudget
        goal.num_queries = victim.num_sent
        results, _ = goal.get_results(texts, check_skip=check_skip)
        return results, victim.num_sent >= queries or len(results) < len(texts)

    return get_results


def text_of(result: Any) -> str:
    """The edited text of a result (of a pair: its first text)."""
    columns = result.attacked_text.tokenizer_input
    return columns if isinstance(columns, str) else columns[0]


def num_words(text: str) -> int:
    """Words as TextAttack counts them."""
    return len(AttackedText(text).words)
