"""Preferences in a few seconds: a small language model imitates sixty demonstrations of writing under constraints, then DPO
(arXiv:2305.18290) teaches it to prefer them to demonstrations for other prompts.
"""

import sys

from advalign import Evaluation, Frozen, Learner, Sampling, Stage, Trainer
from advalign import objectives as obj
from advalign import sources as src

smoke, task = "--smoke" in sys.argv, "task:constraints"
words = {"kind": "words", "data": task}


def main() -> None:
    trainer = Trainer(
        model=Learner(model="scratch:tiny-gpt2?initializer_range=0.1", tokenizer=words, max_length=32, learning_rate=1e-3),
        sources={"demos": src.Demos(data=task, limit=60, batch_size=32), "taste": src.Pairs(data=task, batch_size=32)},
        objectives={"imitate": obj.SFT(source="demos"), "prefer": obj.DPO(source="taste", beta=0.1)},
        frozen={"reference": Frozen(learner="policy")},  # the policy as it is when the second stage starts
        stages=[
            Stage(name="imitate", steps=2 if smoke else 60, objectives=("imitate",)),
            Stage(name="prefer", steps=2 if smoke else 60, objectives=("prefer",), set={"learners.policy.learning_rate": 1e-4}),
        ],
        evaluations={"heldout": Evaluation(data=task, number=8 if smoke else 90, samples=4, sampling=Sampling(max_new_tokens=10))},
    )
    print(trainer.formula())
    last = trainer.train()[-1]
    print({name: round(value, 3) for name, value in last.items() if name.startswith("prefer/rewards/")})
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
