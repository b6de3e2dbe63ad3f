"""Rewards -> advantages. Axes: B rows, T tokens. `all_reduce` sums a tensor over ranks; groups never cross a rank."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from advalign.errors import unknown
from advalign.functional import divergence

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor over ranks."""


def expand(per_row: Float[Tensor, "B"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Expansion over targets: one number per row, on each of its target tokens; zero elsewhere."""
    return per_row[:, None] * target


def centred(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """(R - mean of its group, size of its group). Exactly zero in a group whose rewards are all equal, singletons included."""
    size = group_sum(torch.ones_like(rewards), group)
    return minus_baseline(rewards, group_sum(rewards, group) / size, group), size


def group_sum(x: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The sum of x over the row's group, on each of its rows."""
    _, index = group.unique(return_inverse=True)
    return torch.zeros_like(x).index_add(0, index, x)[index]


def group_max(x: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The largest x of the row's group, on each of its rows."""
    _, index = group.unique(return_inverse=True)
    return torch.zeros_like(x).scatter_reduce(0, index, x, "amax", include_self=False)[index]


def is_constant(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Bool[Tensor, "B"]:
    """Whether all rewards of the row's group are equal; true of a group of one."""
    return -group_max(-rewards, group) == group_max(rewards, group)


def minus_baseline(rewards: Float[Tensor, "B"], baseline: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """R - b, and exactly zero where the group is constant: b is then R up to rounding, and a small std would magnify the rounding."""
    return torch.where(is_constant(rewards, group), 0.0, rewards - baseline)


def group_std(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Standard deviation of the row's group, ddof = 1; exactly 0 where the group is constant."""
    centre, size = centred(rewards, group)
    return (group_sum(centre**2, group) / (size - 1).clamp(min=1)).sqrt()


def group_relative(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"], *, floor: float) -> Float[Tensor, "B"]:
    """A = (R - mean_g) / max(std_g, floor), std with ddof = 1   (GRPO, arXiv:2402.03300, section 4.1.2)."""
    return centred(rewards, group)[0] / group_std(rewards, group).clamp(min=floor)


def batch_relative(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"], *, floor: float, all_reduce: AllReduce) -> Float[Tensor, "B"]:
    """A = (R - mean_g) / max(std_batch, floor), std of all rewards with ddof = 1   (Lite PPO, arXiv:2508.08221)."""
    _, std = moments(rewards, all_reduce)
    return centred(rewards, group)[0] / std.clamp(min=floor)


def leave_one_out(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """A_i = R_i - mean_{j != i} R_j = n / (n - 1) (R_i - mean_g)   (RLOO, arXiv:2402.14740); 0 when n = 1."""
    centre, size = centred(rewards, group)
    return centre * size / (size - 1).clamp(min=1)


def weighted_mean(rewards: Float[Tensor, "B"], weights: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """b = sum w R / sum w over the group   (OPO, arXiv:2505.23585, with w the length of the response); 0 where no row has weight."""
    total = group_sum(weights, group)
    return group_sum(weights * rewards, group) / torch.where(total > 0, total, 1.0)


def soft_maximum(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"], *, beta: float) -> Float[Tensor, "B"]:
    """V = beta log mean exp(R / beta) over the group   (A*-PO, arXiv:2505.20686, stage 1): the mean for beta -> inf, the
    maximum for beta -> 0. Taken relative to the maximum, and with expm1 and log1p, so that both limits are reached in floats."""
    high = group_max(rewards, group)
    relative = torch.expm1((rewards - high) / beta)
    return high + beta * torch.log1p(weighted_mean(relative, torch.ones_like(rewards), group))


def best_of_others(rewards: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """max_{j != i} R_j of the group; R_i itself in a group of one, so that the difference is 0."""
    high = group_max(rewards, group)
    is_best = rewards == high
    is_only_best = is_best & (group_sum(is_best.to(rewards.dtype), group) == 1)
    second = group_max(rewards.masked_fill(is_only_best, -torch.inf), group)
    return torch.where(is_only_best, torch.where(second.isinf(), rewards, second), high)


def gae(
    rewards: Float[Tensor, "B T"], values: Float[Tensor, "B T"], target: Bool[Tensor, "B T"], *, gamma: float, lam: float
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """delta_t = R_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  returns = A + V   (arXiv:1506.02438, eq. 16).

    t + 1 is the next TARGET token: what a tool said in between does not decay a reward. V after the last one is 0.
    """
    following = carried = torch.zeros_like(values[:, 0])
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        is_target = target[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = torch.where(is_target, delta + gamma * lam * carried, carried)
        following = torch.where(is_target, values[:, t], following)
        advantages[:, t] = torch.where(is_target, carried, 0.0)
    return advantages, torch.where(target, advantages + values, 0.0)


def at_end(per_row: Float[Tensor, "B"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """One number per row, on its last target token; zero elsewhere."""
    remaining = target.flip(1).cumsum(1).flip(1)
    return per_row[:, None] * (target & (remaining == 1))


def per_token(per_row: Float[Tensor, "B"], token_rewards: Float[Tensor, "B T"] | None, target: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The reward of a response on its last target token, token rewards (if any) on theirs."""
    rewards = at_end(per_row, target)
    return rewards if token_rewards is None else rewards + token_rewards


def reward_to_go(rewards: Float[Tensor, "B T"], target: Bool[Tensor, "B T"], *, gamma: float) -> Float[Tensor, "B T"]:
    """G_t = sum_k gamma^k R_{t+k} over target tokens: `gae` without values. Gaps do not decay it."""
    return gae(rewards, torch.zeros_like(rewards), target, gamma=gamma, lam=1.0)[0]


def kl_rewards(
    old_logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], target: Bool[Tensor, "B T"], *, coef: float, estimator: str
) -> Float[Tensor, "B T"]:
    """-coef k(log p_old, log p_ref) on target tokens, zero elsewhere: the KL penalty inside the reward   (arXiv:1909.08593, eq. 2,
    with k1). `estimator`: k1, k2 or k3 of `divergence`; as rewards they are numbers, so k1 and k3 are unbiased and k2 is not."""
    if estimator not in divergence.ESTIMATORS:
        raise unknown("kl_rewards.estimator", "estimator", estimator, divergence.ESTIMATORS)
    return torch.where(target, -coef * divergence.ESTIMATORS[estimator](old_logprobs, ref_logprobs), 0.0).detach()


def adaptive_coefficient(coef: float, kl: float, *, target: float, horizon: float, num: int) -> float:
    """coef (1 + clip(kl / target - 1, -0.2, 0.2) num / horizon), after `num` more responses   (arXiv:1909.08593, section 2.2).

    The paper multiplies the error by a constant 0.1; public code by num / horizon, so that batches of any size agree: ours too."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * num / horizon)


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


__all__ = [
    "AllReduce", "adaptive_coefficient", "at_end", "batch_relative", "best_of_others", "centred", "expand", "gae", "group_max",
    "group_relative", "group_std", "group_sum", "is_constant", "kl_rewards", "leave_one_out", "minus_baseline", "moments", "per_token",
    "reward_to_go", "soft_maximum", "weighted_mean", "whiten",
]  # fmt: skip
