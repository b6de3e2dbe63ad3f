"""Every field of every public dataclass that people configure says what it may hold, and what it may not is refused, however it is made."""

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import pytest

from advalign import Trainer, builder, checked, config, names, plugins
from advalign.advantages import Group
from advalign.adversaries import PGD, Synonyms
from advalign.attacks import GCG
from advalign.catalogue import options, sections, suites
from advalign.checked import Checked
from advalign.errors import ConfigError
from advalign.http_client import Address, KeyName
from advalign.interfaces import Advantage, Adversary, Attack, Judge, Objective, Reward, RolloutEngine, Source, Task
from advalign.judges import RefusalJudge
from advalign.models import load
from advalign.objectives import SFT
from advalign.ranges import Count, Distinct, Interval, Length, Matches, OneOf, Range, Satisfies, Text
from advalign.rewards import Length as LengthReward
from advalign.targets import AnsweringClassifier
from advalign.types import Example, Message, Sampling, ThreatModel

PLUGINS = {f"{group}.{kind}": plugins.resolve(group, kind) for group in plugins.GROUPS for kind in plugins.kinds(group)}
OTHERS = {cls.__name__: cls for cls in (*options(), *sections(), *suites(), ThreatModel, Sampling) if cls not in PLUGINS.values()}
CLASSES = {name: cls for name, cls in {**PLUGINS, **OTHERS}.items() if not inspect.isabstract(cls)}

WRONG = [math.nan, math.inf, -math.inf, 0, -1, True, "x", None, [], {}, 1e300, 10**30]

# What a field that is required holds in the instance whose other fields are tried, by its name or by its type.
BY_NAME = {
    "site": "layer:0", "lexicon": "synonyms.json", "url": "http://localhost:1/v1", "start": 1.0, "rewards": (LengthReward(),),
    "discrete": Synonyms(lexicon="synonyms.json"), "continuous": PGD(), "rewrites": ["{prompt}"], "attack": GCG(), "alphabet": "ab",
}  # fmt: skip
BY_TYPE = {Advantage: Group(), Adversary: PGD(), Judge: RefusalJudge(), Objective: SFT(source="s"), Reward: LengthReward(), str: "s"}
INSTEAD = {
    "attacks.function": {"fn": len}, "attacks.learned": {"model": "folder"}, "attacks.many_shot": {"shots": []},
    "judges.rule": {"must": ("x",)}, "sources.adversarial_prompts": {"rewrites": ["{prompt}"]}, "attacks.words": {"lexicon": "w.json"},
    "attacks.beam": {"lexicon": "w.json"}, "attacks.exhaustive": {"lexicon": "w.json"}, "attacks.population": {"lexicon": "w.json"},
    "judges.function": {"fn": len}, "rewards.function": {"fn": len}, "Gate": {"above": 0.5}, "Until": {"above": 0.5},
    "DiscriminatorEvaluation": {"sampler": "policy"}, "objectives.mart": {"view": "pgd"}, "objectives.consistency": {"view": "pgd"},
}  # fmt: skip


def required(cls: type) -> dict[str, Any]:
    hints, values = checked.fields(cls), {}
    for field in dataclasses.fields(cls):
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            values[field.name] = BY_NAME[field.name] if field.name in BY_NAME else sample(hints[field.name])
    return values


def sample(hint: Any) -> Any:
    """The first value that comes to mind and that the annotation takes."""
    for value in (*BY_TYPE.values(), 1, 0.5, -1.0, {}, [], "task:constraints"):
        try:
            checked.check(hint, value, "p")
        except ConfigError:
            continue
        return value
    raise AssertionError(hint)


def instance(name: str) -> dict[str, Any]:
    return required(CLASSES[name]) | INSTEAD.get(name, {})


def takes(hint: Any, value: Any) -> bool:
    """Whether a value is what an annotation says: written apart from `checked.py`, by the type first and then by every range."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return takes(arguments[0], value) and all(lies_in(r, value) for r in arguments[1:] if isinstance(r, Range))
    if origin in (typing.Union, __import__("types").UnionType):
        return any(takes(option, value) for option in arguments)
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if hint is str:
        return isinstance(value, str)
    if origin in checked.MAPPINGS:
        return isinstance(value, dict) and all(takes(arguments[1], v) for v in value.values())
    if origin in checked.LISTS:
        fixed = origin is tuple and arguments[-1:] != (...,)
        return isinstance(value, list) and (len(value) == len(arguments) if fixed else all(takes(arguments[0], v) for v in value))
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return callable(value)
    try:
        return isinstance(value, hint if origin is None else origin)
    except TypeError:  # a protocol that says nothing at run time
        return True


def lies_in(declared: Range, value: Any) -> bool:
    if isinstance(declared, Interval):
        if abs(value) == math.inf:
            return declared.unbounded and value in (declared.low, declared.high)
        inside = declared.low <= value <= declared.high and abs(value) < 3.5e38
        return inside and not (declared.low_open and value == declared.low) and not (declared.high_open and value == declared.high)
    if isinstance(declared, OneOf):
        return value in tuple(declared.options)
    if isinstance(declared, Text):
        return declared.holds in value and (declared.empty or bool(value.strip()))
    if isinstance(declared, Length):
        return len(value) >= declared.least
    if isinstance(declared, Matches | Address | KeyName):
        return value != "x"
    if isinstance(declared, Satisfies):  # the names of options
        return value == {}
    assert isinstance(declared, Distinct | names.NameOf | names.MetricOf | names.PathOfSetting), declared
    return True


def bare(hint: Any) -> bool:
    """Whether a number or a text in an annotation is left without a range."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        marked = any(isinstance(mark, Range | names.NameOf | names.MetricOf | names.PathOfSetting) for mark in arguments[1:])
        return bare(arguments[0]) and not (marked and arguments[0] in (int, float, str))
    if origin in checked.MAPPINGS:
        return bare(arguments[1])
    return hint in (int, float, str) or (origin is not None and not is_callable(origin) and any(map(bare, arguments)))


def is_callable(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Callable)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_has_a_range(name):
    assert issubclass(CLASSES[name], Checked)
    assert [field for field, hint in checked.fields(CLASSES[name]).items() if bare(hint)] == []


@pytest.mark.parametrize("name", CLASSES)
def test_what_does_not_belong_is_refused_and_what_does_is_taken(name):
    cls, values = CLASSES[name], instance(name)
    cls(**values)
    for field, hint in checked.fields(cls).items():
        for value in WRONG:
            try:
                cls(**values | {field: value})
            except ConfigError as error:
                sentence = str(error)
                assert "\n" not in sentence
                assert len(sentence) < 600, sentence
                if not takes(hint, value):  # else fields that must fit each other
                    assert f".{field}" in sentence.partition(": ")[0], sentence
            else:
                assert takes(hint, value), f"{field}: {value!r} is taken for {hint}"


@pytest.mark.parametrize("name", PLUGINS)
def test_a_configuration_is_told_the_same_with_its_own_path(name):
    group, _, kind = name.partition(".")
    interface = next(base for base, known in builder.GROUP_OF.items() if known == group)
    values = instance(name)
    for field, hint in checked.fields(PLUGINS[name]).items():
        for value in (math.nan, True, {}, 1e300, -1):
            if takes(hint, value) or (isinstance(value, dict) and not simple(hint)):
                continue
            with pytest.raises(ConfigError) as error:
                builder.build_plugin(interface, {"kind": kind} | values | {field: value}, "run.yaml part")
            assert str(error.value).startswith(f"run.yaml part.{field}"), error.value


def simple(hint: Any) -> bool:
    """Whether no mapping could be meant."""
    return not any(isinstance(option, type) and dataclasses.is_dataclass(option) for option in (hint, *typing.get_args(hint)))


def test_numbers_written_as_text_are_read_from_a_configuration_alone():
    assert builder.build_plugin(Objective, {"kind": "dpo", "source": "s", "beta": "1e-3"}, "o").beta == 1e-3
    assert builder.build_plugin(Adversary, {"kind": "pgd", "steps": 4.0}, "a").steps == 4
    with pytest.raises(ConfigError, match=r"^adversaries\.pgd\.radius: '1e-3' given; a finite number of at least 0 is expected\.$"):
        PGD(radius="1e-3")


def test_lists_become_tuples_and_whole_numbers_floats():
    adversary = PGD(radius=1, sites=["embedding", "layer:0"])
    assert adversary.sites == ("embedding", "layer:0")
    assert isinstance(adversary.radius, float)


def test_fields_are_checked_before_the_plugin_s_own_checks_and_again_when_a_value_is_replaced():
    with pytest.raises(ConfigError, match=r"^rewards\.length\.buffer: '3' given"):
        LengthReward(buffer="3")
    with pytest.raises(ConfigError, match=r"^adversaries\.pgd\.steps: 0 given; a whole number of at least 1 is expected\.$"):
        dataclasses.replace(PGD(), steps=0)


def test_a_plugin_from_outside_is_checked_by_its_annotations():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(LengthReward):
        gamma: Annotated[float, Interval(low=0, high=2)] = 1.0

        def __post_init__(self):
            assert self.gamma <= 2  # what is out of range never comes here

    with pytest.raises(ConfigError, match=r"^Mine\.gamma: 3 given; a number from 0 to 2 is expected\.$"):
        Mine(gamma=3)
    assert Mine(gamma=2).gamma == 2.0


def test_the_list_of_classes_is_that_of_the_package():
    groups = {Advantage, Adversary, Attack, Judge, Objective, Reward, RolloutEngine, Source, Task}
    assert set(builder.GROUP_OF) == groups
    assert len(PLUGINS) > 100
    assert {"Learner", "TrainingArguments", "Suite", "Budget", "Sampling", "Stage", "Gate", "Ramp", "Follow"} <= set(OTHERS)


# ------------------------------------------------------------------------------------------------- public functions


@checked.arguments("lend: ")
def lend(number: Count, names: Iterable[str] = (), options: Mapping[str, Any] | None = None, **rest: Any) -> Any:
    return number, names, options, rest


def test_arguments_of_functions_are_checked_by_their_annotations():
    assert lend(2, ["a"], more=[]) == (2, ["a"], None, {"more": []})
    for wrong, sentence in (
        ((0,), r"^lend: number: 0 given; a whole number of at least 1 is expected\.$"),
        ((1, "abc"), r"^lend: names: 'abc' given; a list \(a text each\) is expected\.$"),
        ((1, (), 3), r"^lend: options: 3 given; a mapping of names or null is expected\.$"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            lend(*wrong)
    with pytest.raises(TypeError, match="number"):
        lend()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: load(3), r"^load: model: 3 given; a text is expected"),
        (lambda: load("scratch:tiny", texts="abc"), r"^load: texts: 'abc' given"),
        (lambda: load("scratch:tiny", max_length=0), r"^load: max_length: 0 given"),
        (lambda: Trainer(sources={"s": 3}, objectives={}, model="m"), r"^sources\.s: 3 given; a Source is expected\.$"),
        (lambda: Trainer(sources={}, objectives={"o": SFT}, model="m"), r"^objectives\.o: .* given; an Objective is expected\.$"),
        (lambda: Trainer(sources={}, objectives={}, model="m", args={"seed": 1}), r"^args: .* given; a TrainingArguments or null is"),
        (lambda: config.sections(None), r"^config\.sections: config: None given; a mapping of names is expected\.$"),
        (lambda: config.read(3), r"^config\.read: path: 3 given"),
        (lambda: AnsweringClassifier(3), r"^AnsweringClassifier: function: 3 given; a function is expected\.$"),
        (lambda: Message("", "text"), r"^Message\.role: '' given"),
        (lambda: Example(prompt=3), r"^Example\.prompt: 3 given; a text or a Conversation is expected\.$"),
        (lambda: Example(prompt="p", label=True), r"^Example\.label: True given"),
    ],
)
def test_public_functions_and_containers_refuse_other_types(call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call()
