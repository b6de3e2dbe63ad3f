"""A smoke run is the run itself, its objects made small: for every configuration of the repository, and for odd ones."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import yaml
from helpers.runs import chat, write

from advalign import Frozen, Ramp, Stage, TrainingArguments, config, plugins
from advalign.errors import ConfigError
from advalign.interfaces import Source, shrunk
from advalign.sources._game import Opponents
from advalign.sources.game import Game
from advalign.sources.rejection import Rejection
from advalign.training.smoke import smaller

ROOT = Path(plugins.__file__).parents[1]
FILES = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "suites"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_configuration_becomes_small_before_anything_is_loaded(path, monkeypatch):
    monkeypatch.setenv("ADVALIGN_DATA", "/nowhere")
    monkeypatch.setattr("advalign.training.build.load", lambda *a, **k: pytest.fail("a model was loaded"))
    described = config.read(path)
    trainer, whole = config.trainer(described, smoke=True), config.trainer(described)
    assert trainer.total_steps <= 2 * len(trainer.run_spec.stages)
    assert trainer.args.output_dir == f"{whole.args.output_dir}-smoke"
    for name, source in trainer.config["sources"].items():
        for field in ("batch_size", "group_size", "collect", "answers"):
            if isinstance(vars(source).get(field), int):
                assert vars(source)[field] == min(2, vars(whole.config["sources"][name])[field]), f"{name}.{field}"
    assert [type(s) for s in trainer.config["sources"].values()] == [type(s) for s in whole.config["sources"].values()]
    assert trainer.config["objectives"] == whole.config["objectives"]


def test_a_smoke_run_goes_from_end_to_end_and_writes_elsewhere(tmp_path):
    ramp = Ramp(start=0.0, end=1.0, steps=50, delay=20, stage="mix")
    stages = (Stage(name="warm", steps=30, objectives=("robust",)), Stage(name="mix", steps=1))
    sections = {"stages": stages, "schedules": {"objectives.robust.coef": ramp}, "args": TrainingArguments(output_dir="out"),
                "frozen": {"past": Frozen(refresh=100), "mean": Frozen(ema=0.9)}}  # fmt: skip
    small = smaller(sections)
    assert [stage.steps for stage in small["stages"]] == [2, 1]
    assert small["stages"][0].objectives == ("robust",)
    assert small["schedules"]["objectives.robust.coef"] == replace(ramp, steps=2, delay=0)
    assert small["args"] == TrainingArguments(output_dir="out-smoke", max_steps=2)
    assert small["frozen"] == {"past": Frozen(refresh=1), "mean": Frozen(ema=0.9)}
    assert sections["args"].output_dir == "out"


def test_a_source_is_as_small_as_its_own_checks_allow():
    assert write().smaller() == replace(write(), batch_size=2, group_size=2)
    assert chat(batch_size=1).smaller().batch_size == 1
    shared = {"data": "task:arithmetic", "rewards": [plugins.resolve("rewards", "length")(max_length=4, buffer=1)]}
    assert Rejection(**shared, threshold=0.5, collect=9).smaller() == Rejection(**shared, batch_size=2, group_size=2, collect=2)
    duel = Game(**shared, advantage=plugins.resolve("advantages", "group")(), opponents=Opponents(attackers={"old": 0.5}))
    assert (duel.smaller().batch_size, duel.smaller().group_size, duel.smaller().answers) == (2, 2, 2)


@dataclass(frozen=True, kw_only=True)
class AtLeastFive(Source):
    batch_size: int = 40

    def __post_init__(self):
        if self.batch_size < 5:
            raise ConfigError("sources.at_least_five: too few.")

    def start(self, context, name):
        raise NotImplementedError


def test_what_may_not_be_two_is_a_little_more():
    assert AtLeastFive().smaller().batch_size == 8
    assert AtLeastFive(batch_size=6).smaller().batch_size == 6
    assert shrunk(AtLeastFive(), batch_size=3).batch_size == 6
    assert {f.name for f in fields(AtLeastFive)} == {"batch_size"}


ODD = [
    ({"stages": None}, "stages: None given; a list is expected"),
    ({"stages": [None]}, "stages.0: "),
    ({"sources": {"a": None}}, "sources.a: "),
    ({"sources": ["a"]}, "sources: "),
    ({"evaluations": {"a": 3}}, "evaluations.a: 3 given"),
    ({"args": "fast"}, "args: 'fast' given"),
    ({"learners": {"policy": []}}, "learners.policy: "),
    ({}, "configuration: no section 'sources' is given"),
]


@pytest.mark.parametrize(("described", "sentence"), ODD, ids=[repr(d) for d, _ in ODD])
def test_an_odd_configuration_is_one_sentence_in_a_smoke_run_too(described, sentence):
    with pytest.raises(ConfigError) as caught:
        config.trainer(described, smoke=True)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


GAME = """
learners:
  policy: &model
    {model: "scratch:tiny-gpt2?n_embd=32", tokenizer: {kind: characters, data: "task:arithmetic"}, max_length: 40, minibatches: 4}
  attacker: *model
sources:
  duel:
    {kind: game, data: "task:arithmetic", rewards: [length], advantage: group, injection: {separator: "= "}, sampling: {max_new_tokens: 3},
     answer_sampling: {max_new_tokens: 3}, batch_size: 8, opponents: {attackers: {old: 0.25}}}
  answers: {kind: defender, game: duel, advantage: group}
frozen: {old: {learner: attacker, refresh: 50}}
objectives:
  attack: {kind: grpo, learner: attacker, source: duel}
  defend: {kind: grpo, source: answers}
stages: [{name: play, steps: 400, until: {metric: duel/attack_success, below: 0.1, after: 100}}]
"""


def test_a_game_whose_halves_have_no_batch_size_of_their_own_runs():
    history = config.trainer(yaml.safe_load(GAME), smoke=True).train(progress=False)
    assert [log["step"] for log in history] == [1, 2]
    assert all(log["defend/loss"] == log["defend/loss"] for log in history)
