"""A model's generation config: what sampling here leaves out of it, and `generate` without it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from transformers import GenerationConfig

from advalign.models import architecture

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1.0,),
    "top_k": (0,),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "watermarking_config": (),
    "stop_strings": ([],),
}
"""Settings of a generation config that change which tokens are sampled or where a response ends, and the values that change nothing. A
policy samples from softmax(z / temperature), cut to a nucleus, as `sampling` says: this the trainer can compute again."""


def settings_left_out(model: Any) -> dict[str, Any]:
    """{setting: value} of the model's generation config that sampling here does not follow."""
    config = architecture.generation_config(model)
    defaults = GenerationConfig().to_dict()  # transformers 4 writes them into every config
    values = {} if config is None else {n: value for n, value in config.to_dict().items() if value not in (None, defaults.get(n))}
    return {name: values[name] for name, neutral in NEUTRAL.items() if name in values and values[name] not in neutral}


def warn_left_out(model: Any) -> None:
    """Says once per model what of its generation config is left out."""
    settings = settings_left_out(model)
    if settings:
        _say(type(model).__name__, ", ".join(f"{name} {_short(value)}" for name, value in settings.items()))


@lru_cache
def _say(name: str, settings: str) -> None:
    warnings.warn(
        f"sampling: the generation config of {name} has {settings}; it is left out: rollouts follow `sampling` alone (temperature, top_p, "
        "stop), whose probabilities the trainer can compute.",
        stacklevel=3,
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


@contextmanager
def plain_generation(model: Any) -> Iterator[None]:
    """Inside, `generate` follows its arguments alone: a generation config of the model would fill in what they leave open."""
    config = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = config


__all__ = ["plain_generation", "settings_left_out", "warn_left_out"]
