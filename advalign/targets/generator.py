"""A language model under attack."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from advalign.engine.rng import generator
from advalign.errors import ConfigError
from advalign.interfaces import Edits
from advalign.models.decoding import CachedDecoder, Decoder
from advalign.models.endings import StopRule
from advalign.models.perturb import without_dropout
from advalign.rollout.hf import HF
from advalign.targets.examples import reference_response
from advalign.targets.prefix import CachedPrefix
from advalign.targets.target import NetworkTarget, stack
from advalign.types import Example, Outputs, Prompt, RolloutGroup, Sampling, Tokens


class GeneratorTarget(NetworkTarget):
    """A language model: responses, and the loss of a reference response."""

    abilities = frozenset({"text", "logprobs", "gradients"})
    needs = frozenset({"logprobs"})

    def tokens(self, examples: Sequence[Example]) -> Tokens:
        return self.network.encoder.demos([e.prompt for e in examples], [reference_response(e) for e in examples])

    def nll(self, examples: Sequence[Example], edits: Sequence[Edits] | None = None) -> Float[Tensor, "B"]:
        """Mean negative log-likelihood per token of each example's reference response."""
        return self._all(self.tokens(examples), edits, _mean_nll)

    def prefix(self, ids: Sequence[int]) -> CachedPrefix:
        return CachedPrefix(self, ids)

    def fits(self, prompt: Prompt) -> bool:
        """Whether the context has room for the prompt and a token after it."""
        return len(self.network.encoder.prompt(prompt)) < self.network.encoder.max_length

    def answer(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """The greedy response to each prompt."""
        groups = self.generate(examples, 1, Sampling(max_new_tokens=max_new_tokens, temperature=0.0), ("answer",))
        return [g.rollouts[0].text for g in groups]

    def generate(self, examples: Sequence[Example], n: int, sampling: Sampling, key: Sequence[object]) -> list[RolloutGroup]:
        """`n` responses per example; all examples share the random stream of `key`, so only greedy ones depend on nothing else."""
        self.num_queries += n * len(examples)
        return HF().generate(self.network, examples, n, sampling, generator(*key))

    def continue_forced(
        self, examples: Sequence[Example], starts: Sequence[Sequence[int]], max_new_tokens: int, *, whole: bool = False
    ) -> list[str]:
        """Greedy responses whose first tokens are forced (`starts`, ids): what the model adds; `whole`: with the start."""
        self.num_queries += len(examples)
        prompts = self.network.encoder.prompts([e.prompt for e in examples])
        groups = [
            RolloutGroup(example=e, prompt_ids=[*ids, *start], rollouts=[]) for e, ids, start in zip(examples, prompts, starts, strict=True)
        ]
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
        added = [g.rollouts[0] for g in HF().extend(self.network, groups, 1, sampling, generator("forced"))]
        if not whole:
            return [rollout.text for rollout in added]
        return [self.network.encoder.decode([*start, *rollout.response_ids]) for start, rollout in zip(starts, added, strict=True)]

    def entropy(self, groups: Sequence[RolloutGroup]) -> Float[Tensor, "B"]:
        """Mean entropy of the next-token distribution (temperature 1) along each response, prompts in order."""
        tokens = self.network.encoder.rollouts(groups, whole=False)

        def read(outputs: Outputs, part: Tokens) -> Tensor:
            assert outputs.entropy is not None
            target = part.target.to(outputs.entropy.device)
            return (outputs.entropy * target).sum(1) / target.sum(1).clamp(min=1)

        return self._all(tokens, None, read, frozenset({"entropy"}))

    @torch.no_grad()
    def continue_edited(self, examples: Sequence[Example], edits: Sequence[Edits], max_new_tokens: int) -> list[str]:
        """Greedy responses to prompts whose hidden states are edited."""
        encoder, rule = self.network.encoder, StopRule(self.network)
        prompts = [encoder.prompt(e.prompt) for e in examples]
        self._check_beginnings(examples, prompts, edits)
        cropped = [{site: add[: len(p)] for site, add in edit.items()} for p, edit in zip(prompts, edits, strict=True)]
        responses: list[list[int]] = [[] for _ in examples]
        unfinished = list(range(len(examples)))
        longest = encoder.truncation.positions or math.inf
        with without_dropout(self.network):
            decoder = self._edited_decoder(prompts, cropped, max_new_tokens)
            while unfinished:
                chosen = self.network.next_token_logits(decoder.hidden).argmax(-1)
                for i, token in zip(unfinished, chosen.tolist(), strict=True):
                    responses[i].append(token)
                lengths = {i: len(prompts[i]) + len(responses[i]) for i in unfinished}
                going = [n for n, i in enumerate(unfinished) if lengths[i] < longest and not rule.ends(responses[i])]
                if len(responses[unfinished[0]]) == max_new_tokens or not going:
                    break
                if len(going) < len(unfinished):
                    rows = torch.tensor(going, device=self.network.device)
                    decoder.select(rows)
                    chosen, unfinished = chosen[rows], [unfinished[n] for n in going]
                decoder.read(chosen)
                self.num_forwards += 1
                self.num_tokens += len(unfinished)
        return [rule.text(response, rule.ends(response)) for response in responses]

    def _edited_decoder(self, prompts: Sequence[Sequence[int]], edits: Sequence[Edits], number: int) -> Decoder:
        """A decoder that has read prompts under edits of them; keys and values of what was read hold what the edits did."""
        network, device = self.network, self.network.device
        if not network.caches:
            return _EditedRows(self, prompts, edits)
        self.spend(len(prompts))
        self.num_forwards += 1
        self.num_tokens += sum(map(len, prompts))
        width = max(map(len, prompts))
        aligned = [{site: _right_aligned(add, len(p), width) for site, add in e.items()} for p, e in zip(prompts, edits, strict=True)]
        last_position = (network.encoder.truncation.positions or 2**31) - 1
        return CachedDecoder(network, prompts, number, last_position, edits=stack(aligned, width, device))

    def _check_beginnings(self, examples: Sequence[Example], prompts: Sequence[Sequence[int]], edits: Sequence[Edits]) -> None:
        """Refuses edits that were sought on other tokens than a response follows: a template may write a closed conversation otherwise."""
        if all(isinstance(e.prompt, str) for e in examples):
            return
        rows = self.tokens(examples).ids.tolist()
        for example, prompt, row, edit in zip(examples, prompts, rows, edits, strict=True):
            ends = [int(places[-1]) + 1 for add in edit.values() if len(places := add.abs().sum(1).nonzero())]
            end = min(max(ends, default=0), len(prompt))
            if list(prompt[:end]) != row[:end]:
                raise ConfigError(
                    f"chat_template: it writes the turns of example '{example.id}' otherwise before a response than with one behind them, "
                    "so an edit of its hidden states is about other tokens; use attacks on texts."
                )


class _EditedRows(Decoder):
    """Every token reads its whole row again, under the edits of its prompt: for networks whose cache cannot be used."""

    def __init__(self, target: GeneratorTarget, prompts: Sequence[Sequence[int]], edits: Sequence[Edits]) -> None:
        self.target, self.rows, self.edits = target, [list(prompt) for prompt in prompts], list(edits)
        self.hidden = self._forward()

    def read(self, ids: Int[Tensor, "B"]) -> None:
        self.rows = [[*row, token] for row, token in zip(self.rows, ids.tolist(), strict=True)]
        self.hidden = self._forward()

    def select(self, rows: Int[Tensor, "N"]) -> None:
        chosen = rows.tolist()
        self.rows, self.edits, self.hidden = [self.rows[i] for i in chosen], [self.edits[i] for i in chosen], self.hidden[rows]

    def _forward(self) -> Float[Tensor, "B D"]:
        network = self.target.network
        tokens = _with_next_column(self.rows, network.encoder.pad_id)
        adds = stack(self.edits, tokens.ids.shape[1], network.device)
        distribution = self.target._forward(tokens, adds, frozenset({"distribution"})).distribution
        assert distribution is not None
        return distribution.hidden[torch.arange(len(self.rows)), tokens.lengths]


def _right_aligned(add: Float[Tensor, "T D"], length: int, width: int) -> Float[Tensor, "W D"]:
    """An edit of the first tokens of a prompt of this length, in a left-padded row."""
    return functional.pad(add, (0, 0, width - length, length - len(add)))


def _mean_nll(outputs: Outputs, tokens: Tokens) -> Float[Tensor, "B"]:
    """-1/|y| sum_t log p(y_t | x, y_<t)."""
    assert outputs.logprobs is not None
    target = tokens.target.to(outputs.logprobs.device)
    return -(outputs.logprobs * target).sum(1) / target.sum(1).clamp(min=1)


def _with_next_column(rows: Sequence[Sequence[int]], pad_id: int) -> Tokens:
    """Right-padded rows with one more column: outputs about token t = length are about the next token."""
    width = max(len(r) for r in rows) + 1
    ids = torch.tensor([[*r, *[pad_id] * (width - len(r))] for r in rows])
    mask = torch.arange(width) < torch.tensor([[len(r)] for r in rows])
    key = torch.arange(len(rows))
    return Tokens(ids=ids, mask=mask, target=torch.zeros_like(mask), group=key, key=key)


__all__ = ["GeneratorTarget"]
