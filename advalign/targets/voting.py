"""Classifiers that answer for many random copies of an input, as they are deployed: the targets of attacks on certified models.

    Suite.load("suite.yaml").run(RanMask(network, rate=0.7, votes=100))        target_of(Smoothed(network, sigma=0.1)).predict(texts)

Copies are a function of (seed, text), so an answer does not depend on how often, or beside what else, it is requested; an attack that
changes the text meets other copies. To an attack one text is one query; every copy is a forward. Certificates
(`evaluation/suites/certified.py`) are about the limit of infinitely many copies: an ensemble of few may answer differently where the
vote is close.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional.certify import ranmask_num_kept
from advalign.models import Network, word_masking
from advalign.targets import random_copies
from advalign.targets.classifier import ClassifierTarget
from advalign.targets.ensemble import Ensemble, EnsembleAnswers
from advalign.types import Edit, Prompt, Tokens


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
        sigma = random_copies.absolute_sigma(network, sigma, relative_to, "Smoothed")
        super().__init__(network, copies=copies, seed=seed, combine=combine, settings=[sigma])
        self.sigma = sigma

    def _logits(self, row: Tokens, edits: Mapping[str, Edit]) -> list[Float[Tensor, "N C"]]:
        shape = (row.ids.shape[1], self.width("embedding"))
        key = (self.seed, "smoothed", tuple(row.ids[0].tolist()))
        parts = []
        for noise in random_copies.gaussian_noise(self.copies, shape, self.sigma, self, key):
            copied = {site: _repeated(edit, len(noise)) for site, edit in edits.items()}
            edit = copied.get("embedding", Edit())
            copied["embedding"] = Edit(noise if edit.add is None else edit.add + noise, ablate=edit.ablate, where=edit.where)
            parts.append(self._run(_copies(row, len(noise)), copied))
        return parts


class RanMask(Ensemble):
    """argmax_c sum_j [f(M(x, H_j)) = c], H_j uniform over the sets of k = T - round(rate T) kept words   (arXiv:2105.03743).

    Words are separated by white space and a masked one is one mask token. A text with at most `votes` such sets is answered
    by all of them, once each. 100 votes and `combine` as in the released code. Under an edit of hidden states (attacks by
    gradients) only tokens are known: words are then found from them (`models/word_masking.py`), and masked words take no edit.
    """

    changes_text = True

    def __init__(
        self, network: Network, rate: float = 0.7, votes: int = 100, seed: int = 0, *, combine: str = "vote", replace: str = "mask"
    ) -> None:
        random_copies.check_rate(rate, "RanMask")
        super().__init__(network, copies=votes, seed=seed, combine=combine, settings=[rate, replace == "unknown"])
        self.rate = rate
        self.mask_text, self.mask_id = word_masking.mask_token(network.encoder.tokenizer, replace, "RanMask")

    def answer(
        self, texts: Sequence[Prompt], pairs: Sequence[str | None] | None, batch_tokens: int = random_copies.BATCH_TOKENS
    ) -> EnsembleAnswers:
        """Logits of texts from their masked copies; equal copies of a text run once."""
        inner = ClassifierTarget(self.network, batch_tokens=batch_tokens)
        inner.read = [self.mask_text]
        rows = []
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ConfigError("RanMask: a conversation given; its copies are masked texts, so give texts.")
            pair = None if pairs is None else pairs[i]
            words = text.split()
            kept = ranmask_num_kept(len(words), rate=self.rate)
            sets = random_copies.kept_sets(len(words), kept, self.copies, (self.seed, "ranmask", text, pair))
            count = Counter(random_copies.mask_words(words, chosen, self.mask_text) for chosen in sets)
            logits = inner.predict(list(count), None if pair is None else [pair] * len(count))
            rows.append(self._combined(logits, list(count.values())))
        return EnsembleAnswers(logits=torch.stack(rows), num_copies=inner.num_queries, num_tokens=inner.num_tokens)

    def _logits(self, row: Tokens, edits: Mapping[str, Edit]) -> list[Float[Tensor, "N C"]]:
        word_of_token = word_masking.number_words(self.encoder.tokenizer, row, row.mask)
        number, ids = int(word_of_token.max()), tuple(row.ids[0].tolist())
        kept = ranmask_num_kept(number, rate=self.rate)
        sets = random_copies.kept_sets(number, kept, self.copies, (self.seed, "ranmask", ids))
        at_once = max(1, random_copies.BATCH_TOKENS // row.ids.shape[1])
        parts = []
        for start in range(0, len(sets), at_once):
            part = sets[start : start + at_once]
            hidden = [{w for w in range(1, number + 1) if w - 1 not in chosen} for chosen in part]
            copied = _copies(row, len(part))
            tokens, origin = word_masking.mask_words(
                copied, word_of_token.expand(len(part), -1), hidden, mask_id=self.mask_id, pad_id=self.encoder.pad_id
            )
            moved = {site: _moved(_repeated(edit, len(part)), origin, tokens.ids.shape[1]) for site, edit in edits.items()}
            parts.append(self._run(tokens, moved))
        return parts


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
        values = torch.where(shown[wide], x, torch.zeros_like(x))
        index = to[wide].expand(*to.shape, *x.shape[2:])
        return x.new_zeros(x.shape[0], width, *x.shape[2:]).scatter_add(1, index, values)

    add = None if edit.add is None else carried(edit.add)
    where = None if edit.where is None else carried(edit.where.long()).bool()
    return Edit(add=add, ablate=edit.ablate, where=where)


__all__ = ["RanMask", "Smoothed"]
