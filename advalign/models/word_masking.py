"""Words of token rows, and rows with words masked. Axes: B rows, T tokens, T2 tokens after masking.

A masked word becomes ONE mask token, however many pieces it has: a mask for each piece would tell the model how long the word was.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from advalign.errors import ConfigError, unknown
from advalign.types import Tokens

REPLACEMENTS = ("mask", "unknown")
STARTS, CONTINUES, SEPARATES = 0, 1, 2


def mask_token(tokenizer: Any, replacement: str, path: str) -> tuple[str, int]:
    """Text and id of the token that replaces a masked word; `path`: of the setting, in errors."""
    if replacement not in REPLACEMENTS:
        raise unknown(f"{path}.replace", "replacement", replacement, REPLACEMENTS)
    text, number = (
        (tokenizer.mask_token, tokenizer.mask_token_id) if replacement == "mask" else (tokenizer.unk_token, tokenizer.unk_token_id)
    )
    if text is None or number is None:
        alternative = "; give `replace: unknown`" if replacement == "mask" and tokenizer.unk_token is not None else ""
        raise ConfigError(f"{path}.replace: the tokenizer has no {replacement} token to replace a word with{alternative}.")
    return str(text), int(number)


def number_words(tokenizer: Any, tokens: Tokens, allowed: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The word of every token, counted from 1 along its row; 0 where there is none, or where not all its pieces are allowed.

    Pieces are recognised by their text: "##ing" continues a word of WordPiece; where the vocabulary marks beginnings ("Ġthe",
    "▁the"), a piece without a mark continues; where it has white space as a token, that separates words. Otherwise every
    token is a word. So for WordPiece, which drops white space, a punctuation mark is a word of its own.
    """
    roles = _roles(tokenizer)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    numbers = torch.zeros(tokens.ids.shape, dtype=torch.long)
    for b, (ids, mask, free) in enumerate(zip(tokens.ids.tolist(), tokens.mask.tolist(), allowed.tolist(), strict=True)):
        word, inside, closed = 0, False, set()
        for t, token in enumerate(ids):
            role = roles[token] if token < len(roles) else STARTS
            if not mask[t] or token in special or role == SEPARATES:
                inside = False
                continue
            word += not inside or role == STARTS
            inside, numbers[b, t] = True, word
            if not free[t]:
                closed.add(word)
        if closed:
            numbers[b] = _drop_words(numbers[b], closed)
    return numbers.to(tokens.ids.device)


def mask_words(
    tokens: Tokens, words: Int[Tensor, "B T"], hidden: Sequence[Collection[int]], *, mask_id: int, pad_id: int
) -> tuple[Tokens, Int[Tensor, "B T"]]:
    """Rows in which the words `hidden[b]` are one mask token each, and the new position of every token (-1: masked)."""
    origin = torch.full(tokens.ids.shape, -1)
    rows, targets, sources = [], [], []
    for b, (ids, mask, target, word) in enumerate(
        zip(tokens.ids.tolist(), tokens.mask.tolist(), tokens.target.tolist(), words.tolist(), strict=True)
    ):
        row: list[int] = []
        row_target: list[bool] = []
        source: list[int] = []
        hidden_words, last = set(hidden[b]), 0
        for t, token in enumerate(ids):
            if not mask[t]:
                continue
            if word[t] in hidden_words:
                if word[t] != last:
                    row.append(mask_id)
                    row_target.append(False)
                    source.append(t)
                last = word[t]
                continue
            origin[b, t] = len(row)
            row.append(token)
            row_target.append(target[t])
            source.append(t)
        rows.append(row)
        targets.append(row_target)
        sources.append(source)
    width, device = max(map(len, rows)), tokens.ids.device
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=device)
    mask = torch.arange(width, device=device) < torch.tensor([[len(row)] for row in rows], device=device)
    target = torch.tensor([row_target + [False] * (width - len(row_target)) for row_target in targets], device=device)
    belongs = torch.tensor([source + [-1] * (width - len(source)) for source in sources], device=device)  # a mask, to its word
    return tokens.moved(belongs, ids=ids, mask=mask, target=target), origin.to(device)


def _drop_words(word: Int[Tensor, "T"], closed: Collection[int]) -> Int[Tensor, "T"]:
    """Words not in `closed`, renumbered from 1."""
    open_words = [w for w in range(1, int(word.max()) + 1) if w not in closed]
    new = torch.zeros(int(word.max()) + 1, dtype=torch.long)
    new[open_words] = torch.arange(1, len(open_words) + 1)
    return new[word]


@lru_cache(maxsize=8)
def _roles(tokenizer: Any) -> list[int]:
    """What each entry of the vocabulary does to words."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    glued = sum(bool(name) and name.startswith("##") and len(name) > 2 for name in names)
    marked = sum(bool(name) and name[0] in "Ġ▁" for name in names)
    if glued > marked:
        return [CONTINUES if name and name.startswith("##") else STARTS for name in names]
    if marked:
        # A new line or tab ("Ċ", "ĉ") is white space too, and never the beginning of a word.
        return [STARTS if name and name[0] in "Ġ▁" else CONTINUES if name and name.strip("Ċĉ") else SEPARATES for name in names]
    if " " in names:
        return [SEPARATES if name and name.isspace() else CONTINUES for name in names]
    return [STARTS] * len(names)


__all__ = ["REPLACEMENTS", "mask_token", "mask_words", "number_words"]
