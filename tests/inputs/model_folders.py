"""Bad inputs that are model folders: a classifier that works, spoilt in one way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inputs.base import text
from inputs.row import Row, command, prepared
from safetensors.torch import load_file, save_file
from torch import Tensor

Content = str | bytes


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Changes a JSON file of a model folder."""

    def apply(folder: Path) -> None:
        path = folder / name
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return apply


def write(name: str, content: Content) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return apply


def remove(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def cut(name: str, size: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:size])

    return apply


def weights(change: Callable[[str, Tensor], Tensor | None]) -> Callable[[Path], None]:
    """Changes every tensor of the weights, or leaves it out."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        changed = {name: change(name, value) for name, value in load_file(path).items()}
        save_file({name: value for name, value in changed.items() if value is not None}, path, metadata={"format": "pt"})

    return apply


def without_tensors(part: str) -> Callable[[Path], None]:
    """Weights without those whose names hold `part`."""
    return weights(lambda name, value: None if part in name else value)


def reshaped(part: str) -> Callable[[Path], None]:
    """Weights of which some have another shape."""
    return weights(lambda name, value: value[..., :-1].contiguous() if part in name else value)


def poisoned(part: str) -> Callable[[Path], None]:
    """Weights with a nan."""
    return weights(lambda name, value: value.index_fill(0, value.new_zeros(1).long(), float("nan")) if part in name else value)


FOLDERS: tuple[tuple[str, Callable[[Path], None], tuple[str, ...]], ...] = (
    ("without config.json", remove("config.json"), ("config.json",)),
    ("an empty config.json", write("config.json", ""), ("config.json",)),
    ("config.json that is no JSON", write("config.json", "{"), ("config.json",)),
    ("a list as config.json", write("config.json", "[]"), ("config.json",)),
    ("config.json of bytes", write("config.json", b"\xff\xfe\x00"), ("config.json",)),
    ("without model_type", edit("config.json", lambda c: c.pop("model_type")), ("Unrecognized model",)),
    ("an unknown model_type", edit("config.json", lambda c: c.update(model_type="nothing")), ("nothing",)),
    ("another model_type", edit("config.json", lambda c: c.update(model_type="gpt2", architectures=["GPT2LMHeadModel"])), ("weights",)),
    ("hidden_size of another model", edit("config.json", lambda c: c.update(hidden_size=96)), ("weights",)),
    ("hidden_size is text", edit("config.json", lambda c: c.update(hidden_size="big")), ("hidden_size",)),
    ("hidden_size is negative", edit("config.json", lambda c: c.update(hidden_size=-4)), ("models/bad",)),
    ("more layers than weights", edit("config.json", lambda c: c.update(num_hidden_layers=5)), ("weights",)),
    ("fewer layers than weights", edit("config.json", lambda c: c.update(num_hidden_layers=1)), ("weights",)),
    ("no layers", edit("config.json", lambda c: c.update(num_hidden_layers=0)), ("models/bad",)),
    ("a vocabulary of 3", edit("config.json", lambda c: c.update(vocab_size=3)), ("word_embeddings",)),
    ("code of its own", edit("config.json", lambda c: c.update(auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"},
        model_type="evil")), ("models/bad",)),
    ("without weights", remove("model.safetensors"), ("models/bad",)),
    ("weights of 0 bytes", write("model.safetensors", b""), ("models/bad",)),
    ("weights cut short", cut("model.safetensors", 4000), ("models/bad",)),
    ("weights that are a page of HTML", write("model.safetensors", "<html>"), ("models/bad",)),
    ("weights with a header of 2**60 bytes", write("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"), ("models/bad",)),
    ("a pointer of Git LFS", write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
        ("models/bad",)),
    ("a pickle instead", lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), ("models/bad",)),
    ("without a layer", without_tensors("layer.1."), ("layer.1",)),
    ("without the embedding", without_tensors("word_embeddings"), ("embeddings",)),
    ("without the head", without_tensors("classifier"), ("classifier",)),
    ("an embedding of another shape", reshaped("word_embeddings"), ("embeddings",)),
    ("a nan in the weights", poisoned("layer.0.output.dense.weight"), ("no finite numbers",)),
    ("without a tokenizer", lambda folder: [path.unlink() for path in folder.glob("token*")], ("tokenizer",)),
    ("tokenizer.json that is no JSON", write("tokenizer.json", "{"), ("tokenizer",)),
    ("an empty tokenizer.json", write("tokenizer.json", ""), ("tokenizer",)),
    ("tokenizer.json without a model", edit("tokenizer.json", lambda c: c.pop("model")), ("tokenizer",)),
    ("a list as tokenizer_config.json", write("tokenizer_config.json", "[]"), ("tokenizer",)),
    ("own facts that are no JSON", write("advalign.json", "{"), ("advalign.json",)),
    ("own facts that are a list", write("advalign.json", "[]"), ("advalign.json",)),
    ("own facts with another head", edit("advalign.json", lambda c: c.update(head="wizard")), ("wizard",)),
    ("own facts with max_length -1", edit("advalign.json", lambda c: c.update(max_length=-1)), ("max_length",)),
    ("own facts with max_length text", edit("advalign.json", lambda c: c.update(max_length="long")), ("max_length",)),
    ("own facts with another pooling", edit("advalign.json", lambda c: c.update(pooling="mode")), ("mode",)),
    ("an adapter without its base", write("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "nowhere/base"}'),
        ("adapter_model.safetensors",)),
    ("adapter_config.json that is no JSON", write("adapter_config.json", "{"), ("adapter_config.json",)),
    ("an adapter of a kind that there is not", write("adapter_config.json",
        '{"peft_type": "MAGIC", "base_model_name_or_path": "models/classifier"}'), ("adapter_model.safetensors",)),
    ("an adapter that is its own base", write("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "models/bad"}'),
        ("models/bad",)),
)  # fmt: skip
"""(what was done to the folder, how, what is said)"""


def folder_rows() -> Iterator[Row]:
    """Folders of a classifier, each spoilt in one way, read by eval, attack and train in turn."""
    run = {
        "learners": {"policy": {"model": "models/bad"}},
        "sources": {"train": {"kind": "labels", "data": "rows.jsonl", "batch_size": 2}},
        "objectives": {"fit": {"kind": "classify", "source": "train"}},
        "args": {"max_steps": 1},
    }
    run["learners"]["policy"]["head"] = "classifier"
    for number, (what, spoil, says) in enumerate(FOLDERS):
        verb = ("eval", "attack", "train")[number % 3]
        arguments = {
            "eval": ("models/bad", "--suite", "suite.yaml"),
            "attack": ("models/bad", "the movie was good", "--label", "1"),
            "train": ("run.yaml",),
        }[verb]
        row = command(verb, *arguments, says=says, files={"run.yaml": text(run)}, shown=f"{verb}, a model folder: {what}")
        yield prepared(row, lambda spoil=spoil: _spoilt(spoil))


def _spoilt(spoil: Callable[[Path], Any]) -> None:
    shutil.rmtree("models/bad", ignore_errors=True)
    shutil.copytree("models/classifier", "models/bad")
    spoil(Path("models/bad"))


TABLES = {"model folders": folder_rows}
