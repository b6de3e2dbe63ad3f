"""Architectures of transformers by model type, each as a tiny random configuration: two layers, 32 to 64 features, generated.

`since5` of a family: transformers 4.57 does not have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

WORDS = 50
SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
PLAIN = {name: SIZES[name] for name in SIZES if name != "num_key_value_heads"}
NARROW = SIZES | {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MOE = NARROW | EXPERTS
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = SIZES | LATENT | {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
ENCODER_DECODER = PLAIN | {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}


@dataclass(frozen=True)
class Family:
    """One architecture as a tiny configuration."""

    options: Mapping[str, Any] = field(default_factory=lambda: PLAIN)
    """Fields of its configuration."""
    block: str = ""
    """Name of its second block in `named_modules`; "": the only module named "1" whose class is a layer or a block."""
    blocks: bool = True
    """Whether it has one stack of blocks, as sites `layer:k` need."""
    generate: str = ""
    """Why transformers' `generate` gives other tokens than the model's own forward; "": it gives the same."""
    float32: bool = False
    """transformers computes a part of it in float32 in a float64 model too, so another layout of rows moves that precision's last bits."""
    dtype: str = "float64"
    """In which everything is compared; float32 where transformers' own forward has no float64."""
    lora: str | tuple[str, ...] = "all-linear"
    """Modules that get an adapter."""
    since5: bool = False
    """Not in transformers 4.57."""
    smoke: bool = False
    """Also in the short selection."""

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @property
    def tolerance(self) -> float:
        """Largest difference of a log-probability or a logit; of a gradient, relative to the largest of all."""
        return 1e-4 if self.dtype == "float32" else 5e-6 if self.float32 else 1e-10
