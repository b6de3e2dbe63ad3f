"""Containers. Axes: B rows, T tokens, V vocabulary, D hidden, C classes, R rewards, P pairs, G rollouts per prompt, N deltas.

Index t is about token t: `logprobs[t] = log p(ids[t] | ids[<t])`, `values[t] = V(ids[<t])`. Rows are right padded.
"""

from advalign.types.attacks import CODE, CONTENT, NEUTRAL, STATUSES, AttackResult, Budget, FoundSuffix, Proposal, Status
from advalign.types.edits import Ball, Edit, Place, Scope, Share, Sites, ThreatModel, Unit
from advalign.types.losses import Losses, Weights
from advalign.types.messages import Conversation, Message, Prompt, Response
from advalign.types.outputs import NEEDS, Distribution, Outputs, ScoreReader
from advalign.types.rollouts import Example, Rollout, RolloutGroup, Sampling, from_json, to_json, without_verifier
from advalign.types.rows import DemoRows, FeedbackRows, LabelRows, PairRows, RolloutRows, Rows, TokenRows, Tokens, fit

__all__ = [
    "AttackResult",
    "Ball",
    "CODE",
    "CONTENT",
    "Budget",
    "Conversation",
    "DemoRows",
    "Distribution",
    "Edit",
    "Example",
    "FeedbackRows",
    "FoundSuffix",
    "LabelRows",
    "Losses",
    "Message",
    "NEEDS",
    "NEUTRAL",
    "Outputs",
    "PairRows",
    "Place",
    "Prompt",
    "Proposal",
    "Response",
    "Rollout",
    "RolloutGroup",
    "RolloutRows",
    "Rows",
    "STATUSES",
    "Sampling",
    "Scope",
    "ScoreReader",
    "Share",
    "Sites",
    "Status",
    "ThreatModel",
    "Unit",
    "TokenRows",
    "Tokens",
    "Weights",
    "fit",
    "from_json",
    "to_json",
    "without_verifier",
]
