"""Answers the requests of many examples' searches, each kind in one call.

The cheap requests of all searches are answered first, so that the target is called once for all that wait for it.
"""

import hashlib
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.attacks import _words_models as models
from advalign.attacks._gradients import embedding_gradients, refuse_conversations
from advalign.attacks._words_search import SearchStrategy, TextScore, WordSearch
from advalign.interfaces import Target
from advalign.types import Budget, Example, Proposal


def run(attack: SearchStrategy, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
    """Every example has its own stream, a function of the attack's and of its text: nothing depends on order or company."""
    stream = rng.getrandbits(64)
    searches = [WordSearch(attack, example, _stream(stream, example), budget) for example in examples]
    end = math.inf if budget.seconds is None else time.monotonic() + budget.seconds * len(examples)
    while (live := [s for s in searches if not s.finished]) and time.monotonic() < end:
        _answer_models(attack, target, live)
        _answer_scores(target, [s for s in live if not s.finished and s.request.kind == "score"])
        _answer_gradients(target, [s for s in live if not s.finished and s.request.kind == "gradient"])
    return [search.proposal() for search in searches]


def _answer_models(attack: SearchStrategy, target: Target, live: Sequence[WordSearch]) -> None:
    """Requests to language model and encoder, until all that are left wait for the target."""
    device = target.device
    while waiting := [s for s in live if not s.finished and s.request.kind in ("fill", "similar")]:
        for kind in ("fill", "similar"):
            searches = [s for s in waiting if s.request.kind == kind]
            items = [item for s in searches for item in s.request.items]
            if not items:
                continue
            answers: Sequence[Any]
            if kind == "fill":
                assert attack.masked_lm is not None
                answers = models.masked_lm(attack.masked_lm).fill(items, attack.num_substitutes, device)
            else:
                assert attack.rules.encoder is not None
                answers = models.similarity(attack.rules.encoder).cosines(items, device)
            start = 0
            for search in searches:
                stop = start + len(search.request.items)
                part, start = answers[start:stop], stop
                search.tell(part)


def _answer_scores(target: Target, searches: Sequence[WordSearch]) -> None:
    rows = [(search, text) for search in searches for text in search.unsent()]
    if rows:
        paired = any(search.example.pair is not None for search in searches)
        pairs = [search.example.pair for search, _ in rows] if paired else None
        scores = torch.log_softmax(
            target.predict([search.example.with_text(text).prompt for search, text in rows], pairs).detach().cpu().double(), -1
        )
        predicted = scores.argmax(-1).tolist()
        for (search, text), score, k in zip(rows, scores.tolist(), predicted, strict=True):
            label = search.example.label
            assert label is not None
            search.scores[text] = TextScore(score[label], k != label)
    for search in searches:
        search.tell(search.answers())


def _answer_gradients(target: Target, searches: Sequence[WordSearch]) -> None:
    """Per word: the L1 norm of the mean, over its tokens, of the gradient of the loss (A2T, section 3.1)."""
    if not searches:
        return
    examples = [search.example for search in searches]
    refuse_conversations(examples, "attacks.words.rank")
    gradients, _ = embedding_gradients(target, examples, "attacks.words.rank")
    encoder = target.network.encoder
    for search, gradient in zip(searches, gradients.double().cpu(), strict=True):
        search.num_gradients += 1
        prompt, pair = search.example.text, search.example.pair
        offsets, parts = encoder.reader.offsets(prompt, pair, limit=encoder.max_length, side=encoder.text_side)
        search.tell(_norms(gradient, search.pieces, offsets, parts))


def _norms(
    gradient: Float[Tensor, "T D"], pieces: Sequence[str], offsets: Sequence[tuple[int, int]], part: Sequence[int | None]
) -> dict[int, float]:
    """{place: norm}. A word beyond the model's length has no tokens and norm 0."""
    norms: dict[int, float] = {}
    start = 0
    for place, piece in enumerate(pieces):
        end = start + len(piece)
        if place % 2:
            tokens = [t for t, (a, b) in enumerate(offsets) if part[t] == 0 and a < end and b > start]
            norms[place] = float(gradient[tokens].mean(0).abs().sum()) if tokens else 0.0
        start = end
    return norms


def _stream(seed: int, example: Example) -> random.Random:
    key = "\0".join([str(seed), example.text, example.pair or "", str(example.label)])
    return random.Random(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest())
