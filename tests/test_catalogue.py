"""docs/catalogue.md is the page that the package generates, and every field of every kind says what it is."""

from pathlib import Path

from advalign import catalogue, plugins
from advalign.adversaries import PGD
from advalign.interfaces import Adversary
from advalign.sources import Prompts

PAGE = Path(plugins.__file__).parents[1] / "docs" / "catalogue.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == catalogue.text(), "run `make catalogue`"


def test_every_kind_has_a_heading_and_its_formula():
    lines = catalogue.text().splitlines()
    for group in plugins.GROUPS:
        for kind, formula in plugins.summaries(group).items():
            heading = lines.index(f"### {kind}", lines.index(f"## {group.capitalize()}"))
            assert lines[heading + 2].endswith(f"` · {formula}")


def test_every_field_has_a_docstring_line():
    plugin_classes = [cls for group in plugins.GROUPS for cls in plugins.all(group)]
    classes = [*plugin_classes, *catalogue.options(), *catalogue.sections(), *catalogue.suites()]
    bare = [f"{cls.__module__}.{cls.__name__}.{field.name}" for cls in classes for field in catalogue.fields(cls) if not field.meaning]
    assert sorted(set(bare)) == []


def test_a_row_has_the_type_the_default_and_the_docstring_line_of_its_class():
    rows = {field.name: field for field in catalogue.fields(PGD)}
    inherited = {field.name: field for field in catalogue.fields(Adversary)}
    assert (rows["step_size"].values, rows["step_size"].default) == ("a finite number above 0 or null", "None")
    assert rows["step_size"].row().startswith("| `step_size` | a finite number above 0 or null | `None` | η, a fraction of the radius.")
    assert rows["scope"] == inherited["scope"]  # the base's own line
    assert (inherited["radius"].default, rows["radius"].default) == ("required", "0.05")  # which PGD gives a default
    assert {field.name: field.default for field in catalogue.fields(Prompts)}["sampling"] == "Sampling()"
