"""Self-play (as arXiv:2506.07468, with two networks): an attacker writes six words before every prompt, a defender must not be
distracted by them. Both learn in one step, half of the games against an average of the attacker; a quarter of the
defender's prompts stays clean.
"""

import sys

from advalign import Evaluation, Frozen, Injection, Learner, Opponents, Sampling, Stage, Trainer
from advalign import advantages as A
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src

smoke = "--smoke" in sys.argv
task, answer = "task:constraints", Sampling(max_new_tokens=10)


def language_model() -> Learner:
    words = {"kind": "words", "data": task}
    return Learner(model="scratch:tiny?initializer_range=0.08", tokenizer=words, max_length=32, learning_rate=1e-3)


def main() -> None:
    game = src.Game(
        data=task,
        learner="attacker",
        batch_size=6,
        group_size=4,
        sampling=Sampling(max_new_tokens=6),
        answers=4,
        answer_sampling=answer,
        injection=Injection(separator=" : ", allowed="[^:]*"),
        opponents=Opponents(attackers={"slow": 0.5}),
        rewards=[rw.ExactAnswer()],
        advantage=A.RoleEMA(),
    )
    trainer = Trainer(
        learners={"policy": language_model(), "attacker": language_model()},
        sources={
            "demos": src.Demos(data=task, batch_size=32),
            "game": game,
            "defender": src.Defender(game="game", clean=0.25, advantage=A.Group()),
        },
        objectives={
            "imitate": obj.SFT(source="demos"),
            "attack": obj.GRPO(source="game", learner="attacker"),
            "defend": obj.GRPO(source="defender"),
        },
        frozen={"slow": Frozen(learner="attacker", ema=0.95)},
        stages=[
            Stage(name="imitate", steps=2 if smoke else 150, objectives=("imitate",)),
            Stage(name="play", steps=2 if smoke else 200, objectives=("attack", "defend")),
        ],
        evaluations={"heldout": Evaluation(data=task, number=8 if smoke else 90, sampling=answer)},
    )
    print(trainer.formula())
    log = trainer.train()[-1]
    names = ("game/attack_success", "defender/accuracy/attacked", "defender/accuracy/clean")
    print({name: round(log[name], 3) for name in names if name in log})
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
