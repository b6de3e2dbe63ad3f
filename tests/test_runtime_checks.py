"""Annotations are enforced while tests run: a wrong shape is refused, also beside a hint that cannot be checked."""

from typing import Protocol

import jaxtyping
import pytest
import torch
from helpers.runtime_checks import check
from jaxtyping import Float, Int
from torch import Tensor

from advalign import types


class Uncheckable(Protocol):
    def anything(self) -> None: ...


@jaxtyping.jaxtyped(typechecker=check)
def rows_of(values: Float[Tensor, "B T"], rows: Int[Tensor, "N"], context: Uncheckable) -> Float[Tensor, "N T"]:
    return values[rows]


def test_the_hook_is_on() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="ids"):
        types.Tokens(
            ids=torch.zeros(2, 3),  # floats where token ids belong
            mask=torch.ones(2, 3, dtype=torch.bool),
            target=torch.ones(2, 3, dtype=torch.bool),
            group=torch.zeros(2, dtype=torch.long),
            key=torch.zeros(2, dtype=torch.long),
        )


def test_the_other_hints_hold_beside_one_that_cannot_be_checked() -> None:
    values = torch.arange(6.0).reshape(3, 2)
    assert rows_of(values, torch.tensor([2, 0]), "no Uncheckable").tolist() == [[4.0, 5.0], [0.0, 1.0]]
    with pytest.raises(jaxtyping.TypeCheckError):
        rows_of(values[0], torch.tensor([0]), None)
    with pytest.raises(jaxtyping.TypeCheckError):
        rows_of(values, torch.tensor([0.0]), None)


@jaxtyping.jaxtyped(typechecker=check)
def half(x: float) -> float:
    return x / 2


def test_an_int_is_a_float_but_a_string_is_not() -> None:
    assert half(3) == 1.5
    with pytest.raises(jaxtyping.TypeCheckError):
        half("3")  # type: ignore[arg-type]
