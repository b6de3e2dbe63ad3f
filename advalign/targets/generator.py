"""A language model under attack."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.engine.rng import generator
from advalign.errors import ConfigError
from advalign.interfaces import Edits
from advalign.models.endings import StopRule
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
        """Greedy responses to prompts whose hidden states are edited, recomputed token by token (an edit has no key-value cache)."""
        encoder, rule = self.network.encoder, StopRule(self.network)
        prompts = [encoder.prompt(e.prompt) for e in examples]
        self._check_beginnings(examples, prompts, edits)
        cropped = [{site: add[: len(p)] for site, add in edit.items()} for p, edit in zip(prompts, edits, strict=True)]
        responses: list[list[int]] = [[] for _ in examples]
        unfinished = list(range(len(examples)))
        longest = encoder.truncation.positions or math.inf
        for _ in range(max_new_tokens):
            tokens = _with_next_column([prompts[i] + responses[i] for i in unfinished], encoder.pad_id)
            adds = stack([cropped[i] for i in unfinished], tokens.ids.shape[1], self.network.device)
            distribution = self._forward(tokens, adds, frozenset({"distribution"})).distribution
            assert distribution is not None
            last = distribution.hidden[torch.arange(len(unfinished)), tokens.lengths]
            chosen = self.network.next_token_logits(last).argmax(-1).tolist()
            for i, token in zip(unfinished, chosen, strict=True):
                responses[i].append(token)
            lengths = {i: len(prompts[i]) + len(responses[i]) for i in unfinished}
            unfinished = [i for i in unfinished if lengths[i] < longest and not rule.ends(responses[i])]
            if not unfinished:
                break
        return [rule.text(response, rule.ends(response)) for response in responses]

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
