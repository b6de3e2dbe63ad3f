"""Model cards: README.md of a saved model, with what its files and, of a trained one, its run say. Names of files appear without folders.

A card ends with the SHA-256 of its text. One that a person has changed no longer fits it, and is never overwritten.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from transformers import __version__ as transformers_version

from advalign.models import adapters, gguf_files
from advalign.models.base import NetworkBase
from advalign.models.folders import model_folder

CARD = "README.md"
MARK = re.compile(r"\n<!-- advalign ([0-9a-f]{64}) -->\n\Z")
"""The end of a card: the digest of what stands before."""
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
PATH = re.compile(r"(?<![\w:/.])(?:~|\.{1,2})?(?:/[^\s/,;:'\"()\[\]{}]+)+/?")
PIPELINES = {"policy": "text-generation", "classifier": "text-classification"}
AUTO_CLASSES = {"policy": "AutoModelForCausalLM", "classifier": "AutoModelForSequenceClassification"}
HEADS = {
    "policy": "language model",
    "classifier": "classifier",
    "score": "scorer (one number per text)",
    "value": "critic (one number per token)",
}


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What a run says of a model that it trained."""

    learner: str
    """Its name in the run."""
    formula: str
    """The losses of the run, as text."""
    stages: Mapping[str, str]
    """{name of a stage: what it trained, for how long}"""
    settings: Mapping[str, str]
    """{setting: its value} that a reader wants to know."""
    datasets: Mapping[str, str] = field(default_factory=dict)
    """{hub id or name of a file, without folders: the same for the text, which may say more}"""
    tags: tuple[str, ...] = ()
    """Kinds of the objectives that trained it, and adversarial-training."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """{metric: value} of its last held-out evaluations."""
    step: int = 0
    """The training step of `metrics`."""


def write(network: NetworkBase, folder: Path, *, place: Path, merged: bool, training: TrainingFacts | None = None) -> None:
    """The card of a model into `folder`, which will be at `place`. A card that stands there and was changed by hand is taken over as it
    is."""
    old = place / CARD
    if old.is_file() and not is_own(text := old.read_text(encoding="utf-8", errors="replace")):
        (folder / CARD).write_text(text, encoding="utf-8")
        return
    content = text_of(network, place, merged=merged, training=training)
    (folder / CARD).write_text(f"{content}\n<!-- advalign {_digest(content)} -->\n", encoding="utf-8")


def is_own(text: str) -> bool:
    """Whether a card is as this library wrote it."""
    mark = MARK.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()])


def text_of(network: NetworkBase, place: Path, *, merged: bool, training: TrainingFacts | None = None) -> str:
    """YAML head and body."""
    is_adapter = adapters.has_adapter(network.model) and not merged
    data = _card_data(network, is_adapter, training)
    name = _public_name(network.source)
    origin = f"from {_code(name)}" if name else "from scratch"
    kind = f"{'LoRA adapter of a ' if is_adapter else ''}{HEADS[network.head]}"
    parts = [f"---\n{data.to_yaml()}\n---", f"# {place.name}", f"A {kind} ({type(network.model).__name__}), {origin}, saved by advalign."]
    if training is not None:
        parts += _training(training)
    parts += ["## How to load it", *_loading(network, is_adapter, name)]
    parts += ["## Caveats", "\n".join(f"* {sentence}" for sentence in _caveats(network, training))]
    return "\n\n".join(parts) + "\n"


def without_folders(text: str) -> str:
    """A text in which every path of a file system is its last name alone."""
    return PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], text)


def _public_name(source: str | None) -> str | None:
    """A model's name; of a folder or a file, the last part alone."""
    return Path(source).name if source and Path(source).expanduser().exists() else source


def _card_data(network: NetworkBase, is_adapter: bool, training: TrainingFacts | None) -> ModelCardData:
    inherited = _base_card(network)
    source = network.source or ""
    is_hub_id = bool(HUB_ID.fullmatch(source)) and not Path(source).exists()
    hub_file = gguf_files.hub_name(source)
    base = source if is_hub_id else hub_file[0] if hub_file else inherited.get("base_model")
    pipeline = PIPELINES.get(network.head)
    tags = ["advalign", *(["lora"] if is_adapter else []), *(training.tags if training else ())]
    return ModelCardData(
        base_model=base,
        datasets=[name for name in training.datasets if ":" not in name] or None if training else None,
        library_name="peft" if is_adapter else "transformers" if pipeline else "advalign",
        license=inherited.get("license"),
        pipeline_tag=pipeline,
        tags=tags,
    )


def _base_card(network: NetworkBase) -> dict[str, Any]:
    """The YAML head of the card of its base, where there is one on this machine."""
    if network.source is None:
        return {}
    folder = model_folder(network.source, network.revision)
    file = try_to_load_from_cache(network.source, CARD, revision=network.revision) if folder is None else folder / CARD
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return {}
    try:
        return dict(ModelCard(Path(file).read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict())
    except Exception:  # yaml and huggingface_hub raise errors of many classes
        return {}  # a card is for people; what it says is passed on where it can be read


def _training(training: TrainingFacts) -> list[str]:
    stages = [f"* {name or 'training'}: {text}" for name, text in training.stages.items()]
    settings = [f"* {name}: {value}" for name, value in training.settings.items()]
    parts = ["## Training", f"Learner {_code(training.learner)} of this run:", f"```\n{without_folders(training.formula)}\n```"]
    parts += ["\n".join((*stages, *settings))]
    if training.datasets:
        parts.append(f"Data: {', '.join(map(_code, training.datasets.values()))}.")
    if training.metrics:
        rows = [f"| {name} | {value:.4g} |" for name, value in training.metrics.items()]
        parts += [f"## Held-out evaluation, step {training.step}", "\n".join(("| metric | value |", "|---|---|", *rows))]
    return parts


def _code(text: str) -> str:
    """A name as code, on one line."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _loading(network: NetworkBase, is_adapter: bool, name: str | None) -> list[str]:
    lines = ["from advalign.models import load", "", 'network = load("path/to/this/folder")']
    if is_adapter and network.head in AUTO_CLASSES:
        lines += ["", "from peft import PeftModel", "", f'base = load("{name or "path/to/this/folder/base"}").model']
        lines += ['model = PeftModel.from_pretrained(base, "path/to/this/folder")']
    elif network.head in AUTO_CLASSES:
        auto = AUTO_CLASSES[network.head]
        lines += ["", f"from transformers import AutoTokenizer, {auto}", "", f'model = {auto}.from_pretrained("path/to/this/folder")']
        lines += ['tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")']
    return ["```python\n" + "\n".join(lines) + "\n```", f"Saved with transformers {transformers_version}."]


def _caveats(network: NetworkBase, training: TrainingFacts | None) -> list[str]:
    sentences = ["This card was written by a program: what the model is for, and where it fails, is for a person to add."]
    if network.head not in AUTO_CLASSES:
        sentences.append("Its head is not one of transformers, which reads the body alone.")
    if training is not None and not training.metrics:
        sentences.append("The run measured nothing on held-out data.")
    elif training is not None:
        sentences.append("The numbers above are of one run, without intervals, and of prompts that nobody attacked.")
    if training is not None and "adversarial-training" in training.tags:
        sentences.append("Training against one threat model says nothing about others; `advalign eval` attacks the model as it is.")
    return sentences


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
