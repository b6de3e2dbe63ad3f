"""One builder for five users: a run, a suite, a task, a certificate and an attack answer the same mistakes with the same sentences."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from advalign import builder, config, data, plugins
from advalign.adversaries import PGD
from advalign.attacks import Embedding
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.suites import certified
from advalign.interfaces import Adversary, Attack, Judge, Reward, Task
from advalign.judges import RefusalJudge
from advalign.rewards import Length


def run(entry):
    return config.sections({"objectives": {"o": entry}})["objectives"]["o"]


def suite(entry):
    return Suite.load({"data": [], "attacks": {}} | entry)


def task(entry):
    return data.task_of({"task": entry})


def certificate(entry):
    return certified.build({"smoothing": entry})["smoothing"]


def attack(entry):
    return builder.build_plugin(Attack, entry, "attack")


WHOLE = "a whole number"
USERS = {
    # user: (how it builds, its path, a right entry, a field with a wrong value and what is said, a misspelt field, its nearest, who has it)
    "run": (run, "objectives.o", {"kind": "sft", "source": "chat"}, {"coef": "much"}, "a finite number", "cof", "coef", "SFT"),
    "suite": (suite, "suite", {"seed": 3}, {"examples": "many"}, WHOLE, "exampels", "examples", "Suite"),
    "task": (task, "data.task", {"kind": "constraints"}, {"words": "many"}, WHOLE, "word", "words", "Constraints"),
    "certificate": (
        certificate,
        "suite.certified.smoothing",
        {"sigma": 0.5},
        {"n": "many"},
        WHOLE,
        "sigm",
        "sigma",
        "Smoothing",
    ),
    "attack": (attack, "attack", {"kind": "embedding"}, {"restarts": "many"}, WHOLE, "restart", "restarts", "Embedding"),
}


@pytest.mark.parametrize("user", USERS)
def test_a_wrong_type_is_named_with_its_path(user):
    build, path, entry, wrong, wanted, *_ = USERS[user]
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=rf"^{path}\.{name}: '{value}' given; {wanted} .*is expected\.$"):
        build(entry | wrong)


@pytest.mark.parametrize("user", USERS)
def test_an_unknown_field_meets_its_nearest(user):
    build, path, entry, _, _, misspelt, nearest, owner = USERS[user]
    with pytest.raises(ConfigError, match=rf"^{path}: no field of {owner} '{misspelt}'\. Known: .*\. Did you mean '{nearest}'\?$"):
        build(entry | {misspelt: 1})


MISSING = {
    "run": (run, {"kind": "sft"}, r"objectives\.o: SFT needs source\."),
    "suite": (Suite.load, {"data": []}, r"suite: Suite needs attacks\."),
    "task": (task, {"kind": "sentences"}, r"data\.task: Sentences needs data\."),
    "certificate": (certificate, {}, r"suite\.certified\.smoothing: Smoothing needs sigma\."),
    "attack": (attack, {}, r"attack: no 'kind' given; known kinds: beam, .*, words\."),
}


@pytest.mark.parametrize("user", MISSING)
def test_what_is_missing_is_named(user):
    build, entry, sentence = MISSING[user]
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        build(entry)


WRONG_KIND = {
    "run": (run, {"kind": "sftt"}, r"objectives\.o: no kind of objectives 'sftt'"),
    "suite": (suite, {"attacks": {"a": {"kind": "embeding"}}}, r"suite\.attacks\.a: no kind of attacks 'embeding'"),
    "judge": (suite, {"judge": {"kind": "refusl"}}, r"suite\.judge: no kind of judges 'refusl'"),
    "task": (task, "constraint", r"data\.task: no kind of tasks 'constraint'"),
    "certificate": (certificate, {"kind": "smooth"}, r"suite\.certified\.smoothing: no kind of certificate 'smooth'"),
    "attack": (attack, "embeding", r"attack: no kind of attacks 'embeding'"),
}


@pytest.mark.parametrize("user", WRONG_KIND)
def test_a_misspelt_kind_meets_its_nearest(user):
    build, entry, sentence = WRONG_KIND[user]
    with pytest.raises(ConfigError, match=rf"^{sentence}\. Known: .*\. Did you mean '\w+'\?$"):
        build(entry)


# --------------------------------------------------------------------------------------------- nested by annotation


def test_an_adversary_inside_an_attack_and_a_judge_inside_a_suite_are_built_and_checked():
    described = {
        "attacks": {"near": {"kind": "embedding", "adversary": {"kind": "pgd", "steps": 3}}, "bare": "prefill"},
        "judge": "refusal",
        "benign": {"data": [], "judge": {"kind": "refusal", "expect": "answer"}},
        "budget": {"queries": 7},
    }
    built = suite(described)
    assert built.attacks["near"] == Embedding(adversary=PGD(steps=3))
    assert plugins.kind_of(type(built.attacks["bare"])) == "prefill"
    assert built.judge == RefusalJudge()
    assert built.benign.judge == RefusalJudge(expect="answer")
    assert built.budget.queries == 7
    pgd = {"kind": "embedding", "adversary": {"kind": "pgd", "steps": "x"}}
    for path, wrong, says in (
        ("suite.attacks.near.adversary.steps", {"attacks": {"near": pgd}}, WHOLE),
        ("suite.attacks.near.adversary", {"attacks": {"near": {"kind": "embedding", "adversary": 3}}}, "one of .*pgd"),
        ("suite.benign.judge", {"benign": {"data": [], "judge": {"expect": "answer"}}}, "no 'kind' given"),
        ("suite.budget.queries", {"budget": {"queries": "few"}}, WHOLE),
        ("suite.budget", {"budget": 7}, "a mapping of names"),
        ("suite.attacks", {"attacks": ["prefill"]}, "a mapping of names"),
    ):
        with pytest.raises(ConfigError, match=rf"^{path}: .*{says}"):
            suite(wrong)


def test_a_list_of_plugins_becomes_a_tuple_and_what_is_built_passes():
    source = {"kind": "prompts", "data": "task:constraints", "advantage": "group", "rewards": ["length", {"kind": "length", "weight": 0.5}]}
    built = config.sections({"sources": {"write": source}})["sources"]["write"]
    assert built.rewards == (Length(), Length(weight=0.5))
    pgd = PGD()
    assert builder.build(Adversary, pgd, "a") is pgd
    assert builder.build(Adversary | None, None, "a") is None
    with pytest.raises(ConfigError, match=r"^sources\.write\.rewards\.1: no kind of rewards 'lenght'"):
        config.sections({"sources": {"write": source | {"rewards": ["length", "lenght"]}}})
    with pytest.raises(ConfigError, match=r"^sources\.write\.rewards: 'length' given; a list is expected\.$"):
        config.sections({"sources": {"write": source | {"rewards": "length"}}})


def test_an_object_of_another_interface_is_refused():
    with pytest.raises(ConfigError, match=r"^judge: Length\(.*\) given; a mapping with 'kind', one of .*refusal.* is expected\.$"):
        builder.build(Judge, Length(), "judge")


def test_what_a_class_itself_refuses_carries_the_path():
    with pytest.raises(ConfigError, match=r"^suite\.attacks\.a\.goal: no goal 'up'\. Known: lower, raise\.$"):
        suite({"attacks": {"a": {"kind": "embedding", "goal": "up"}}})


# ----------------------------------------------------------------------------------------------- from the outside


@dataclass(frozen=True, kw_only=True)
class NoStart(Reward):
    """r = 0."""


class NoDataclass(Task):
    """No problem at all."""

    def examples(self, split, number, rng):
        return []

    def demonstrate(self, example, rng):
        return ""


class Undecorated(PGD):
    """Derives from a dataclass, so it is one; but its own field is no option."""

    momentum: float = 0.9


class OnlyConstants(PGD):
    """Needs no decorator: nothing that it annotates is a field."""

    family: ClassVar[str] = "other"
    starts_at_zero = True


def test_a_class_without_fields_of_its_own_needs_no_decorator():
    assert not plugins.lacks_decorator(OnlyConstants)
    assert not plugins.lacks_decorator(PGD)


@dataclass(frozen=True, kw_only=True)
class NoReward:
    """r = 0."""


@pytest.mark.parametrize(
    ("interface", "cls", "says"),
    [
        (Reward, NoStart, r"NoStart does not implement start of Reward\."),
        (Reward, NoReward, r"NoReward does not derive from advalign\.interfaces\.Reward\."),
        (Task, NoDataclass, r"NoDataclass is not decorated with @dataclass\(frozen=True, kw_only=True\)\."),
        (Adversary, Undecorated, r"Undecorated is not decorated with @dataclass\(frozen=True, kw_only=True\)\."),
    ],
)
def test_a_class_that_cannot_be_a_plugin_is_refused_in_a_sentence(monkeypatch, interface, cls, says):
    monkeypatch.setattr(plugins, "resolve", lambda group, kind, path: cls)
    with pytest.raises(ConfigError, match=rf"^p: .*{says}"):
        builder.build(interface, "my_lab.mine", "p")


# --------------------------------------------------------------------------------------------- kinds from the command line

RUN = """
sources: {write: {kind: prompts, data: "task:constraints", rewards: [length], advantage: {kind: reinforce_pp, whiten: false}}}
objectives: {o: {kind: dapo, source: write, coef: 0.5, clip_high: 0.3}}
adversaries: {near: {kind: pgd, radius: 0.2, restarts: 2}}
"""


def read(tmp_path, *overrides):
    (tmp_path / "run.yaml").write_text(RUN)
    return config.read(tmp_path / "run.yaml", overrides)


def test_another_kind_on_the_command_line_drops_the_options_of_the_old_one(tmp_path):
    described = read(tmp_path, "objectives.o.kind=sft", "adversaries.near={kind: noise}", "sources.write.advantage.kind=group")
    # What every objective and every adversary has stays; an advantage has nothing in common with another one.
    assert described["objectives"]["o"] == {"kind": "sft", "source": "write", "coef": 0.5}
    assert described["adversaries"]["near"] == {"kind": "noise", "radius": 0.2}
    assert described["sources"]["write"]["advantage"] == {"kind": "group"}
    assert described["sources"]["write"]["rewards"] == ["length"]
    config.sections(described)


def test_options_of_the_new_kind_may_come_with_it_and_the_same_kind_keeps_its_own(tmp_path):
    described = read(tmp_path, "objectives.o.clip_high=0.2", "objectives.o.kind=grpo")
    assert described["objectives"]["o"] == {"kind": "grpo", "source": "write", "coef": 0.5, "clip_high": 0.2}
    described = read(tmp_path, "objectives.o.kind=dapo", "objectives.o.coef=1.0")
    assert described["objectives"]["o"] == {"kind": "dapo", "source": "write", "coef": 1.0, "clip_high": 0.3}
