"""Certified rates: on how many examples nothing within a size can change the answer of a smoothed classifier.

    suite:  certified: {smoothing: {sigma: 0.5, n: 1000}, ranmask: {rate: 0.7, n: 5000}}

A certificate is about the vote over random copies, not about the network alone. It holds with probability 1 - alpha per
example over the copies drawn, whoever attacks, and for certain where all copies could be enumerated. Streams are keyed by
(seed, certificate, example): order, batches and other examples change nothing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from advalign import builder
from advalign.engine.rng import generator, rng
from advalign.errors import ConfigError, unknown
from advalign.evaluation.suites.log import _whole_lines
from advalign.functional import certify
from advalign.functional.intervals import wilson
from advalign.models import word_masking
from advalign.models.perturb import without_dropout
from advalign.targets import voting
from advalign.targets.target import ClassifierTarget
from advalign.types import Edit, Example, Tokens

BETAS = ("one", "estimate")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is certified of one example. predicted: the class of the smoothed classifier, None where it abstains. size: the
    largest radius, or number of words, within which no change alters it. probability: the lower bound on the class's share.
    copies: those that were run. correct: `predicted` is the example's label."""

    certificate: str
    example: str
    predicted: int | None
    correct: bool
    size: float
    probability: float
    copies: int


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """R = sigma Phi^-1(p_A): no edit of the embeddings of norm below R changes the vote   (arXiv:1902.02918, section 3.2.2).

    The norm is L2 over all real tokens of the row; `sigma`, `radii` and R are in units of the mean embedding norm or absolute.
    n0, n, alpha: copies that choose the class, copies that bound its probability, the probability that the bound is wrong.
    """

    sigma: float
    relative_to: str = "mean_embedding_norm"
    n0: int = 100  # section 4
    n: int = 1000  # section 4: 100,000, which caps R at 3.8 sigma; 1000 caps it at 2.5 sigma
    alpha: float = 0.001  # section 4
    radii: Sequence[float] = ()

    def __post_init__(self) -> None:
        _check(self, "smoothing", self.radii)
        if not self.sigma > 0:
            raise ConfigError(f"certified.smoothing.sigma: {self.sigma} given; the standard deviation of the noise is above 0.")

    @property
    def sizes(self) -> tuple[float, ...]:
        return tuple(self.radii) or tuple(self.sigma * x for x in (0.0, 0.5, 1.0, 1.5, 2.0))

    @property
    def threat(self) -> str:
        unit = "mean embedding norms" if self.relative_to == "mean_embedding_norm" else "absolute"
        return f"L2 over the row's embeddings, {unit}, sigma {self.sigma:g}"

    def certify(self, network: Any, name: str, example: Example, seed: int) -> Certificate:
        sigma = voting.scale(network, self.sigma, self.relative_to, "certified.smoothing")
        tokens = ClassifierTarget(network).tokens([example])
        counts = [
            _noisy_counts(network, tokens, sigma, number, (seed, "certified", name, example.id, draw))
            for draw, number in (("selection", self.n0), ("estimation", self.n))
        ]
        predicted, bound = certify.certify(*counts, alpha=self.alpha)
        radius = 0.0 if predicted is None else certify.smoothing_radius(bound, sigma=self.sigma)
        return _certificate(name, example, predicted, radius, bound, self.n0 + self.n)


@dataclass(frozen=True, kw_only=True)
class Masking:
    """p_A - beta Delta > 1/2, Delta = 1 - C(T - d, k) / C(T, k): no change of d words alters the vote   (RanMASK, arXiv:2105.03743).

    Words are separated by white space; each may become any other word, and their number stays. Only the prompt of a pair is
    masked. A text with at most `n` sets of k kept words is answered by all of them: then p_A is exact, and nothing is left to
    chance. beta: "one", or "estimate" (the paper's, from the clean text), which certifies nothing.
    """

    rate: float = 0.7
    n0: int = 100
    n: int = 1000  # released code: 5000
    alpha: float = 0.001  # released code: 0.05
    words: Sequence[int] = (1, 2, 3, 5)
    beta: str = "one"
    replace: str = "mask"

    def __post_init__(self) -> None:
        _check(self, "ranmask", self.words)
        voting.check_rate(self.rate, "certified.ranmask")
        if self.beta not in BETAS:
            raise unknown("certified.ranmask.beta", "choice", self.beta, BETAS)
        if self.replace not in word_masking.REPLACEMENTS:
            raise unknown("certified.ranmask.replace", "replacement", self.replace, word_masking.REPLACEMENTS)

    @property
    def sizes(self) -> tuple[float, ...]:
        return (0, *(d for d in self.words if d))

    @property
    def threat(self) -> str:
        return f"words changed, {self.rate:.0%} masked" + (", beta ESTIMATED: no certificate" if self.beta == "estimate" else "")

    def certify(self, network: Any, name: str, example: Example, seed: int) -> Certificate:
        mask, _ = word_masking.mask_token(network.encoder.tokenizer, self.replace, "certified.ranmask")
        target, split = ClassifierTarget(network), example.prompt.split()
        kept = certify.ranmask_kept(len(split), rate=self.rate)

        def votes(sets: Sequence[frozenset[int]]) -> Int[Tensor, "N"]:
            copies = [voting.hide(split, chosen, mask) for chosen in sets]
            logits = target.predict(copies, None if example.pair is None else [example.pair] * len(copies))
            classes.append(logits.shape[1])
            return logits.argmax(1)

        classes: list[int] = []
        if math.comb(len(split), kept) <= self.n:
            sets = voting.all_sets(len(split), kept)
            found = votes(sets)
            chosen = int(found.bincount(minlength=classes[0]).argmax())
            bound = float((found == chosen).double().mean())
        else:
            streams = {draw: rng(seed, "certified", name, example.id, draw) for draw in ("selection", "estimation")}
            selected = votes(voting.draw(len(split), kept, self.n0, streams["selection"]))
            sets = voting.draw(len(split), kept, self.n, streams["estimation"])
            found = votes(sets)
            counts = [v.bincount(minlength=classes[0]) for v in (selected, found)]
            chosen = int(counts[0].argmax())
            _, bound = certify.certify(*counts, alpha=self.alpha)
        beta = None if self.beta == "one" else _Beta(found == chosen, sets, len(split), (seed, name, example.id))
        size = certify.ranmask_words(bound, words=len(split), kept=kept, beta=beta)
        return _certificate(name, example, None if size is None else chosen, size or 0, bound, target.num_queries)


class _Beta:
    """beta as a function of the number of changed words, estimated from the copies that were run."""

    def __init__(self, right: Bool[Tensor, "N"], sets: Sequence[frozenset[int]], number: int, key: Sequence[object]) -> None:
        self.right, self.key = right, key
        self.kept = torch.tensor([[i in chosen for i in range(number)] for chosen in sets])

    def __call__(self, changed: int) -> float:
        return certify.ranmask_beta(self.right, self.kept, changed=changed, generator=generator("beta", *self.key, changed))


KINDS: Mapping[str, type] = {"smoothing": Smoothing, "ranmask": Masking}


def build(config: Any, path: str = "suite.certified") -> dict[str, Smoothing | Masking]:
    """{name: certificate} from `{name: {kind: smoothing, sigma: ...}}`; a name that is a kind needs no kind."""
    entries = builder.expect(config, Mapping, path).items()
    return {str(n): builder.build_choice(KINDS, "kind of certificate", v, f"{path}.{n}", default=str(n)) for n, v in entries}


def run(
    certificates: Mapping[str, Any], network: Any, examples: Sequence[Example], *, seed: int = 0, folder: str | Path | None = None
) -> dict[str, list[Certificate]]:
    """{name: what is certified of every example}. With `folder`: one line of certified.jsonl each, at once; a killed run
    goes on behind the last whole line."""
    if certificates and network.head != "classifier":
        raise ConfigError(f"suite.certified: a network with head '{network.head}' given; only the vote of a classifier is certified.")
    network = network.network if isinstance(network, voting.Ensemble) else network
    path = None if folder is None or not certificates else Path(folder) / "certified.jsonl"
    done = [] if path is None else [Certificate(**json.loads(line)) for line in _whole_lines(path)]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_line(c) for c in done), encoding="utf-8")
    work = [(name, example) for name in certificates for example in examples]
    for name, example in work[len(done) :]:
        done.append(certificates[name].certify(network, name, example, seed))
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                file.write(_line(done[-1]))
    return {name: [c for c in done if c.certificate == name] for name in certificates}


def rates(name: str, certificate: Any, found: Sequence[Certificate]) -> list[dict[str, Any]]:
    """One row per size: the share that is right and certified there, with a Wilson interval over the examples."""
    total = max(len(found), 1)
    rows = []
    for size in certificate.sizes:
        number = sum(c.correct and c.size >= size for c in found)
        low, high = wilson(number, len(found))
        rows.append(
            {
                "certificate": name,
                "threat": certificate.threat,
                "within": size,
                "certified accuracy": number / total,
                "low": low,
                "high": high,
            }
            | {"abstained": sum(c.predicted is None for c in found) / total, "n": len(found)}
            | {"copies": sum(c.copies for c in found) / total}
        )
    return rows


# --------------------------------------------------------------------------------------------------------- helpers


@torch.no_grad()
def _noisy_counts(network: Any, tokens: Tokens, sigma: float, number: int, key: Sequence[object]) -> Int[Tensor, "C"]:
    """How often each class is the answer to the row with noise on its embeddings."""
    shape = (int(tokens.lengths[0]), network.width("embedding"))
    total: Tensor | None = None
    with without_dropout(network):
        for noise in voting.gaussian(number, shape, sigma, network, key):
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


def _check(given: Any, where: str, sizes: Sequence[float]) -> None:
    for name in ("n0", "n"):
        if getattr(given, name) < 1:
            raise ConfigError(f"certified.{where}.{name}: {getattr(given, name)} given; at least 1 copy is needed.")
    if not 0 < given.alpha < 1:
        raise ConfigError(f"certified.{where}.alpha: {given.alpha} given; the probability of a wrong bound, between 0 and 1.")
    if any(size < 0 for size in sizes):
        raise ConfigError(f"certified.{where}: a negative size in {list(sizes)}; radii and numbers of words are at least 0.")


def _line(certificate: Certificate) -> str:
    return json.dumps(asdict(certificate)) + "\n"


__all__ = ["Certificate", "Masking", "Smoothing", "build", "rates", "run"]
