"""Sampling in this process with the learner's own transformers model and its key-value cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from advalign.errors import BudgetError, ConfigError
from advalign.models import Network
from advalign.rollout import _cache
from advalign.rollout._engine import Engine
from advalign.types import Rollout, RolloutGroup, Sampling

__all__ = ["HF"]

LEAVE = 0.25  # rows leave the batch when this share of it has finished: the cache is copied for it
CHUNK = 2**24  # numbers of a cumulative distribution at once


@dataclass(frozen=True, kw_only=True)
class HF(Engine):
    """y_t ~ softmax(z_t / temperature), truncated to the top-p nucleus; greedy at temperature 0.

    A prompt is read once, whatever the number of its responses, which share its keys and values; finished responses leave the batch;
    prompts of like length are decoded together. Prompts are left padded, as decoding wants; position ids are explicit. Returned
    log-probabilities are those of the distribution at `temperature` before the nucleus is cut, which is what the trainer can recompute.
    Every response has its own draws, so `max_rows` (rows decoded at once) and who else is in the batch change no response but by
    rounding. A response ends, unfinished, where the model's context does.

    compile: run the decoding steps through torch.compile, block by block; the learner needs `options: {compile: true}`.
    """

    max_rows: int = 512
    compile: bool = False

    def sync(self, network: Any, version: int) -> None:
        """Nothing to do: the engine samples from the learner's own weights."""

    def skip(self, generator: torch.Generator, number: int, sampling: Sampling) -> bool:
        """Leave the draws of `number` responses out: whoever answers the prompts behind them draws what one process would."""
        for start in range(0, number, 1024):
            rows = min(1024, number - start)
            torch.rand(rows, sampling.max_new_tokens, dtype=torch.float64, generator=generator, device=generator.device)
        return True

    @property
    def rows_at_once(self) -> int | None:
        return self.max_rows

    @torch.no_grad()
    def extend(
        self, network: Network, groups: list[RolloutGroup], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        if self.compile and network.compiled is None:
            raise ConfigError(
                "rollout.compile: true given, but the policy is not compiled; give its learner options: {compile: true}, or leave it out."
            )
        network_mode = network.training
        network.eval()
        draws = torch.rand(len(groups) * n, sampling.max_new_tokens, dtype=torch.float64, generator=generator, device=generator.device)
        found: dict[int, Rollout] = {}
        try:
            for batch in self._batches([len(g.prompt_ids) for g in groups], n):
                prompts, rows = [groups[g].prompt_ids for g, _ in batch], [owned for _, owned in batch]
                found |= _decode(network, prompts, rows, sampling, draws, self.compile)
        finally:
            network.train(network_mode)
        for g, group in enumerate(groups):
            group.rollouts += [found[row] for row in range(g * n, (g + 1) * n)]
        return groups

    def _batches(self, lengths: Sequence[int], n: int) -> Iterator[list[tuple[int, range]]]:
        """[(group, its rows)] with at most `max_rows` rows, groups of like length together."""
        batch: list[tuple[int, range]] = []
        free = self.max_rows
        for g in sorted(range(len(lengths)), key=lambda g: (lengths[g], g)):
            row, end = g * n, (g + 1) * n
            while row < end:
                taken = range(row, min(end, row + free))
                batch.append((g, taken))
                row, free = taken.stop, free - len(taken)
                if not free:
                    yield batch
                    batch, free = [], self.max_rows
        if batch:
            yield batch


def _decode(
    network: Network,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[range],
    sampling: Sampling,
    draws: Float[Tensor, "R N"],
    compiled: bool = False,
) -> dict[int, Rollout]:
    """{row: response}. `rows` of each prompt are places in `draws`; inside, rows count from 0."""
    encoder, device, names = network.encoder, network.device, [row for owned in rows for row in owned]
    state = _State(network, prompts, [len(owned) for owned in rows], sampling.max_new_tokens, compiled)
    draws = draws[torch.tensor(names, device=draws.device)].to(device)
    shape, precision = (len(names), sampling.max_new_tokens), torch.promote_types(network.dtype, torch.float32)
    tokens, scores = torch.zeros(shape, dtype=torch.long, device=device), torch.zeros(shape, dtype=precision, device=device)
    lengths, ended = torch.zeros(len(names), dtype=torch.long, device=device), torch.zeros(len(names), dtype=torch.bool, device=device)
    for step in range(sampling.max_new_tokens):
        chosen, logprobs = sample(network.next_token_logits(state.hidden), sampling, draws[state.rows, step])
        tokens[state.rows, step], scores[state.rows, step] = chosen, logprobs.to(precision)
        lengths[state.rows[state.alive]] = step + 1
        if encoder.eos_id is not None:
            ended[state.rows[state.alive & (chosen == encoder.eos_id)]] = True
        state.alive &= ~ended[state.rows] & (step + 1 < state.room)
        if step + 1 == sampling.max_new_tokens or not state.advance(chosen):
            break
    found = {}
    for name, ids, score, length, end in zip(names, tokens.tolist(), scores.tolist(), lengths.tolist(), ended.tolist(), strict=True):
        response = ids[:length]
        found[name] = Rollout(response_ids=response, sampler_logprobs=score[:length], text=encoder.decode(response), finished=end)
    return found


class _State:
    """The rows that are still decoded. `rows`: their places among all of the batch; `alive`: those that are not finished; `room`: how
    many tokens each prompt leaves in the model's context; `hidden`: the state that predicts the next token; `compiled`: whether
    steps of one token are."""

    def __init__(
        self, network: Network, prompts: Sequence[Sequence[int]], copies: Sequence[int], number: int, compiled: bool = False
    ) -> None:
        self.network, self.compiled = network, compiled
        ids, mask = _left_pad(prompts, network.encoder.pad_id)
        ids, mask = ids.to(network.device), mask.to(network.device)
        self.room, self.last = _room(network, mask.sum(1))
        self.cache = _cache.new(network.model.config, min(number, int(self.room.max())))
        self.shared = _cache.divisible(self.cache)
        owner = torch.arange(len(prompts), device=network.device).repeat_interleave(torch.tensor(copies, device=network.device))
        if not self.shared:  # every response reads its prompt for itself, and stays to the end
            ids, mask = ids[owner], mask[owner]
        self.positions = (mask.cumsum(1) - 1).clamp(min=0)
        # Without padding there is nothing to mask, and attention is faster.
        self.mask: Int[Tensor, "B T"] | None = None if bool(mask.all()) else mask
        self.hidden = self._forward(ids)
        self.positions, self.room = self.positions[:, -1:], self.room[owner]
        if self.shared:
            self._choose(owner)
        self.rows = torch.arange(len(owner), device=network.device)
        self.alive: Bool[Tensor, "B"] = torch.ones_like(self.rows, dtype=torch.bool)

    def advance(self, chosen: Int[Tensor, "B"]) -> bool:
        """One token further, without the rows that have finished where there are many; False if all have."""
        living = int(self.alive.sum())
        if not living:
            return False
        if self.shared and living <= (1 - LEAVE) * len(self.rows):
            kept = self.alive.nonzero().squeeze(1)
            self._choose(kept)
            self.rows, self.room, self.alive, chosen = self.rows[kept], self.room[kept], self.alive[kept], chosen[kept]
        # Rows without room are decoded along with their batch, and not kept.
        self.positions = (self.positions + 1).clamp(max=self.last)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        self.hidden = self._forward(chosen[:, None])
        return True

    def _forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        # Embeddings, as the trainer hands them over: given ids and no mask, transformers warns of padding that is not there.
        embeddings = self.network.model.get_input_embeddings()(ids)
        inputs = {"inputs_embeds": embeddings, "attention_mask": self.mask, "position_ids": self.positions}
        blocks = self.network.compiled if self.compiled and ids.shape[1] == 1 else None
        with nullcontext() if blocks is None else blocks.on(self.network.backbone):
            return self.network.backbone(**inputs, past_key_values=self.cache, use_cache=True).last_hidden_state[:, -1]

    def _choose(self, rows: Int[Tensor, "N"]) -> None:
        _cache.choose(self.cache, rows)
        self.positions, self.hidden = self.positions[rows], self.hidden[rows]
        self.mask = None if self.mask is None else self.mask[rows]


def _room(network: Network, lengths: Int[Tensor, "B"]) -> tuple[Int[Tensor, "B"], int]:
    """How many tokens each prompt leaves in the model's context, and the last position there is."""
    context = getattr(network.model.config, "max_position_embeddings", None) or 2**31
    if int(lengths.max()) >= context:
        raise BudgetError(f"rollout: a prompt of {int(lengths.max())} tokens leaves no room in the model's context of {context} tokens.")
    return context - lengths, context - 1


def sample(logits: Float[Tensor, "B V"], sampling: Sampling, draws: Float[Tensor, "B"]) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """Chosen tokens and their log-probabilities: the first token whose cumulative probability exceeds the row's draw from [0, 1)."""
    if sampling.temperature == 0:
        logprobs = logits.log_softmax(-1)
        chosen = logits.argmax(-1)
    else:
        logprobs = (logits / sampling.temperature).log_softmax(-1)
        size = max(1, CHUNK // logits.shape[1])
        kept = zip(_nucleus(logprobs, sampling.top_p).split(size), draws.split(size), strict=True)
        chosen = torch.cat([_inverted(part, draw) for part, draw in kept])
    return chosen, logprobs.gather(1, chosen[:, None]).squeeze(1)


def _inverted(logprobs: Float[Tensor, "B V"], draws: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    total = logprobs.to(draws.dtype).exp().cumsum(-1)
    chosen = torch.searchsorted(total, (draws * total[:, -1])[:, None], right=True).squeeze(1)
    # Rounding may put a draw just below 1 behind the last token.
    return torch.where(chosen < logprobs.shape[1], chosen, logprobs.argmax(-1))


def _nucleus(logprobs: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    if top_p >= 1:
        return logprobs
    ordered, order = logprobs.sort(-1, descending=True)
    # A token stays while the mass before it is below top_p, so the most likely one always does.
    before = ordered.exp().cumsum(-1) - ordered.exp()
    return logprobs.masked_fill(torch.zeros_like(logprobs).scatter(1, order, (before >= top_p).to(logprobs.dtype)).bool(), -torch.inf)


def _left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = repeat(torch.arange(width), "t -> b t", b=len(rows)) >= torch.tensor([[width - len(row)] for row in rows])
    for b, row in enumerate(rows):
        ids[b, width - len(row) :] = torch.tensor(row, dtype=torch.long)
    return ids, mask.long()
