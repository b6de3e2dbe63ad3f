"""Discriminators of hidden states: `latent:<learner>?option=value`, a small encoder from scratch over what another network computes.

It shares that network's tokenizer, so both see the same rows, and reads the hidden states of any site through a projection; its own
embeddings are never looked up. GANPO's (arXiv:2601.22083) is the default: two layers, 512 wide, 8 heads, dropout 0.1, mean over tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any
from urllib.parse import parse_qsl

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoModel, BertConfig

from advalign.errors import ConfigError, unknown
from advalign.models import architecture
from advalign.models.base import cast_parameters
from advalign.models.encode import Encoder
from advalign.models.forward import Network
from advalign.models.specification import ModelSpec, dropout_rate
from advalign.types import Edit, Outputs, ScoreReader, Tokens

PREFIX = "latent:"
SIZES = {"hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 2048}
OPTIONS = ("seed", "dropout", "pooling", "head_dropout", "spectral_norm")


class HiddenStateCritic(Network):
    """One score per row, read off the hidden states "B T D" of another network; its `Outputs.reader` is the function."""

    reads_tokens = False

    def __init__(self, model: nn.Module, encoder: Encoder, num_features: int, **head: Any) -> None:
        """`num_features`: width D of the hidden states. `head`: pooling, head_dropout, spectral_norm."""
        super().__init__(model, encoder, "score", **head)
        self.num_features = num_features
        first = next(model.parameters())
        self.project = nn.Linear(num_features, architecture.hidden_size(model)).to(device=first.device, dtype=first.dtype)

    @property
    def head_files(self) -> Mapping[str, nn.Module]:
        return {**super().head_files, "projection.safetensors": self.project}

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {"num_features": self.num_features}

    def forward(
        self, tokens: Tokens, needs: Set[str], edits: Mapping[str, Edit] | None = None, temperature: Float[Tensor, "B"] | None = None
    ) -> Outputs:
        """A reader of hidden states, the only output; nothing is computed until it is called."""
        self._count(tokens)
        if "reader" not in needs:
            raise ConfigError(
                f"model: a network that reads hidden states cannot give {', '.join(sorted(needs))}; see model: latent:<learner>."
            )
        return Outputs(reader=ScoreReader(score=self._score))

    def _score(self, hidden: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
        hidden = torch.where(mask[..., None], hidden, 0.0).to(self.project.weight.dtype)
        inputs = {"inputs_embeds": self.project(hidden), "attention_mask": mask.long()}
        return self._apply_scalar(self._pool(self.backbone(**inputs).last_hidden_state, mask))


def read_learner(model: str) -> str | None:
    """The learner whose hidden states a model of this name reads, if it reads any."""
    return model.removeprefix(PREFIX).partition("?")[0] if model.startswith(PREFIX) else None


def build_critic(owner: Network, spec: ModelSpec, path: str, seed: int = 0) -> HiddenStateCritic:
    """A scorer of the hidden states of `owner`, from scratch, with its own weights. Raises ConfigError for other heads and unknown
    options; `path` is that of the specification in the configuration."""
    _check(spec, path)
    options = {"seed": seed, "dropout": 0.1, "pooling": "mean", **spec.options}
    length = min(spec.max_length, owner.encoder.max_length)
    rate = dropout_rate(options)
    rate = 0.1 if rate is None else rate
    config = BertConfig(
        **_sizes(spec.model, path),
        vocab_size=1,
        max_position_embeddings=length,
        hidden_dropout_prob=rate,
        attention_probs_dropout_prob=rate,
        pad_token_id=0,
    )
    encoder = owner.encoder.with_length(length)
    with torch.random.fork_rng():
        torch.manual_seed(int(options["seed"]))
        critic = HiddenStateCritic(
            AutoModel.from_config(config, add_pooling_layer=False, trust_remote_code=False),
            encoder,
            owner.width("layer:0"),
            pooling=str(options["pooling"]),
            head_dropout=float(options.get("head_dropout", 0.0)),
            spectral_norm=bool(options.get("spectral_norm", False)),
        )
    return cast_parameters(critic, owner.dtype)


def _check(spec: ModelSpec, path: str) -> None:
    if spec.head != "score":
        raise ConfigError(f"{path}.head: {spec.head} given, but what reads hidden states gives one number per row; set head: score.")
    if spec.tokenizer is not None:
        raise ConfigError(f"{path}.tokenizer: a discriminator of hidden states has the tokenizer of the network it reads; leave it out.")
    for name in spec.options:
        if name not in OPTIONS:
            raise unknown(f"{path}.options", "option of latent:", name, OPTIONS)


def _sizes(model: str, path: str) -> dict[str, int]:
    """The sizes that `latent:<learner>?hidden_size=...` names, and the default of the others."""
    sizes = dict(SIZES)
    for name, value in parse_qsl(model.partition("?")[2], keep_blank_values=True):
        if name not in sizes:
            raise unknown(f"{path}.model", "option of latent:", name, sizes)
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{path}.model: {name} is '{value}', a whole number of at least 1.")
        sizes[name] = int(value)
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise ConfigError(
            f"{path}.model: hidden_size {sizes['hidden_size']} is not a multiple of num_attention_heads {sizes['num_attention_heads']}."
        )
    return sizes
