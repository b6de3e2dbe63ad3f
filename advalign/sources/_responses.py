"""Responses to examples that have none: a task's demonstration, right for the prompt or wrong for it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from advalign.errors import ConfigError
from advalign.interfaces import Task
from advalign.types import Conversation, Example, Message, Prompt
from advalign.types.messages import conversation


def with_response(example: Example, task: Task | None, rng: random.Random, path: str) -> Example:
    """The example with `meta["response"]`: its own, else the task's demonstration, else its answer."""
    if "response" in example.meta:
        return example
    response = example.answer if task is None else task.demonstrate(example, rng)
    if response is None:
        raise ConfigError(f"{path}: row '{example.id}' has no response; name its column with columns: {{response: ...}}.")
    return replace(example, meta={**example.meta, "response": response})


def other_prompt(example: Example, value: str | Sequence[Message | Mapping[str, Any]], path: str) -> Prompt:
    """Another prompt for the example, as data carries it: messages, or a text, which in a conversation takes the place of the last turn of
    the user. Tools and arguments of the chat template stay."""
    if isinstance(value, str):
        return example.with_text(value).prompt
    other = conversation(value, path=path)
    if not isinstance(example.prompt, Conversation):
        return other
    return replace(example.prompt, messages=other.messages)


def is_plain_text(example: Example) -> bool:
    """Whether it is a text without prompt: its `text` was taken for the prompt, and it has neither response nor answer."""
    return "response" not in example.meta and example.answer is None and example.row.get("text") == example.prompt


def wrong_response(example: Example, right: str, task: Task, rng: random.Random, path: str) -> str:
    """A demonstration for a perturbed prompt: right for that prompt, wrong for the example's."""
    # Drawn until it is wrong for the prompt itself: some demonstrations of a perturbed prompt still satisfy the old one.
    for _ in range(100):
        text = task.demonstrate(task.perturb(example, right, rng), rng)
        if example.verify is not None and example.verify(text) < 1:
            return text
    raise ConfigError(f"{path}: no response that is wrong for '{example.prompt}' was found in 100 draws.")
