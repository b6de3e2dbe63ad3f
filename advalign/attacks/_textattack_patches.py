"""State of the process that TextAttack reads or changes, replaced for the length of a block and restored after it."""

import contextlib
import importlib
import random
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """TextAttack draws from the global generators of `random`, numpy and torch: seeds all three, then restores them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed % 2**63)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def nltk_stopwords(words: frozenset[str]) -> Iterator[None]:
    """nltk's stop words are `words`, from memory, and nltk downloads nothing."""
    import nltk

    # nltk may hang a lazy view on `nltk.corpus`, which is another object than the module itself.
    modules = {id(m): m for m in (importlib.import_module("nltk.corpus"), nltk.corpus)}
    corpus = types.SimpleNamespace(words=lambda language="english": sorted(words))
    with contextlib.ExitStack() as stack:
        for module in modules.values():
            stack.enter_context(patched(module, stopwords=corpus))
        stack.enter_context(patched(nltk, download=lambda *args, **kwargs: False))
        yield


@contextlib.contextmanager
def patched(module: Any, **names: Any) -> Iterator[None]:
    """`module.name` is replaced inside the block."""
    # Read from the dictionary: a static method must go back as it was, and a lazy corpus must not be touched.
    before = {name: vars(module)[name] for name in names if name in vars(module)}
    for name, value in names.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name in names:
            if name in before:
                setattr(module, name, before[name])
            else:
                delattr(module, name)
