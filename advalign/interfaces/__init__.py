"""Extension points. Each is implemented by one new file in the plugin group of its name (`docs/extending.md`)."""

from advalign.interfaces.advantage import Advantage, AdvantageState, AllReduce
from advalign.interfaces.adversary import Adversary, Memory, PerturbationContext, maximise
from advalign.interfaces.attack import Attack
from advalign.interfaces.callback import Callback
from advalign.interfaces.context import Context
from advalign.interfaces.judge import Judge, ScoreAnswers
from advalign.interfaces.objective import Objective
from advalign.interfaces.reward import Reward, Scorer, Scores
from advalign.interfaces.rollout import RolloutEngine
from advalign.interfaces.source import RewardPenalty, SamplingRequest, Source, SourceRuntime, check_rows, shrunk
from advalign.interfaces.target import ABILITIES, EditGradients, Edits, LossOf, PrefixScorer, Target
from advalign.interfaces.task import Task

__all__ = [
    "ABILITIES",
    "Advantage",
    "AdvantageState",
    "Adversary",
    "AllReduce",
    "Attack",
    "Callback",
    "Context",
    "EditGradients",
    "Edits",
    "Judge",
    "LossOf",
    "Memory",
    "Objective",
    "PerturbationContext",
    "PrefixScorer",
    "Reward",
    "RewardPenalty",
    "RolloutEngine",
    "ScoreAnswers",
    "Scorer",
    "Scores",
    "SamplingRequest",
    "Source",
    "SourceRuntime",
    "Target",
    "Task",
    "check_rows",
    "shrunk",
    "maximise",
]
