"""Networks as folders that `advalign.models.load` and, but for a scalar head, transformers can read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from advalign.errors import ConfigError
from advalign.models import adapters
from advalign.models.base import NetworkBase
from advalign.models.folders import FACTS


def save(network: NetworkBase, path: Path, *, merged: bool) -> None:
    """The whole model, or the adapter alone where there is one (then peft reads it too), unless it is to be `merged`."""
    path.mkdir(parents=True, exist_ok=True)
    facts = network.facts
    if adapters.has_adapter(network.model) and not merged:
        facts |= adapters.save(network, path, facts)
    else:
        adapters.remove_files(path)
        (adapters.merge_adapter(network.model) if merged else network.model).save_pretrained(path)
    network.encoder.tokenizer.save_pretrained(path)
    (path / FACTS).write_text(json.dumps(facts, indent=1))
    for name, module in network.head_files.items():
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path / name)


def load_head(network: NetworkBase, folder: Path) -> None:
    """The heads that `save` wrote to a folder, if it did."""
    for name, module in network.head_files.items():
        if not (folder / name).exists():
            continue
        state = load_file(folder / name)
        if set(state) != set(module.state_dict()):
            raise ConfigError(
                f"model.options.spectral_norm: {network.spectral_norm} given, but the head in {folder} was trained the other way; "
                "leave it out."
            )
        module.load_state_dict(state)
