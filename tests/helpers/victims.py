"""Small trained victims: a model that was never trained says nothing about attacks."""

from functools import cache

import torch
from torch.nn import functional as F

from advalign.models import Network, load
from advalign.types import Example

GOOD, BAD = ("good", "great", "fine", "superb", "lovely"), ("bad", "awful", "poor", "dull", "dire")
FILLER = ("the", "movie", "was", "and", "plot", "acting", "really", "quite")
DIGITS = ("zero", "one", "two", "three", "four", "five")


def sentences(number: int = 60, seed: int = 0) -> list[Example]:
    """Sentences of filler with two words of one sentiment."""
    g = torch.Generator().manual_seed(seed)
    pick = lambda words: words[int(torch.randint(len(words), (), generator=g))]  # noqa: E731
    label_of: dict[str, int] = {}
    while len(label_of) < number:
        label = len(label_of) % 2
        words = [pick(FILLER) for _ in range(2 + len(label_of) % 5)] + [pick((BAD, GOOD)[label]) for _ in range(2)]
        order = torch.randperm(len(words), generator=g).tolist()
        label_of[" ".join(words[i] for i in order)] = label
    return [Example(prompt=text, label=label, id=f"s{i}") for i, (text, label) in enumerate(label_of.items())]


def sums() -> list[Example]:
    """ "one plus two =" -> "three", for every sum up to five."""
    pairs = [(a, b) for a in range(6) for b in range(6 - a)]
    return [
        Example(
            prompt=f"{DIGITS[a]} plus {DIGITS[b]} =", answer=DIGITS[a + b], id=f"{a}+{b}", verify=lambda t, c=DIGITS[a + b]: float(t == c)
        )
        for a, b in pairs
    ]


@cache
def classifier(steps: int = 40, dtype: str = "float32") -> Network:
    examples = sentences(120, seed=1)
    network = load(
        "scratch:encoder-tiny",
        head="classifier",
        tokenizer={"kind": "words"},
        texts=[e.prompt for e in examples],
        max_length=32,
        dtype=dtype,
    )
    tokens, labels = network.encoder.classify([e.prompt for e in examples]), torch.tensor([e.label for e in examples])
    _train(network, steps, 1e-3, lambda: F.cross_entropy(network(tokens, {"class_logits"}).class_logits, labels))
    return network


@cache
def generator_model(steps: int = 120) -> Network:
    examples = sums()
    texts = [text for e in examples for text in (e.prompt, e.answer)]
    network = load("scratch:tiny?hidden_size=64", head="policy", tokenizer={"kind": "words"}, texts=texts, max_length=32)
    tokens = network.encoder.demos([e.prompt for e in examples], [e.answer for e in examples])
    _train(network, steps, 3e-3, lambda: -network(tokens, {"logprobs"}).logprobs.sum() / tokens.target.sum())
    return network


def _train(network, steps, rate, loss_of):
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
    optimizer.zero_grad()
    network.eval()
