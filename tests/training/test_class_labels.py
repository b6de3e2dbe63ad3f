"""Labels of a run: in range of the classifier, names saved with it, and data that is both trained on and evaluated."""

import pytest
from transformers import AutoConfig

from advalign import Evaluation, Learner, Trainer, TrainingArguments
from advalign.errors import ConfigError
from advalign.models import load
from advalign.objectives import Classify
from advalign.sources import Labels

CSV = "text,label\ngood film,pos\nbad film,neg\nso so,neutral\nfine film,pos\n"
NAMES = {0: "neg", 1: "neutral", 2: "pos"}


def trainer(data, number=3, model="scratch:encoder-tiny?hidden_size=32", **options):
    tokenizer = {"tokenizer": {"kind": "words", "data": [{"text": "good bad film so fine"}]}} if model.startswith("scratch:") else {}
    learner = Learner(model=model, head="classifier", max_length=32, options={"num_labels": number}, **tokenizer)
    return Trainer(
        learners={"policy": learner},
        objectives={"c": Classify(source="s")},
        sources={"s": Labels(data=data, batch_size=2)},
        args=TrainingArguments(max_steps=2),
        **options,
    )


def test_names_of_labels_are_saved_and_read_again(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text(CSV)
    run = trainer(str(path), evaluations={"e": Evaluation(data=str(path), number=4)})
    run.train(progress=False)
    assert 0 <= run.evaluate()["e/accuracy"] <= 1
    run.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path / "policy")
    assert config.id2label == NAMES
    assert config.label2id == {name: i for i, name in NAMES.items()}
    assert load(str(tmp_path / "policy"), head="classifier").class_names == ("neg", "neutral", "pos")


def test_the_names_of_the_model_decide_the_indices(tmp_path):
    run = trainer([{"text": "good film", "label": 0}])
    run.start()
    run.learners["policy"].network.name_classes(["pos", "neg", "neutral"])
    run.save_pretrained(tmp_path)
    path = tmp_path / "d.csv"
    path.write_text(CSV)
    again = trainer(str(path), model=str(tmp_path / "policy"))
    again.start()
    assert [e.label for e in again.context.sources["s"].examples] == [0, 1, 2, 0]
    path.write_text(CSV + "what,mixed\n")
    with pytest.raises(ConfigError, match=r"sources\.s: .*row 6: no class 'mixed'|sources\.s: .*row 6"):
        trainer(str(path), model=str(tmp_path / "policy")).start()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([0, 1, 3], r"sources\.s: row '3' has label 3, and learner 'policy' has 3 classes; set .*num_labels: 4"),
        (["a", "b", "c", "d"], r"sources\.s: its labels are a, b, c, d, and learner 'policy' has 3 classes; set .*num_labels: 4"),
        ([0, -1, 2], r"sources\.s: .*row 2 has label -1"),
        ([0, 1, -100], r"sources\.s: .*row 3 has label -100"),
    ],
)
def test_labels_without_a_class_are_refused_before_the_first_step(rows, sentence):
    with pytest.raises(ConfigError, match=sentence):
        trainer([{"text": "good film", "label": label} for label in rows]).start()


def test_an_evaluation_of_rows_that_are_trained_on_is_noted(tmp_path):
    for name in ("d.csv", "train.csv", "test.csv"):
        (tmp_path / name).write_text(CSV)
    same, split = str(tmp_path / "d.csv"), str(tmp_path / "{split}.csv")
    (note,) = trainer(same, evaluations={"e": Evaluation(data=same)}).notes()
    assert "evaluations.e.data reads the rows that sources.s trains on" in note
    assert same in note
    assert "{split}" in note
    assert not trainer(split, evaluations={"e": Evaluation(data=split)}).notes()
    assert len(trainer(split, evaluations={"e": Evaluation(data=split, split="train")}).notes()) == 1
    assert not trainer(same, evaluations={"e": Evaluation(data=str(tmp_path / "test.csv"))}).notes()
    rows = [{"text": "good film", "label": 0}]
    assert len(trainer(rows, evaluations={"e": Evaluation(data=rows)}).notes()) == 1
