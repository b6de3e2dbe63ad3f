"""Extension points. Each is implemented by one new file in the plugin group of its name (`docs/extending.md`)."""

from advalign.interfaces.advantage import Advantage, AdvantageState
from advalign.interfaces.adversary import Adversary, Memory, PerturbationContext, maximise
from advalign.interfaces.attack import Attack, Target, TextClassifierTarget
from advalign.interfaces.callback import Callback
from advalign.interfaces.context import Context
from advalign.interfaces.judge import Judge
from advalign.interfaces.objective import Objective
from advalign.interfaces.reward import Reward, Scorer, Scores
from advalign.interfaces.rollout import RolloutEngine
from advalign.interfaces.source import RewardPenalty, SamplingRequest, Source, SourceRuntime, check_rows
from advalign.interfaces.task import Task

__all__ = [
    "Advantage",
    "AdvantageState",
    "Adversary",
    "Attack",
    "Callback",
    "Context",
    "Judge",
    "Memory",
    "Objective",
    "PerturbationContext",
    "Reward",
    "RewardPenalty",
    "RolloutEngine",
    "Scorer",
    "Scores",
    "SamplingRequest",
    "Source",
    "SourceRuntime",
    "Target",
    "Task",
    "TextClassifierTarget",
    "check_rows",
    "maximise",
]
