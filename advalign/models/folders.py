"""Folders of models: where a model's name leads, and what `Network.save_pretrained` wrote there about it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from huggingface_hub import snapshot_download
from transformers.utils import find_adapter_config_file

from advalign import imports
from advalign.checked import check
from advalign.errors import ConfigError, unknown
from advalign.models import gguf_files
from advalign.ranges import Count, ProperFraction, Words, whole

FACTS = "advalign.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_BASE = "base"
MODEL_CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
JSON_FILES = (MODEL_CONFIG, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", ADAPTER_CONFIG, INDEX)
"""Files of a folder that transformers and peft take for objects of JSON."""
CONFIG_TYPES: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), Annotated[int, whole(1, 10_000)]),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "vocab_size"), Count),
    "model_type": Words,
    "architectures": Sequence[str],
    "id2label": Mapping[str, str],
}
"""{field of a configuration of transformers: what its value is}, of those that transformers takes as they are"""
FACT_TYPES: dict[str, Any] = {
    "head": Literal["policy", "classifier", "score", "value"],
    "pooling": Literal["last", "mean", "first"],
    "max_length": Count,
    "bidirectional": bool,
    "chat_template_kwargs": Mapping[str, Any],
    "special_tokens_in_text": Literal["text", "tokens"],
    "truncation": Literal["error", "left", "right"],
    "head_dropout": ProperFraction,
    "spectral_norm": bool,
    "num_features": Count,
    "num_labels": Count,
    "class_names": Sequence[str],
    "base_fingerprint": str,
}
"""{name in FACTS: what its value is}"""
HEADS_OF_TASKS = {"CAUSAL_LM": "policy", "SEQ_CLS": "classifier", "FEATURE_EXTRACTION": None}  # of peft


def model_folder(model: str, revision: str | None = None) -> Path | None:
    """The folder behind `package:<module>/<folder>`, a path or a GGUF file; None: a hub id, or a model from scratch. `revision`: of a GGUF
    file on the hub."""
    place = _place(model, revision)
    if place is None:
        return None
    file = _gguf_file(place, model)
    folder = place if file is None else gguf_files.converted(file)
    check_files(folder)
    return folder


def _gguf_file(place: Path, model: str) -> Path | None:
    """The GGUF file that a place is, or holds in the place of other weights; None: neither."""
    return place if place.is_file() else gguf_files.only_file(place, model)


def _place(model: str, revision: str | None) -> Path | None:
    """The folder or the GGUF file that a model's name leads to; None: a hub id, or a model from scratch."""
    if model.startswith("package:"):
        return _package_place(model)
    if model.startswith("scratch:"):
        return None
    if not model.strip():
        raise ConfigError(f"model: {model!r} given; a model's folder, a hub id or scratch:<preset> is expected.")
    try:
        path = Path(model).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # too long a name, or the home of nobody
        raise ConfigError(
            f"model: '{model[:100]}' cannot be opened ({error.strerror if isinstance(error, OSError) else error})."
        ) from error
    if is_file and gguf_files.is_name(model):
        return path
    if is_file:
        raise ConfigError(f"model: '{model}' is a file, and a model is a folder with config.json and its weights; give the folder.")
    if is_folder:
        return path
    if gguf_files.is_name(model):
        if (names := gguf_files.hub_name(model)) is not None:
            return gguf_files.hub_file(*names, revision)
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise gguf_files.missing_file(model, path.name, f"the folder '{path.parent}'", others)
    if model.startswith(("/", "./", "../", "~")):
        others = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(path.name, others, n=1)
        raise ConfigError(f"model: no folder '{model}'." + (f" Did you mean '{path.parent / nearest[0]}'?" if nearest else ""))
    return None


def _package_place(model: str) -> Path:
    """The folder or GGUF file behind `package:<module>/<folder>`, which lies inside the package."""
    module, _, inside = model.removeprefix("package:").partition("/")
    package = imports.package_folder(module, "model")
    if package is None:
        raise ConfigError(f"model: '{model}' needs the package '{module}', which is not installed.")
    place = package / inside
    is_inside = bool(inside) and place.resolve().is_relative_to(package.resolve())
    if is_inside and gguf_files.is_name(inside):
        if not place.is_file():
            others = [str(other.relative_to(package)) for other in package.rglob(f"*{gguf_files.ENDING}")]
            raise gguf_files.missing_file(model, inside, f"the package '{module}'", others)
        return place
    if not is_inside or not place.is_dir():
        raise ConfigError(f"model: the package '{module}' has no folder '{inside}' inside it.")
    return place


def hub_adapter(model: str, revision: str | None) -> Path | None:
    """The folder of an adapter on the hub, downloaded; None: the id is that of a model, or of nothing."""
    if find_adapter_config_file(model, revision=revision) is None:
        return None
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))


def saved_facts(folder: Path | None) -> dict[str, Any]:
    """What `save_pretrained` wrote beside the weights: head, length, options of the head."""
    file = None if folder is None else folder / FACTS
    if file is None or not _is_there(file):
        return {}
    facts = read_object(file)
    for name, value in facts.items():
        if name not in FACT_TYPES:
            raise unknown(f"model: {file}", "fact", str(name), FACT_TYPES)
        check(FACT_TYPES[name], value, f"model: {file}: {name}")
    return facts


def read_object(file: Path) -> dict[str, Any]:
    """The object that a file of JSON holds. Raises ConfigError for anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise ConfigError(f"model: {file} cannot be read ({reason}); give a complete folder.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"model: {file} holds no mapping; give a complete folder.")
    return content


def check_files(folder: Path) -> None:
    """Refuses a folder before any library reads it: a file of JSON that is not an object, an index whose shards are not there, weights in
    pickles alone."""
    objects = {name: read_object(folder / name) for name in JSON_FILES if _is_there(folder / name)}
    if INDEX in objects:
        _check_index(objects[INDEX], folder)
    for name, annotation in CONFIG_TYPES.items():
        if objects.get(MODEL_CONFIG, {}).get(name) is not None:
            check(annotation, objects[MODEL_CONFIG][name], f"model: {folder / MODEL_CONFIG}: {name}")
    if holds_model(folder) and not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for ending in ("bin", "pt", "pth", "ckpt") for file in folder.glob(f"*.{ending}"))
        if pickles:
            raise ConfigError(
                f"model: {folder} holds its weights in {pickles[0]} alone, a pickle, which is not read, since that runs code; save it as "
                "safetensors (model.save_pretrained of transformers does)."
            )


def _check_index(index: Mapping[str, Any], folder: Path) -> None:
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise ConfigError(f"model: {folder / INDEX} has no weight_map of names of files; give a complete folder.")
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard:
            raise ConfigError(f"model: {folder / INDEX} names '{shard}', which is not a file of this folder.")
        if not (folder / shard).is_file():
            raise ConfigError(f"model: {folder / INDEX} names '{shard}', which is not there; give a complete folder.")


def _is_there(file: Path) -> bool:
    """Whether there is something of this name, be it a link to nothing."""
    return file.exists() or file.is_symlink()


def has_classes(model: str) -> bool:
    """Whether a model is a classifier already, so that its configuration says how many classes it has."""
    folder = model_folder(model)
    facts = saved_facts(folder)
    if "head" in facts or holds_adapter(folder):
        return facts.get("head") == "classifier" or "num_labels" in facts
    if model.startswith(("scratch:", "learner:", "latent:")):
        return False
    from transformers import AutoConfig

    try:
        names = AutoConfig.from_pretrained(folder or model, trust_remote_code=False).architectures or ()
    except Exception:  # transformers raises errors of many classes
        return False  # loading the model reports it, in a sentence
    return any(name.endswith("ForSequenceClassification") for name in names)


def holds_adapter(folder: Path | None) -> bool:
    return folder is not None and (folder / ADAPTER_CONFIG).is_file()


def holds_model(folder: Path) -> bool:
    """Whether a folder is a model or an adapter."""
    return (folder / MODEL_CONFIG).is_file() or holds_adapter(folder)


def adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration that peft, or this library in its manner, wrote beside an adapter."""
    return read_object(folder / ADAPTER_CONFIG)


def adapter_base(folder: Path) -> str:
    """The model that an adapter folder was trained on: its own subfolder, or a name."""
    name = adapter_config(folder).get("base_model_name_or_path")
    if (folder / ADAPTER_BASE).is_dir():  # it may have moved with the adapter
        return str(folder / ADAPTER_BASE)
    if name and not isinstance(name, str):
        raise ConfigError(f"model: {folder}/{ADAPTER_CONFIG} has base_model_name_or_path {name!r}; the name of a model is expected.")
    if not name:
        raise ConfigError(f"model: {folder}/{ADAPTER_CONFIG} names no base, and there is no folder '{ADAPTER_BASE}' beside it.")
    if Path(name).expanduser().resolve() == folder.resolve():
        raise ConfigError(f"model: {folder} holds an adapter and its own base; put the adapter in a folder of its own.")
    return str(name)


def saved_head(folder: Path | None) -> str | None:
    """The head that a folder was saved with, by what `save_pretrained` wrote or by the task of an adapter; None: neither says."""
    head = saved_facts(folder).get("head")
    if head is None and folder is not None and holds_adapter(folder):
        task = adapter_config(folder).get("task_type")
        if task is not None and task not in HEADS_OF_TASKS:
            raise ConfigError(f"model: the adapter in {folder} is of task_type {task}; known: {', '.join(HEADS_OF_TASKS)}.")
        head = HEADS_OF_TASKS.get(str(task))
    return head


def verify_hash(folder: Path | None, model: str, expected: str, revision: str | None = None) -> None:
    """Raises ConfigError unless the SHA-256 of model.safetensors, or of the GGUF file, is `expected`."""
    place = _place(model, revision)
    if place is None or folder is None:
        raise ConfigError(f"model: '{model}' is not a local folder, so its sha256 cannot be checked; give a path or a package.")
    file = _gguf_file(place, model) or folder / "model.safetensors"
    if not file.is_file():
        raise ConfigError(f"model: {model} holds no model.safetensors, so its sha256 cannot be checked; leave sha256 out.")
    if (actual := gguf_files.digest(file)) != expected.lower():
        name = model if model.endswith(file.name) else f"{model}/{file.name}"
        raise ConfigError(f"model: {name} has sha256 {actual}, expected {expected}.")
