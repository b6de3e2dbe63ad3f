"""What the TextAttack adapter needs before TextAttack itself is imported: a quiet import and offline resources.

Importing textattack 0.3.11 changes its host process: it sets TOKENIZERS_PARALLELISM and KMP_ variables, redirects the Hugging
Face caches when TA_CACHE_DIR is set, downloads nltk data, marks that download as done in the user's cache, disables every
logger made before it, and cannot be imported without flair and without nltk's stop words. `load` undoes or supplies all of it.
"""

import contextlib
import gzip
import importlib
import importlib.machinery
import importlib.util
import json
import logging
import os
import random
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advalign.errors import ConfigError

HELP = (
    "Install it with `uv pip install textattack==0.3.11 langdetect` under the flair override, or with `pip install advalign[textattack]`."
)

# English function words, by class. Negations are among them, as in the usual lists: an attack that adds or drops "not" changes the meaning.
STOPWORDS = frozenset(
    """
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself
    they them their theirs themselves one who whom whose which what this that these those
    a an the some any each every either neither both all few more most much many several such other another own same no not nor none
    am is are was were be been being have has had having do does did doing will would shall should can could may might must ought
    in on at by for with about against between among into through during before after above below to from up down of off over under
    within without upon across along around near since until toward towards per via
    and or but if because as while than although though unless whether so yet
    here there where when why how again further then once now just only very too also ever never still even almost rather quite
    i'm i've i'll i'd you're you've you'll you'd he's he'll he'd she's she'll she'd it's it'll we're we've we'll we'd they're they've
    they'll they'd that's that'll there's here's who's what's let's
    don't doesn't didn't isn't aren't wasn't weren't haven't hasn't hadn't won't wouldn't shan't shouldn't can't cannot couldn't mustn't
    mightn't needn't ain't s t d ll m o re ve y
    """.split()
)


def load() -> Any:
    """The module of seams, with TextAttack behind it, imported without a trace in the process. Cheap after the first time."""
    ours = "textattack" not in sys.modules
    with contextlib.ExitStack() as stack:
        if ours:
            if importlib.util.find_spec("textattack") is None:
                raise ConfigError(f"attacks.textattack: the package textattack is not installed. {HELP}")
            stack.enter_context(generators(0))
            stack.enter_context(_environment())  # transformers 4 imports scikit-learn, which sets KMP_ variables
            for name in ("transformers", "datasets", "huggingface_hub", "nltk"):  # before the caches point elsewhere
                importlib.import_module(name)
            stack.enter_context(_environment(TA_CACHE_DIR=stack.enter_context(tempfile.TemporaryDirectory())))
            stack.enter_context(_loggers())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(nltk_words(STOPWORDS))
            stack.enter_context(_flair())
        seams = importlib.import_module("advalign.attacks._textattack_seams")
    if ours:
        seams.settle()
    return seams


@contextlib.contextmanager
def generators(seed: int) -> Iterator[None]:
    """TextAttack draws from the global generators of `random`, numpy and torch: seed all three, then put them back."""
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
def nltk_words(words: frozenset[str]) -> Iterator[None]:
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


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _loggers() -> Iterator[None]:
    """TextAttack's `dictConfig` disables all loggers that exist; they are enabled again. Its own chatter is not shown."""
    known = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    disabled, level = {logger: logger.disabled for logger in known}, logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        for logger, value in disabled.items():
            logger.disabled = value


@contextlib.contextmanager
def _flair() -> Iterator[None]:
    """flair if it can be imported; else, while TextAttack is imported, an empty stand-in with the four names it asks for."""
    if importlib.util.find_spec("flair") is not None:
        try:
            importlib.import_module("flair.models")
        except Exception:  # whatever a broken installation raises, the stand-in serves
            _forget("flair")
        else:
            yield
            return
    root, data, models = (types.ModuleType(name) for name in ("flair", "flair.data", "flair.models"))
    for module in (root, data, models):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
    vars(root).update(__path__=[], data=data, models=models, device=None)
    vars(data).update(Sentence=type("Sentence", (), {}), Tokenizer=type("Tokenizer", (), {}))
    vars(models).update(SequenceTagger=type("SequenceTagger", (), {}))
    try:
        yield
    finally:
        _forget("flair")


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


# ------------------------------------------------------------------------------------------------- resources


def check(argument: str, given: str | None) -> None:
    """A file that is named must be there."""
    if given is not None:
        _file(argument, given)


@lru_cache(maxsize=4)
def lexicon(argument: str, given: str) -> tuple[Mapping[str, tuple[str, ...]], Mapping[str, frozenset[str]]]:
    """({word: substitutes}, {word: parts of speech}) of a JSON object: word -> list, or word -> {n, v, a, r: list}."""
    table = _table(argument, given)
    words, tags = {}, {}
    for word, entry in table.items():
        by_tag = entry if isinstance(entry, dict) else {"": entry}
        # A word of several parts of speech has one list of substitutes; the part-of-speech constraint sorts them out.
        words[word] = tuple(dict.fromkeys(w for ws in by_tag.values() for w in ws if w != word))
        tags[word] = frozenset(by_tag) - {""}
    return words, tags


def entities(argument: str, given: str) -> Mapping[str, str]:
    """{word: type of named entity} of a JSON object."""
    table = _table(argument, given)
    if wrong := next((word for word, kind in table.items() if not isinstance(kind, str)), None):
        raise ConfigError(f"attacks.textattack.{argument}: '{wrong}' has no type of named entity; 'checklist' reads word -> PER or LOC.")
    return table


def _table(argument: str, given: str) -> dict[str, Any]:
    path = _file(argument, given)
    content = path.read_bytes()
    table = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    if not isinstance(table, dict):
        raise ConfigError(f"attacks.textattack.{argument}: {path} holds a JSON {type(table).__name__}; an object word -> words is needed.")
    return table


def stopwords(given: str | None) -> frozenset[str]:
    if given is None:
        return STOPWORDS
    return frozenset(_file("stopwords", given).read_text(encoding="utf-8").split())


def _file(argument: str, given: str) -> Path:
    path = Path(given).expanduser()
    if not path.is_file():
        kind = "text file of words" if argument == "stopwords" else "JSON file (plain or .gz)"
        raise ConfigError(f"attacks.textattack.{argument}: there is no file {path}; a {kind} is needed.")
    return path


def model_path(given: str, where: str = "attacks.textattack") -> str:
    """A folder or hub id for `from_pretrained`; `package:module/folder` is the folder of an installed package."""
    if not given.startswith("package:"):
        return given
    module, _, inside = given.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{where}: '{given}' needs the package '{module}', which is not installed.")
    return str(Path(spec.origin).parent / inside)
