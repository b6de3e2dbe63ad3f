"""The arms of benchmarks/gan.py: what each changes in configs/gan/constraints.yaml after the two warm-up stages.

Every arm starts from the same warmed-up policy of its seed, and those with a discriminator from the same discriminator. The objectives
named `policy` train the policy, those named `discriminator` the discriminator; arms without one keep it as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TASK = "task:constraints"
ALONE = {"policy": {"kind": "grpo", "source": "write"}}
ANCHOR = {"anchor": {"kind": "sft", "source": "demos", "coef": 0.3}}
ANCHORED = ALONE | ANCHOR  # a reward, and imitation beside it
DISCRIMINATOR = {"discriminator": {"kind": "discriminate", "learner": "discriminator", "source": "contrast"}}
SCORE, VERIFIED = {"kind": "discriminator", "learner": "discriminator"}, {"kind": "exact_answer"}
PGD = {"pgd": {"kind": "pgd", "radius": 0.1, "steps": 2}}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm: what it changes in the last stage."""

    label: str
    """Its name in the table."""
    terms: Mapping[str, Any]
    """Objectives of the last stage."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """{dotted path: value}"""
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Sections to add."""
    times: int = 1
    """As many times the steps of the others."""
    warm: Mapping[str, str] = field(default_factory=dict)
    """{learner to add: the warm weights of the seed that it starts from}"""
    control: str = ""
    """The arm without what this one adds."""

    @property
    def trained(self) -> bool:
        """Whether the discriminator continues to learn."""
        return "discriminator" in self.terms


def pairs(limit: int, seed: int, differ: str) -> dict[str, Any]:
    return {"kind": "pairs", "data": TASK, "limit": limit, "seed": seed, "batch_size": 16, "differ": differ}


def preference(kind: str, source: str, **more: Any) -> dict[str, Any]:
    return {"prefer": {"kind": kind, "source": source, **more}}


REFERENCE = {"frozen": {"reference": {"learner": "policy"}}}
SLOW = {"learners.policy.learning_rate": 1e-4}  # preference losses at the policy's own rate ruin it within a few dozen steps

ARMS: dict[str, Arm] = {
    "sft": Arm(label="SFT", terms={}),
    "sft_longer": Arm(label="SFT, as many steps as the others", terms={"imitate": {"kind": "sft", "source": "demos"}}),
    "dpo_responses": Arm(label="DPO, response pairs", terms=preference("dpo", "responses"), values=SLOW, more=REFERENCE),
    "dpo_prompts": Arm(label="DPO, prompt pairs", terms=preference("dpo", "prompts"), values=SLOW, more=REFERENCE),
    "kto": Arm(label="KTO", terms=preference("kto", "feedback"), values=SLOW, more=REFERENCE),
    "ppo_reward_model": Arm(
        label="PPO, frozen reward model",
        terms={"policy": {"kind": "ppo", "source": "write"}, "value": {"kind": "value", "source": "write", "learner": "critic"}} | ANCHOR,
        values={"sources.write.rewards": [{"kind": "discriminator", "learner": "rm"}], "sources.write.advantage": {"kind": "gae"}},
    ),
    "frozen": Arm(label="GRPO, frozen discriminator", terms=ANCHORED),
    "gapo": Arm(label="GAPO", terms=ANCHORED | DISCRIMINATOR),
    "gapo_generated_only": Arm(
        label="GAPO without perturbed pairs",
        terms=ANCHORED | DISCRIMINATOR,
        values={"sources.contrast.perturb": None, "sources.contrast.swap": 0.0},
    ),
    "gapo_robust_policy": Arm(
        label="GAPO + adversarial SFT",
        terms=ANCHORED | DISCRIMINATOR | {"robust": {"kind": "sft", "source": "demos", "view": "pgd", "coef": 0.1}},
        more={"adversaries": PGD},
    ),
    "gapo_robust_discriminator": Arm(
        label="GAPO, discriminator trained under PGD too",
        terms=ANCHORED
        | DISCRIMINATOR
        | {"robust": {"kind": "discriminate", "learner": "discriminator", "source": "contrast", "view": "pgd"}},
        more={"adversaries": PGD},
    ),
}

# What may lift GAPO further, one change at a time (scarce design only).
ABLATIONS: dict[str, Arm] = {
    "alone": Arm(label="- imitation beside the reward", terms=ALONE | DISCRIMINATOR),
    "frozen_alone": Arm(label="frozen discriminator, no imitation beside it", terms=ALONE),
    "gate": Arm(
        label="+ balance gate",
        terms=ANCHORED | DISCRIMINATOR,
        more={"gates": {"discriminator": {"metric": "discriminator/accuracy/generated", "above": 0.9, "max_skips": 10}}},
    ),
    "ema": Arm(
        label="+ averaged discriminator scores",
        terms=ANCHORED | DISCRIMINATOR,
        values={"sources.write.rewards": [{"kind": "discriminator", "learner": "slow"}]},
        more={"frozen": {"slow": {"learner": "discriminator", "ema": 0.9}}},
    ),
    "no_replay": Arm(label="- replay", terms=ANCHORED | DISCRIMINATOR, values={"sources.contrast.replay": 0.0}),
    "r1": Arm(
        label="+ R1 on embeddings",
        terms=ANCHORED
        | DISCRIMINATOR
        | {"r1": {"kind": "gradient_penalty", "learner": "discriminator", "source": "contrast", "coef": 1e-3, "every": 4}},
    ),
    "two_updates": Arm(
        label="+ two discriminator updates a step", terms=ANCHORED | DISCRIMINATOR, values={"learners.discriminator.updates": 2}
    ),
    "bradley_terry": Arm(
        label="Bradley-Terry instead of BCE",
        terms=ANCHORED | {"discriminator": {**DISCRIMINATOR["discriminator"], "loss": "bradley_terry"}},
    ),
    "override": Arm(
        label="+ verified texts are never negatives", terms=ANCHORED | DISCRIMINATOR, values={"sources.contrast.override": True}
    ),
    "verifiable": Arm(
        label="+ a verifiable reward, weight 1",
        terms=ANCHORED | DISCRIMINATOR,
        values={"sources.write.rewards": [SCORE, VERIFIED | {"weight": 1.0}]},
    ),
    "verifiable_longer": Arm(
        label="+ a verifiable reward, weight 3, and twice the steps",
        terms=ANCHORED | DISCRIMINATOR,
        values={"sources.write.rewards": [SCORE, VERIFIED | {"weight": 3.0}]},
        times=2,
    ),
    "verifier_longer": Arm(
        label="the verifiable reward alone, weight 3, twice the steps",
        terms=ANCHORED,
        values={"sources.write.rewards": [VERIFIED | {"weight": 3.0}]},
        times=2,
    ),
    "longer": Arm(label="twice the steps", terms=ANCHORED | DISCRIMINATOR, times=2),
    "frozen_longer": Arm(label="frozen discriminator, twice the steps", terms=ANCHORED, times=2),
    "sft_longest": Arm(label="SFT, twice the steps", terms={"imitate": {"kind": "sft", "source": "demos"}}, times=2),
}


# The second wave (scarce design only): each beside the arm that lacks just what it adds.
def latent(side: str) -> dict[str, Any]:
    """One discriminator of hidden states, and the policy's objective through it."""
    term = {"kind": "latent", "source": "responses", "site": "layer:1", "side": side, "coef": 0.5}
    return {f"near_{side}": {**term, "critic": f"critic_{side}"}, side: {**term, "role": "discriminate", "learner": f"reader_{side}"}}


SIDES = ("chosen", "rejected")
READER = {"model": "latent:policy?hidden_size=64&num_attention_heads=4&intermediate_size=256", "head": "score", "max_length": 32}
RANKED = {"human": {"kind": "reward_model", "learner": "rm", "source": "responses"}}
PREFERRED = {"sources.write.rewards": [{"kind": "discriminator", "learner": "rm"}]}
FOOLED = [
    {"kind": "discriminator", "learner": "rm", "normalize": "batch"},
    {"kind": "discriminator", "learner": "second", "normalize": "batch", "weight": -1.0},
]

SECOND: dict[str, Arm] = {
    "ganpo": Arm(
        label="GANPO: DPO, and discriminators of hidden states",
        terms=preference("dpo", "responses") | latent("chosen") | latent("rejected"),
        values=SLOW,
        more={
            "learners": {f"reader_{side}": READER | {"learning_rate": 1e-3} for side in SIDES},
            "frozen": REFERENCE["frozen"]
            | {"now": {"learner": "policy", "ema": 0.0}}
            | {f"critic_{side}": {"learner": f"reader_{side}", "ema": 0.0} for side in SIDES},
        },
        control="dpo_responses",
    ),
    "cooper": Arm(
        label="Cooper: a reward model on verified answers against corrupted ones",
        terms=ANCHORED | {"discriminator": {**DISCRIMINATOR["discriminator"], "source": "verified", "loss": "bradley_terry"}},
        values={"sources.write.rewards": [SCORE | {"form": "probability"}]},
        more={"sources": {"verified": {"kind": "contrast", "real": "write", "corrupt": ["drop", "repeat", "swap"], "batch_size": 32}}},
        control="frozen",
    ),
    "grpo_reward_model": Arm(label="GRPO, frozen reward model", terms=ANCHORED, values=PREFERRED, warm={"rm": "rm/rm"}),
    "adv_rm": Arm(
        label="Adv-RM: a reward model on what fools it",
        terms=ANCHORED
        | RANKED
        | {
            "attack": {"kind": "grpo", "source": "fool", "learner": "attacker"},
            "withstand": {"kind": "reward_model", "learner": "rm", "source": "adversarial"},
        },
        values=PREFERRED,
        warm={"attacker": "policy", "rm": "rm/rm", "second": "rm2/rm"},
        more={"sources": {
            "fool": {"kind": "prompts", "data": TASK, "learner": "attacker", "batch_size": 8, "group_size": 8,
                     "sampling": {"max_new_tokens": 10}, "rewards": FOOLED, "advantage": {"kind": "group", "scale": "none"}},
            "adversarial": {"kind": "self_vs_real", "real": "demos", "learner": "attacker", "batch_size": 16,
                            "sampling": {"max_new_tokens": 10}},
        }},
        control="grpo_reward_model",
    ),
}  # fmt: skip
EVERY = ARMS | ABLATIONS | SECOND
