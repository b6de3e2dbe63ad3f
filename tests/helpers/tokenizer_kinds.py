"""Tokenizers of every make, a few hundred entries each, built with `tokenizers`; and one that is written in Python."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

WORDS = "the cat sat on a mat be polite hello you say color red user assistant system not so good movie great film".split()
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_WITH_BOS = "{{ bos_token }}" + CHAT


def byte_pairs(adds: str = "", *, special: list[str] = SPECIAL, names: dict[str, str] = NAMES, **options: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as in GPT-2, Llama 3 and Qwen."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return _wrapped(core, adds, special, names, options)


def pieces(adds: str = "", *, special: list[str] = SPECIAL, names: dict[str, str] = NAMES, **options: Any) -> PreTrainedTokenizerFast:
    """Unigram pieces with "▁" for spaces, one in front of the first word, as in Llama 2 and T5."""
    letters = sorted({c for word in WORDS for c in word} | set("▁<>|_/[]\n:"))
    scores = dict.fromkeys(special, -1000.0) | dict.fromkeys(letters, -10.0) | {"▁" + word: -5.0 for word in WORDS}
    core = Tokenizer(models.Unigram(list(scores.items()), unk_id=special.index("<unk>")))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    return _wrapped(core, adds, special, names, options)


def words(adds: str = "", *, special: list[str] = SPECIAL, names: dict[str, str] = NAMES, **options: Any) -> PreTrainedTokenizerFast:
    """Whole words, split at white space: a special token is a word of the vocabulary too."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(core, adds, special, names, options)


def word_pieces(**options: Any) -> PreTrainedTokenizerFast:
    """Word pieces in lower case with [CLS] and [SEP], as in BERT."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({c for word in WORDS for c in word})
    vocabulary = [*special, *"[]<>|/.,_", *letters, *("##" + c for c in letters), *WORDS]
    core = Tokenizer(models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(vocabulary))}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    columns = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=columns, **names, **options)


def in_python() -> ByT5Tokenizer:
    """Bytes, in Python: it gives no offsets and puts an end behind every text."""
    return ByT5Tokenizer(extra_ids=2)


def _wrapped(core: Tokenizer, adds: str, special: list[str], names: dict[str, str], options: dict[str, Any]) -> PreTrainedTokenizerFast:
    """`adds`: what it puts around a text by itself, bos, eos or both."""
    if adds:
        start, end = ("<s> " if "bos" in adds else ""), (" </s>" if "eos" in adds else "")
        ids = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
        core.post_processor = processors.TemplateProcessing(
            single=f"{start}$A{end}", pair=f"{start}$A{end} {start}$B{end}", special_tokens=ids
        )
    extra = [token for token in special if token not in names.values()]
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=extra, **names, **options)


__all__ = ["CHAT", "CHAT_WITH_BOS", "NAMES", "SPECIAL", "WORDS", "byte_pairs", "in_python", "pieces", "word_pieces", "words"]
