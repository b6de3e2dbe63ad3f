"""Discriminators of hidden states: `latent:<learner>?option=value`, a small encoder from scratch over what another network computes.

It shares that network's tokenizer, so both see the same rows, and reads the hidden states of any site through a projection; its own
embeddings are never looked up. GANPO's (arXiv:2601.22083) is the default: two layers, 512 wide, 8 heads, dropout 0.1, mean over tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import torch
from transformers import AutoModel, BertConfig

from advalign.errors import ConfigError, unknown
from advalign.models.encode import Encoder
from advalign.models.forward import Network

if TYPE_CHECKING:
    from advalign.models.load import ModelSpec

PREFIX = "latent:"
SHAPE = {"hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 2048}
OPTIONS = ("seed", "dropout", "pooling", "head_dropout", "spectral_norm")


def owner_of(model: str) -> str | None:
    """The learner whose hidden states a model of this name reads, if it does."""
    return model.removeprefix(PREFIX).partition("?")[0] if model.startswith(PREFIX) else None


def over(owner: Network, spec: ModelSpec, where: str, seed: int = 0) -> Network:
    """A scorer of the hidden states of `owner`, from scratch, with weights of its own. Raises ConfigError for other heads and unknown
    options."""
    if spec.head != "score":
        raise ConfigError(f"{where}.head: {spec.head} given, but what reads hidden states gives one number per row; set head: score.")
    if spec.tokenizer is not None:
        raise ConfigError(f"{where}.tokenizer: a discriminator of hidden states has the tokenizer of the network it reads; leave it out.")
    for name in spec.options:
        if name not in OPTIONS:
            raise unknown(f"{where}.options", "option of latent:", name, OPTIONS)
    options = {"seed": seed, "dropout": 0.1, "pooling": "mean", **spec.options}
    length = min(spec.max_length, owner.encoder.max_length)
    shape: dict[str, int] = dict(SHAPE)
    for name, value in parse_qsl(spec.model.partition("?")[2]):
        if name not in shape:
            raise unknown(f"{where}.model", "option of latent:", name, shape)
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{where}.model: {name} is '{value}', a whole number of at least 1.")
        shape[name] = int(value)
    if shape["hidden_size"] % shape["num_attention_heads"]:
        raise ConfigError(
            f"{where}.model: hidden_size {shape['hidden_size']} is no multiple of num_attention_heads {shape['num_attention_heads']}."
        )
    rate = float(options["dropout"])
    config = BertConfig(
        **shape,
        vocab_size=1,
        max_position_embeddings=length,
        hidden_dropout_prob=rate,
        attention_probs_dropout_prob=rate,
        pad_token_id=0,
    )
    encoder = Encoder(owner.encoder.tokenizer, max_length=length, bidirectional=owner.encoder.bidirectional)
    with torch.random.fork_rng():
        torch.manual_seed(int(options["seed"]))
        network = Network(
            AutoModel.from_config(config, add_pooling_layer=False),
            encoder,
            "score",
            pooling=str(options["pooling"]),
            head_dropout=float(options.get("head_dropout", 0.0)),
            spectral_norm=bool(options.get("spectral_norm", False)),
            reads=owner.width("layer:0"),
        )
    return network.to(owner.dtype)
