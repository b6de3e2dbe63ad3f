"""Any Python function as a reward."""

import asyncio
import functools
import inspect
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advalign import imports
from advalign.errors import ConfigError, RewardError, unknown
from advalign.interfaces import Context, Reward, Scorer
from advalign.ranges import Words
from advalign.types import Conversation, Example, RolloutGroup
from advalign.types.messages import is_messages, message

RESERVED = frozenset({"prompt", "completion", "completion_ids"})
"""Columns of the data that TRL does not hand to a reward function."""
HANDED = imports.Handed(
    arguments="completions (or prompts, completion_ids), each a list, and columns of the data by their names",
    fits=lambda signature: any(
        name in ("completions", "completion_ids", "prompts") and parameter.kind is not parameter.POSITIONAL_ONLY
        for name, parameter in signature.parameters.items()
    ),
    may_be_async=True,
)
GIVEN = frozenset("prompts completions completion_ids answer label pair id trainer_state log_metric log_extra".split())
"""Arguments that a reward function is given beside the columns of the data."""
MESSAGES = re.compile(r"\b(dict|Dict|Mapping|Message|ChatMessage)\b")


@dataclass(frozen=True, kw_only=True)
class Function(Reward):
    """r = fn(prompts=[...], completions=[...], **columns)[i]; None or nan abstains.

    The calling convention of TRL's custom reward functions, so that they work unchanged: every argument is a list with one entry per
    completion. columns: `completion_ids`, every column of the data under its own name, `answer`, `label`, `pair`, `id` and every key of
    the examples' `meta` (None where an example lacks it), `trainer_state`, `log_metric` and `log_extra`. Where the prompts are messages,
    prompts and completions are lists of messages. Async functions are awaited. Ours: a function whose annotation of `prompts` or
    `completions` asks for messages gets them for text prompts too; a function without `**kwargs` gets the columns it names; one that
    raises stops the run, it never scores 0.
    """

    fn: Words | Callable[..., Any]
    """The function, or its dotted path."""

    def __post_init__(self) -> None:
        if not callable(self.fn) and not self.fn.rpartition(".")[0]:
            raise ConfigError(f"rewards.function.fn: '{self.fn}' is not a dotted path such as my_lab.rewards.brevity.")
        imports.check_function(self.fn, "rewards.function.fn", HANDED)

    def check(self, examples: Sequence[Example], path: str) -> None:
        function = self._function()
        columns = {str(key) for example in examples for key in (*example.meta, *example.row) if key not in RESERVED}
        for key in _required(function):
            if key not in columns | GIVEN:
                name = self.fn if isinstance(self.fn, str) else _name(function)
                raise unknown(f"{path}: '{name}' requires '{key}'; data", "column", key, columns | GIVEN)

    def _function(self) -> Callable[..., Any]:
        return imports.function(self.fn, "rewards.function.fn", HANDED) if isinstance(self.fn, str) else self.fn

    def start(self, context: Context) -> Scorer:
        function = self._function()
        return _FunctionScorer(function, self.fn if isinstance(self.fn, str) else _name(function), context)


class _FunctionScorer(Scorer):
    """A started function, and what its last call logged."""

    def __init__(self, function: Callable[..., Any], name: str, context: Context) -> None:
        self.function, self.name, self.context = function, name, context
        self.parameters = _parameters(function)
        self.logs: dict[str, list[float]] = {}

    def __call__(self, groups: Sequence[RolloutGroup]) -> list[float]:
        self.logs = {}
        arguments: dict[str, Any] = dict(self._columns(groups))
        number = len(arguments["completions"])
        arguments |= {"trainer_state": _trainer_state(self.context), "log_metric": self._log_metric, "log_extra": self._log_extra}
        self._require(arguments)
        try:
            scores = self.function(**{key: value for key, value in arguments.items() if self._accepts(key)})
            if inspect.isawaitable(scores):
                scores = asyncio.run_coroutine_threadsafe(_awaited(scores), _event_loop()).result()
        except Exception as error:
            message = f"rewards.function: '{self.name}' failed on {number} completions with {type(error).__name__}: {error}"
            raise RewardError(message) from error
        return _checked(scores, number, self.name)

    def _accepts(self, key: str) -> bool:
        return self.parameters is None or key in self.parameters or _VARIADIC in self.parameters

    def _require(self, arguments: Mapping[str, Any]) -> None:
        """Raises ConfigError for a required argument that is not a column of the data."""
        for key in _required(self.function):
            if key not in arguments:
                raise unknown(f"rewards.function: '{self.name}' requires '{key}'; data", "column", key, arguments)

    def _asks_for_messages(self, argument: str) -> bool:
        parameter = (self.parameters or {}).get(argument)
        return parameter is not None and MESSAGES.search(str(parameter.annotation)) is not None

    def _columns(self, groups: Sequence[RolloutGroup]) -> dict[str, list[Any]]:
        """{argument: one entry per completion}."""
        flat = [(group.example, rollout) for group in groups for rollout in group.rollouts]
        fields = {"answer": "answer", "label": "label", "pair": "pair", "id": "id"}
        columns: dict[str, list[Any]] = {}
        for key in dict.fromkeys(str(key) for example, _ in flat for key in example.meta):
            columns[key] = [example.meta.get(key) for example, _ in flat]
        columns |= {key: [vars(example)[name] for example, _ in flat] for key, name in fields.items()}
        for key in dict.fromkeys(str(key) for example, _ in flat for key in example.row if key not in RESERVED):
            columns[key] = [example.row[key] if key in example.row else example.meta.get(key) for example, _ in flat]
        turns = [prompt_messages(example) for example, _ in flat]
        as_messages = {name: self._asks_for_messages(name) for name in ("prompts", "completions")}
        return columns | {
            "prompts": [
                example.prompt if messages is None and not as_messages["prompts"] else messages or [_message("user", example.text)]
                for (example, _), messages in zip(flat, turns, strict=True)
            ],
            "completions": [
                rollout.text if messages is None and not as_messages["completions"] else [_message("assistant", rollout.text)]
                for (_, rollout), messages in zip(flat, turns, strict=True)
            ],
            "completion_ids": [rollout.response_ids for _, rollout in flat],
        }

    def _log_metric(self, name: str, value: float) -> None:
        """Logged as `metrics/<name>`: the mean over the calls of a draw."""
        self.logs.setdefault(f"metrics/{name}", []).append(float(value))

    def _log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Numbers are logged as `extra/<column>`, their mean; texts as `extra/<column>/distinct`, how many differ."""
        values = list(values)
        numbers = [float(value) for value in values if isinstance(value, bool | int | float)]
        if numbers:
            self.logs.setdefault(f"extra/{column}", []).extend(numbers)
        if len(numbers) < len(values):
            texts = {str(value) for value in values if not isinstance(value, bool | int | float)}
            self.logs.setdefault(f"extra/{column}/distinct", []).append(float(len(texts)))


_VARIADIC = "**"


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """{name: parameter} that a function takes, `**` for all further ones; None: not known, so everything is handed over."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return {_VARIADIC if p.kind is p.VAR_KEYWORD else p.name: p for p in parameters if p.kind is not p.VAR_POSITIONAL}


def _required(function: Callable[..., Any]) -> list[str]:
    """Arguments that a function cannot do without."""
    parameters = _parameters(function) or {}
    named = {key: p for key, p in parameters.items() if key != _VARIADIC and p.kind is not p.POSITIONAL_ONLY}
    return [key for key, parameter in named.items() if parameter.default is parameter.empty]


def prompt_messages(example: Example) -> list[dict[str, Any]] | None:
    """The prompt of an example as messages, without the reference answer, as the data's column `prompt` has them; None where it is a
    text."""
    if not isinstance(example.prompt, Conversation):
        return None
    column: Any = example.row.get("prompt")
    if is_messages(column) and tuple(message(turn) for turn in column) == example.prompt.messages:
        return [dict(turn) for turn in column]
    return [turn.to_dict() for turn in example.prompt.messages]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", repr(function))  # any callable


def _trainer_state(context: Context) -> Any:
    """What TRL hands over: transformers' state of the trainer, with the steps done and those of the run."""
    from transformers import TrainerState

    return TrainerState(global_step=context.step, max_steps=context.total_steps or 0)


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop of the process, on a thread of its own: clients that an async reward keeps open stay on their loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="advalign-rewards", daemon=True).start()
    return loop


def _checked(scores: Any, number: int, name: str) -> list[float]:
    try:
        values = [math.nan if score is None else float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise RewardError(f"rewards.function: '{name}' returned {type(scores).__name__}, not a list of numbers or None.") from error
    if len(values) != number:
        raise RewardError(f"rewards.function: '{name}' returned {len(values)} scores for {number} completions.")
    if any(math.isinf(value) for value in values):
        raise RewardError(f"rewards.function: '{name}' returned an infinite score; scores are finite, or None to abstain.")
    return values


__all__ = ["Function"]
