"""Demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from advalign.interfaces import Task
from advalign.ranges import OneOf
from advalign.sources._responses import is_plain_text, with_response
from advalign.sources._stream import ListSource
from advalign.types import Conversation, DemoRows, Example, Rows
from advalign.types.messages import as_response, response_messages

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Demos"]

ASSISTANT_TURNS = ("last", "all", "each")


@dataclass(frozen=True, kw_only=True)
class Demos(ListSource):
    """(prompt, response) pairs: a file, a hub id, or a task, which demonstrates its own examples.

    A row with a `text` and neither response nor answer is a text without prompt: all of its tokens are the target, outside of any chat
    template, as in TRL's language modelling format."""

    assistant_turns: Annotated[str, OneOf(ASSISTANT_TURNS, "choice")] = "last"
    """Of a conversation: last (the assistant's last turn is the target), all (every turn of the assistant), or each (every turn of the
    assistant is a row of its own, of what precedes it). TRL's `assistant_only_loss` is all."""

    row_type: ClassVar[type[Rows]] = DemoRows

    def expand(self, example: Example) -> Sequence[Example]:
        if self.assistant_turns != "each" or not isinstance(example.prompt, Conversation):
            return (example,)
        messages = (*example.prompt.messages, *response_messages(example.meta.get("response", ())))
        return [
            replace(
                example,
                prompt=replace(example.prompt, messages=messages[:number]),
                id=f"{example.id}/{number}",
                meta={**example.meta, "response": as_response(messages[number : number + 1])},
            )
            for number, turn in enumerate(messages)
            if turn.role == "assistant" and number > 0
        ]

    def complete(self, example: Example, index: int, task: Task | None, path: str) -> Example:
        if is_plain_text(example) and task is None:
            return replace(example, prompt="", meta={**example.meta, "response": example.prompt})
        return with_response(example, task, self.rng(index), path)

    def build(self, items: Sequence[Example], encoder: Encoder) -> DemoRows:
        turns = "all" if self.assistant_turns == "all" else "last"
        prompts, responses = [e.prompt for e in items], [e.meta["response"] for e in items]
        return DemoRows(tokens=encoder.demos(prompts, responses, assistant_turns=turns))
