"""A classifier under attack."""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.interfaces import Edits
from advalign.targets.cache import AnswerCache, Row
from advalign.targets.ensemble import Ensemble
from advalign.targets.examples import paired_texts
from advalign.targets.target import NetworkTarget
from advalign.types import Example, Outputs, Prompt, Tokens


class ClassifierTarget(NetworkTarget):
    """A classifier; `predict` is the whole interface of text attacks."""

    abilities = frozenset({"labels", "scores", "logprobs", "gradients"})
    needs = frozenset({"class_logits"})
    read: Collection[str] = ()
    """Special tokens that `predict` reads as tokens in its texts: those that the library itself writes into them."""

    def tokens(self, examples: Sequence[Example]) -> Tokens:
        return self.network.encoder.classify([e.prompt for e in examples], paired_texts(examples))

    def predict(self, texts: Sequence[Prompt], pairs: Sequence[str | None] | None = None) -> Float[Tensor, "B C"]:
        """Logits. Equal texts of one call are sent once."""
        rows = list(zip(texts, pairs if pairs is not None else [None] * len(texts), strict=True))
        number = {row: i for i, row in enumerate(dict.fromkeys(rows))}
        distinct = list(number)
        logits = self._logits(distinct) if self.cache is None else self._cached_logits(self.cache, distinct)
        return logits[[number[row] for row in rows]]

    def predict_edited(self, examples: Sequence[Example], edits: Sequence[Edits]) -> Float[Tensor, "B C"]:
        """Logits of each example with its own edits added to its hidden states."""
        return self._all(self.tokens(examples), edits, _class_logits)

    def _logits(self, rows: Sequence[Row]) -> Float[Tensor, "B C"]:
        texts, second = [text for text, _ in rows], [pair for _, pair in rows]
        pairs = second if any(pair is not None for pair in second) else None
        if not isinstance(self.network, Ensemble) or not self.network.changes_text:
            return self._all(self.network.encoder.classify(texts, pairs, read=self.read), None, _class_logits)
        self.spend(len(texts))
        answers = self.network.answer(texts, pairs, self.batch_tokens)
        self.num_forwards += answers.num_copies
        self.num_tokens += answers.num_tokens
        return answers.logits

    def _cached_logits(self, cache: AnswerCache, rows: Sequence[Row]) -> Float[Tensor, "B C"]:
        """The same; only rows outside the cache reach the network, and all are counted as queries."""
        logits_of = cache.get(rows)
        uncached = [row for row in rows if row not in logits_of]
        if uncached:
            logits_of |= cache.put(uncached, self._logits(uncached))
        self.spend(len(rows) - len(uncached))
        self.num_cached += len(rows) - len(uncached)
        return torch.stack([logits_of[row] for row in rows])


def _class_logits(outputs: Outputs, tokens: Tokens) -> Tensor:
    assert outputs.class_logits is not None
    return outputs.class_logits


__all__ = ["ClassifierTarget"]
