"""GAD (arXiv:2511.10643): a student learns from a teacher's texts alone. A discriminator compares, prompt by prompt, the teacher's
texts with the student's, and its score is the student's reward.

The teacher here is a procedure that writes under constraints; give any data with a prompt and a response column instead.
"""

import sys

from advalign import Evaluation, Learner, Sampling, Stage, Trainer
from advalign import advantages as A
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src

smoke = "--smoke" in sys.argv
task, sampling = "task:constraints", Sampling(max_new_tokens=10)
small = {"model": "scratch:tiny-gpt2?initializer_range=0.08", "tokenizer": {"kind": "words", "data": task}, "max_length": 32}


def main() -> None:
    write = src.Prompts(
        data=task, batch_size=16, sampling=sampling, rewards=[rw.Discriminator(learner="discriminator")], advantage=A.Group(scale="none")
    )
    trainer = Trainer(
        learners={
            "policy": Learner(**small, learning_rate=3e-4),
            "discriminator": Learner(**small, head="score", learning_rate=1e-3, options={"pooling": "last"}),
        },
        sources={
            "teacher": src.Demos(data=task, batch_size=32),
            "write": write,
            "contrast": src.Contrast(real="teacher", sampled="write", match="prompt", always=True, batch_size=16),
        },
        objectives={
            "imitate": obj.SFT(source="teacher"),
            "policy": obj.GRPO(source="write"),
            "discriminator": obj.Discriminate(learner="discriminator", source="contrast", loss="bradley_terry"),
        },
        stages=[
            Stage(name="warm", steps=2 if smoke else 100, objectives=("imitate", "discriminator")),
            Stage(name="game", steps=2 if smoke else 300, objectives=("policy", "discriminator")),
        ],
        evaluations={"heldout": Evaluation(data=task, number=8 if smoke else 90, samples=8, sampling=sampling)},
    )
    print(trainer.formula())
    trainer.train()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
