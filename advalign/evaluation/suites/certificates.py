"""Methods of certification: smoothing with noise, and masked words.

A certificate is about the vote over random copies, not about the network alone. It holds with probability 1 - alpha per example over
the copies drawn, for every attack, and for certain where all copies could be enumerated. Streams are keyed by (seed, certificate,
example): order, batches and other examples change nothing.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from advalign.checked import Checked
from advalign.engine.rng import generator, rng
from advalign.errors import ConfigError
from advalign.functional import certify
from advalign.models import Network, word_masking
from advalign.models.perturb import without_dropout
from advalign.ranges import Count, Natural, NonNegative, OneOf, OpenFraction, Positive, ProperFraction
from advalign.targets import ClassifierTarget, random_copies
from advalign.types import Edit, Example, Tokens, Unit

BETAS = ("one", "estimate")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is certified about one example."""

    certificate: str
    """Name of the method."""
    example: str
    """Id of the example."""
    predicted: int | None
    """The class of the smoothed classifier; None: it abstains."""
    correct: bool
    """`predicted` is the example's label."""
    size: float
    """The largest radius, or number of words, within which no change alters the class."""
    probability: float
    """Lower bound on the probability of the class among copies."""
    copies: int
    """Copies that were run."""


class CertificateMethod(Checked, ABC, section="suite.certified"):
    """Abstract base: a smoothed classifier and the arithmetic of its certificates."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[float, ...]:
        """The sizes at which certified rates are reported."""

    @property
    @abstractmethod
    def threat(self) -> str:
        """What the certificate covers, in words."""

    @abstractmethod
    def certify(self, network: Network, name: str, example: Example, seed: int) -> Certificate:
        """The certificate of one example; `name` and `seed` key its random streams."""


@dataclass(frozen=True, kw_only=True)
class Smoothing(CertificateMethod):
    """R = sigma Phi^-1(p_A): no edit of the embeddings of norm below R changes the vote   (arXiv:1902.02918, section 3.2.2).

    The norm is L2 over all real tokens of the row.
    """

    sigma: Positive
    """Standard deviation of the noise; unit: `relative_to`."""
    relative_to: Unit = "mean_embedding_norm"
    """Unit of `sigma`, `radii` and R: mean_embedding_norm or absolute."""
    n0: Count = 100
    """Copies that choose the class (section 4)."""
    n: Count = 1000
    """Copies that bound its probability (section 4: 100,000, which caps R at 3.8 sigma; 1000 caps it at 2.5 sigma)."""
    alpha: OpenFraction = 0.001
    """The probability that the bound is wrong (section 4)."""
    radii: tuple[NonNegative, ...] = ()
    """Reported radii; empty: 0, 0.5, 1, 1.5 and 2 sigma."""

    @property
    def sizes(self) -> tuple[float, ...]:
        return self.radii or tuple(self.sigma * x for x in (0.0, 0.5, 1.0, 1.5, 2.0))

    @property
    def threat(self) -> str:
        unit = "mean embedding norms" if self.relative_to == "mean_embedding_norm" else "absolute"
        return f"L2 over the row's embeddings, {unit}, sigma {self.sigma:g}"

    def certify(self, network: Network, name: str, example: Example, seed: int) -> Certificate:
        sigma = random_copies.absolute_sigma(network, self.sigma, self.relative_to, "certified.smoothing")
        tokens = ClassifierTarget(network).tokens([example])
        counts = [
            _noisy_counts(network, tokens, sigma, number, (seed, "certified", name, example.id, draw))
            for draw, number in (("selection", self.n0), ("estimation", self.n))
        ]
        predicted, bound = certify.certify(*counts, alpha=self.alpha)
        radius = 0.0 if predicted is None else certify.smoothing_radius(bound, sigma=self.sigma)
        return _certificate(name, example, predicted, radius, bound, self.n0 + self.n)


@dataclass(frozen=True, kw_only=True)
class Masking(CertificateMethod):
    """p_A - beta Delta > 1/2, Delta = 1 - C(T - d, k) / C(T, k): no change of d words alters the vote   (RanMASK, arXiv:2105.03743).

    Words are separated by white space; each may become any other word, and their number stays. Only the prompt of a pair is masked, and
    of a conversation the turn that attacks rewrite. A text with at most `n` sets of k kept words is answered by all of them: then p_A is
    exact.
    """

    rate: ProperFraction = 0.7
    """Fraction of words that is masked."""
    n0: Count = 100
    """Copies that choose the class."""
    n: Count = 1000
    """Copies that bound its probability (released code: 5000)."""
    alpha: OpenFraction = 0.001
    """The probability that the bound is wrong (released code: 0.05)."""
    words: tuple[Natural, ...] = (1, 2, 3, 5)
    """Reported numbers of changed words."""
    beta: Annotated[str, OneOf(BETAS, "choice")] = "one"
    """"one", or "estimate" (the paper's, from the clean text), which certifies nothing."""
    replace: Annotated[str, OneOf(word_masking.REPLACEMENTS, "replacement")] = "mask"
    """What replaces a masked word: mask, or unknown where the tokenizer has no mask token."""

    @property
    def sizes(self) -> tuple[float, ...]:
        return (0, *(d for d in self.words if d))

    @property
    def threat(self) -> str:
        return f"words changed, {self.rate:.0%} masked" + (", beta ESTIMATED: no certificate" if self.beta == "estimate" else "")

    def certify(self, network: Network, name: str, example: Example, seed: int) -> Certificate:
        mask, _ = word_masking.mask_token(network.encoder.tokenizer, self.replace, "certified.ranmask")
        target, words = ClassifierTarget(network), example.text.split()
        target.read = [mask]
        kept = certify.ranmask_num_kept(len(words), rate=self.rate)

        def votes(sets: Sequence[frozenset[int]]) -> tuple[Int[Tensor, "N"], Int[Tensor, "C"]]:
            copies = [example.with_text(random_copies.mask_words(words, chosen, mask)).prompt for chosen in sets]
            logits = target.predict(copies, None if example.pair is None else [example.pair] * len(copies))
            classes = logits.argmax(1)
            return classes, classes.bincount(minlength=logits.shape[1])

        if math.comb(len(words), kept) <= self.n:
            sets = random_copies.all_kept_sets(len(words), kept)
            classes, count = votes(sets)
            chosen = int(count.argmax())
            bound = float((classes == chosen).double().mean())
        else:
            streams = {draw: rng(seed, "certified", name, example.id, draw) for draw in ("selection", "estimation")}
            _, selected = votes(random_copies.draw_kept_sets(len(words), kept, self.n0, streams["selection"]))
            sets = random_copies.draw_kept_sets(len(words), kept, self.n, streams["estimation"])
            classes, count = votes(sets)
            chosen = int(selected.argmax())
            _, bound = certify.certify(selected, count, alpha=self.alpha)
        beta = None if self.beta == "one" else _Beta(classes == chosen, sets, len(words), (seed, name, example.id))
        size = certify.ranmask_words(bound, words=len(words), num_kept=kept, beta=beta)
        return _certificate(name, example, None if size is None else chosen, size or 0, bound, target.num_queries)


class _Beta:
    """beta as a function of the number of changed words, estimated from the copies that were run."""

    def __init__(self, right: Bool[Tensor, "N"], sets: Sequence[frozenset[int]], number: int, key: Sequence[object]) -> None:
        self.right, self.key = right, key
        self.kept = torch.tensor([[i in chosen for i in range(number)] for chosen in sets])

    def __call__(self, changed: int) -> float:
        return certify.ranmask_beta(self.right, self.kept, changed=changed, generator=generator("beta", *self.key, changed))


@torch.no_grad()
def _noisy_counts(network: Network, tokens: Tokens, sigma: float, number: int, key: Sequence[object]) -> Int[Tensor, "C"]:
    """How often each class is the answer to the row with noise on its embeddings."""
    shape = (int(tokens.lengths[0]), network.width("embedding"))
    total: Tensor | None = None
    with without_dropout(network):
        for noise in random_copies.gaussian_noise(number, shape, sigma, network, key):
            rows = tokens.index(torch.zeros(len(noise), dtype=torch.long)).to(network.device)
            logits = network(rows, {"class_logits"}, {"embedding": Edit(noise)}).class_logits
            counts = logits.argmax(1).cpu().bincount(minlength=logits.shape[1])
            total = counts if total is None else total + counts
    assert total is not None
    return total


def _certificate(name: str, example: Example, predicted: int | None, size: float, bound: float, copies: int) -> Certificate:
    if example.label is None:
        raise ConfigError(f"suite.certified: example '{example.id}' has no label; a classifier is judged by labels.")
    correct = predicted == example.label
    return Certificate(
        certificate=name, example=example.id, predicted=predicted, correct=correct, size=float(size), probability=bound, copies=copies
    )


__all__ = ["Certificate", "CertificateMethod", "Masking", "Smoothing"]
