"""A reward model from preference pairs (Bradley-Terry; arXiv:2203.02155, eq. 1) beside a policy that imitates: two learners, one run.
Its score then picks the best of several answers to prompts that neither has seen.
"""

import sys

from advalign import Evaluation, Learner, Sampling, Stage, Trainer
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src

smoke, task = "--smoke" in sys.argv, "task:constraints"
small = {"model": "scratch:tiny-gpt2?initializer_range=0.1", "tokenizer": {"kind": "words", "data": task}, "max_length": 32}


def main() -> None:
    best_of = {"sampling": Sampling(max_new_tokens=10), "verifier": rw.Discriminator(learner="reward")}
    trainer = Trainer(
        learners={"policy": Learner(**small, learning_rate=1e-3), "reward": Learner(**small, head="score", learning_rate=1e-3)},
        sources={"demos": src.Demos(data=task, limit=60, batch_size=32), "taste": src.Pairs(data=task, batch_size=32)},
        objectives={"imitate": obj.SFT(source="demos"), "fit": obj.RewardModel(source="taste")},
        stages=[Stage(name="both", steps=2 if smoke else 60), Stage(name="fit", steps=2 if smoke else 140, objectives=("fit",))],
        evaluations={"heldout": Evaluation(data=task, number=8 if smoke else 90, samples=8, **best_of)},
    )
    print(trainer.formula())
    last = trainer.train()[-1]
    print({name: round(value, 3) for name, value in last.items() if name.startswith("fit/rewards/")})
    print({name: round(value, 3) for name, value in trainer.evaluate().items() if "accuracy" in name})


if __name__ == "__main__":
    main()
