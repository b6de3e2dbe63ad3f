"""The verifiable instructions of an example (IFEval, arXiv:2311.07911), and which of them a text follows.

An example carries `instruction_id_list`, such as ["length_constraints:number_words"], and `kwargs`, one mapping of arguments for each, as
IFEval's public prompts do. `instruction_rules` has the rules.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advalign.errors import ConfigError, excerpt, unknown
from advalign.functional.instruction_rules import NEEDS_LANGUAGE, RELATIONS, RULES, Detect

LEVELS = ("prompt", "instruction")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of an example, with arguments that its rule takes."""

    id: str
    """A key of `RULES`."""
    arguments: Mapping[str, Any]
    """By name, as its rule takes them."""

    def followed(self, text: str, detect: Detect | None = None) -> bool:
        """Whether a text follows it; an empty one follows nothing."""
        rule = RULES[self.id]
        further = {"detect": detect} if "detect" in inspect.signature(rule).parameters else {}
        return bool(text.strip()) and rule(text, **self.arguments, **further)


def read(ids: Any, kwargs: Any, path: str) -> tuple[Instruction, ...]:
    """The columns `instruction_id_list` and `kwargs` of one example. Arguments that are null are left out, as some copies of the data hold
    all names for every instruction. Raises ConfigError: an unknown id, or an argument that is missing, unknown or of another form."""
    if not (_is_list(ids) and _is_list(kwargs)) or len(ids) != len(kwargs):
        raise ConfigError(
            f"{path}: instruction_id_list and kwargs are expected to be lists of equal length; {_lengths(ids, kwargs)} given."
        )
    return tuple(_instruction(name, arguments, path) for name, arguments in zip(ids, kwargs, strict=True))


def of_example(meta: Mapping[str, Any], path: str, detects_language: bool) -> tuple[Instruction, ...]:
    """The instructions in an example's `meta`; none where it has no column for them. `path`: of the example, in errors."""
    if meta.get("instruction_id_list") is None:
        return ()
    instructions = read(meta["instruction_id_list"], meta.get("kwargs"), path)
    needing = [instruction.id for instruction in instructions if instruction.id in NEEDS_LANGUAGE]
    if needing and not detects_language:
        raise ConfigError(f"{path}: '{needing[0]}' asks for the language of a text; set detect_language: true, or leave such examples out.")
    return instructions


def accuracy(outcomes: Sequence[bool], level: str) -> float:
    """1[every instruction is followed] (prompt), or the fraction that is (instruction); nan of none."""
    if not outcomes:
        return math.nan
    return float(all(outcomes)) if level == "prompt" else sum(outcomes) / len(outcomes)


def outcomes(instructions: Sequence[Instruction], text: str, *, loose: bool = False, detect: Detect | None = None) -> list[bool]:
    """Whether each instruction is followed. `loose`: by the text or by one of `variants(text)`."""
    texts = variants(text) if loose else [text]
    return [any(instruction.followed(variant, detect) for variant in texts) for instruction in instructions]


def variants(text: str) -> list[str]:
    """The text as it is and without its first line, its last, or both, each also without stars: the eight of IFEval's loose accuracy
    (section 4.1)."""
    lines = text.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [version for part in (text, *cut) for version in (part, part.replace("*", ""))]


def _instruction(name: Any, arguments: Any, path: str) -> Instruction:
    if name not in RULES:
        raise unknown(f"{path}: instruction_id_list", "instruction", name, RULES)
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"{path}: kwargs of {name}: {excerpt(repr(arguments))} given; a mapping of arguments is expected.")
    arguments = {key: value for key, value in arguments.items() if value is not None}
    names = [key for key in inspect.signature(RULES[name]).parameters if key not in ("text", "detect")]
    for key in arguments:
        if key not in names:
            raise unknown(f"{path}: kwargs of {name}", "argument", key, names)
    for key in names:
        if key not in arguments:
            raise ConfigError(f"{path}: kwargs of {name}: no '{key}' given; it is required.")
    return Instruction(
        id=name, arguments={key: _argument(key, value, f"{path}: kwargs of {name}: {key}") for key, value in arguments.items()}
    )


def _argument(key: str, value: Any, path: str) -> Any:
    """One argument; its name says what it holds, the same in every rule."""
    if key.endswith("relation"):
        if value not in RELATIONS:
            raise unknown(path, "relation", value, RELATIONS)
        return value
    if key in ("keywords", "forbidden_words"):
        if not _is_list(value) or not value or not all(isinstance(word, str) and word.strip() for word in value):
            raise ConfigError(f"{path}: {excerpt(repr(value))} given; a list of texts is expected.")
        return list(value)
    if key.startswith(("num_", "nth_")) or key.endswith("frequency"):
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1 and value >= 0
        if not whole:
            raise ConfigError(f"{path}: {excerpt(repr(value))} given; a whole number of at least 0 is expected.")
        return int(value)
    if not isinstance(value, str) or not value.strip() or (key == "letter" and len(value.strip()) != 1):
        raise ConfigError(f"{path}: {excerpt(repr(value))} given; {'one letter' if key == 'letter' else 'a text'} is expected.")
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _lengths(ids: Any, kwargs: Any) -> str:
    return " and ".join(str(len(value)) if _is_list(value) else excerpt(repr(value)) for value in (ids, kwargs))


__all__ = ["LEVELS", "Instruction", "accuracy", "of_example", "outcomes", "read", "variants"]
