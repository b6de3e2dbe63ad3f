"""One row of a data set -> one Example: a column mapping first, the usual names after it."""

import math
from collections.abc import Mapping
from typing import Any

from advalign.data.text_files import describe
from advalign.errors import ConfigError, unknown
from advalign.types import Conversation, Example, Message
from advalign.types.messages import ROLES, as_response, conversation, message

# In order of preference. A field without a column stays empty; only the prompt is required.
USUAL = {
    "prompt": ("prompt", "question", "instruction", "problem", "query", "text", "sentence", "premise", "sentence1", "question1", "goal"),
    "response": ("response", "completion", "output", "solution"),
    "answer": ("answer", "final_answer", "target"),
    "label": ("label",),
    "pair": ("pair", "hypothesis", "sentence2", "question2"),
    "id": ("id", "unique_id"),
    "messages": ("messages", "conversations"),
}
FIELDS = (*USUAL, "chosen", "rejected")
AT_HAND = "data, row "
"""How the location of a row in memory begins."""
_NOT_ASSISTANT = [ROLES.index(role) for role in ("system", "user", "tool")]
SHAREGPT = {"human": "user", "gpt": "assistant"}
"""Roles of messages with the keys `from` and `value`, where they are not those of templates."""


TEXTS = ("prompt", "response", "chosen", "rejected", "pair")
"""Fields that are texts; all but a pair may be messages."""


def example(row: Mapping[str, Any], mapping: Mapping[str, str], location: str, label: int | None = None) -> Example:
    """The example of a row. `mapping`: {field: column}; `location`: of the row, in errors; `label`: its class index, where it is known
    already. response, chosen, rejected and every unused column stay in `meta`."""
    _check(row, mapping, location)
    used = _used_columns(row, mapping)
    meta = {name: value for name, value in row.items() if name not in used.values()}
    fields = {field: row[column] for field, column in used.items() if not _is_null(row[column])}
    if "label" in used and row[used["label"]] is not None:
        fields["label"] = row[used["label"]]  # nan too, which is refused where labels are read
    _unpack_chat(fields, meta, row, location)
    has_implicit_prompt = "prompt" not in fields and all(isinstance(fields.get(name), str) for name in ("chosen", "rejected"))
    if has_implicit_prompt:
        _split_common(fields, location)
    prompt = fields.get("prompt")
    says_nothing = isinstance(prompt, Conversation) and not any(turn.content or turn.tool_calls for turn in prompt.messages)
    is_blank = isinstance(prompt, str) and not prompt.strip()
    if not isinstance(prompt, str | Conversation) or says_nothing or (is_blank and not has_implicit_prompt):
        raise ConfigError(f"data: {location}: the prompt {_no_prompt(row, used)}; name its column with columns: {{prompt: ...}}.")
    for name, value in fields.items():
        _check_field(name, value, f"data: {location}, column '{used.get(name, name)}'", is_mapped=name in mapping)
    for name in ("response", "chosen", "rejected"):
        if name in fields:
            meta[name] = fields[name]
    answer = fields.get("answer")
    if isinstance(answer, Mapping | list | tuple):  # not an answer to compare with
        answer, meta[used["answer"]] = None, answer
    if isinstance(answer, str) and "####" in answer:
        meta.setdefault("response", answer)
        answer = answer.rpartition("####")[2].strip()
    return Example(
        prompt=fields["prompt"],
        answer=None if answer is None else _text(answer),
        id=_text(fields.get("id", location.rpartition("row ")[2])),
        meta=meta,
        label=label if label is not None else _label(fields.get("label"), "label" in mapping, location, meta),
        pair=fields.get("pair") or None,
        row=row,
        location="" if location.startswith(AT_HAND) else location,
    )


def check_mapping(mapping: Any) -> None:
    """Raises ConfigError unless `mapping` is {field: column}, each column of one field, or None."""
    if mapping is None:
        return
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"data.columns: {mapping!r} given; a mapping {{field: column}} is expected.")
    fields: dict[str, str] = {}
    for field, column in mapping.items():
        if field not in FIELDS:
            raise unknown("data.columns", "field", str(field), FIELDS)
        if not isinstance(column, str):
            raise ConfigError(f"data.columns.{field}: {column!r} given; the name of a column is a text.")
        if column in fields:
            raise ConfigError(f"data.columns: '{column}' is given for {fields[column]} and for {field}; a column serves one field.")
        fields[column] = field


def no_response(example: Example, path: str) -> ConfigError:
    """The error for an example whose response is not there, or is not one."""
    response = example.meta.get("response")
    if response == "":
        return ConfigError(f"{path} has an empty response; leave the row out, or name its column with columns: {{response: ...}}.")
    if not _is_null(response):
        what = describe(response)
        return ConfigError(f"{path} has no response that is a text, but {what}; name its column with columns: {{response: ...}}.")
    ends = isinstance(example.prompt, Conversation) and "messages" in example.row
    why = f": its messages end with a turn of role {example.prompt.messages[-1].role}" if ends else ""  # type: ignore[union-attr]
    return ConfigError(f"{path} has no response{why}; name its column with columns: {{response: ...}}.")


def _is_null(value: Any) -> bool:
    """Whether a value is missing: null, or the nan by which tables say so."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _no_prompt(row: Mapping[str, Any], used: Mapping[str, str]) -> str:
    """Why a row has no prompt, in words."""
    column = used.get("prompt", used.get("messages"))
    if column is None:
        return f"is not among the columns {', '.join(row) or '(there are none)'}"
    value = row[column]
    if isinstance(value, str):
        return f"is {'only white space' if value else 'empty'} (column '{column}')"
    if isinstance(value, list | tuple) and (not value or _are_turns(_with_roles(value))):
        return f"is empty (column '{column}')"
    return f"is not a text or messages: column '{column}' holds {describe(value)}"


def _check_field(name: str, value: Any, location: str, *, is_mapped: bool) -> None:
    """Raises ConfigError for a value that its field cannot have. A column that was guessed may hold anything where nothing reads it."""
    if name in TEXTS and not isinstance(value, str | Conversation | tuple) and (is_mapped or name == "pair"):
        raise ConfigError(f"{location}, the {name}, holds {describe(value)}; a text is expected.")
    if name == "answer" and is_mapped and isinstance(value, Mapping | list | tuple):
        raise ConfigError(f"{location}, the answer, holds {describe(value)}; a text or a number is expected.")
    turns = value.messages if isinstance(value, Conversation) else value if isinstance(value, tuple) else ()
    texts = [value, *(turn.content for turn in turns if isinstance(turn, Message))]
    for text in texts:
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ConfigError(
                    f"{location} holds half of a surrogate pair ({text[error.start]!r}), which is not a character."
                ) from error


def _check(row: Mapping[str, Any], mapping: Mapping[str, str], location: str) -> None:
    if isinstance(row.get("completions"), list) and isinstance(row.get("labels"), list):
        raise ConfigError(
            f"data: {location} is stepwise supervision (completions with one label each), for which there is no source; "
            "give prompt, completion and one label, for the source feedback."
        )
    for column in mapping.values():
        if column not in row:
            raise unknown(f"data: {location}", "column", column, row)


def _used_columns(row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, str]:
    """{field: column}; a column serves one field."""
    used = dict(mapping)
    for field, names in USUAL.items():
        unused = [name for name in names if name in row and name not in used.values()]
        if field not in used and unused:
            used[field] = unused[0]
    for field in ("chosen", "rejected"):
        if field in row:
            used.setdefault(field, field)
    return used


def _unpack_chat(fields: dict[str, Any], meta: dict[str, Any], row: Mapping[str, Any], location: str) -> None:
    """Messages -> a prompt that is a conversation, and responses; a response that is one plain turn of the assistant is its text.
    Alpaca's `input` joins its instruction."""
    for name in ("prompt", "response", "chosen", "rejected", "messages"):
        turns = _with_roles(fields.get(name))
        if _are_turns(turns):
            fields[name] = tuple(message(turn, f"data: {location}: {name}[{i}]") for i, turn in enumerate(turns))
    turns = fields.pop("messages", None)
    if isinstance(turns, tuple):
        number = len(turns) - 1 if turns[-1].role == "assistant" else len(turns)
        if not number:
            raise ConfigError(f"data: {location}: the messages are one answer of the assistant, and nothing before it is the prompt.")
        fields.setdefault("prompt", turns[:number])
        if number < len(turns):
            fields.setdefault("response", turns[number:])
    chosen, rejected = fields.get("chosen"), fields.get("rejected")
    # A text may stand beside conversations that hold it as their first turns.
    if not isinstance(fields.get("prompt"), tuple) and isinstance(chosen, tuple) and isinstance(rejected, tuple):
        number = _common_turns(chosen, rejected, location)
        if number or "prompt" not in fields:
            fields |= {"prompt": chosen[:number], "chosen": chosen[number:], "rejected": rejected[number:]}
    for name in ("response", "chosen", "rejected"):
        if isinstance(fields.get(name), tuple):
            if fields[name][-1].role_number in _NOT_ASSISTANT:
                raise ConfigError(
                    f"data: {location}: {name} ends with a turn of role {fields[name][-1].role}, and the assistant's is expected."
                )
            fields[name] = as_response(fields[name])
    if isinstance(fields.get("prompt"), tuple):
        tools, arguments = (meta.pop(name, None) for name in ("tools", "chat_template_kwargs"))
        fields["prompt"] = conversation(fields["prompt"], tools, arguments, f"data: {location}: prompt")
    if meta.get("input") and fields.get("prompt") == row.get("instruction"):
        fields["prompt"] = f"{fields['prompt']}\n\n{meta.pop('input')}"


def _are_turns(value: Any) -> bool:
    """Whether a value is meant as messages: a list in which something has a role."""
    if not isinstance(value, list | tuple):
        return False
    return any(isinstance(turn, Message) or (isinstance(turn, Mapping) and "role" in turn) for turn in value)


def _with_roles(value: Any) -> Any:
    """Messages with the keys `from` and `value` as messages with role and content; other values as they are."""
    if not isinstance(value, list | tuple) or not all(isinstance(m, Mapping) and "from" in m and "value" in m for m in value):
        return value
    others = [{k: v for k, v in m.items() if k not in ("from", "value")} for m in value]
    return [
        {"role": SHAREGPT.get(str(m["from"]), m["from"]), "content": m["value"], **other} for m, other in zip(value, others, strict=True)
    ]


def _common_turns(chosen: tuple[Message, ...], rejected: tuple[Message, ...], location: str) -> int:
    """How many messages of two conversations are the prompt that they share; each keeps at least one."""
    shorter = min(len(chosen), len(rejected))
    number = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    if chosen == rejected:
        raise ConfigError(f"data: {location}: chosen and rejected are the same messages, so neither is preferred.")
    return min(number, shorter - 1)


def _split_common(fields: dict[str, Any], location: str) -> None:
    """The common start of chosen and rejected becomes the prompt, without a space before the difference, as in TRL."""
    chosen, rejected = fields["chosen"], fields["rejected"]
    if chosen == rejected:
        raise ConfigError(f"data: {location}: chosen and rejected are the same text, so neither is preferred.")
    if not chosen or not rejected:
        raise ConfigError(f"data: {location}: {'rejected' if chosen else 'chosen'} is empty, and there is no prompt; name its column.")
    shorter = min(len(chosen), len(rejected))
    end = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    end = min(end, shorter - 1) if end == shorter else end  # one text is the start of the other: each keeps a character
    if end > 0 and chosen[end - 1] == " " and chosen[end] != rejected[end]:
        end -= 1
    fields |= {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def _label(value: Any, is_mapped: bool, location: str, meta: dict[str, Any]) -> int | None:
    """A class index. Text labels stay in `meta`, but are an error where the user names the column (`is_mapped`)."""
    if value is None:
        return None
    try:
        if int(value) == float(value):
            return int(value)
    except (TypeError, ValueError):
        pass
    if is_mapped:
        raise ConfigError(f"data: {location}: the label '{value}' is not a class index (a whole number).")
    meta["label"] = value
    return None


def _text(value: Any) -> str:
    """The text of a value; whole numbers without a decimal point: 43.0 -> "43"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
