"""Labels of data against the classes of a model: by name, in range, and never guessed."""

import pytest
from helpers.context import FakeContext

from advalign import data
from advalign.errors import ConfigError
from advalign.sources import Feedback

datasets = pytest.importorskip("datasets")

TEXTS = ["a", "b", "c"]


def declared(names, labels=(0, 1, 2)):
    """Rows whose label column is a ClassLabel with these names."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"text": TEXTS[: len(labels)], "label": list(labels)}, features=features)


def indices(ref, **options):
    return [e.label for e in data.labelled(ref, **options)[0]]


@pytest.mark.parametrize("number", [None, 3])
def test_indices_of_a_class_label_are_looked_up_by_name(number):
    # the data: 0 bad, 1 fair, 2 good; the model: 0 Good, 1 Bad, 2 Fair
    rows = declared(["bad", "fair", "good"])
    assert indices(rows, class_names=("Good", "Bad", "Fair"), num_classes=number) == [1, 2, 0]
    assert data.labelled(rows, class_names=("Good", "Bad", "Fair"), num_classes=number)[1] == ("Good", "Bad", "Fair")
    assert indices(declared(["good", "bad"], [0, 1]), class_names=("Good", "Bad", "Fair"), num_classes=number) == [0, 1]


def test_names_that_the_model_does_not_have_are_refused():
    with pytest.raises(
        ConfigError, match=r"column 'label' names its classes neg, pos, and the model's are NEGATIVE, POSITIVE, without 'neg'"
    ):
        data.labelled(declared(["neg", "pos"], [0, 1]), class_names=("NEGATIVE", "POSITIVE"))


@pytest.mark.parametrize(
    ("label", "names", "sentence"),
    [
        ("joy", (), "has the label 'joy', and the model's classes are called LABEL_0, LABEL_1"),
        ("joy", ("neg", "pos"), "has the label 'joy', and the model's classes are called neg, pos"),
        (2, (), "has label 2, and the model knows 2 classes, 0 to 1"),
        ("2", ("neg", "pos"), "has label 2, and the model knows 2 classes, 0 to 1"),
        (-1, (), "has label -1, which is not a class index"),
        (-100, ("neg", "pos"), "has label -100, which is not a class index"),
        (0.5, (), "has label 0.5, which is not a class index"),
        (None, ("neg", "pos"), "has no label"),
    ],
)
def test_labels_that_a_model_has_no_class_for(label, names, sentence):
    with pytest.raises(ConfigError, match=f"row 2 {sentence}"):
        data.labelled([{"text": "a", "label": 0}, {"text": "b", "label": label}], class_names=names, num_classes=2)


def test_names_of_transformers_are_names():
    assert indices([{"text": "a", "label": "LABEL_1"}, {"text": "b", "label": 0}], num_classes=2) == [1, 0]


def test_a_column_of_names_has_no_numbers():
    with pytest.raises(ConfigError, match=r"row 3 has label 1, and the column's other labels are names \(neg, pos\)"):
        data.labelled([{"text": "a", "label": label} for label in ("neg", "pos", "1")])


def test_whole_numbers_that_a_table_writes_as_fractions():
    assert indices([{"text": "a", "label": label} for label in ("1.0", 2.0, "0")]) == [1, 2, 0]


def test_a_label_column_that_is_not_there():
    with pytest.raises(ConfigError, match=r"row 1 has no column 'label' with its label, only text, stars; name it with columns"):
        data.labelled([{"text": "a", "stars": 1}])
    with pytest.raises(ConfigError, match=r"row 1 has no column 'star' with its label, only text, stars"):
        data.labelled([{"text": "a", "stars": 1}], {"label": "star"})


@pytest.mark.parametrize(
    ("label", "shown"),
    [(0.5, "label 0.5"), (-1, "label -1"), (2, "label 2"), ("good", "label good"), (float("nan"), "label nan"), (None, "no label")],
)
def test_feedback_is_one_or_zero(label, shown):
    rows = [{"prompt": "p", "completion": "c", "label": value} for value in (1, label)]
    with pytest.raises(ConfigError, match=rf"sources\.s: row '2' has {shown}; it must be 1 or 0"):
        Feedback(data=rows).start(FakeContext(), "s")
