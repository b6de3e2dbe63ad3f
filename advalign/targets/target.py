"""The victim as an attack sees it: answers, gradients and one meter of what was spent.

A query is one distinct text, or one text under one edit, that was asked about; the same text twice in one call is sent once and
counted once. An answer out of the cache is a query (the attack learned it) and no forward. Batches are sorted by length and padded
to their own longest row. The network is evaluated without dropout and left as it was found.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.engine.ascent import allowed_positions
from advalign.engine.rng import generator
from advalign.errors import BudgetError, ConfigError
from advalign.interfaces import PerturbationContext
from advalign.models import Network
from advalign.models.inference import length_sorted_batches, map_batches
from advalign.models.perturb import without_dropout
from advalign.rollout.hf import HF
from advalign.targets.cache import AnswerCache
from advalign.targets.prefix import CachedPrefix
from advalign.types import Edit, Example, Outputs, RolloutGroup, Sampling, ThreatModel, Tokens, fit

TOKENS = 8192  # padded tokens of one forward
# A classifier on a processor: what leaves its cache takes longer (benchmarks/suites.py).
CACHED_TOKENS = 512

Edits = Mapping[str, Tensor]  # {site: "T D"} of one example, T its own number of tokens
LossOf = Callable[[Outputs, Tokens, Sequence[Example]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Climb:
    """What one step of a gradient attack learns: the loss it climbs, the score it is chosen by, the gradients."""

    losses: Float[Tensor, "N"]
    scores: Float[Tensor, "N"]
    gradients: Mapping[str, Float[Tensor, "N T D"]]


class NetworkTarget:
    """Abstract: what both kinds of target share. `limit`: queries after which it refuses to answer. `cache`: answers on disk."""

    reads: frozenset[str]

    def __init__(self, network: Network, *, batch_tokens: int | None = None, cache: AnswerCache | None = None) -> None:
        self.network = network
        self.batch_tokens = batch_tokens or self._fitting()
        self.cache = cache
        self.limit: int | None = None
        self.dropout = False  # on only where a self-check asks what it does to gradients
        self.num_queries = self.num_gradients = self.num_forwards = self.num_tokens = 0
        self.num_cached = self.num_climbed = 0  # answers out of the cache; tokens that gradients went through

    def _fitting(self) -> int:
        return CACHED_TOKENS if self.network.head == "classifier" and self.network.device.type == "cpu" else TOKENS

    @cached_property
    def num_parameters(self) -> int:
        """Of the matrices a token passes through: all but the embeddings that are looked up."""
        looked_up = {id(p) for m in self.network.model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        head = getattr(self.network.model, "get_output_embeddings", lambda: None)()
        tied = set() if head is None else {id(p) for p in head.parameters()}
        return sum(p.numel() for p in self.network.model.parameters() if id(p) not in looked_up or id(p) in tied)

    def meter(self) -> dict[str, float]:
        """What was spent so far. flops: 2 per parameter and token of a forward and 4 of a backward (arXiv:2001.08361, section 2.1),
        attention scores and look-ups left out."""
        flops = 2 * self.num_parameters * self.num_tokens + 4 * self.num_parameters * self.num_climbed
        names = ("queries", "gradients", "forwards", "tokens", "cached")
        return {name: getattr(self, f"num_{name}") for name in names} | {"flops": flops}

    def tokens(self, examples: Sequence[Example]) -> Tokens:
        raise NotImplementedError

    def unit(self, threat: ThreatModel) -> float:
        """What a radius of 1 is worth in numbers of the hidden state."""
        return self.network.mean_embedding_norm() if threat.relative_to == "mean_embedding_norm" else 1.0

    def perturbation_context(
        self, threat: ThreatModel, tokens: Tokens, examples: Sequence[Example], key: Sequence[object]
    ) -> PerturbationContext:
        """Where an adversary may stand: one delta per example, its random stream keyed by (key, example id)."""
        return PerturbationContext(
            shapes={site: (tokens.ids.shape[1], self.network.width(site)) for site in threat.sites},
            allowed=allowed_positions(threat.where, tokens, () if threat.special else self.network.encoder.special_ids),
            radius=threat.radius * self.unit(threat),
            dtype=torch.float64 if self.network.dtype == torch.float64 else torch.float32,
            generators=[generator(*key, example.id) for example in examples],
            unit=self.unit(threat),
            tokens=tokens,
            names=tuple(example.id for example in examples),
            key=tuple(key),
            network=self.network,
        )

    def climb(
        self, tokens: Tokens, examples: Sequence[Example], edits: Mapping[str, Edit], loss_of: LossOf, gradients: bool = True
    ) -> Climb:
        """Losses and scores under edits ("N T D"), and the gradient of the losses with respect to the edits alone."""
        leaves = {site: edit.add.detach().clone().requires_grad_(gradients) for site, edit in edits.items() if edit.add is not None}
        with torch.set_grad_enabled(gradients):
            outputs = self._forward(tokens, {site: Edit(leaf) for site, leaf in leaves.items()})
            losses, scores = loss_of(outputs, tokens, examples)
        found: dict[str, Tensor] = {}
        if gradients:
            self.num_gradients += len(examples)
            self.num_climbed += int(tokens.mask.sum())
            found = dict(zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True))
        return Climb(losses=losses.detach(), scores=scores.detach(), gradients=found)

    def _forward(self, tokens: Tokens, edits: Mapping[str, Edit] | None = None, reads: frozenset[str] | None = None) -> Outputs:
        rows = tokens.ids.shape[0]
        self._spend(rows)
        copies = getattr(self.network, "copies", None)  # of an ensemble: each is a forward
        self.num_forwards += 1 if copies is None else rows * copies
        self.num_tokens += int(tokens.mask.sum()) * (copies or 1)
        with nullcontext() if self.dropout else without_dropout(self.network):
            return self.network(tokens.to(self.network.device), self.reads if reads is None else reads, edits or {})

    def _spend(self, queries: int) -> None:
        self.num_queries += queries
        if self.limit is not None and self.num_queries > self.limit:
            raise BudgetError(f"target: {self.num_queries} queries, {self.limit} allowed.")

    def _all(
        self,
        tokens: Tokens,
        edits: Sequence[Edits] | None,
        read: Callable[[Outputs, Tokens], Tensor],
        reads: frozenset[str] | None = None,
    ) -> Tensor:
        """`read` of every row, batch by batch, in the order of the rows."""

        def read_batch(part: Tokens, rows: Tensor) -> dict[str, Tensor]:
            adds = None if edits is None else stack([edits[i] for i in rows.tolist()], part.ids.shape[1], self.network.device)
            return {"values": read(self._forward(part, adds, reads), part).float().cpu()}

        return map_batches(read_batch, tokens, length_sorted_batches(tokens.lengths, self.batch_tokens))["values"]


class ClassifierTarget(NetworkTarget):
    """A classifier; `predict` is the whole interface of text attacks."""

    reads = frozenset({"class_logits"})

    def tokens(self, examples: Sequence[Example]) -> Tokens:
        pairs = [e.pair or "" for e in examples] if examples[0].pair is not None else None
        return self.network.encoder.classify([e.prompt for e in examples], pairs)

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Float[Tensor, "B C"]:
        """Logits. Equal texts of one call are sent once."""
        rows = list(zip(texts, pairs if pairs is not None else [""] * len(texts), strict=True))
        number = {row: i for i, row in enumerate(dict.fromkeys(rows))}
        distinct = list(number)
        logits = self._answers(distinct, pairs is not None) if self.cache is None else self._cached(self.cache, distinct, pairs is not None)
        return logits[[number[row] for row in rows]]

    def _answers(self, rows: Sequence[tuple[str, str]], paired: bool) -> Float[Tensor, "B C"]:
        first, second = [r[0] for r in rows], [r[1] for r in rows] if paired else None
        if hasattr(self.network, "answer"):  # an ensemble over changed texts (`evaluation/voting.py`)
            return self._asked(first, second)
        return self._all(self.network.encoder.classify(first, second), None, _class_logits)

    def _cached(self, cache: AnswerCache, rows: Sequence[tuple[str, str]], paired: bool) -> Float[Tensor, "B C"]:
        """The same, but only what was never asked reaches the model; the rest is counted as asked."""
        known = cache.get(rows)
        fresh = [row for row in rows if row not in known]
        if fresh:
            known |= cache.put(fresh, self._answers(fresh, paired))
        self._spend(len(rows) - len(fresh))
        self.num_cached += len(rows) - len(fresh)
        return torch.stack([known[row] for row in rows])

    def _asked(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Float[Tensor, "B C"]:
        """What an ensemble answers: a text is one query, and each of its copies a forward."""
        self._spend(len(texts))
        ensemble: Any = self.network
        logits, inside = ensemble.answer(texts, pairs, self.batch_tokens)
        self.num_forwards += inside.num_queries
        self.num_tokens += inside.num_tokens
        return logits

    def predict_edited(self, examples: Sequence[Example], edits: Sequence[Edits]) -> Float[Tensor, "B C"]:
        """Logits of each example with its own edits added to its hidden states."""
        return self._all(self.tokens(examples), edits, _class_logits)


class GeneratorTarget(NetworkTarget):
    """A language model: answers, and the loss of a reference response."""

    reads = frozenset({"logprobs"})

    def tokens(self, examples: Sequence[Example]) -> Tokens:
        return self.network.encoder.demos([e.prompt for e in examples], [response_of(e) for e in examples])

    def nll(self, examples: Sequence[Example], edits: Sequence[Edits] | None = None) -> Float[Tensor, "B"]:
        """Mean negative log-likelihood per token of each example's reference response."""
        return self._all(self.tokens(examples), edits, mean_nll)

    def prefix(self, ids: Sequence[int]) -> CachedPrefix:
        """A shared beginning of rows, computed once (see `evaluation/prefix.py`)."""
        return CachedPrefix(self, ids)

    def fits(self, prompt: str) -> bool:
        """Whether the context has room for the prompt and a token after it."""
        return len(self.network.encoder.prompt(prompt)) < self.network.encoder.max_length

    def answer(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """The greedy answer to each prompt."""
        groups = self.generate(examples, 1, Sampling(max_new_tokens=max_new_tokens, temperature=0.0), ("answer",))
        return [g.rollouts[0].text for g in groups]

    def generate(self, examples: Sequence[Example], n: int, sampling: Sampling, key: Sequence[object]) -> list[RolloutGroup]:
        """`n` responses per example; each example has its own random stream only in a greedy run."""
        self.num_queries += n * len(examples)
        return HF().generate(self.network, examples, n, sampling, generator(*key))

    def continue_forced(self, examples: Sequence[Example], starts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        """Greedy answers whose first tokens are forced (`starts`, ids): what the model adds, without the start."""
        self.num_queries += len(examples)
        prompts = self.network.encoder.prompts([e.prompt for e in examples])
        groups = [
            RolloutGroup(example=e, prompt_ids=[*ids, *start], rollouts=[]) for e, ids, start in zip(examples, prompts, starts, strict=True)
        ]
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
        return [g.rollouts[0].text for g in HF().extend(self.network, groups, 1, sampling, generator("forced"))]

    def entropy(self, groups: Sequence[RolloutGroup]) -> Tensor:
        """Mean entropy of the next-token distribution (temperature 1) along each response, prompts in order."""
        tokens = self.network.encoder.rollouts(groups)

        def read(outputs: Outputs, part: Tokens) -> Tensor:
            assert outputs.entropy is not None
            target = part.target.to(outputs.entropy.device)
            return (outputs.entropy * target).sum(1) / target.sum(1).clamp(min=1)

        return self._all(tokens, None, read, frozenset({"entropy"}))

    @torch.no_grad()
    def continue_edited(self, examples: Sequence[Example], edits: Sequence[Edits], max_new_tokens: int) -> list[str]:
        """Greedy answers to prompts whose hidden states are edited, recomputed token by token (an edit has no key-value cache)."""
        encoder = self.network.encoder
        prompts = [encoder.prompt(e.prompt) for e in examples]
        cropped = [{site: add[: len(p)] for site, add in edit.items()} for p, edit in zip(prompts, edits, strict=True)]
        answers: list[list[int]] = [[] for _ in examples]
        alive = list(range(len(examples)))
        for _ in range(max_new_tokens):
            tokens = _prefixes([prompts[i] + answers[i] for i in alive], encoder.pad_id)
            adds = stack([cropped[i] for i in alive], tokens.ids.shape[1], self.network.device)
            found = self._forward(tokens, adds, frozenset({"distribution"})).distribution
            assert found is not None
            last = found.hidden[torch.arange(len(alive)), tokens.lengths]
            chosen = self.network.next_token_logits(last).argmax(-1).tolist()
            for i, token in zip(alive, chosen, strict=True):
                answers[i].append(token)
            alive = [i for i, token in zip(alive, chosen, strict=True) if token != encoder.eos_id]
            if not alive:
                break
        return [encoder.decode(answer) for answer in answers]


def target_of(network: Any, **options: Any) -> Any:
    """The target for a network's head; what is known by its answers alone is one already (`evaluation/answers.py`)."""
    if hasattr(network, "as_target"):
        return network.as_target(**options)
    kinds: dict[str, Any] = {"classifier": ClassifierTarget, "policy": GeneratorTarget}
    if network.head not in kinds:
        raise ConfigError(f"evaluation: a network with head '{network.head}' cannot be attacked; known heads: classifier, policy.")
    return kinds[network.head](network, **options)


def _class_logits(outputs: Outputs, tokens: Tokens) -> Tensor:
    assert outputs.class_logits is not None
    return outputs.class_logits


def mean_nll(outputs: Outputs, tokens: Tokens) -> Float[Tensor, "B"]:
    """-1/|y| sum_t log p(y_t | x, y_<t)."""
    assert outputs.logprobs is not None
    target = tokens.target.to(outputs.logprobs.device)
    return -(outputs.logprobs * target).sum(1) / target.sum(1).clamp(min=1)


def response_of(example: Example) -> str:
    response = example.meta.get("response", example.answer)
    if response is None:
        raise ConfigError(f"example '{example.id}': no reference response; give meta['response'] or an answer to measure a loss.")
    return str(response)


def stack(edits: Sequence[Edits], width: int, device: torch.device) -> dict[str, Edit]:
    """Edits of single rows ("T D" each) as one padded batch."""
    return {site: Edit(torch.cat([fit(edit[site][None].to(device), width) for edit in edits])) for site in edits[0]}


def _prefixes(rows: Sequence[Sequence[int]], pad_id: int) -> Tokens:
    """Right-padded rows with one more column: outputs about token t = length are about the next token."""
    width = max(len(r) for r in rows) + 1
    ids = torch.tensor([[*r, *[pad_id] * (width - len(r))] for r in rows])
    mask = torch.arange(width) < torch.tensor([[len(r)] for r in rows])
    key = torch.arange(len(rows))
    return Tokens(ids=ids, mask=mask, target=torch.zeros_like(mask), group=key, key=key)


def named(examples: Sequence[Example]) -> list[Example]:
    """The examples, those without an id named by their number."""
    return [e if e.id else replace(e, id=str(i)) for i, e in enumerate(examples)]


def by_name(examples: Sequence[Example], network: Any) -> list[Example]:
    """Examples whose label is a word: its index among the names of the model's classes."""
    if all(e.label is not None or not isinstance(e.meta.get("label"), str) for e in examples):
        return list(examples)
    names = getattr(getattr(getattr(network, "model", None), "config", None), "label2id", None) or {}
    index = {str(name).casefold(): int(number) for name, number in names.items()}
    found = []
    for e in examples:
        word = e.meta.get("label")
        if e.label is None and isinstance(word, str):
            if word.casefold() not in index:
                raise ConfigError(
                    f"evaluation: example '{e.id}' has the label '{word}', and the model's classes are called "
                    f"{', '.join(map(str, names)) or 'nothing'}; map the labels to class indices with columns: {{label: ...}}."
                )
            e = replace(e, label=index[word.casefold()])
        found.append(e)
    return found


__all__ = [
    "ClassifierTarget",
    "Climb",
    "GeneratorTarget",
    "NetworkTarget",
    "by_name",
    "mean_nll",
    "named",
    "response_of",
    "stack",
    "target_of",
]
