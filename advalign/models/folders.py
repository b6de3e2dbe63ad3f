"""Folders of models: where a model's name leads, and what `Network.save_pretrained` wrote there about it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import find_adapter_config_file

from advalign import imports
from advalign.errors import ConfigError

FACTS = "advalign.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_BASE = "base"
MODEL_CONFIG = "config.json"
HEADS_OF_TASKS = {"CAUSAL_LM": "policy", "SEQ_CLS": "classifier", "FEATURE_EXTRACTION": None}  # of peft


def model_folder(model: str) -> Path | None:
    """The folder behind `package:<module>/<folder>` or a path; None: a hub id, or a model from scratch."""
    if model.startswith("package:"):
        module, _, inside = model.removeprefix("package:").partition("/")
        package = imports.package_folder(module, "model")
        if package is None:
            raise ConfigError(f"model: '{model}' needs the package '{module}', which is not installed.")
        return package / inside
    path = Path(model).expanduser()
    return path if not model.startswith("scratch:") and path.is_dir() else None


def hub_adapter(model: str, revision: str | None) -> Path | None:
    """The folder of an adapter on the hub, downloaded; None: the id is that of a model, or of nothing."""
    if find_adapter_config_file(model, revision=revision) is None:
        return None
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))


def saved_facts(folder: Path | None) -> dict[str, Any]:
    """What `save_pretrained` wrote beside the weights: head, length, options of the head."""
    file = None if folder is None else folder / FACTS
    return json.loads(file.read_text()) if file is not None and file.exists() else {}


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
    except (OSError, ValueError):
        return False  # loading the model reports it, in a sentence
    return any(name.endswith("ForSequenceClassification") for name in names)


def holds_adapter(folder: Path | None) -> bool:
    return folder is not None and (folder / ADAPTER_CONFIG).is_file()


def holds_model(folder: Path) -> bool:
    """Whether a folder is a model or an adapter."""
    return (folder / MODEL_CONFIG).is_file() or holds_adapter(folder)


def adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration that peft, or this library in its manner, wrote beside an adapter."""
    file = folder / ADAPTER_CONFIG
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {file} cannot be read ({str(error).splitlines()[0]}); give a folder saved with an adapter.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"model: {file} holds no mapping; give a folder saved with an adapter.")
    return config


def adapter_base(folder: Path) -> str:
    """The model that an adapter folder was trained on: its own subfolder, or a name."""
    name = adapter_config(folder).get("base_model_name_or_path")
    if (folder / ADAPTER_BASE).is_dir():  # it may have moved with the adapter
        return str(folder / ADAPTER_BASE)
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


def verify_hash(folder: Path | None, model: str, expected: str) -> None:
    """Raises ConfigError unless the SHA-256 of model.safetensors is `expected`."""
    if folder is None:
        raise ConfigError(f"model: '{model}' is not a local folder, so its sha256 cannot be checked; give a path or a package.")
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(f"model: {model} holds no model.safetensors, so its sha256 cannot be checked; leave sha256 out.")
    with (folder / "model.safetensors").open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise ConfigError(f"model: {model}/model.safetensors has sha256 {actual}, expected {expected}.")
