"""Abstract base of classifiers that answer for many random copies of an input."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError, unknown
from advalign.models import Network
from advalign.types import Edit, Outputs, Prompt, Tokens

COMBINATIONS = ("vote", "mean")


@dataclass(frozen=True, kw_only=True)
class EnsembleAnswers:
    """Answers to texts, and what their copies cost."""

    logits: Float[Tensor, "B C"]
    """One row per text."""
    num_copies: int
    """Distinct copies that were run."""
    num_tokens: int
    """Their tokens, without padding."""


class Ensemble(Network, ABC):
    """Abstract base: the copies of one classifier and how they are combined. It is a `Network`.

    Gradients are those of the mean, since a vote has none: an attack by gradients sees through the vote (arXiv:1802.00420,
    section 4.1).
    """

    changes_text: ClassVar[bool] = False
    """Copies are changed texts, which `answer` runs; else they are changed hidden states."""

    def __init__(self, network: Network, *, copies: int, seed: int, combine: str, settings: Sequence[float]) -> None:
        """`combine`: "vote" (each copy's class counts; logits are logs of the vote shares, half a vote added to every class so that
        they are finite) or "mean" (log of the mean probability). `settings`: numbers that tell two ensembles apart."""
        super().__init__(network.model, network.encoder, network.head, pooling=network.pooling)
        name = type(self).__name__
        if network.head != "classifier" or isinstance(network, Ensemble):
            actual = f"a network with head '{network.head}'" if network.head != "classifier" else f"a {type(network).__name__}"
            raise ConfigError(f"{name}: {actual} given; only a classifier's copies can vote.")
        if copies < 1:
            raise ConfigError(f"{name}: {copies} copies given; at least 1.")
        if combine not in COMBINATIONS:
            raise unknown(f"{name}.combine", "combination", combine, COMBINATIONS)
        self.copies, self.seed, self.combine = copies, seed, combine
        self._classifier = (network,)  # in a tuple, because its modules are registered already
        # A buffer, so that the fingerprint in a folder of results tells ensembles of the same weights apart.
        numbers = [copies, seed, COMBINATIONS.index(combine), *settings]
        self.register_buffer("settings", torch.tensor(numbers, dtype=torch.float64))

    @property
    def network(self) -> Network:
        """The classifier whose copies vote."""
        return self._classifier[0]

    def width(self, site: str) -> int:
        return self.network.width(site)

    def mean_embedding_norm(self) -> float:
        return self.network.mean_embedding_norm()

    def forward(
        self, tokens: Tokens, needs: Set[str], edits: Mapping[str, Edit] | None = None, temperature: Float[Tensor, "B"] | None = None
    ) -> Outputs:
        """Logits of every row. Rows are answered one by one, each at its own length, so none depends on its neighbours."""
        if any(edit.tokens is not None for edit in (edits or {}).values()):
            raise ConfigError(f"{type(self).__name__}: an edit that replaces tokens cannot be copied; give the changed text instead.")
        rows = []
        for b, length in enumerate(tokens.lengths.tolist()):
            row = tokens.index(torch.tensor([b], device=tokens.ids.device)).fit(length)
            row_edits = {site: _row_of(edit, b, length) for site, edit in (edits or {}).items()}
            rows.append(self._combined(torch.cat(self._logits(row, row_edits))))
        return Outputs(class_logits=torch.stack(rows))

    def answer(self, texts: Sequence[Prompt], pairs: Sequence[str | None] | None, batch_tokens: int) -> EnsembleAnswers:
        """With `changes_text`: answers to texts, from their changed copies."""
        raise NotImplementedError

    @abstractmethod
    def _logits(self, row: Tokens, edits: Mapping[str, Edit]) -> list[Float[Tensor, "N C"]]:
        """Logits of the copies of one row, in parts."""

    def _run(self, row: Tokens, edits: Mapping[str, Edit]) -> Float[Tensor, "N C"]:
        logits = self.network(row, {"class_logits"}, edits).class_logits
        assert logits is not None
        return logits

    def _combined(self, logits: Float[Tensor, "N C"], weights: Sequence[int] | None = None) -> Float[Tensor, "C"]:
        """`weights`: how many equal copies each row represents."""
        wide = logits.double()
        count = torch.ones(len(wide), dtype=wide.dtype) if weights is None else torch.tensor(weights, dtype=wide.dtype)
        count = count.to(wide.device)[:, None]
        mean = ((wide.log_softmax(1) + count.log()).logsumexp(0) - count.sum().log()).to(logits.dtype)
        if self.combine == "mean":
            return mean
        votes = (torch.zeros_like(wide).scatter(1, wide.argmax(1, keepdim=True), 1.0) * count).sum(0) + 0.5
        vote = (votes / votes.sum()).log().to(logits.dtype)
        return vote + (mean - mean.detach())


def _row_of(edit: Edit, b: int, length: int) -> Edit:
    add = None if edit.add is None else edit.add[b : b + 1, :length]
    where = None if edit.where is None else edit.where[b : b + 1, :length]
    return Edit(add=add, ablate=edit.ablate, where=where)


__all__ = ["Ensemble", "EnsembleAnswers"]
