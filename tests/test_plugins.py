"""The folder is the registry: what every plugin file promises, in every group."""

import dataclasses
import inspect
import sys
import typing
from pathlib import Path

import pytest

from advalign import objectives, plugins
from advalign.errors import ConfigError

ALL = [(group, kind) for group in plugins.GROUPS for kind in plugins.kinds(group)]


@pytest.mark.parametrize(("group", "kind"), ALL, ids=[f"{group}.{kind}" for group, kind in ALL])
def test_a_file_is_one_frozen_keyword_only_class_with_a_formula(group: str, kind: str) -> None:
    cls = plugins.resolve(group, kind)
    assert cls.__module__ == f"advalign.{group}.{kind}"
    assert plugins.kind_of(cls) == kind
    assert dataclasses.is_dataclass(cls)
    params = cls.__dataclass_params__
    assert params.frozen, "a plugin is its configuration: frozen"
    assert all(f.kw_only for f in dataclasses.fields(cls) if f.init), "a plugin is built by keyword"
    assert plugins.summary(cls).strip()
    # A dataclass without a docstring is given its own signature as one; that is no documentation.
    assert not plugins.summary(cls).startswith(f"{cls.__name__}(")


@pytest.mark.parametrize(("group", "kind"), ALL, ids=[f"{group}.{kind}" for group, kind in ALL])
def test_no_field_is_called_epsilon_and_there_are_few(group: str, kind: str) -> None:
    cls = plugins.resolve(group, kind)
    names = [f.name for f in dataclasses.fields(cls)]
    assert not any("epsilon" in name or name == "eps" for name in names)
    added = [name for name in names if name in inspect.get_annotations(cls)]
    assert len(added) <= 8, "more than eight fields of its own: two ideas share a class"


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_every_group_has_plugins_and_names_each_once(group: str) -> None:
    kinds = plugins.kinds(group)
    assert kinds
    assert not any(kind.startswith("_") for kind in kinds)
    exports = plugins.exports(group)
    assert sorted(exports.values()) == kinds, "two files export a class of one name"
    assert plugins.group_summary(group)


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_what_is_read_from_the_files_is_what_the_classes_say(group: str) -> None:
    classes = {kind: plugins.resolve(group, kind) for kind in plugins.kinds(group)}
    assert plugins.summaries(group) == {kind: plugins.summary(cls) for kind, cls in classes.items()}
    assert plugins.exports(group) == {cls.__name__: kind for kind, cls in classes.items()}
    assert all(typing.get_type_hints(cls) for cls in classes.values()), "annotations of fields are looked up by the builder"


def test_a_class_of_a_group_is_found_by_its_name() -> None:
    assert objectives.DAPO is plugins.resolve("objectives", "dapo")
    with pytest.raises(AttributeError, match="has no attribute 'DAPOO'"):
        _ = objectives.DAPOO


def test_a_misspelt_kind_meets_its_nearest() -> None:
    with pytest.raises(ConfigError, match=r"objectives\.robust: no kind of objectives 'grpoo'\. Known: .*\. Did you mean 'grpo'\?"):
        plugins.resolve("objectives", "grpoo", "objectives.robust")
    with pytest.raises(ConfigError, match="Did you mean 'objectives'"):
        plugins.kinds("objective")


OUTSIDE = '''
from dataclasses import dataclass
from advalign.interfaces import Objective

__all__ = ["Mine"]

@dataclass(frozen=True, kw_only=True)
class Mine(Objective):
    """l = 0, from somebody's laboratory."""

    @property
    def reads(self):
        return {}

    def weights(self, rows):
        raise NotImplementedError

    def losses(self, rows, views):
        raise NotImplementedError

class NotExported: ...

OUT = 'a text'
'''


def test_a_dotted_kind_needs_one_file_and_no_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = tmp_path / "outside_lab_of_test_plugins"
    lab.mkdir()
    (lab / "__init__.py").write_text("")
    (lab / "mine.py").write_text(OUTSIDE)
    (lab / "two.py").write_text('__all__ = ["A", "B"]\nclass A: ...\nclass B: ...\n')
    (lab / "broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = lab.name
    try:
        cls = plugins.resolve("objectives", f"{name}.mine")
        assert cls(source="math", coef=0.5).coef == 0.5
        assert plugins.resolve("objectives", f"{name}.mine.Mine") is cls
        assert plugins.kind_of(cls) == f"{name}.mine.Mine"
        assert plugins.resolve("objectives", plugins.kind_of(cls)) is cls
        assert plugins.summary(cls) == "l = 0, from somebody's laboratory."
        with pytest.raises(ConfigError, match="exactly one class in __all__, found 2"):
            plugins.resolve("objectives", f"{name}.two")
        # Its own missing import is named, not taken for "no such kind".
        with pytest.raises(ConfigError, match=r"broken' failed with ModuleNotFoundError: No module named 'a_module_that_is_not_there'"):
            plugins.resolve("objectives", f"{name}.broken")
        with pytest.raises(ConfigError, match=r"'.*mine.OUT' is a str, not a class"):
            plugins.resolve("objectives", f"{name}.mine.OUT")
        with pytest.raises(ConfigError, match=r"cannot import .*; .* `python -m advalign` also looks in the current folder\."):
            plugins.resolve("objectives", f"{name}.absent")
    finally:
        for module in [m for m in sys.modules if m.split(".")[0] == name]:
            del sys.modules[module]
