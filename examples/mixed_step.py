"""SFT, adversarial SFT, a policy gradient and a KL penalty in one step: two-digit sums, a small causal LM from scratch.

Stage one imitates. Stage two is the mixed step: dapo(sums; reward = exact answer) + sft(demos | pgd) + kl(sums to reference).
"""

import sys

from advalign import Evaluation, Frozen, Learner, Sampling, Stage, Trainer, TrainingArguments
from advalign import advantages as A
from advalign import adversaries as adv
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src

smoke = "--smoke" in sys.argv
first, then = (2, 2) if smoke else (1000, 250)
task = {"task": {"kind": "arithmetic", "digits": 2}, "number": 8000}
sampling = Sampling(max_new_tokens=4)


def main() -> None:
    trainer = Trainer(
        model=Learner(model="scratch:tiny", tokenizer={"kind": "characters", "data": task}, max_length=32, learning_rate=1e-3),
        sources={
            "sums": src.Prompts(data=task, batch_size=16, group_size=8, sampling=sampling, rewards=[rw.ExactAnswer()], advantage=A.Group()),
            "demos": src.Demos(data=task, batch_size=64),
        },
        adversaries={"pgd": adv.PGD(radius=0.05, steps=2)},
        objectives={
            "imitate": obj.SFT(source="demos"),
            "policy": obj.DAPO(source="sums"),
            "robust": obj.SFT(source="demos", view="pgd", coef=0.5),
            "anchor": obj.KL(source="sums", coef=0.01),
        },
        frozen={"reference": Frozen(learner="policy")},  # as it is when the second stage starts
        stages=[
            Stage(name="imitate", steps=first, objectives=("imitate",)),
            Stage(name="mix", steps=then, objectives=("policy", "robust", "anchor")),
        ],
        evaluations={"heldout": Evaluation(data=task, split="test", number=8 if smoke else 200, samples=4, sampling=sampling)},
        args=TrainingArguments(eval_steps=then),
    )
    print(trainer.formula())
    for row in trainer.train():
        if "heldout/accuracy" in row:
            print(row["step"], row["stage"], {name: value for name, value in row.items() if name.startswith("heldout/")})


if __name__ == "__main__":
    main()
