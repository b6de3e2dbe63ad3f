"""Networks as folders that `advalign.models.load` and, but for a scalar head, transformers can read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from advalign.errors import ConfigError
from advalign.models import adapter_files, adapters, architecture, loading_arguments, model_card
from advalign.models.base import NetworkBase
from advalign.models.folders import FACTS, saved_facts
from advalign.models.model_card import TrainingFacts


def save(
    network: NetworkBase, path: Path, *, merged: bool, place: Path | None = None, card: bool = True, training: TrainingFacts | None = None
) -> None:
    """The whole model, or the adapter alone where there is one (then peft reads it too), unless it is to be `merged`. `place`: where the
    folder will be, if it is moved. `card`: with a model card, which says what the `training` was."""
    check_exportable(network)
    if merged:
        _check_mergeable(network)
    path.mkdir(parents=True, exist_ok=True)
    facts = network.facts
    if adapters.has_adapter(network.model) and not merged:
        facts |= adapter_files.save(network, path, facts, place or path)
    else:
        adapter_files.remove_files(path)
        (adapters.merge_adapter(network.model) if merged else network.model).save_pretrained(path)
    network.encoder.tokenizer.save_pretrained(path)
    (path / FACTS).write_text(json.dumps(facts, indent=1))
    for name, module in network.head_files.items():
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path / name)
    if card:
        model_card.write(network, path, place=place or path, merged=merged, training=training)


def check_exportable(network: NetworkBase, path: str = "save_pretrained") -> None:
    """Raises ConfigError where transformers would compute something else from the saved folder. `path`: of the learner, or this call."""
    if network.head == "classifier" and architecture.has_score_head(network.model) and network.pooling != "last":
        raise ConfigError(
            f"{path}: {type(network.model).__name__} reads the last token of a text in transformers, and pooling is "
            f"'{network.pooling}', so its folder would be another classifier there; use pooling: last, or head: score."
        )


def _check_mergeable(network: NetworkBase) -> None:
    if loading_arguments.is_quantized(network.model):
        raise ConfigError(
            f"save_pretrained: the base of this adapter, '{network.source}', is quantised, so merging would round it; save with "
            "merged=False, and merge the adapter into the base in full precision."
        )


def refuse_new_head(network: NetworkBase, folder: Path | None) -> None:
    """Raises ConfigError where a model that was asked for as it is has a head that its folder does not hold."""
    missing = list(network.drawn_weights[:3])
    if folder is not None and saved_facts(folder).get("head") == network.head:
        missing += [name for name in network.head_files if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"model: {folder or network.source} lacks the trained head ({', '.join(missing)}); give a complete folder.")


def load_head(network: NetworkBase, folder: Path) -> None:
    """The heads that `save` wrote to a folder, if it did."""
    for name, module in network.head_files.items():
        if not (folder / name).exists():
            continue
        try:
            state = load_file(folder / name)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"model: {folder / name} cannot be read ({error}); give a complete folder.") from error
        if set(state) != set(module.state_dict()):
            raise ConfigError(
                f"model.options.spectral_norm: {network.spectral_norm} given, but the head in {folder} was trained the other way; "
                "leave it out."
            )
        module.load_state_dict(state)
