"""The run-time checker of shapes and types: beartype, with ints where floats are asked, without the few hints it cannot follow.

It sees methods without their class, so `Self` means nothing to it, and a Protocol that is not `runtime_checkable`
cannot be checked at all. Such a hint is dropped; every other hint of the same function is still enforced.
"""

import inspect
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(f: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, leaving out the hints beartype refuses, and constructors that check what they are given (`advalign/checked.py`)."""
    if _is_configuration(f):
        return f
    try:
        return _beartype(f)
    except BeartypeDecorHintException:
        hints = dict(f.__annotations__)
        f.__annotations__ = {name: hint for name, hint in hints.items() if _checkable(f, name, hint)}
        return _beartype(f)


def _is_configuration(f: Callable[..., Any]) -> bool:
    """Whether it is the constructor of a dataclass by keywords that holds no tensors."""
    if f.__name__ != "__init__":
        return False
    parameters = list(inspect.signature(f).parameters.values())[1:]
    shaped = any("jaxtyping" in repr(p.annotation) or "Tensor" in repr(p.annotation) for p in parameters)
    return bool(parameters) and not shaped and all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)


def _checkable(f: Callable[..., Any], name: str, hint: object) -> bool:
    f.__annotations__ = {name: hint}
    try:
        _beartype(f)
    except BeartypeDecorHintException:
        return False
    return True
