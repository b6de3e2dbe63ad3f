"""A = R - b_role, then b_role <- decay b_role + (1 - decay) R   (RAE, arXiv:2506.24119): one moving baseline for each side of a game.

In a zero-sum game the mean over both sides is 0 whatever the policy does, and a side that wins more often by the rules alone would be
reinforced for it; a baseline for each role removes that. It is used BEFORE a row's reward enters it, as in released code, so that it does
not depend on the row. `rows.roles` None is role 0: REINFORCE with a moving baseline. Baselines start at 0.

Differences: all rows of a draw, on all ranks, see the baseline from before the draw, so their order does not matter; n rows of one role
with mean m then move it as n equal rewards would, b <- decay^n b + (1 - decay^n) m. The paper keeps a baseline per game and role: here a
game is a source, and each source has a state of its own.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.ranges import Count, ProperFraction
from advalign.types import RolloutRows

__all__ = ["RoleEMA"]


@dataclass(frozen=True, kw_only=True)
class RoleEMA(Advantage):
    """A = R - b_role, b_role a moving average of the role's earlier rewards."""

    decay: ProperFraction = 0.95
    """Per row of the role; the released code's value, per game."""
    num_roles: Count = 2
    """Roles are numbered from 0 to num_roles - 1."""

    def initial_state(self) -> AdvantageState:
        """One baseline for each role."""
        return {f"role_{i}": 0.0 for i in range(self.num_roles)}

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        if state is None:
            raise ConfigError("advantages.role_ema: no state was given; keep the dictionary of initial_state() and pass it every time.")
        rewards = rows.rewards.sum(1)
        roles = torch.zeros_like(rows.tokens.group) if rows.roles is None else rows.roles.long()
        out_of_range = roles[(roles < 0) | (roles >= self.num_roles)]
        if len(out_of_range):
            raise ConfigError(
                f"advantages.role_ema.num_roles: a row has role {int(out_of_range[0])}, roles are numbered from 0 to {self.num_roles - 1}."
            )
        baselines = rewards.new_tensor([state[f"role_{i}"] for i in range(self.num_roles)])
        zeros = torch.zeros_like(baselines)
        sums = [zeros.index_add(0, roles, x) for x in (torch.ones_like(rewards), rewards)]
        for i, (num, total) in enumerate(all_reduce(torch.stack(sums)).T.tolist()):
            weight = self.decay**num
            state[f"role_{i}"] = weight * state[f"role_{i}"] + (1 - weight) * (total / max(num, 1.0))
        return advantages.expand(rewards - baselines[roles], rows.tokens.target), None
