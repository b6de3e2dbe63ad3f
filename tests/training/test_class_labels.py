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
    options_of_model = {} if number is None else {"num_labels": number}
    learner = Learner(model=model, head="classifier", max_length=32, options=options_of_model, **tokenizer)
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


@pytest.mark.parametrize(
    ("labels", "number", "names"),
    [
        ([0, 1, 0], 2, ()),
        ([0, 0], 2, ()),
        ([0, 5, 2], 6, ()),
        (["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"], 6, ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")),
    ],
)
def test_the_number_of_classes_comes_from_the_data(tmp_path, labels, number, names):
    run = trainer([{"text": "good film", "label": label} for label in labels], number=None)
    run.start()
    network = run.learners["policy"].network
    assert (network.num_classes, network.class_names) == (number, names)
    run.save_pretrained(tmp_path)
    again = load(str(tmp_path / "policy"))
    assert (again.num_classes, again.class_names) == (number, names)


def test_the_number_of_classes_of_a_class_label_is_that_of_its_names():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y", "z"])})
    run = trainer(datasets.Dataset.from_dict({"text": ["good"], "label": [1]}, features=features), number=None)
    run.start()
    assert run.learners["policy"].network.class_names == ("x", "y", "z")


def test_classes_that_are_counted_from_one_are_refused():
    with pytest.raises(
        ConfigError, match=r"sources\.s: data: its labels are 1 to 4 without 0, from which classes are counted; set num_labels"
    ):
        trainer([{"text": "good film", "label": label} for label in (1, 4, 2)], number=None).start()


def test_a_trained_classifier_keeps_its_classes_and_a_base_gets_those_of_the_data(tmp_path):
    from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

    three = trainer([{"text": "good film", "label": 2}], number=3)
    three.start()
    three.save_pretrained(tmp_path)
    again = trainer([{"text": "good film", "label": 0}], number=None, model=str(tmp_path / "policy"))
    again.start()
    assert again.learners["policy"].network.num_classes == 3
    with pytest.raises(ConfigError, match=r"row '1' has label 3, and learner 'policy' has 3 classes"):
        trainer([{"text": "good film", "label": 3}], number=None, model=str(tmp_path / "policy")).start()

    network = three.learners["policy"].network
    shape = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for name, model in {
        "base": BertModel(BertConfig(**shape)),
        "classifier": AutoModelForSequenceClassification.from_config(BertConfig(**shape, num_labels=7)),
    }.items():
        model.save_pretrained(tmp_path / name)
        network.encoder.tokenizer.save_pretrained(tmp_path / name)
        run = trainer([{"text": "good film", "label": 4}, {"text": "bad", "label": 0}], number=None, model=str(tmp_path / name))
        run.start()
        assert run.learners["policy"].network.num_classes == {"base": 5, "classifier": 7}[name]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"text": "good", "label": "pos"}, {"text": "bad", "label": -1}], r"evaluations\.e: data: data, row 2 has label -1"),
        (
            [{"text": "good", "label": "mixed"}],
            r"evaluations\.e: .*row 1 has the label 'mixed', and the model's classes are called neg, neutral, pos",
        ),
        ([{"text": "good", "label": 3}], r"evaluations\.e: .*row 1 has label 3, and the model knows 3 classes, 0 to 2"),
        ([{"text": "good"}], r"evaluations\.e: .*row 1 has no column 'label'"),
        ("/nowhere/{split}.jsonl", r"evaluations\.e: data: no file '/nowhere/test\.jsonl'"),
    ],
)
def test_data_of_evaluations_is_read_before_the_first_step(tmp_path, rows, sentence):
    path = tmp_path / "d.csv"
    path.write_text(CSV)
    with pytest.raises(ConfigError, match=sentence):
        trainer(str(path), evaluations={"e": Evaluation(data=rows)}).start()


def test_an_evaluation_has_columns_and_names_of_its_own(tmp_path):
    path, held_out = tmp_path / "d.csv", tmp_path / "held_out.csv"
    path.write_text(CSV)
    held_out.write_text("review,sentiment\ngood film,POS\nbad film,neg\n")
    columns = {"prompt": "review", "label": "sentiment"}
    run = trainer(str(path), number=None, evaluations={"e": Evaluation(data=str(held_out), columns=columns)})
    assert 0 <= run.evaluate()["e/accuracy"] <= 1


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


def test_splits_of_one_data_set_in_memory_are_apart():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": "good film", "label": 0}])
    splits = datasets.DatasetDict({"train": rows, "test": rows})
    assert not trainer(splits, evaluations={"e": Evaluation(data=splits)}).notes()
    assert len(trainer(splits, evaluations={"e": Evaluation(data=splits, split="train")}).notes()) == 1
