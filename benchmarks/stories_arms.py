"""The arms of benchmarks/stories.py: what each changes in configs/gan/stories.yaml after the stages `imitate` and `discriminator`."""

from __future__ import annotations

from gan_arms import ANCHORED, DISCRIMINATOR, PGD, REFERENCE, SLOW, Arm, preference

SAMPLING = {"max_new_tokens": 24}
TASK = {"kind": "sentences", "data": "out/stories/task.txt", "ranks": [60, 260], "insert": 0.0}
OWN = {"kind": "self_vs_real", "real": "demos", "batch_size": 12, "sampling": SAMPLING, "override": True}
PROMPTS = {"kind": "pairs", "data": {"task": TASK}, "limit": 2000, "batch_size": 12, "differ": "prompt"}

ARMS: dict[str, Arm] = {
    "sft": Arm(label="SFT", terms={}),
    "sft_longer": Arm(label="SFT, as many steps more as the others", terms={"imitate": {"kind": "sft", "source": "demos"}}),
    "dpo": Arm(
        label="DPO, real sentence against own violation",
        terms=preference("dpo", "own"),
        values=SLOW,
        more=REFERENCE | {"sources": {"own": OWN}},
    ),
    "dpo_prompts": Arm(
        label="DPO, prompt pairs", terms=preference("dpo", "pairs"), values=SLOW, more=REFERENCE | {"sources": {"pairs": PROMPTS}}
    ),
    "frozen": Arm(label="GRPO, frozen discriminator", terms=ANCHORED),
    "gapo": Arm(label="GAPO", terms=ANCHORED | DISCRIMINATOR),
    "gapo_robust": Arm(
        label="GAPO, adversarial SFT in the same step",
        terms=ANCHORED | DISCRIMINATOR | {"robust": {"kind": "sft", "source": "demos", "view": "pgd", "coef": 0.1}},
        more={"adversaries": PGD},
    ),
}

# The arms after the warm-up of configs/gan/gad_stories.yaml: which of its objectives they have.
DISTILLED: dict[str, tuple[str, tuple[str, ...]]] = {
    "warm": ("SeqKD, warm-up only", ()),
    "seqkd": ("SeqKD, as many steps more as the others", ("imitate",)),
    "frozen": ("GAD, frozen discriminator", ("policy",)),
    "gad": ("GAD", ("policy", "discriminator")),
}
