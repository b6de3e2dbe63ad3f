"""GAPO (arXiv:2503.20194) with an adversarial guard: a policy writes under constraints, a discriminator learns to tell its texts and
perturbed prompts from sixty real demonstrations, and its score is the policy's reward. One step trains both.
"""

import sys

from advalign import Evaluation, Learner, Sampling, Stage, Trainer
from advalign import advantages as A
from advalign import adversaries as adv
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src
from advalign.tasks import Constraints

smoke = "--smoke" in sys.argv
task, sampling = "task:constraints", Sampling(max_new_tokens=10)
words = {"kind": "words", "data": task}
small = "scratch:tiny-gpt2?initializer_range=0.1"


def main() -> None:
    write = src.Prompts(
        data=task, batch_size=24, sampling=sampling, rewards=[rw.Discriminator(learner="discriminator")], advantage=A.Group(scale="none")
    )
    trainer = Trainer(
        learners={
            "policy": Learner(model=small, tokenizer=words, max_length=32, learning_rate=1e-3),
            "discriminator": Learner(model=small, head="score", tokenizer=words, max_length=32, learning_rate=1e-3, updates=2),
        },
        sources={
            "demos": src.Demos(data=task, limit=60, batch_size=32),
            "write": write,
            "contrast": src.Contrast(real="demos", sampled="write", perturb=Constraints(insert=0.0), batch_size=32, replay=0.5, swap=0.5),
        },
        adversaries={"pgd": adv.PGD(radius=0.1, steps=2)},
        objectives={
            "imitate": obj.SFT(source="demos"),
            "policy": obj.GRPO(source="write"),
            "robust": obj.SFT(source="demos", view="pgd", coef=0.1),
            "discriminator": obj.Discriminate(learner="discriminator", source="contrast"),
        },
        stages=[
            Stage(name="imitate", steps=2 if smoke else 60, objectives=("imitate",)),
            Stage(name="discriminator", steps=2 if smoke else 400, objectives=("discriminator",)),
            Stage(name="mix", steps=2 if smoke else 400, objectives=("policy", "robust", "discriminator")),
        ],
        evaluations={"heldout": Evaluation(data=task, number=8 if smoke else 90, samples=8, sampling=sampling)},
    )
    print(trainer.formula())
    trainer.train()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
