"""Responses to examples that have none: a task's demonstration, right for the prompt or wrong for it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from advalign.data import no_response
from advalign.data.text_files import describe
from advalign.errors import ConfigError
from advalign.interfaces import Task
from advalign.types import Conversation, Example, Message, Prompt, Response
from advalign.types.messages import conversation

if TYPE_CHECKING:
    from advalign.models.encode import Encoder


def with_response(example: Example, task: Task | None, rng: random.Random, path: str) -> Example:
    """The example with `meta["response"]`: its own, else the task's demonstration, else its answer."""
    if "response" in example.meta:
        if example.meta["response"] == "" or not isinstance(example.meta["response"], str | tuple):
            raise no_response(example, f"{path}: {example.described}")
        return example
    response = example.answer if task is None else task.demonstrate(example, rng)
    if not response:
        raise no_response(example, f"{path}: {example.described}")
    return replace(example, meta={**example.meta, "response": response})


def check_sides(example: Example, path: str, *, same_allowed: bool = False) -> None:
    """Raises ConfigError unless the two sides of a preference are responses, and differ."""
    for side in ("chosen", "rejected"):
        value = example.meta[side]
        if value == "" or not isinstance(value, str | tuple):
            what = "is empty" if value == "" else f"holds {describe(value)}, and a text or messages are expected"
            raise ConfigError(f"{path}: {example.described}: '{side}' {what}.")
    if example.meta["chosen"] == example.meta["rejected"] and not same_allowed:
        raise ConfigError(f"{path}: {example.described}: 'chosen' and 'rejected' are the same, so neither is preferred; leave the row out.")


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


def split_where_tokens_end(example: Example, texts: Sequence[Response], encoder: Encoder) -> tuple[Prompt, list[Response]]:
    """The prompt of an example and its responses `texts`. Where the prompt is the common start of two whole texts, which may end inside a
    word (TRL's `extract_prompt` compares characters), it is cut where its tokens and those of each response are the tokens of the whole
    text, else at the white space before."""
    prompt, sides = example.prompt, [text for text in texts if isinstance(text, str)]
    if not isinstance(prompt, str) or len(sides) < len(texts) or not all(_is_whole(example, prompt + side) for side in sides):
        return prompt, list(texts)
    if not prompt or prompt[-1].isspace() or all(side[:1].isspace() for side in sides):
        return prompt, list(texts)
    if encoder.template is None and not encoder.bidirectional:
        start, *whole = encoder.prompts([prompt, *(prompt + side for side in sides)])
        rest = encoder.responses(sides, [False] * len(sides))
        if all(start + ids == joined for ids, joined in zip(rest, whole, strict=True)):
            return prompt, list(texts)
    end = next((place for place in range(len(prompt), 0, -1) if prompt[place - 1].isspace()), 0)
    end -= end > 0 and prompt[end - 1] == " "  # a space belongs to the word behind it
    return prompt[:end], [prompt[end:] + side for side in sides]


def _is_whole(example: Example, text: str) -> bool:
    """Whether a text is a column of the example's row."""
    return any(value == text for value in example.row.values())
