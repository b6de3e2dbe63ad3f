"""Sampling in this process with the learner's own transformers model and its key-value cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from advalign.errors import BudgetError, ConfigError
from advalign.interfaces import RolloutEngine
from advalign.models import Network, positions
from advalign.models.decoding import Decoder, new_decoder
from advalign.models.endings import StopRule
from advalign.models.generation import warn_left_out
from advalign.models.inference import evaluation_mode
from advalign.ranges import Count
from advalign.rollout._checks import check_finite
from advalign.types import Rollout, RolloutGroup, Sampling

__all__ = ["HF"]

DROP_FRACTION = 0.25  # finished rows leave the batch when they are this fraction of it: the cache is copied for it
CHUNK = {"cpu": 2**19}  # numbers of a distribution at once, as many as stay in a processor's cache; elsewhere 2**24


@dataclass(frozen=True, kw_only=True)
class HF(RolloutEngine):
    """y_t ~ softmax(z_t / temperature), truncated to the top-p nucleus; greedy at temperature 0.

    A prompt is read once, and all its responses share its keys and values; finished responses leave the batch; prompts of similar
    length are decoded together. Prompts are left padded; position ids are explicit. Returned log-probabilities are those of the
    distribution at `temperature` before the nucleus is cut, which the trainer can recompute. Every response has its own random numbers,
    so the composition of a batch changes a response only by rounding. A response ends at the model's end tokens, at the end of turn of its
    template and at `stop` strings; unfinished where the model's context or `max_length` ends.
    """

    max_rows: Count = 512
    """Rows decoded at once."""
    compile: bool = False
    """Run the decoding steps through torch.compile, block by block; the learner needs `options: {compile: true}`."""

    def sync(self, network: Network, version: int) -> None:
        """Nothing to do: the engine samples from the learner's own weights."""

    def skip(self, generator: torch.Generator, number: int, sampling: Sampling) -> bool:
        """Leaves out the random numbers of `number` responses: the prompts behind them are answered as in one process."""
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
        warn_left_out(network.model)
        draws = torch.rand(len(groups) * n, sampling.max_new_tokens, dtype=torch.float64, generator=generator, device=generator.device)
        rollouts: dict[int, Rollout] = {}
        with evaluation_mode(network):
            for batch in self._batches([len(g.prompt_ids) for g in groups], n):
                prompts, rows = [groups[g].prompt_ids for g, _ in batch], [group_rows for _, group_rows in batch]
                rollouts |= _decode(network, prompts, rows, sampling, draws, self.compile)
        check_finite(rollouts.values())
        for g, group in enumerate(groups):
            group.rollouts += [rollouts[row] for row in range(g * n, (g + 1) * n)]
        return groups

    def _batches(self, lengths: Sequence[int], n: int) -> Iterator[list[tuple[int, range]]]:
        """[(group, its rows)] with at most `max_rows` rows, groups of similar length together."""
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
    rule, device, places = StopRule(network, sampling.stop), network.device, [row for prompt_rows in rows for row in prompt_rows]
    state = _State(network, prompts, [len(prompt_rows) for prompt_rows in rows], sampling, compiled)
    draws = draws[torch.tensor(places, device=draws.device)].to(device)
    shape, precision = (len(places), sampling.max_new_tokens), torch.promote_types(network.dtype, torch.float32)
    tokens, scores = torch.zeros(shape, dtype=torch.long, device=device), torch.zeros(shape, dtype=precision, device=device)
    lengths, ended = torch.zeros(len(places), dtype=torch.long, device=device), torch.zeros(len(places), dtype=torch.bool, device=device)
    stop_ids = torch.tensor(sorted(rule.ids), dtype=torch.long, device=device)
    for step in range(sampling.max_new_tokens):
        sampled, logprobs = sample(network.next_token_logits(state.decoder.hidden), sampling, draws[state.rows, step])
        tokens[state.rows, step], scores[state.rows, step] = sampled, logprobs.to(precision)
        lengths[state.rows[state.alive]] = step + 1
        ended[state.rows[state.alive & torch.isin(sampled, stop_ids)]] = True
        if rule.texts:
            ended[_ended_in_text(rule, tokens, state, step + 1)] = True
        state.alive &= ~ended[state.rows] & (step + 1 < state.remaining)
        if step + 1 == sampling.max_new_tokens or not state.advance(sampled):
            break
    rollouts = {}
    for place, ids, score, length, end in zip(places, tokens.tolist(), scores.tolist(), lengths.tolist(), ended.tolist(), strict=True):
        response = ids[:length]
        rollouts[place] = Rollout(response_ids=response, sampler_logprobs=score[:length], text=rule.text(response, end), finished=end)
    return rollouts


def _ended_in_text(rule: StopRule, tokens: Int[Tensor, "R N"], state: _State, length: int) -> Int[Tensor, "E"]:
    """The living rows in which a stop string is complete with the last token."""
    rows = state.rows[state.alive]
    ended = [rule.ends_in_text(ids) for ids in tokens[rows, :length].tolist()]
    return rows[torch.tensor(ended, dtype=torch.bool, device=rows.device)]


class _State:
    """The rows that are still decoded."""

    decoder: Decoder
    """What reads them; `hidden` are the states that predict the next token."""
    rows: Int[Tensor, "B"]
    """Their places among all rows of the batch."""
    alive: Bool[Tensor, "B"]
    """Which of them are not finished."""
    remaining: Int[Tensor, "B"]
    """How many tokens their prompts leave in the model's context."""

    def __init__(
        self, network: Network, prompts: Sequence[Sequence[int]], copies: Sequence[int], sampling: Sampling, compiled: bool = False
    ) -> None:
        device, lengths = network.device, torch.tensor([len(prompt) for prompt in prompts], device=network.device)
        remaining, last_position = _remaining_context(network, lengths, sampling.max_length)
        number = min(sampling.max_new_tokens, int(remaining.max()))
        self.decoder = new_decoder(network, prompts, number, last_position, compiled=compiled)
        owner = torch.arange(len(prompts), device=device).repeat_interleave(torch.tensor(copies, device=device))
        self.decoder.select(owner)
        self.remaining, self.rows = remaining[owner], torch.arange(len(owner), device=device)
        self.alive = torch.ones_like(self.rows, dtype=torch.bool)

    def advance(self, sampled: Int[Tensor, "B"]) -> bool:
        """One token further, without the finished rows where there are many; False if all have finished."""
        num_alive = int(self.alive.sum())
        if not num_alive:
            return False
        if num_alive <= (1 - DROP_FRACTION) * len(self.rows):
            alive = self.alive.nonzero().squeeze(1)
            self.decoder.select(alive)
            self.rows, self.remaining, self.alive, sampled = self.rows[alive], self.remaining[alive], self.alive[alive], sampled[alive]
        self.decoder.read(sampled)
        return True


def _remaining_context(network: Network, lengths: Int[Tensor, "B"], max_length: int | None) -> tuple[Int[Tensor, "B"], int]:
    """How many tokens each prompt leaves in the model's context (at most `max_length`), and the last position there is."""
    context, bound = positions.row_bound(network.model, max_length)
    if context is None:
        context = 2**31
    if int(lengths.max()) >= context:
        raise BudgetError(f"rollout: a prompt of {int(lengths.max())} tokens leaves no room in {bound}.")
    return context - lengths, context - 1


def sample(logits: Float[Tensor, "B V"], sampling: Sampling, draws: Float[Tensor, "B"]) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """Sampled tokens and their log-probabilities: the first token whose cumulative probability exceeds the row's draw from [0, 1). Logits
    in half precision are normalised in float32, as in the trainer."""
    size = max(1, CHUNK.get(logits.device.type, 2**24) // logits.shape[1])
    tokens, logprobs = zip(*map(partial(_sample, sampling), logits.split(size), draws.split(size)), strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample(sampling: Sampling, logits: Float[Tensor, "B V"], draws: Float[Tensor, "B"]) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature == 0:
        sampled, logprobs = logits.argmax(-1), logits.log_softmax(-1)
    else:
        logprobs = (logits / sampling.temperature).log_softmax(-1)
        sampled = _invert(_nucleus(logprobs, sampling.top_p), draws)
    return sampled, logprobs.gather(1, sampled[:, None]).squeeze(1)


def _invert(logprobs: Float[Tensor, "B V"], draws: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    cumulative = logprobs.to(draws.dtype, copy=True).exp_().cumsum(-1)
    tokens = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True).squeeze(1)
    # Rounding may put a draw just below 1 behind the last token.
    behind = tokens >= logprobs.shape[1]
    return torch.where(behind, logprobs.argmax(-1), tokens) if bool(behind.any()) else tokens


def _nucleus(logprobs: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    if top_p >= 1:
        return logprobs
    ordered, order = logprobs.sort(-1, descending=True)
    # A token stays while the mass before it is below top_p, so the most likely one always does.
    before = ordered.exp().cumsum(-1) - ordered.exp()
    return logprobs.masked_fill(torch.zeros_like(logprobs).scatter(1, order, (before >= top_p).to(logprobs.dtype)).bool(), -torch.inf)
