"""PPO's four models on ONE frozen base: actor, critic, reward model and reference are adapters (the reference has none), on one-digit sums.

Stage one imitates and trains the reward model on preferences. Stage two is PPO: reward model + exact answer - KL, advantages by GAE.
"""

import sys

from advalign import Evaluation, Frozen, Learner, Sampling, Stage, Trainer
from advalign import advantages as A
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src

smoke = "--smoke" in sys.argv
task, sampling = {"task": {"kind": "arithmetic", "digits": 1}}, Sampling(max_new_tokens=3)
tiny = "scratch:tiny?initializer_range=0.1"
lora = {"lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}}
slower = {"learners.policy.learning_rate": 3e-4}
shared = {"model": "learner:policy", "learning_rate": 3e-3, "options": lora}


def main() -> None:
    rewards = [rw.ExactAnswer(), rw.Discriminator(learner="reward", form="probability")]
    trainer = Trainer(
        learners={
            "policy": Learner(model=tiny, tokenizer={"kind": "characters", "data": task}, learning_rate=3e-3, options=lora, epochs=2),
            "critic": Learner(head="value", epochs=2, **shared),
            "reward": Learner(head="score", **shared),
        },
        sources={
            "demos": src.Demos(data=task, batch_size=64),
            "pairs": src.Pairs(data=task, batch_size=32),
            "sums": src.Prompts(data=task, batch_size=16, group_size=4, sampling=sampling, rewards=rewards, advantage=A.GAE()),
        },
        objectives={
            "imitate": obj.SFT(source="demos"),
            "prefer": obj.RewardModel(source="pairs"),
            "policy": obj.PPO(source="sums"),
            "near": obj.KL(source="sums", coef=0.05),
            "value": obj.Value(source="sums"),
        },
        frozen={"reference": Frozen(learner="policy")},  # as it is when the second stage starts
        stages=[
            Stage(name="imitate", steps=2 if smoke else 20, objectives=("imitate", "prefer")),
            Stage(name="ppo", steps=2 if smoke else 30, objectives=("policy", "near", "value"), set=slower),
        ],
        evaluations={"heldout": Evaluation(data=task, split="test", number=8, samples=4, sampling=sampling)},
    )
    print(trainer.formula())
    reward = [row["sums/reward"] for row in trainer.train() if row["stage"] == "ppo"]
    first, last = reward[:5], reward[-5:]
    print(f"reward of the first steps of PPO {sum(first) / len(first):.2f}, of the last {sum(last) / len(last):.2f}")
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
