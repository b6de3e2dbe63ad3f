"""The import of TextAttack without a trace in the process.

Importing textattack 0.3.11 changes its host process: it sets TOKENIZERS_PARALLELISM and KMP_ variables, redirects the Hugging
Face caches when TA_CACHE_DIR is set, downloads nltk data, marks that download as done in the user's cache, disables every
logger made before it, and cannot be imported without flair and without nltk's stop words. `load` undoes or supplies all of it.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from typing import Any

from advalign.attacks._stopwords import STOPWORDS
from advalign.attacks._textattack_patches import nltk_stopwords, seeded
from advalign.errors import ConfigError

HELP = (
    "Install it with `uv pip install textattack==0.3.11 langdetect` under the flair override, or with `pip install advalign[textattack]`."
)


def load() -> Any:
    """The module `_textattack_adapter`, with TextAttack behind it. Cheap after the first call."""
    first = "textattack" not in sys.modules
    with contextlib.ExitStack() as stack:
        if first:
            if importlib.util.find_spec("textattack") is None:
                raise ConfigError(f"attacks.textattack: the package textattack is not installed. {HELP}")
            stack.enter_context(seeded(0))
            stack.enter_context(_environment())  # transformers 4 imports scikit-learn, which sets KMP_ variables
            for name in ("transformers", "datasets", "huggingface_hub", "nltk"):  # before the caches point elsewhere
                importlib.import_module(name)
            stack.enter_context(_environment(TA_CACHE_DIR=stack.enter_context(tempfile.TemporaryDirectory())))
            stack.enter_context(_loggers())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(nltk_stopwords(STOPWORDS))
            stack.enter_context(_flair())
        adapter = importlib.import_module("advalign.attacks._textattack_adapter")
    if first:
        adapter.restore_settings()
    return adapter


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """The environment with `variables`, restored afterwards."""
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
    """TextAttack's `dictConfig` disables all loggers that exist; they are enabled again. Its own messages are not shown."""
    loggers = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    disabled, level = {logger: logger.disabled for logger in loggers}, logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        for logger, value in disabled.items():
            logger.disabled = value


@contextlib.contextmanager
def _flair() -> Iterator[None]:
    """flair if it can be imported; else, while TextAttack is imported, empty modules with the four names it imports."""
    if importlib.util.find_spec("flair") is not None:
        try:
            importlib.import_module("flair.models")
        except Exception:  # a broken installation may raise anything; the empty modules serve
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
