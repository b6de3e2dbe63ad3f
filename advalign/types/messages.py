"""Prompts: a text, or the messages of a conversation."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from advalign.checked import Checked
from advalign.errors import ConfigError, unknown
from advalign.ranges import OneOf, Words

ROLES = ("system", "user", "assistant", "tool")
"""Roles of messages; `Tokens.roles` holds their numbers."""
SYNONYMS = {"developer": "system", "human": "user", "gpt": "assistant", "function": "tool", "ipython": "tool"}
"""Other names of roles, for `role_number`; a message keeps the name that it has, which its template reads."""


ATTACKED_TURNS = ("user", "tool", "system")
"""Roles whose turns attacks can rewrite."""


@dataclass(frozen=True)
class Message(Checked):
    """One message of a conversation."""

    role: Words
    """system, user, assistant or tool, or another name that the chat template knows."""
    content: str | None = None
    """Its text; None: none, as of an assistant that only calls tools."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Calls of tools, as the chat template reads them."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys that the chat template reads: name, tool_call_id, reasoning_content, ..."""

    def __hash__(self) -> int:
        return hash((self.role, self.content, _canonical([self.tool_calls, self.extra])))

    @property
    def role_number(self) -> int:
        """Its index into ROLES; -1: another role."""
        role = SYNONYMS.get(self.role, self.role)
        return ROLES.index(role) if role in ROLES else -1

    def to_dict(self) -> dict[str, Any]:
        """The message as a chat template reads it."""
        calls = {"tool_calls": [dict(call) for call in self.tool_calls]} if self.tool_calls else {}
        return {"role": self.role, "content": self.content} | calls | dict(self.extra)


@dataclass(frozen=True)
class Conversation(Checked):
    """A prompt of messages. With an assistant's message at its end, the response continues that message."""

    messages: tuple[Message, ...]
    """In order; a prompt has at least one, the beginning of another conversation may have none."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that the assistant may call."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template for this conversation, such as enable_thinking."""
    attacked_turn: Annotated[str, OneOf(ATTACKED_TURNS, "role")] = "user"
    """Role of the messages of which an attack rewrites the last: user, or tool or system where they are what an attacker writes."""

    def __hash__(self) -> int:
        return hash((self.messages, _canonical([self.tools, self.chat_template_kwargs])))

    def __str__(self) -> str:
        """The conversation as people read it: a line `role: text` per message."""
        return "\n".join(f"{m.role}: {_shown(m)}" for m in self.messages)

    def extended(self, response: Response) -> Conversation:
        """The conversation with a response at its end; a text continues an assistant's message that ends the conversation."""
        last = self.messages[-1]
        if isinstance(response, str) and last.role_number == ROLES.index("assistant"):
            return replace(self, messages=(*self.messages[:-1], replace(last, content=(last.content or "") + response)))
        return replace(self, messages=(*self.messages, *response_messages(response)))


Prompt = str | Conversation
Response = str | tuple[Message, ...]
"""What an assistant answers: a text, or its messages and the tool results between them."""


def message(value: Any, path: str = "messages") -> Message:
    """A message from a mapping with `role` and `content` (a text, parts of type text, or None)."""
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        raise ConfigError(f"{path}: {_excerpt(value)} is not a message; it needs role and content.")
    extra = {k: v for k, v in value.items() if k not in ("role", "content", "tool_calls") and v is not None}
    calls = value.get("tool_calls") or ()
    if not isinstance(calls, Sequence) or isinstance(calls, str) or not all(isinstance(call, Mapping) for call in calls):
        raise ConfigError(f"{path}.tool_calls: {_excerpt(calls)} is not a list of calls, each a mapping.")
    content = _content(value.get("content"), path)
    if content is None and not calls and not extra:
        raise ConfigError(f"{path}.content: null given; only a message that calls tools may have no text.")
    _check_role(value["role"], path)
    return Message(value["role"], content, tuple(calls), extra)


def conversation(
    messages: Sequence[Message | Mapping[str, Any]], tools: Any = None, chat_template_kwargs: Any = None, path: str = "messages"
) -> Conversation:
    """A conversation from messages as data carries them; `tools`, each of them and `chat_template_kwargs` may be JSON text, as in TRL."""
    if not isinstance(messages, list | tuple):
        raise ConfigError(f"{path}: {_excerpt(messages)} is not a list of messages.")
    if not messages:
        raise ConfigError(f"{path}: a conversation needs at least one message.")
    tools = _parsed(tools, "tools") or ()
    if not isinstance(tools, list | tuple):
        raise ConfigError(f"tools: {_excerpt(tools)} is not a list of JSON schemas.")
    tools = [_mapping(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    turns = tuple(message(value, f"{path}[{i}]") for i, value in enumerate(messages))
    return Conversation(turns, tuple(tools), dict(_mapping(chat_template_kwargs or {}, "chat_template_kwargs")))


def is_messages(value: Any) -> bool:
    """Whether a value of a data set is a list of messages."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(m, Message) or (isinstance(m, Mapping) and "role" in m and ("content" in m or "tool_calls" in m)) for m in value)


def as_conversation(prompt: Prompt) -> Conversation:
    """A text becomes the turn of a user."""
    return Conversation((Message("user", prompt),)) if isinstance(prompt, str) else prompt


def plain_text(prompt: Prompt) -> str:
    """The prompt for what reads texts: the one turn of a user as its text, else lines `role: text`."""
    if isinstance(prompt, Conversation) and len(prompt.messages) == 1 and prompt.messages[0].role_number == ROLES.index("user"):
        return prompt.messages[0].content or ""
    return str(prompt)


def response_messages(response: Response) -> tuple[Message, ...]:
    """A text becomes the turn of an assistant."""
    return (Message("assistant", response),) if isinstance(response, str) else response


def as_response(turns: tuple[Message, ...]) -> Response:
    """Messages as a response: of one plain turn of the assistant its text."""
    plain = len(turns) == 1 and turns[0].role == "assistant" and not turns[0].tool_calls and not turns[0].extra
    return (turns[0].content or "") if plain else turns


def response_text(response: Response) -> str:
    """The text of a response: of its last message with a text."""
    texts = [m.content for m in response_messages(response) if m.content]
    return texts[-1] if texts else ""


def as_read(prompt: Prompt) -> str | list[dict[str, Any]]:
    """The prompt as foreign code reads it: a text, or messages as mappings."""
    return prompt if isinstance(prompt, str) else [m.to_dict() for m in prompt.messages]


def attackable(prompt: Prompt) -> str:
    """The text of a prompt that an attack rewrites: the prompt, or the last turn of the user (without one: the last turn that is
    not an assistant's); of a conversation with another `attacked_turn` the last turn of that role."""
    return prompt if isinstance(prompt, str) else prompt.messages[_attackable_turn(prompt)].content or ""


def with_attackable(prompt: Prompt, text: str) -> Prompt:
    """The prompt with another text where `attackable` reads it; all other turns stay."""
    if isinstance(prompt, str):
        return text
    turn = _attackable_turn(prompt)
    messages = list(prompt.messages)
    messages[turn] = replace(messages[turn], content=text)
    return replace(prompt, messages=tuple(messages))


def with_attacked_turn(prompt: Prompt, role: str, path: str) -> Prompt:
    """The prompt, of which attacks rewrite the last turn of a role; `path`: what chose the role, in errors."""
    if role not in ATTACKED_TURNS:
        raise unknown(path, "role", role, ATTACKED_TURNS)
    if role == "user":
        return prompt
    if isinstance(prompt, str):
        raise ConfigError(f"{path}: '{role}' given, and the prompt '{_excerpt(prompt)}' is a text, which is the user's; give messages.")
    moved = replace(prompt, attacked_turn=role)
    _attackable_turn(moved)
    return moved


def to_plain(value: Any) -> Any:
    """A prompt or a response as plain values, for JSON; texts stay texts."""
    if isinstance(value, Conversation):
        turns: dict[str, Any] = {"messages": [m.to_dict() for m in value.messages]}
        turns |= {"tools": list(value.tools), "chat_template_kwargs": dict(value.chat_template_kwargs)}
        return turns if value.attacked_turn == "user" else turns | {"attacked_turn": value.attacked_turn}
    if isinstance(value, tuple) and all(isinstance(m, Message) for m in value):
        return {"response": [m.to_dict() for m in value]}
    return value


def from_plain(value: Any) -> Any:
    """The inverse of `to_plain`."""
    if isinstance(value, Mapping) and "response" in value:
        return tuple(message(m) for m in value["response"])
    if not isinstance(value, Mapping):
        return value
    attacked_turn = value.get("attacked_turn", "user")
    fields = {name: x for name, x in value.items() if name != "attacked_turn"}
    return replace(conversation(**fields), attacked_turn=attacked_turn)


def _attackable_turn(prompt: Conversation) -> int:
    attacked = ROLES.index(prompt.attacked_turn)
    for roles in ((1,), (-1, 0, 1, 3)) if prompt.attacked_turn == "user" else ((attacked,),):
        turns = [i for i, m in enumerate(prompt.messages) if m.role_number in roles]
        if turns:
            return turns[-1]
    turn = "turn but the assistant's" if prompt.attacked_turn == "user" else f"{prompt.attacked_turn} turn"
    raise ConfigError(f"attack: the conversation '{_excerpt(str(prompt))}' has no {turn}, so there is nothing to rewrite.")


def _check_role(role: str, path: str) -> None:
    """Raises ConfigError for a role that is a known one misspelt. Another one is for the chat template to know."""
    known = (*ROLES, *SYNONYMS)
    if role not in known and difflib.get_close_matches(role.strip().lower(), known, n=1, cutoff=0.8):
        raise unknown(path, "role", role, known)


def _content(value: Any, path: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Sequence):
        raise ConfigError(f"{path}.content: {_excerpt(value)} is neither a text nor a list of parts.")
    if not value:
        raise ConfigError(f"{path}.content: an empty list given; a text or parts of type text are expected.")
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ConfigError(f"{path}.content: a part of type {kind}; only parts of type text are read.")
        texts.append(text)
    return "".join(texts)


def _parsed(value: Any, path: str) -> Any:
    """A value, or what its JSON text says."""
    try:
        return (json.loads(value) if value else None) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: '{_excerpt(value)}' is no JSON text: {error}.") from error


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    mapping = _parsed(value, path)
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path}: {_excerpt(value)} is not a mapping, nor the JSON text of one.")
    return mapping


def _shown(turn: Message) -> str:
    calls = json.dumps([dict(call) for call in turn.tool_calls], default=str) if turn.tool_calls else ""
    return " ".join(text for text in (turn.content, calls) if text)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _excerpt(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
