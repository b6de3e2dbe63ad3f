"""GGUF files as models: transformers' own reader converts one once, into a folder of safetensors that everything else reads.

$ADVALIGN_CACHE/gguf/<SHA-256 of the file>-<version of this format>-transformers-<version>/
    config.json, model.safetensors (float32, every quantised block unpacked), tokenizer, chat template, manifest.json

The folder is an ordinary dense model. Without ADVALIGN_CACHE it is below $XDG_CACHE_HOME/advalign, else ~/.cache/advalign.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from huggingface_hub import ModelCardData
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging

from advalign import durable
from advalign.errors import ConfigError, excerpt

ENDING = ".gguf"
FORMAT = 2
"""Counts changes of what `_write` puts into a folder: another number is another folder."""
MAGIC = b"GGUF"
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
CACHE = "ADVALIGN_CACHE"
HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[\w./-]+\.gguf)")


def is_name(model: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return model.endswith(ENDING)


def hub_name(model: str) -> tuple[str, str] | None:
    """(hub id, file in it) of `<hub id>/<file>.gguf`, unless that is a file here; None: another name."""
    match = HUB_NAME.fullmatch(model)
    if match is None or model.startswith(("./", "../")) or Path(model).exists():
        return None
    return match["repo"], match["file"]


def hub_file(repo: str, name: str, revision: str | None) -> Path:
    """A file of the hub, downloaded."""
    try:
        return Path(cached_file(repo, name, revision=revision))
    except Exception as error:  # huggingface_hub and transformers raise errors of many classes
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise ConfigError(f"model: '{repo}/{name}' cannot be had from the hub ({reason}); give its hub id and file, or a file.") from error


def only_file(folder: Path, model: str) -> Path | None:
    """The one GGUF file of a folder that holds no other weights; None: it is a folder of another kind. Several are refused."""
    files = sorted(folder.glob(f"*{ENDING}"))
    if not files or any(folder.glob("*.safetensors")):
        return None
    if len(files) > 1 and not all(PART.search(file.name) for file in files):
        raise ConfigError(
            f"model: '{model}' holds {len(files)} GGUF files ({', '.join(file.name for file in files[:4])}); name one: "
            f"{model.rstrip('/')}/{files[0].name}."
        )
    return files[0]


def missing_file(model: str, name: str, place: str, others: Iterable[str]) -> ConfigError:
    """The error for a GGUF file that is not where its name says. `others`: names of files there."""
    nearest = difflib.get_close_matches(name, [other for other in others if other.endswith(ENDING)], n=1, cutoff=0.4)
    return ConfigError(f"model: {place} has no file '{name}'." + (f" Did you mean '{model[: -len(name)]}{nearest[0]}'?" if nearest else ""))


def converted(file: Path) -> Path:
    """The folder of safetensors that a GGUF file was, or is now, converted to. Several processes may ask at once."""
    _check_start(file)
    folder = cache_folder() / "gguf" / f"{digest(file)}-{FORMAT}-transformers-{transformers.__version__}"
    if durable.first_damage(folder, content=False) is None:
        return folder
    with durable.writing(folder, CACHE):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    try:
        if durable.first_damage(folder, content=False) is not None:
            print(f"note: {file.name} is converted to safetensors, once; the result stays in {folder.parent}", file=sys.stderr)
            with _without_progress_bars():
                content = _read(file)
                with durable.replacing(folder, CACHE) as partial:
                    _write(content, partial)
    finally:
        lock.release()
    return folder


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Three bars of transformers for one file."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def cache_folder() -> Path:
    """Where files that were converted once are kept."""
    if own := os.environ.get(CACHE):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "advalign"


def digest(file: Path) -> str:
    """The SHA-256 of a file, computed once for one size and time of change."""
    status = file.stat()
    return _digest(file.resolve(), status.st_size, status.st_mtime_ns)


@functools.lru_cache
def _digest(file: Path, size: int, changed: int) -> str:
    return durable.sha256(file)


def _check_start(file: Path) -> None:
    """Refuses what its name or its first bytes say is not a whole GGUF file."""
    if PART.search(file.name):
        raise ConfigError(
            f"model: {file} is one part of a model that was split; join the parts with llama.cpp (llama-gguf-split --merge) and give that."
        )
    try:
        with file.open("rb") as stream:
            start = stream.read(len(MAGIC))
    except OSError as error:
        raise ConfigError(f"model: {file} cannot be read ({error.strerror}).") from error
    if start != MAGIC:
        raise ConfigError(f"model: {file} is not a GGUF file: it begins with {start!r}, not {MAGIC!r}.")


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What a GGUF file holds, as transformers reads it."""

    model: Any
    """In float32."""
    tokenizer: Any
    """With its chat template."""
    num_tokens: int
    """That the file lists."""
    license: str | None
    """Its short name, such as apache-2.0."""


def _read(file: Path) -> _Content:
    """What a GGUF file holds. Raises ConfigError for one that is not a whole causal model."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(f"model: reading {file} needs the package gguf; pip install 'advalign[gguf]'.") from error
    try:
        reader = gguf.GGUFReader(file)
        num_tokens, licence = _check_metadata(file, reader)
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        model, report = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            **_dense(),
        )
    except ConfigError:
        raise
    except Exception as error:  # gguf, numpy, tokenizers and transformers raise errors of many classes
        if "is not supported" in str(error):
            known = ", ".join(supported_architectures())
            raise ConfigError(f"model: {file}: {_reason(error)} by transformers {transformers.__version__}. Known: {known}.") from error
        raise ConfigError(f"model: {file} cannot be read ({_reason(error)}); give a complete GGUF file of a causal model.") from error
    absent = sorted(name for name in {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if absent:
        raise ConfigError(
            f"model: {file} lacks {len(absent)} of the weights of {type(model).__name__} ({', '.join(absent[:3])}); give a complete file."
        )
    return _Content(model=model, tokenizer=tokenizer, num_tokens=num_tokens, license=licence)


def _dense() -> dict[str, Any]:
    """Arguments of `from_pretrained` that unpack every block; transformers 4 does it without."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _check_metadata(file: Path, reader: Any) -> tuple[int, str | None]:
    """(number of tokens that a file lists, its license). Refuses parts of models, and files that are not models."""
    fields = {name: reader.get_field(name) for name in ("general.type", "general.license", "split.count")}
    values = {name: field.contents() for name, field in fields.items() if field is not None}
    if values.get("split.count", 1) > 1:
        raise ConfigError(f"model: {file} is one part of {values['split.count']}; join them with llama.cpp (llama-gguf-split --merge).")
    if values.get("general.type", "model") != "model":
        raise ConfigError(f"model: {file} holds a GGUF of type '{values['general.type']}'; give one that holds a whole model.")
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is None:
        raise ConfigError(f"model: {file} holds no tokenizer (tokenizer.ggml.tokens); give a file with one.")
    return len(tokens.data), values.get("general.license")


def supported_architectures() -> list[str]:
    """Kinds of models that this version of transformers reads from GGUF."""
    names = set(GGUF_SUPPORTED_ARCHITECTURES)
    with contextlib.suppress(ImportError):  # transformers 4 has one list
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

        names |= set(GGUF_CONFIG_ARCHS)
    return sorted(names - {"general", "tokenizer"})  # sections of the metadata


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return excerpt(f"{type(error).__name__}: {text}".rstrip(": "), 200)


def _write(content: _Content, folder: Path) -> None:
    """An ordinary folder of transformers, with a manifest."""
    content.model.save_pretrained(folder)
    content.tokenizer.save_pretrained(folder)
    # Transformers adds tokens that its own class of tokenizers has by default (<|endoftext|>): the embedding has no row for them.
    file = folder / "tokenizer.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["id"] < content.num_tokens]
    file.write_text(json.dumps(saved, ensure_ascii=False, indent=2), encoding="utf-8")
    if content.license:  # for the cards of models that are trained from it
        (folder / "README.md").write_text(f"---\n{ModelCardData(license=content.license).to_yaml()}\n---\n", encoding="utf-8")
    durable.write_manifest(folder)


__all__ = ["cache_folder", "converted", "digest", "hub_file", "hub_name", "is_name", "missing_file", "only_file", "supported_architectures"]
