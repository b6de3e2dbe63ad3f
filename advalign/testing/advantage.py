"""The contract of an advantage: "B T", zero off target, finite where rewards say nothing, and flags that tell what it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from advalign.interfaces import Advantage
from advalign.testing._rules import explained, floats, is_plugin, require, same, snapshot
from advalign.types import RolloutRows, Tokens, fit

NUM_GROUPS, SIZE, WIDTH = 3, 4, 7
READ_WHERE_DECLARED = (("needs_values", "values"), ("needs_baseline", "baseline"), ("reads_token_rewards", "token_rewards"))


def check_advantage(advantage: Advantage) -> None:
    """Raises AssertionError for the first rule that the advantage breaks."""
    is_plugin(advantage, Advantage, "advantages")
    case = _Case(advantage, _declared(advantage, rollout_rows()))
    _state(case)
    _result(case)
    _flags(case)
    _same_rows_same_advantages(case)
    _degenerate(case)


def rollout_rows(num_groups: int = NUM_GROUPS, size: int = SIZE) -> RolloutRows:
    """Rollouts of unequal length with two rewards each and everything an advantage may read."""
    generator = torch.Generator().manual_seed(0)
    number = num_groups * size
    lengths = torch.randint(3, WIDTH + 1, (number,), generator=generator)
    place = torch.arange(WIDTH)[None]
    mask, target = place < lengths[:, None], (place >= 2) & (place < lengths[:, None])
    group = torch.arange(number) // size
    tokens = Tokens(ids=torch.zeros(number, WIDTH, dtype=torch.long), mask=mask, target=target, group=group, key=torch.arange(number))
    noise = torch.randn(3, number, WIDTH, generator=generator, dtype=torch.float64)
    return RolloutRows(
        tokens=tokens,
        rewards=torch.randn(number, 2, generator=generator, dtype=torch.float64),
        advantages=torch.zeros(number, WIDTH, dtype=torch.float64),
        sampler_logprobs=-noise[0].abs(),
        finished=torch.ones(number, dtype=torch.bool),
        values=noise[1],
        token_rewards=noise[2] * target,
        baseline=torch.randn(num_groups, generator=generator, dtype=torch.float64).repeat_interleave(size),
        roles=torch.arange(number) % 2,
    )


def _declared(advantage: Advantage, rows: RolloutRows) -> RolloutRows:
    """The rows without the columns that the advantage does not declare."""
    unread: dict[str, Any] = {column: None for flag, column in READ_WHERE_DECLARED if not getattr(advantage, flag)}
    return replace(rows, **unread)


@dataclass(frozen=True)
class _Case:
    advantage: Advantage
    rows: RolloutRows

    def state(self) -> dict[str, Any] | None:
        """What a run hands in before the first draw; moved off zero, where a moving baseline would be invisible."""
        state = self.advantage.initial_state()
        return None if state is None else {name: x + 0.25 if isinstance(x, float) else x for name, x in state.items()}

    def __call__(self, rows: RolloutRows | None = None) -> tuple[Tensor, Tensor | None]:
        rows = self.rows if rows is None else rows
        with explained(self.advantage, "it raised; it may read rows.values, .baseline and .token_rewards only where its flags say so"):
            result = self.advantage(rows, self.state(), lambda x: x)
        pair = isinstance(result, tuple) and len(result) == 2
        require(pair, self.advantage, "it returns no pair; return (advantages, returns), with None for the returns where there are none.")
        return result

    def require(self, holds: bool, sentence: str) -> None:
        require(holds, self.advantage, sentence)


def _state(case: _Case) -> None:
    def plain(x: Any) -> bool:
        return isinstance(x, float) or (isinstance(x, dict) and all(isinstance(k, str) and plain(v) for k, v in x.items()))

    first, second = case.advantage.initial_state(), case.advantage.initial_state()
    if first is None:
        return
    case.require(
        plain(first), "initial_state holds something that is no float and no dictionary of floats by string; a checkpoint keeps it."
    )
    case.require(first is not second, "initial_state gives the same dictionary twice; every source needs a fresh one.")
    with explained(case.advantage, "it raised with the state of initial_state"):
        case.advantage(case.rows, first, lambda x: x)
    case.require(plain(first), "after a call the state holds something that is no float and no dictionary of floats by string.")


def _result(case: _Case) -> None:
    rows, before = case.rows, snapshot(case.rows)
    advantages, returns = case()
    case.require(same(before, rows), "it writes into its rows; objectives read the same tensors.")
    for name, x in (("advantages", advantages), ("returns", returns)):
        if x is None and name == "returns":
            continue
        shape, want = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__, tuple(rows.tokens.ids.shape)
        hint = "" if shape != want[:1] else "; functional.advantages.expand(per_row, rows.tokens.target) makes one of the other"
        case.require(shape == want, f"{name} have shape {shape}, not (B, T) = {want}{hint}.")
        assert x is not None
        case.require(bool(x.isfinite().all()), f"{name} are not finite.")
        case.require(float(x[~rows.tokens.target].abs().sum()) == 0.0, f"{name} are not zero off target (prompt and padding).")
        case.require(not x.requires_grad, f"{name} carry a gradient.")
    case.require(float(advantages.abs().sum()) > 0, "all advantages are zero although rewards differ.")
    single = case(floats(rows, torch.float32))[0]
    case.require(single.dtype == torch.float32, f"rewards in float32 give advantages in {single.dtype}; keep the precision of the rewards.")


def _flags(case: _Case) -> None:
    """A critic or a greedy response costs a model or a sample per prompt: it is declared exactly where it is read."""
    full, want = rollout_rows(), case()[0]
    for flag, column in READ_WHERE_DECLARED:
        if getattr(case.advantage, flag):
            column_moved: dict[str, Any] = {column: _moved(getattr(full, column), full)}
            moved = replace(case.rows, **column_moved)
            case.require(not torch.equal(case(moved)[0], want), f"it declares {flag} but does not read rows.{column}.")
        else:
            extra = replace(case.rows, **{column: getattr(full, column)})
            case.require(torch.equal(case(extra)[0], want), f"it reads rows.{column}; declare {flag}.")
    alone = float(case(replace(_declared(case.advantage, rollout_rows(6, 1)), token_rewards=None))[0].abs().sum())
    if case.advantage.compares:
        case.require(alone == 0.0, "it declares `compares`, yet one response per prompt has an advantage.")
    else:
        case.require(alone > 0.0, "one response per prompt has no advantage: it compares the responses of a prompt; declare `compares`.")


def _moved(column: Tensor, rows: RolloutRows) -> Tensor:
    change = 1.0 + torch.arange(column.shape[0], dtype=column.dtype).reshape(-1, *[1] * (column.ndim - 1))
    return column + (change * rows.tokens.target if column.ndim == 2 else change)


def _same_rows_same_advantages(case: _Case) -> None:
    rows, want = case.rows, case()[0]
    order = torch.randperm(len(rows.rewards), generator=torch.Generator().manual_seed(1))
    case.require(
        torch.allclose(case(rows.index(order))[0], want[order], rtol=0, atol=1e-12),
        "advantages depend on the order of the rows; groups are named by rows.tokens.group, not by position.",
    )
    columns = {f.name: getattr(rows, f.name) for f in fields(rows)}
    wide: dict[str, Any] = {k: fit(x, WIDTH + 3) for k, x in columns.items() if isinstance(x, Tensor) and x.shape == rows.tokens.ids.shape}
    got = case(replace(rows, tokens=rows.tokens.fit(WIDTH + 3), **wide))[0]
    case.require(torch.allclose(got[:, :WIDTH], want, rtol=0, atol=1e-12), "advantages depend on the padding of the batch.")
    off = torch.where(rows.tokens.target, 0.0, 1e3)
    dirty = {k: x + off for k, x in columns.items() if k in ("values", "token_rewards") and x is not None}
    case.require(torch.equal(case(replace(rows, **dirty))[0], want), "advantages depend on values or rewards off target (prompt, padding).")
    offpolicy = replace(rows, offpolicy=torch.arange(len(rows.rewards)) % SIZE == 0)
    case.require(torch.equal(case(offpolicy)[0], want), "off-policy rows are treated apart; in the statistics they count like any other.")


def _degenerate(case: _Case) -> None:
    rows = case.rows
    flat = replace(rows, rewards=torch.full_like(rows.rewards, 0.1), token_rewards=None)
    constant = case(flat)[0]
    case.require(bool(constant.isfinite().all()), "advantages are not finite where all rewards agree; a spread of zero divides nothing.")
    if case.advantage.compares:
        small = float(constant.abs().max()) < 1e-6
        case.require(small, "it declares `compares`, yet responses of equal reward have advantages (rounding divided by its own spread?).")
    target = rows.tokens.target.clone()
    target[[1, 5]] = False
    empty = case(replace(rows, tokens=replace(rows.tokens, target=target)))[0]
    fine = bool(empty.isfinite().all()) and float(empty[~target].abs().sum()) == 0.0
    case.require(fine, "rows without a target token make advantages that are not finite, or not zero off target.")
    none = case(replace(rows, tokens=replace(rows.tokens, target=torch.zeros_like(target))))[0]
    case.require(float(none.abs().sum()) == 0.0, "a draw without target tokens has advantages.")
    case.require(not math.isnan(float(case(_declared(case.advantage, rollout_rows(6, 1)))[0].sum())), "groups of one are not finite.")


__all__ = ["check_advantage"]
