"""What an attack sees of the model under attack: answers, gradients and one meter of what was spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import BudgetError, ConfigError
from advalign.interfaces.adversary import PerturbationContext
from advalign.types import Edit, Example, Outputs, Prompt, RolloutGroup, Sampling, ThreatModel, Tokens

if TYPE_CHECKING:
    from advalign.models import Network

ABILITIES = ("labels", "scores", "text", "logprobs", "gradients")
"""What a target can give: the class of a text, one score per class, responses, log-probabilities, gradients of hidden states."""

Edits = Mapping[str, Tensor]
"""{site: "T D"} of one example, T its own number of tokens."""

LossOf = Callable[[Outputs, Tokens, Sequence[Example]], tuple[Tensor, Tensor]]
"""(losses "N" that are climbed, scores "N" by which an iterate is chosen)."""


@dataclass(frozen=True, kw_only=True)
class EditGradients:
    """What one step of a gradient attack learns."""

    losses: Float[Tensor, "N"]
    """The loss that is climbed."""
    scores: Float[Tensor, "N"]
    """The score by which an iterate is chosen."""
    gradients: Mapping[str, Float[Tensor, "N T D"]]
    """Gradient of each row's loss with respect to its edit, by site; empty if none was requested."""


class PrefixScorer(Protocol):
    """The beginning that many rows share, computed once."""

    note: str
    """Why the rows are computed whole; empty where the beginning is cached."""

    def read(self, tails: Sequence[Sequence[int]], number: int, read: Callable[[Tensor], Tensor]) -> Tensor:
        """`read` ("N R V" logits that predict the last R = `number` tokens of each tail -> "N ..."), in batches, on the CPU."""

    def input_gradients(
        self, tail: Sequence[int], places: slice, number: int, loss: Callable[[Tensor], Tensor]
    ) -> tuple[float, Float[Tensor, "n V"]]:
        """The loss of one tail, and its gradient with respect to one-hot rows at `places` of the tail."""


class Target:
    """Base of every model under attack. What a subclass leaves out refuses in a sentence.

    Every distinct text or edit sent is one query; gradients are counted apart.
    """

    abilities: ClassVar[frozenset[str]] = frozenset()
    """What it can give, of `ABILITIES`."""
    name: str = "the target"
    """What errors call it."""
    head: str = "classifier"
    """classifier (it labels texts) or policy (it writes them)."""
    num_queries: int = 0
    """Texts or edits answered so far."""
    num_gradients: int = 0
    """Backward passes so far, in rows."""
    limit: int | None = None
    """Queries after which it raises `BudgetError`; None: no limit."""

    def meter(self) -> dict[str, float]:
        """What was spent so far, by name; `queries` is always among them."""
        return {"queries": self.num_queries}

    @property
    def network(self) -> Network:
        """The model itself, with its encoder."""
        raise self._refusal("network")

    @property
    def device(self) -> torch.device:
        """Where the model runs; a model known only by its answers counts as on the CPU."""
        return torch.device("cpu")

    @property
    def max_length(self) -> int | None:
        """Tokens of a row that the model reads; None: unknown."""
        return None

    def predict(self, texts: Sequence[Prompt], pairs: Sequence[str | None] | None = None) -> Float[Tensor, "B C"]:
        """scores: logits, or log-probabilities, of texts or conversations, and of their second sentences (None: it has none). Equal ones
        of one call are sent once."""
        raise self._refusal("predict")

    def fits(self, prompt: Prompt) -> bool:
        """text: whether the context has room for the prompt and a token after it."""
        raise self._refusal("fits")

    def answer(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """text: the greedy response to each prompt."""
        raise self._refusal("answer")

    def generate(self, examples: Sequence[Example], n: int, sampling: Sampling, key: Sequence[object]) -> list[RolloutGroup]:
        """logprobs: `n` sampled responses per example, with their log-probabilities; `key` names the random stream."""
        raise self._refusal("generate")

    def continue_forced(
        self, examples: Sequence[Example], starts: Sequence[Sequence[int]], max_new_tokens: int, *, whole: bool = False
    ) -> list[str]:
        """logprobs: greedy responses whose first tokens are forced (`starts`, ids): what the model adds; `whole`: with the start."""
        raise self._refusal("continue_forced")

    def nll(self, examples: Sequence[Example], edits: Sequence[Edits] | None = None) -> Float[Tensor, "B"]:
        """logprobs: mean negative log-likelihood per token of each example's reference response."""
        raise self._refusal("nll")

    def prefix(self, ids: Sequence[int]) -> PrefixScorer:
        """logprobs: a beginning that many rows share, computed once."""
        raise self._refusal("prefix")

    def tokens(self, examples: Sequence[Example]) -> Tokens:
        """gradients: the rows of the examples, as the model reads them."""
        raise self._refusal("tokens")

    def unit(self, threat: ThreatModel) -> float:
        """gradients: what a radius of 1 is worth in numbers of the hidden state."""
        raise self._refusal("unit")

    def perturbation_context(
        self, threat: ThreatModel, tokens: Tokens, examples: Sequence[Example], key: Sequence[object]
    ) -> PerturbationContext:
        """gradients: what an adversary is given: one delta per example, its random stream keyed by (key, example id)."""
        raise self._refusal("perturbation_context")

    def climb(
        self, tokens: Tokens, examples: Sequence[Example], edits: Mapping[str, Edit], loss_of: LossOf, gradients: bool = True
    ) -> EditGradients:
        """gradients: losses and scores under edits ("N T D"), and the gradient of the losses with respect to the edits alone."""
        raise self._refusal("climb")

    def predict_edited(self, examples: Sequence[Example], edits: Sequence[Edits]) -> Float[Tensor, "B C"]:
        """gradients: logits of each example with its own edits added to its hidden states."""
        raise self._refusal("predict_edited")

    def continue_edited(self, examples: Sequence[Example], edits: Sequence[Edits], max_new_tokens: int) -> list[str]:
        """gradients: greedy responses to prompts whose hidden states are edited."""
        raise self._refusal("continue_edited")

    def spend(self, queries: int) -> None:
        """Adds to `num_queries`; raises `BudgetError` beyond the limit."""
        self.num_queries += queries
        if self.limit is not None and self.num_queries > self.limit:
            raise BudgetError(f"target: {self.num_queries} queries, {self.limit} allowed.")

    def _refusal(self, member: str) -> ConfigError:
        abilities = ", ".join(sorted(self.abilities)) or "none"
        return ConfigError(f"target: '{member}' is not available for {self.name}; its abilities: {abilities}.")
