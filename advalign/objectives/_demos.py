"""What objectives of imitation share: which tokens are those of demonstrations."""

from jaxtyping import Bool
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional.masks import demonstrated_tokens
from advalign.types import DemoRows, RolloutRows


def demonstrated(rows: DemoRows | RolloutRows, path: str) -> Bool[Tensor, "B T"]:
    """Target tokens of demonstrations: all of them, or in a draw of rollouts those of the rows that the policy did not sample."""
    if isinstance(rows, DemoRows):
        return rows.tokens.target
    if rows.offpolicy is None:
        raise ConfigError(f"{path}: the groups of rollouts it reads hold no demonstrations; give their source `demonstrations`.")
    return demonstrated_tokens(rows.tokens.target, rows.offpolicy)
