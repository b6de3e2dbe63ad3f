"""Contracts of the extension points, for plugins of your own: each `check_*` takes an instance and raises AssertionError on a broken rule.

    from advalign.testing import check_objective
    check_objective(Focal(source="any"))        # AssertionError: Focal: losses have shape (8,), weights (8, 7); ...

Every checker builds its own tiny rows and models (no download, seconds on a CPU). A ConfigError of the plugin passes through unchanged.
"""

from advalign.testing.advantage import check_advantage
from advalign.testing.adversary import check_adversary
from advalign.testing.attack import check_attack
from advalign.testing.judge import check_judge
from advalign.testing.objective import check_objective
from advalign.testing.reward import check_reward
from advalign.testing.rollout import check_rollout_engine
from advalign.testing.source import check_source
from advalign.testing.task import check_task

__all__ = [
    "check_advantage",
    "check_adversary",
    "check_attack",
    "check_judge",
    "check_objective",
    "check_reward",
    "check_rollout_engine",
    "check_source",
    "check_task",
]
