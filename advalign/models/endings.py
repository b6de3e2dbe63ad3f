"""Where a response ends: what the chat template writes behind an assistant's text, the model's own end tokens, and given strings.

A demonstration is closed as the template closes a turn, and a rollout stops there too; it also stops at every `eos_token_id` of the
generation config and of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from advalign.models import architecture

if TYPE_CHECKING:
    from advalign.models.base import NetworkBase
    from advalign.models.encode import Encoder

QUESTION, ANSWER = "Zq1question", "Zq2answer"  # words that no template has
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)
MARGIN = 8  # tokens that are decoded in front of a stop string


@dataclass(frozen=True)
class Ending:
    """How a response is closed."""

    ids: tuple[int, ...] = ()
    """The tokens behind its text; empty: it is not closed."""
    stop_id: int | None = None
    """The token at which a rollout ends; None: none, or the ending is text of several tokens."""
    text: str | None = None
    """The text at which a rollout ends, where no single token stands for it."""


def find_ending(tokenizer: Any) -> Ending:
    """What the chat template writes behind an assistant's text, white space left out; the end of a sequence, if it writes nothing."""
    closing = _closing_text(tokenizer) if architecture.has_chat_template(tokenizer) else ""
    ids = [int(i) for i in tokenizer(closing, add_special_tokens=False)["input_ids"]] if closing else []
    special = architecture.added_ids(tokenizer)
    first = next((i for i, token in enumerate(ids) if token in special), None)
    if first is not None:
        before = [token for token in ids[:first] if tokenizer.decode([token]).strip()]
        return Ending(ids=(*before, ids[first]), stop_id=ids[first])
    if ids and tokenizer.unk_token_id not in ids:
        return Ending(ids=tuple(ids), stop_id=ids[0]) if len(ids) == 1 else Ending(ids=tuple(ids), text=closing)
    eos = tokenizer.eos_token_id
    return Ending() if eos is None else Ending(ids=(eos,), stop_id=eos)


def _closing_text(tokenizer: Any) -> str:
    """What follows the assistant's text in a short conversation, with its content as text or as parts."""
    for parts in (False, True):
        contents = [[{"type": "text", "text": text}] if parts else text for text in (QUESTION, ANSWER)]
        turns = [{"role": role, "content": content} for role, content in zip(("user", "assistant"), contents, strict=True)]
        try:
            rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
        except TEMPLATE_ERRORS:  # a template that refuses this conversation has no ending that could be read off
            continue
        if ANSWER in rendered:
            return rendered.rpartition(ANSWER)[2].strip()
    return ""


class StopRule:
    """Where the rollouts of a network end."""

    ids: frozenset[int]
    """Tokens that end a response."""
    texts: tuple[str, ...]
    """Strings that end it, wherever token boundaries lie."""

    def __init__(self, network: NetworkBase, stop: Sequence[str] = ()) -> None:
        self.encoder: Encoder = network.encoder
        ending, vocabulary = self.encoder.ending, architecture.added_tokens(self.encoder.tokenizer)
        self.ids = network.stop_ids | {vocabulary[text] for text in stop if text in vocabulary}
        self.texts = (*(text for text in stop if text not in vocabulary), *([ending.text] if ending.text is not None else []))

    def ends(self, ids: Sequence[int]) -> bool:
        """Whether a response ends at the last of its tokens; it has not ended before."""
        return bool(ids) and (ids[-1] in self.ids or self.ends_in_text(ids))

    def ends_in_text(self, ids: Sequence[int]) -> bool:
        """Whether a string that ends a response is complete with its last token."""
        return any(self._holds(ids, text) for text in self.texts)

    def _holds(self, ids: Sequence[int], text: str) -> bool:
        # Only the last tokens are decoded, since the string was not there before; a match is read again in the whole response.
        start = max(0, len(ids) - len(text.encode()) - MARGIN)
        while start and len(self.encoder.decode(ids[start:])) < len(text) + MARGIN:
            start = max(0, start - 4 * MARGIN)
        return text in self.encoder.decode(ids[start:]) and text in self.encoder.decode(ids)

    def cut(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """The response up to its first ending, and whether it has one."""
        for end in range(1, len(ids) + 1):
            if self.ends(ids[:end]):
                return list(ids[:end]), True
        return list(ids), False

    def text(self, ids: Sequence[int], finished: bool) -> str:
        """The ids as text, without the token or the text by which the model ends its turn; a given string stays, since it was sampled."""
        ids = ids[:-1] if finished and ids[-1] in self.ids else ids
        text, closing = self.encoder.decode(ids), self.encoder.ending.text
        return text[: text.rfind(closing)].rstrip() if finished and closing is not None and closing in text else text


__all__ = ["Ending", "StopRule", "find_ending"]
