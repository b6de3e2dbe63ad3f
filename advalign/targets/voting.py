"""Classifiers that answer for many random copies of an input, as they are deployed: the victims of attacks on certified models.

    Suite.load("suite.yaml").run(RanMask(network, rate=0.7, votes=100))        target_of(Smoothed(network, sigma=0.1)).predict(texts)

An ensemble stands where a `Network` with head "classifier" stands. Its copies are a function of (seed, text), so an answer is
the same however often, and beside whatever else, it is asked for; an attack that changes the text meets other copies. To an
attack one text is one query; every copy is a forward. Certificates (`evaluation/certified.py`) are about the limit of
infinitely many copies: an ensemble of few may answer differently where the vote is close.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.engine.rng import generator, rng
from advalign.errors import ConfigError, unknown
from advalign.functional.certify import ranmask_kept
from advalign.models import Network, word_masking
from advalign.targets.target import ClassifierTarget
from advalign.types import Edit, Outputs, Tokens

COMBINATIONS = ("vote", "mean")
BATCH_TOKENS = 8192
BLOCK = 64  # copies whose noise is drawn together


class Ensemble(Network):
    """Abstract: the copies of one classifier, and how they are combined. It is a network, so whatever takes one takes it.

    combine: "vote" (each copy's class counts; logits are logs of the shares, half a vote added to every class so that they are
    finite) or "mean" (log of the mean probability). Gradients are those of the mean, which a vote does not have: an attack by
    gradients sees through the vote (arXiv:1802.00420, section 4.1).
    """

    def __init__(self, network: Network, *, copies: int, seed: int, combine: str, settings: Sequence[float]) -> None:
        super().__init__(network.model, network.encoder, network.head, pooling=network.pooling)
        where = type(self).__name__
        if network.head != "classifier" or isinstance(network, Ensemble):
            given = f"a network with head '{network.head}'" if network.head != "classifier" else f"a {type(network).__name__}"
            raise ConfigError(f"{where}: {given} given; only a classifier's copies can vote.")
        if copies < 1:
            raise ConfigError(f"{where}: {copies} copies given; at least 1.")
        if combine not in COMBINATIONS:
            raise unknown(f"{where}.combine", "combination", combine, COMBINATIONS)
        self.copies, self.seed, self.combine = copies, seed, combine
        self._inside = (network,)  # in a tuple, because its modules are registered already
        # A buffer, so that a folder of results knows another ensemble of the same weights by its fingerprint.
        numbers = [copies, seed, COMBINATIONS.index(combine), *settings]
        self.register_buffer("settings", torch.tensor(numbers, dtype=torch.float64))

    @property
    def network(self) -> Network:
        """The classifier whose copies vote."""
        return self._inside[0]

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
            own = {site: _row_of(edit, b, length) for site, edit in (edits or {}).items()}
            rows.append(self._combined(torch.cat(self._logits(row, own))))
        return Outputs(class_logits=torch.stack(rows))

    def _logits(self, row: Tokens, edits: Mapping[str, Edit]) -> list[Float[Tensor, "N C"]]:
        """Logits of the copies of one row, in parts."""
        raise NotImplementedError

    def _run(self, row: Tokens, edits: Mapping[str, Edit]) -> Float[Tensor, "N C"]:
        logits = self.network(row, {"class_logits"}, edits).class_logits
        assert logits is not None
        return logits

    def _combined(self, logits: Float[Tensor, "N C"], weights: Sequence[int] | None = None) -> Float[Tensor, "C"]:
        """`weights`: how many equal copies each row stands for."""
        wide = logits.double()
        count = torch.ones(len(wide), dtype=wide.dtype) if weights is None else torch.tensor(weights, dtype=wide.dtype)
        count = count.to(wide.device)[:, None]
        mean = ((wide.log_softmax(1) + count.log()).logsumexp(0) - count.sum().log()).to(logits.dtype)
        if self.combine == "mean":
            return mean
        shares = (torch.zeros_like(wide).scatter(1, wide.argmax(1, keepdim=True), 1.0) * count).sum(0) + 0.5
        vote = (shares / shares.sum()).log().to(logits.dtype)
        return vote + (mean - mean.detach())


class Smoothed(Ensemble):
    """argmax_c sum_j [f(x + e_j) = c], e_j ~ N(0, sigma^2) on the embeddings of all real tokens   (arXiv:1902.02918, eq. 2).

    `sigma` in units of the mean embedding norm, or absolute; the attacks it answers are L2 over the whole row.
    """

    def __init__(
        self,
        network: Network,
        *,
        sigma: float,
        copies: int = 100,
        seed: int = 0,
        combine: str = "vote",
        relative_to: str = "mean_embedding_norm",
    ) -> None:
        unit = scale(network, sigma, relative_to, "Smoothed")
        super().__init__(network, copies=copies, seed=seed, combine=combine, settings=[unit])
        self.absolute = unit

    def _logits(self, row: Tokens, edits: Mapping[str, Edit]) -> list[Float[Tensor, "N C"]]:
        shape = (row.ids.shape[1], self.width("embedding"))
        parts = []
        for noise in gaussian(self.copies, shape, self.absolute, self, (self.seed, "smoothed", tuple(row.ids[0].tolist()))):
            copied = {site: _repeated(edit, len(noise)) for site, edit in edits.items()}
            given = copied.get("embedding", Edit())
            copied["embedding"] = Edit(noise if given.add is None else given.add + noise, ablate=given.ablate, where=given.where)
            parts.append(self._run(_copies(row, len(noise)), copied))
        return parts


class RanMask(Ensemble):
    """argmax_c sum_j [f(M(x, H_j)) = c], H_j uniform over the sets of k = T - round(rate T) kept words   (arXiv:2105.03743).

    Words are separated by white space and a masked one is one mask token. A text with at most `votes` such sets is answered
    by all of them, once each. 100 votes and `combine` as in the released code. Under an edit of hidden states (attacks by
    gradients) only tokens are known: words are then found from them (`models/words.py`), and masked words take no edit.
    """

    def __init__(
        self, network: Network, rate: float = 0.7, votes: int = 100, seed: int = 0, *, combine: str = "vote", replace: str = "mask"
    ) -> None:
        check_rate(rate, "RanMask")
        super().__init__(network, copies=votes, seed=seed, combine=combine, settings=[rate, replace == "unknown"])
        self.rate = rate
        self.text, self.mask_id = word_masking.mask_token(network.encoder.tokenizer, replace, "RanMask")

    def answer(
        self, texts: Sequence[str], pairs: Sequence[str] | None, batch_tokens: int = BATCH_TOKENS
    ) -> tuple[Float[Tensor, "B C"], ClassifierTarget]:
        """Logits of texts, and the target that ran their copies and counted them."""
        inside = ClassifierTarget(self.network, batch_tokens=batch_tokens)
        rows = []
        for i, text in enumerate(texts):
            second = None if pairs is None else pairs[i]
            split = text.split()
            kept = ranmask_kept(len(split), rate=self.rate)
            sets = draw_sets(len(split), kept, self.copies, (self.seed, "ranmask", text, second))
            found: dict[str, int] = {}
            for chosen in sets:
                copy = hide(split, chosen, self.text)
                found[copy] = found.get(copy, 0) + 1
            logits = inside.predict(list(found), None if second is None else [second] * len(found))
            rows.append(self._combined(logits, list(found.values())))
        return torch.stack(rows), inside

    def _logits(self, row: Tokens, edits: Mapping[str, Edit]) -> list[Float[Tensor, "N C"]]:
        found = word_masking.number_words(self.encoder.tokenizer, row, row.mask)
        number, ids = int(found.max()), tuple(row.ids[0].tolist())
        kept = ranmask_kept(number, rate=self.rate)
        sets = draw_sets(number, kept, self.copies, (self.seed, "ranmask", ids))
        at_once = max(1, BATCH_TOKENS // row.ids.shape[1])
        parts = []
        for start in range(0, len(sets), at_once):
            some = sets[start : start + at_once]
            hidden = [{w for w in range(1, number + 1) if w - 1 not in chosen} for chosen in some]
            copied = _copies(row, len(some))
            tokens, origin = word_masking.mask_words(
                copied, found.expand(len(some), -1), hidden, mask_id=self.mask_id, pad_id=self.encoder.pad_id
            )
            moved = {site: _moved(_repeated(edit, len(some)), origin, tokens.ids.shape[1]) for site, edit in edits.items()}
            parts.append(self._run(tokens, moved))
        return parts


# ------------------------------------------------------------------------------------------------ shared with certificates


def draw_sets(number: int, kept: int, copies: int, key: Sequence[object]) -> list[frozenset[int]]:
    """Sets of kept words: all of them where they are at most `copies`, else that many uniform ones."""
    if math.comb(number, kept) <= copies:
        return all_sets(number, kept)
    return draw(number, kept, copies, rng(*key))


def draw(number: int, kept: int, copies: int, stream: random.Random) -> list[frozenset[int]]:
    """Independent uniform sets of `kept` of the words 0 ... number - 1."""
    return [frozenset(stream.sample(range(number), kept)) for _ in range(copies)]


def all_sets(number: int, kept: int) -> list[frozenset[int]]:
    return [frozenset(c) for c in combinations(range(number), kept)]


def hide(split: Sequence[str], kept: Set[int], mask: str) -> str:
    """The text with every word that is not kept replaced by the mask token."""
    return " ".join(word if i in kept else mask for i, word in enumerate(split))


def gaussian(copies: int, shape: tuple[int, int], sigma: float, network: Any, key: Sequence[object]) -> Iterator[Tensor]:
    """Noise "N T D" of so many copies, in parts for one forward each. It is drawn in blocks of a fixed size, so that no result
    depends on how many copies are run at once."""
    dtype = torch.float64 if network.dtype == torch.float64 else torch.float32
    stream, at_once = generator(*key), max(1, BATCH_TOKENS // shape[0])
    for start in range(0, copies, BLOCK):
        block = sigma * torch.randn((BLOCK, *shape), generator=stream, dtype=dtype)
        yield from block[: copies - start].to(network.device).split(at_once)


def scale(network: Any, sigma: float, relative_to: str, where: str) -> float:
    """Sigma in numbers of the embedding."""
    units = {"mean_embedding_norm": network.mean_embedding_norm, "absolute": lambda: 1.0}
    if relative_to not in units:
        raise unknown(f"{where}.relative_to", "unit", relative_to, units)
    if not sigma > 0:
        raise ConfigError(f"{where}.sigma: {sigma} given; the standard deviation of the noise is above 0.")
    return sigma * units[relative_to]()


def check_rate(rate: float, where: str) -> None:
    if not 0 <= rate < 1:
        raise ConfigError(f"{where}.rate: {rate} given; the share of words that is masked, from 0 up to, but not including, 1.")


def _row_of(edit: Edit, b: int, length: int) -> Edit:
    add = None if edit.add is None else edit.add[b : b + 1, :length]
    where = None if edit.where is None else edit.where[b : b + 1, :length]
    return Edit(add=add, ablate=edit.ablate, where=where)


def _repeated(edit: Edit, number: int) -> Edit:
    add = None if edit.add is None else edit.add.expand(number, -1, -1)
    where = None if edit.where is None else edit.where.expand(number, -1)
    return Edit(add=add, ablate=edit.ablate, where=where)


def _copies(row: Tokens, number: int) -> Tokens:
    return row.index(torch.zeros(number, dtype=torch.long, device=row.ids.device))


def _moved(edit: Edit, origin: Tensor, width: int) -> Edit:
    """The edit of a row at the places where its tokens are in a masked copy; zero at mask tokens."""
    shown, to = origin >= 0, origin.clamp(min=0)

    def carried(x: Tensor) -> Tensor:
        wide = (slice(None), slice(None), *[None] * (x.ndim - 2))
        kept = torch.where(shown[wide], x, torch.zeros_like(x))
        index = to[wide].expand(*to.shape, *x.shape[2:])
        return x.new_zeros(x.shape[0], width, *x.shape[2:]).scatter_add(1, index, kept)

    add = None if edit.add is None else carried(edit.add)
    where = None if edit.where is None else carried(edit.where.long()).bool()
    return Edit(add=add, ablate=edit.ablate, where=where)


__all__ = ["Ensemble", "RanMask", "Smoothed", "all_sets", "check_rate", "draw", "draw_sets", "gaussian", "hide", "scale"]
