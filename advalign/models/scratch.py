"""Small models from scratch: `scratch:<preset>?option=value`, with a tokenizer built from the run's own texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as algorithms
from transformers import AutoConfig, PreTrainedTokenizerFast

from advalign.checked import check
from advalign.errors import ConfigError, excerpt, unknown
from advalign.models import architecture
from advalign.models.vocabulary import give_token_types
from advalign.ranges import Count

# name -> (transformers model type, its options).
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("llama", {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}),
    "small": ("llama", {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 512}),
    "base": ("llama", {"hidden_size": 320, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 896}),
    # LayerNorm in the model's own precision: RMSNorm is float32 inside transformers, also in a float64 model.
    "tiny-gpt2": ("gpt2", {"n_embd": 96, "n_layer": 2, "n_head": 4}),
    # A mixture of experts: two of eight per token, in every layer.
    "tiny-moe": (
        "qwen3_moe",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "head_dim": 16,
            "moe_intermediate_size": 64,
            "num_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "encoder-tiny": ("bert", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}),
    "encoder-small": ("bert", {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 512}),
}
SPECIAL = ["<pad>", "<unk>", "<eos>", "<cls>", "<sep>"]
KINDS = ("words", "characters", "bpe")


def check_preset(preset: str) -> None:
    """Raises ConfigError for a preset that there is not."""
    name = preset.partition("?")[0]
    if name not in PRESETS:
        raise unknown("model", "scratch preset", name, PRESETS)


def build_config(preset: str, vocabulary: int, max_length: int) -> Any:
    """The transformers configuration of `<preset>?num_hidden_layers=3&...`."""
    name, _, query = preset.partition("?")
    check_preset(preset)
    kind, options = PRESETS[name]
    length = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    options = dict(options, vocab_size=vocabulary, pad_token_id=0, bos_token_id=None, eos_token_id=2) | {length: max_length}
    if kind == "gpt2":
        # The fused form of the same activation.
        options |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": "gelu_pytorch_tanh"}
    if kind in ("llama", "qwen3_moe"):
        options |= {"tie_word_embeddings": True, "num_key_value_heads": options["num_attention_heads"]}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in options and not architecture.has_option(AutoConfig.for_model(kind), key):
            raise unknown("model", f"option of scratch:{name}", key, options)
        options[key] = _parse(value)
    if kind in ("llama", "qwen3_moe"):
        options["num_key_value_heads"] = options["num_attention_heads"]
    for key, default in PRESETS[name][1].items():
        if isinstance(default, int) and not isinstance(default, bool):
            check(Count, options[key], f"model: scratch:{name}?{key}")
    width, heads = ("n_embd", "n_head") if kind == "gpt2" else ("hidden_size", "num_attention_heads")
    if options[width] % options[heads]:
        raise ConfigError(f"model: scratch:{preset}: {width} is no multiple of {heads} ({options[width]}, {options[heads]}).")
    try:
        return AutoConfig.for_model(kind, **options)
    except (StrictDataclassError, ValueError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"model: scratch:{preset}: transformers refuses these options ({excerpt(str(error).splitlines()[-1])})."
        ) from error


def is_encoder(preset: str) -> bool:
    return PRESETS.get(preset.partition("?")[0], ("", {}))[0] == "bert"


def train_tokenizer(kind: str, texts: Iterable[str], *, size: int = 4096, bidirectional: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer trained on `texts`: whole words (split at white space), characters, or byte-level BPE of `size` entries
    with single digits."""
    if kind not in KINDS:
        raise unknown("tokenizer.kind", "tokenizer", kind, KINDS)
    check(Count, size, "tokenizer.size")
    core, trainer = _byte_pairs(size) if kind == "bpe" else _word_level(kind)
    # Sorted, because the trainers break ties by the order of their input.
    lines = sorted(set(texts))
    if not lines:
        raise ConfigError("tokenizer: no texts to build a vocabulary from; give `data`, a task or a file.")
    core.train_from_iterator(lines, trainer)
    if bidirectional:
        ids = [("<cls>", core.token_to_id("<cls>")), ("<sep>", core.token_to_id("<sep>"))]
        core.post_processor = processors.TemplateProcessing(single="<cls> $A <sep>", pair="<cls> $A <sep> $B:1 <sep>:1", special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", cls_token="<cls>", sep_token="<sep>"
    )
    if bidirectional:
        give_token_types(tokenizer)
    return tokenizer


def _word_level(kind: str) -> tuple[Tokenizer, Any]:
    core = Tokenizer(algorithms.WordLevel(unk_token="<unk>"))
    if kind == "words":
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        core.decoder = decoders.Fuse()
    return core, trainers.WordLevelTrainer(special_tokens=SPECIAL, vocab_size=10**6)


def _byte_pairs(size: int) -> tuple[Tokenizer, Any]:
    core = Tokenizer(algorithms.BPE(unk_token="<unk>"))
    # Every digit is a token of its own, as in Llama and Qwen, so that numbers can be copied and added digit by digit.
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return core, trainers.BpeTrainer(special_tokens=SPECIAL, vocab_size=size, initial_alphabet=alphabet, show_progress=False)


def _parse(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
