"""check_advantage passes every built-in estimator, and names the slip of each broken one."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from advalign import advantages, plugins
from advalign.functional.advantages import expand, group_relative
from advalign.interfaces import Advantage
from advalign.testing import check_advantage

VARIANTS = [
    advantages.Group(scale="batch"),
    advantages.Group(scale="none"),
    advantages.GAE(whiten=False),
    advantages.ReinforcePP(baseline="group", gamma=0.9),
    advantages.GDPO(whiten="none"),
]


@dataclass(frozen=True, kw_only=True)
class Centred(Advantage):
    """A = r - mean of the group."""

    @property
    def compares(self):
        return True

    def __call__(self, rows, state, all_reduce):
        return expand(group_relative(rows.rewards.sum(1), rows.tokens.group, floor=1.0), rows.tokens.target), None


class PerRow(Centred):
    def __call__(self, rows, state, all_reduce):
        return rows.rewards.sum(1), None


class Bare(Centred):
    def __call__(self, rows, state, all_reduce):
        return super().__call__(rows, state, all_reduce)[0]


class OffTarget(Centred):
    def __call__(self, rows, state, all_reduce):
        per_row = group_relative(rows.rewards.sum(1), rows.tokens.group, floor=1.0)
        return per_row[:, None].expand(rows.tokens.ids.shape).clone(), None


class Divides(Centred):
    """0 / 0 where all rewards of a group agree."""

    def __call__(self, rows, state, all_reduce):
        total = rows.rewards.sum(1)
        by_group = total.reshape(-1, int((rows.tokens.group == rows.tokens.group[0]).sum()))
        centred = by_group - by_group.mean(1, keepdim=True)
        return expand((centred / centred.square().mean(1, keepdim=True).sqrt()).flatten(), rows.tokens.target), None


class ByPosition(Centred):
    """Rows 4 i to 4 i + 3 taken for a group."""

    def __call__(self, rows, state, all_reduce):
        total = rows.rewards.sum(1)
        size = 4 if len(total) % 4 == 0 and rows.tokens.group.unique().numel() < len(total) else 1
        by_group = total.reshape(-1, size)
        return expand((by_group - by_group.mean(1, keepdim=True)).flatten(), rows.tokens.target), None


class Critic(Centred):
    """Reads rows.values and does not say so."""

    def __call__(self, rows, state, all_reduce):
        advantages, returns = super().__call__(rows, state, all_reduce)
        return (advantages - rows.values) * rows.tokens.target, returns


class MaybeCritic(Centred):
    def __call__(self, rows, state, all_reduce):
        advantages, returns = super().__call__(rows, state, all_reduce)
        return advantages if rows.values is None else advantages + rows.values * rows.tokens.target, returns


class NeedsNothing(Centred):
    @property
    def needs_values(self):
        return True


class SaysNothing(Centred):
    @property
    def compares(self):
        return False


class Raw(Centred):
    """r itself, which compares nothing."""

    def __call__(self, rows, state, all_reduce):
        return expand(rows.rewards.sum(1), rows.tokens.target), None


class Mutates(Centred):
    def __call__(self, rows, state, all_reduce):
        rows.rewards.sub_(rows.rewards.mean())
        return super().__call__(rows, state, all_reduce)


class DoublePrecision(Centred):
    def __call__(self, rows, state, all_reduce):
        return super().__call__(rows, state, all_reduce)[0].double(), None


class SharedState(Centred):
    STATE: ClassVar = {"mean": 0.0}

    def initial_state(self):
        return self.STATE


class TensorState(Centred):
    def initial_state(self):
        return {"mean": torch.zeros(())}


class NotADataclass(Advantage):
    def __call__(self, rows, state, all_reduce):
        return Centred()(rows, state, all_reduce)


SLIPS = {
    NotADataclass: "is not decorated with @dataclass",
    PerRow: r"shape \(12,\), not \(B, T\) = \(12, 7\); functional.advantages.expand",
    Bare: "returns no pair",
    OffTarget: "not zero off target",
    Divides: "not finite where all rewards agree|one response per prompt|groups of one|order",
    ByPosition: "order of the rows",
    Critic: "it may read rows.values",
    MaybeCritic: "reads rows.values; declare needs_values",
    NeedsNothing: "declares needs_values but does not read",
    SaysNothing: "declare `compares`",
    Raw: "declares `compares`, yet",
    Mutates: "writes into its rows",
    DoublePrecision: "float64; keep the precision",
    SharedState: "same dictionary twice",
    TensorState: "no float and no dictionary",
}


@pytest.mark.parametrize("advantage", [*(cls() for cls in plugins.all("advantages")), *VARIANTS], ids=str)
def test_every_built_in_advantage_keeps_the_contract(advantage):
    check_advantage(advantage)


def test_an_advantage_of_ones_own_keeps_it():
    check_advantage(Centred())


@pytest.mark.parametrize(("cls", "says"), SLIPS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_slip_is_named(cls, says):
    with pytest.raises(AssertionError, match=rf"{cls.__name__}: .*({says})"):
        check_advantage(cls())
