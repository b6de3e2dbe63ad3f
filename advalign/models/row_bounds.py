"""Rows that a model might not take, found without tokenising the others: which examples of a data set are worth a try."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

from advalign.types import Conversation, Example
from advalign.types.messages import Message

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

RESPONSES = ("response", "chosen", "rejected")


def doubtful(encoder: Encoder, examples: Iterable[Example], room: int = 0) -> list[Example]:
    """The examples whose prompt and responses may have more tokens than a row, less `room`, blank prompts, and one of every shape of
    conversation.

    A token is at least a byte of UTF-8, and a template adds to a turn at most what it writes around a prompt of one character. Templates
    refuse roles and their order, not texts, so one conversation of a shape stands for all of them."""
    around = len(encoder.prompts(["x"])[0])
    chosen: list[Example] = []
    shapes: set[Hashable] = set()
    for example in examples:
        shape = _shape(example)
        is_new = shape is not None and shape not in shapes
        if is_new:
            shapes.add(shape)
        is_blank = isinstance(example.prompt, str) and not example.prompt.strip()  # of which a tokenizer may leave nothing
        if is_new or is_blank or _num_bytes(example) + around * _num_turns(example) + room > encoder.max_length:
            chosen.append(example)
    return chosen


def _turns(example: Example) -> Sequence[Message]:
    return example.prompt.messages if isinstance(example.prompt, Conversation) else ()


def _responses(example: Example) -> list[str | tuple[Message, ...]]:
    values = [example.meta.get(name) for name in RESPONSES]
    return [value for value in values if isinstance(value, str | tuple)]


def _num_turns(example: Example) -> int:
    return 2 + len(_turns(example)) + max([len(r) if isinstance(r, tuple) else 1 for r in _responses(example)], default=0)


def _num_bytes(example: Example) -> int:
    """Of the prompt, with its tools, and of the longest response."""
    prompt = example.prompt
    texts = [prompt] if isinstance(prompt, str) else [str(prompt), str(prompt.tools), *(str(m.extra) for m in prompt.messages)]
    responses = [r if isinstance(r, str) else str([m.to_dict() for m in r]) for r in _responses(example)]
    others = [text for text in (example.pair, example.answer) if text is not None]
    return sum(len(text.encode()) for text in (*texts, *others)) + max([len(text.encode()) for text in responses], default=0)


def _shape(example: Example) -> Hashable:
    """What a template may refuse of a conversation; None: the prompt is a text."""
    if not isinstance(example.prompt, Conversation):
        return None
    turns = [*_turns(example), *(m for r in _responses(example) if isinstance(r, tuple) for m in r)]
    parts = [(m.role, m.content is None, bool(m.tool_calls), tuple(sorted(m.extra))) for m in turns]
    return tuple(parts), bool(example.prompt.tools), tuple(sorted(example.prompt.chat_template_kwargs))


__all__ = ["doubtful"]
