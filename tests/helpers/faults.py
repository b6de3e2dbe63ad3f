"""Faults on demand: the n-th call of a function of `os` fails, or ends the process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def raise_at(monkeypatch: Any, number: int, error: Callable[[], BaseException], names: tuple[str, ...]) -> list[str]:
    """Lets `number` calls of these functions of `os` pass; raises `error()` in every call after them. Returns the calls that failed."""
    passed, failed = [0], []

    def faulty(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if passed[0] < number:
                passed[0] += 1
                return function(*arguments, **options)
            failed.append(name)
            raise error()

        return call

    for name in names:
        monkeypatch.setattr(os, name, faulty(name, getattr(os, name)))
    return failed
