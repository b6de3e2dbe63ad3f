"""Classes by name in evaluations: in the data, on the command line, and in the report."""

import json

import pytest
import torch
from helpers import victims

from advalign import attacks
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.reports import compare
from advalign.models import load
from advalign.targets.black_box import AnsweringClassifier

CONTROL = {"words": attacks.Words(style="deepwordbug", max_changed=0.5)}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The trained victim, saved with names for its classes."""
    folder = tmp_path_factory.mktemp("named")
    trained = victims.classifier()
    before = dict(trained.model.config.id2label)
    trained.name_classes(["negative", "positive"])
    trained.save_pretrained(folder)
    trained.name_classes([before[0], before[1]])
    return load(str(folder))


def rows(names=("negative", "positive")):
    return [{"review": e.prompt, "sentiment": names[e.label]} for e in victims.sentences(12)]


def reference(tmp_path, names=("negative", "positive")):
    path = tmp_path / "reviews.csv"
    path.write_text("review,sentiment\n" + "".join(f"{row['review']},{row['sentiment']}\n" for row in rows(names)))
    return {"path": str(path), "columns": {"prompt": "review", "label": "sentiment"}}


def test_a_csv_with_columns_and_names_of_its_own(network, tmp_path):
    named = Suite(data=reference(tmp_path), attacks=CONTROL, examples=4).run(network)
    plain = Suite(data=victims.sentences(12), attacks=CONTROL, examples=4).run(victims.classifier())
    assert named.clean == plain.clean == {"accuracy": 1.0}
    assert [r.status for r in named.results] == [r.status for r in plain.results]
    assert {r.before for r in named.results} <= {"negative", "positive"}
    assert [["negative", "positive"][int(r.before)] for r in plain.results] == [r.before for r in named.results]


def test_the_report_names_classes(network, tmp_path):
    swapped = reference(tmp_path, names=("positive", "negative"))  # every label is wrong
    result = Suite(data=swapped, attacks=CONTROL, examples=4).run(network, tmp_path / "out")
    assert result.clean == {"accuracy": 0.0}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["classes"] == [
        {"class": "negative", "examples": 6, "accuracy": 0.0, "most often taken for": "positive"},
        {"class": "positive", "examples": 6, "accuracy": 0.0, "most often taken for": "negative"},
    ]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Classes" in report
    assert "| negative | 6 | 0 | positive |" in report
    assert "## Classes" not in Suite(data=victims.sentences(4), attacks=CONTROL, examples=4).run(victims.classifier()).markdown()


def test_constant_predictions_are_seen_by_name(network):
    constant = AnsweringClassifier(lambda texts: torch.tensor([[1.0, 0.0]] * len(texts)), name="c", class_names=("negative", "positive"))
    data = [{"text": e.prompt, "label": ("negative", "positive")[e.label]} for e in victims.sentences(40)]
    result = Suite(data=data, attacks=CONTROL, examples=2).run(constant)
    assert any("the model answers `negative` to almost everything" in sentence for sentence in result.failures)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ("negative", "joyful"),
            r"evaluation: data: .*reviews\.csv, row \d+ has the label 'joyful', and the model's classes are called neg",
        ),
        (("negative", "2"), r"evaluation: data: .*reviews\.csv, row \d+ has label 2, and the model knows 2 classes"),
        (("negative", "-1"), r"evaluation: data: .*reviews\.csv, row \d+ has label -1"),
        (("negative", ""), r"evaluation: data: .*reviews\.csv, row \d+ has no label"),
    ],
)
def test_labels_without_a_class_are_refused_with_row_and_value(network, tmp_path, names, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Suite(data=reference(tmp_path, names), attacks=CONTROL).run(network)


def test_comparisons_take_names(network, tmp_path):
    suite = Suite(data=reference(tmp_path), attacks=CONTROL, examples=4)
    results = [suite.run(network, tmp_path / name).results for name in ("first", "second")]
    assert "0.000" in compare.results(*results, ("first", "second")).markdown()


def test_a_model_whose_classes_have_no_names(tmp_path):
    with pytest.raises(ConfigError, match=r"has the label 'negative', and the model's classes are called LABEL_0, LABEL_1"):
        Suite(data=reference(tmp_path), attacks=CONTROL).run(victims.classifier())
