"""Rewards -> advantages. Axes: B rows, T tokens. `all_reduce` sums a tensor over ranks; groups never cross a rank."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

AllReduce = Callable[[Tensor], Tensor]


def expand(per_row: Float[Tensor, "B"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """One number per row, on each of its target tokens; zero elsewhere."""
    return per_row[:, None] * target


def centred(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """(R - mean of its group, size of its group). Exactly zero in a group whose rewards are all equal, singletons included."""
    _, index = group.unique(return_inverse=True)
    zeros = torch.zeros_like(rewards)
    size = zeros.index_add(0, index, torch.ones_like(rewards))[index]
    mean = zeros.index_add(0, index, rewards)[index] / size
    low = zeros.scatter_reduce(0, index, rewards, "amin", include_self=False)[index]
    high = zeros.scatter_reduce(0, index, rewards, "amax", include_self=False)[index]
    return torch.where(low == high, 0.0, rewards - mean), size


def group_relative(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"], *, floor: float) -> Float[Tensor, "B"]:
    """A = (R - mean_g) / max(std_g, floor), std with ddof = 1   (GRPO, arXiv:2402.03300, section 4.1.2)."""
    centre, size = centred(rewards, group)
    _, index = group.unique(return_inverse=True)
    squares = torch.zeros_like(rewards).index_add(0, index, centre**2)[index]
    return centre / (squares / (size - 1).clamp(min=1)).sqrt().clamp(min=floor)


def batch_relative(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"], *, floor: float, all_reduce: AllReduce) -> Float[Tensor, "B"]:
    """A = (R - mean_g) / max(std_batch, floor), std of all rewards with ddof = 1   (Lite PPO, arXiv:2508.08221)."""
    _, std = moments(rewards, all_reduce)
    return centred(rewards, group)[0] / std.clamp(min=floor)


def leave_one_out(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """A_i = R_i - mean_{j != i} R_j = n / (n - 1) (R_i - mean_g)   (RLOO, arXiv:2402.14740); 0 when n = 1."""
    centre, size = centred(rewards, group)
    return centre * size / (size - 1).clamp(min=1)


def gae(
    rewards: Float[Tensor, "B T"], values: Float[Tensor, "B T"], target: Bool[Tensor, "B T"], *, gamma: float, lam: float
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """delta_t = R_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  returns = A + V   (arXiv:1506.02438, eq. 16).

    t + 1 is the next TARGET token: what a tool said in between does not decay a reward. V behind the last one is 0.
    """
    following = carried = torch.zeros_like(values[:, 0])
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        on = target[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = torch.where(on, delta + gamma * lam * carried, carried)
        following = torch.where(on, values[:, t], following)
        advantages[:, t] = torch.where(on, carried, 0.0)
    return advantages, torch.where(target, advantages + values, 0.0)


def at_end(per_row: Float[Tensor, "B"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """One number per row, on its last target token; zero elsewhere."""
    behind = target.flip(1).cumsum(1).flip(1)
    return per_row[:, None] * (target & (behind == 1))


def whiten(x: Float[Tensor, "B T"], target: Bool[Tensor, "B T"], *, floor: float, all_reduce: AllReduce) -> Float[Tensor, "B T"]:
    """(x - mean) / max(std, floor) over all target tokens of all ranks, ddof = 1; zero off target and for a single token."""
    mean, std = moments(x[target], all_reduce)
    return torch.where(target, (x - mean) / std.clamp(min=floor), 0.0)


def moments(x: Float[Tensor, "N"], all_reduce: AllReduce) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and standard deviation (ddof = 1; 0 of fewer than two numbers) over all ranks, in two passes."""
    total = all_reduce(torch.stack([x.new_tensor(float(x.numel())), x.sum()]))
    mean = total[1] / total[0].clamp(min=1)
    squares = all_reduce(((x - mean) ** 2).sum())
    return mean, (squares / (total[0] - 1).clamp(min=1)).sqrt()
