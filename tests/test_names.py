"""What fields name is declared on them, for every plugin and section, and is found wherever it stands."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence

import pytest

from advalign import Evaluation, Frozen, Stage, names, plugins
from advalign.interfaces import Objective
from advalign.rewards.discriminator import Discriminator
from advalign.sources._game import Opponents
from advalign.training.discriminator_evaluation import DiscriminatorEvaluation
from advalign.training.schedule import Follow, Gate, Ramp, Until

NAMING = (
    "learner",
    "source",
    "view",
    "against",
    "sampler",
    "real",
    "sampled",
    "game",
    "defender",
    "critic",
    "minus_logprob",
    "metric",
    "stage",
)
"""Names of fields that hold the name of something else wherever they stand."""

SECTIONS = (Evaluation, DiscriminatorEvaluation, Frozen, Stage, Follow, Gate, Ramp, Until, Opponents)
CLASSES = [*(cls for group in plugins.GROUPS for cls in plugins.all(group)), *SECTIONS]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_a_field_that_names_something_declares_what(cls):
    texts = {name: hint for name, hint in names.declared(cls).items() if str in names.options(hint)}
    for name in set(NAMING) & texts.keys():
        assert any(isinstance(mark, names.Mark) for mark in names.marks(texts[name])), f"{cls.__name__}.{name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    learner: names.LearnerName | None = None
    role: str = "plain"
    rival: typing.Annotated[str, dataclasses.replace(names.NETWORK, when=("role", "duel"))] = "nobody"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    one: Part | None = None
    many: Sequence[Part] = ()
    shares: Mapping[names.SourceName, float] = dataclasses.field(default_factory=dict)
    by_name: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    path: names.SettingPath = "a.b"
    text: str = "policy"
    anything: typing.Any = None


def test_names_are_found_in_parts_lists_mappings_and_keys():
    whole = Whole(
        one=Part(learner="a"),
        many=[Part(), Part(learner="b", role="duel", rival="c")],
        shares={"s": 0.5},
        by_name={"x": Part(learner="d")},
        anything=Part(learner="z"),  # not known to hold a part
    )
    assert [(r.path, r.name) for r in names.references(whole, "w")] == [
        ("w.one.learner", "a"), ("w.many.1.learner", "b"), ("w.many.1.rival", "c"), ("w.shares", "s"), ("w.by_name.x.learner", "d"),
        ("w.path", "a.b"),
    ]  # fmt: skip
    assert names.names_of(whole, names.LEARNERS) == ("a", "b", "c", "d")
    assert names.names_of(whole, names.SOURCES) == ("s",)


def test_a_name_that_is_not_read_is_no_reference():
    assert [r.name for r in names.references(Discriminator(learner="d"))] == ["d"]
    assert [r.name for r in names.references(Discriminator(learner="d", level="segment"))] == ["d", "policy"]


def test_every_source_is_started_after_those_that_its_fields_name():
    for cls in plugins.all("sources"):
        named = [name for name, hint in names.declared(cls).items() if names.SOURCE in names.marks(hint)]
        if not named:
            continue
        required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING} - set(named)
        values = {"attack": plugins.resolve("attacks", "gcg")(), "advantage": plugins.resolve("advantages", "group")()}
        source = cls(**{name: f"source of {name}" for name in named}, **{name: values[name] for name in required})
        assert source.depends_on == tuple(f"source of {name}" for name in names.declared(cls) if name in named)


def test_names_of_learners_and_sources_are_read_at_the_start_and_options_of_objectives_in_every_step():
    moves = {name: names.changes_during_a_run(Objective, name, True) for name in names.declared(Objective)}
    assert moves == {"source": False, "view": True, "learner": False, "coef": True}
