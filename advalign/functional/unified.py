"""One policy-gradient estimator for imitation and reinforcement   (UPGE, arXiv:2509.04419, eq. 3).

    gradient = stable · (1 / p_ref) · A · grad p          as a loss: -sg(stable A p / p_ref) log p

| method        | p_ref            | A                     | stable                                   |
|---------------|------------------|-----------------------|------------------------------------------|
| SFT           | p (current)      | 1                     | 1                                        |
| REINFORCE     | p (current)      | R - baseline          | 1                                        |
| PPO, GRPO     | p_old            | the estimator's       | 1 where the clip leaves the gradient     |
| LUFFY, demos  | 1                | group-relative        | shape / (p + shape)^2                    |
| HPT           | SFT's or GRPO's, by the solve rate of the prompt                                      |

Ours: LUFFY's shaping is in `stable`, as the derivative of f(p) = p / (p + shape); the paper writes p_ref = 1 without it.
"""

from jaxtyping import Float
from torch import Tensor


def estimator(
    logprobs: Float[Tensor, "*S"], reference: Float[Tensor, "*S"], advantages: Float[Tensor, "*S"], stable: Float[Tensor, "*S"]
) -> Float[Tensor, "*S"]:
    """The loss above, one per token. `reference` is log p_ref; only `logprobs` gets a gradient."""
    p_over_ref = (logprobs - reference).detach().exp()
    return -(stable * advantages).detach() * p_over_ref * logprobs
