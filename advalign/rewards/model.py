"""A reward model that is loaded for this reward and never trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Context, Reward
from advalign.models import Network, load
from advalign.models.inference import batched_forward, length_sorted_batches
from advalign.models.specification import DType
from advalign.ranges import Count, Words
from advalign.types import RolloutGroup, Tokens

PATH = "rewards.model"


@dataclass(frozen=True, kw_only=True)
class Model(Reward):
    """r = s(x, y), the score of a reward model that does not train (for one that trains beside the policy: `discriminator`).

    The model's own tokenizer encodes prompt (in its chat template, where it has one) and response, closed by end-of-sequence where it is
    finished; rows are scored without gradient or dropout. A score that is not finite stops the run.
    """

    model: Words | Network
    """A folder written by a run with head: score, or a hub id or path of a sequence classifier with one label, or a Network."""
    max_length: Count | None = None
    """Of prompt and response, in tokens. None: the model's own."""
    token_budget: Count = 8192
    """Tokens per batch, padding included."""
    dtype: DType = "float32"
    """Of the weights."""
    device: Words | None = None
    """None: the GPU where there is one."""

    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Sequence[float]]:
        network = _checked(self.model) if isinstance(self.model, Network) else self._loaded(self.model)

        def score(groups: Sequence[RolloutGroup]) -> list[float]:
            flat = [(g.example.prompt, r.text, r.finished) for g in groups for r in g.rollouts]
            if not flat:
                return []
            tokens = network.encoder.scored_pairs(*(list(column) for column in zip(*flat, strict=True)))
            scores = _scores(network, tokens, self.token_budget)
            num_wrong = sum(not math.isfinite(s) for s in scores)
            if num_wrong:
                raise RewardError(f"{PATH}: '{self._name}' scored {num_wrong} of {len(scores)} responses as nan or infinite.")
            return scores

        return score

    @property
    def _name(self) -> str:
        return self.model if isinstance(self.model, str) else type(self.model).__name__

    def _loaded(self, model: str) -> Network:
        try:
            network = load(model, max_length=self.max_length, dtype=self.dtype)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{PATH}.model: cannot load '{model}' ({str(error).strip().splitlines()[0]}).") from error
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return _checked(network, model).requires_grad_(False).to(device)


def _checked(network: Network, name: str = "the network given") -> Network:
    """The network; ConfigError where its scores were not trained."""
    if network.head == "score":
        return network
    trained = network.head == "classifier" and network.has_trained_head
    if trained and network.num_classes == 1:
        return network
    what = f"a classifier of {network.num_classes} classes" if trained else "not a model of scores"
    raise ConfigError(f"{PATH}.model: {name} is {what}; a run with head: score or a sequence classifier with one label is needed.")


def _scores(network: Network, tokens: Tokens, token_budget: int) -> list[float]:
    """One number per row, in length-sorted batches."""
    need = "scores" if network.head == "score" else "class_logits"
    batches = length_sorted_batches(tokens.lengths, token_budget)
    return batched_forward(network, tokens, {need}, batches=batches)[need].reshape(-1).double().tolist()


__all__ = ["Model"]
