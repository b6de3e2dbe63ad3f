"""A family as a folder that plain transformers wrote, opened twice: by transformers, and by this library."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures.families import WORDS, Family
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from advalign.models import Network, load
from advalign.types import Tokens

ROWS = ([5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 20], [30, 31, 32])
AUTO = {"policy": transformers.AutoModelForCausalLM, "classifier": transformers.AutoModelForSequenceClassification}


def tokenizer(segments: bool = True, types: bool = True) -> Any:
    """Words w5 to w49; 0 pads, 1 ends, 2 is unknown, 3 begins a text and 4 ends a segment of it. `types`: it gives token types."""
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "cls_token": "<cls>", "sep_token": "<sep>"}
    words = [*special.values(), *(f"w{i}" for i in range(len(special), WORDS))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if segments:
        ids = [("<cls>", 3), ("<sep>", 4)]
        core.post_processor = processors.TemplateProcessing(single="<cls> $A <sep>", pair="<cls> $A <sep> $B:1 <sep>:1", special_tokens=ids)
    else:
        special = {name: special[name] for name in ("pad_token", "eos_token", "unk_token")}
    names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=names, **special)


def write(kind: str, family: Family, head: str, folder: Path) -> None:
    """A model in float64 whose weights are as transformers starts them, and something added to each: a bias that is ignored shows."""
    config = transformers.AutoConfig.for_model(kind, **family.options)
    if head == "classifier":
        config.num_labels = 3
    torch.manual_seed(0)
    model = AUTO[head].from_config(config).to(family.torch_dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    words = tokenizer(head == "classifier", family.options.get("type_vocab_size", 0) > 1)
    words.save_pretrained(folder)
    words.save_pretrained(folder / "words")  # without config.json: its model type would choose another class


class Subject:
    """What the checks of one family share."""

    kind: str
    """Its model type."""
    family: Family
    head: str
    """policy or classifier"""
    folder: Path
    """The model as transformers wrote it."""
    tolerance: float
    """Largest difference of a log-probability or a logit; of a gradient, relative to the largest of all."""

    def __init__(self, kind: str, family: Family, head: str, folder: Path) -> None:
        self.kind, self.family, self.head, self.folder, self.tolerance = kind, family, head, folder, family.tolerance
        write(kind, family, head, folder)

    @cached_property
    def tokenizer(self) -> Any:
        return transformers.PreTrainedTokenizerFast.from_pretrained(self.folder / "words")

    def open_plain(self) -> Any:
        """By transformers alone, in evaluation mode."""
        return self.open_by_transformers(self.folder)

    def open_by_transformers(self, folder: Path) -> Any:
        model = AUTO[self.head].from_pretrained(folder, dtype=self.family.torch_dtype).eval()
        if self.family.dtype == "float64" and hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # the grouped product of its default has no float64
        return model

    def open(self, **options: Any) -> Network:
        """By this library, without dropout."""
        return self.load(self.folder, **options)

    def load(self, folder: Path, **options: Any) -> Network:
        words, dtype = str(self.folder / "words"), self.family.dtype
        return load(str(folder), head=self.head, tokenizer=words, max_length=64, dtype=dtype, options={"dropout": 0.0, **options})

    @cached_property
    def plain(self) -> Any:
        return self.open_plain()

    @cached_property
    def net(self) -> Network:
        return self.open()

    def width(self, model: Any) -> int:
        """Features of a hidden state."""
        return int(model.config.hidden_size)

    @property
    def sites(self) -> tuple[str, ...]:
        """Where it is edited."""
        return ("embedding", "layer:1") if self.family.blocks else ("embedding",)

    @property
    def lora(self) -> dict[str, Any]:
        """Fields of a LoRA."""
        targets = self.family.lora
        return {"r": 2, "target_modules": targets if isinstance(targets, str) else list(targets)}

    def accepted(self, model: Any) -> set[str]:
        """Arguments of its forward that a tokenizer may give."""
        return {"input_ids", *inspect.signature(self.unwrapped(model).forward).parameters} & {
            "input_ids",
            "attention_mask",
            "token_type_ids",
        }

    def unwrapped(self, model: Any) -> Any:
        """Without peft around it."""
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def module(self, model: Any, site: str) -> nn.Module:
        return model.get_input_embeddings() if site == "embedding" else self.block(model)  # type: ignore[no-any-return]

    def block(self, model: Any) -> nn.Module:
        """The second block of a transformers model, by its name and its class."""
        if self.family.block:
            return model.get_submodule(self.family.block)  # type: ignore[no-any-return]
        second = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] == "1"}
        blocks = {name: m for name, m in second.items() if type(m).__name__.endswith(("Layer", "Block"))}
        assert len(blocks) == 1, f"{self.kind}: which of {list(second)} is the second block?"
        return next(iter(blocks.values()))


def rows() -> Tokens:
    """ROWS; every token but the first of a row is a target."""
    return pad(ROWS, [1] * len(ROWS))


def pad(ids: Sequence[list[int]], starts: Sequence[int], group: Sequence[int] | None = None) -> Tokens:
    """Right padded; tokens from `starts` on are the targets."""
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask, number = padded != 0, torch.arange(len(ids))
    target = mask & (torch.arange(width) >= torch.tensor(starts)[:, None])
    return Tokens(ids=padded, mask=mask, target=target, group=number if group is None else torch.tensor(group), key=number)


def named_gradients(model: nn.Module, value: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """{name: gradient of `value`} of all parameters, zero where it does not depend on one."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), slopes, strict=True)}


def close(ours: torch.Tensor, right: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.double(), right.double(), rtol=0, atol=tolerance)


def close_gradients(ours: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor], tolerance: float) -> None:
    """Relative to the largest of all."""
    assert ours.keys() == right.keys()
    largest = max(float(g.abs().max()) for g in right.values())
    for name in right:
        try:
            close(ours[name], right[name], largest * tolerance)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
