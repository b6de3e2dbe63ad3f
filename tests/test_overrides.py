"""Dotted overrides reach every field of a run and of a suite; a wrong path is one sentence with the nearest name."""

import re

import pytest

from advalign import config, imports, interfaces, overrides
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.rewards.function import HANDED

RUN = """
learners: {policy: {model: "scratch:tiny", options: null}}
sources:
  write: {kind: prompts, data: "task:constraints", rewards: [length, {kind: exact_answer, weight: 3}, length], advantage: group}
  chat: {kind: demos, data: "task:constraints"}
objectives: {o: {kind: dapo, source: write, coef: 0.5}, i: {kind: sft, source: chat, view: near}}
adversaries: {near: {kind: pgd, radius: 0.2, restarts: 2}, far: noise}
schedules: {objectives.o.coef: {end: 1.0}}
stages: [{name: imitate, steps: 3}, {name: mix, steps: 5, set: {objectives.o.coef: 0.1}}]
"""

REACHED = {
    "stages.mix.steps=10": ("stages", 1, "steps", 10),
    "stages.0.steps=7": ("stages", 0, "steps", 7),
    "stages.-1.steps=7": ("stages", 1, "steps", 7),
    "stages[1].steps=8": ("stages", 1, "steps", 8),
    "stages.mix={steps: 4}": ("stages", 1, "steps", 4),
    "stages.mix.until.metric=x": ("stages", 1, "until", "metric", "x"),
    "stages.mix.set.objectives.o.coef=3": ("stages", 1, "set", "objectives.o.coef", 3),
    "stages.imitate.set.objectives.o.coef=3": ("stages", 0, "set", "objectives.o.coef", 3),
    "sources.write.rewards.0.weight=2": ("sources", "write", "rewards", 0, "weight", 2),
    "sources.write.rewards.exact_answer.weight=2": ("sources", "write", "rewards", 1, "weight", 2),
    "sources.write.rewards.1.kind=length": ("sources", "write", "rewards", 1, {"kind": "length", "weight": 3}),
    "sources.write.rewards.0={weight: 2}": ("sources", "write", "rewards", 0, {"kind": "length", "weight": 2}),
    "sources.write.rewards=[format]": ("sources", "write", "rewards", ["format"]),
    "sources.write.advantage.scale=none": ("sources", "write", "advantage", {"kind": "group", "scale": "none"}),
    "sources.write.sampling.temperature=1e-1": ("sources", "write", "sampling", {"temperature": 0.1}),
    "sources.write.dynamic.max_batches=3": ("sources", "write", "dynamic", {"max_batches": 3}),
    "adversaries.far.radius=0.3": ("adversaries", "far", {"kind": "noise", "radius": 0.3}),
    "adversaries.near=noise": ("adversaries", "near", "noise"),
    "schedules.objectives.o.coef.end=0.2": ("schedules", "objectives.o.coef", "end", 0.2),
    "schedules.objectives.o.coef={steps: 2}": ("schedules", "objectives.o.coef", {"end": 1.0, "steps": 2}),
    "learners.policy.options.lora.r=4": ("learners", "policy", "options", {"lora": {"r": 4}}),
    "frozen.reference.learner=policy": ("frozen", "reference", {"learner": "policy"}),
    "args.max_steps=3": ("args", "max_steps", 3),
    "evaluations.held.data=task:constraints": ("evaluations", "held", "data", "task:constraints"),
}

REFUSED = {
    "stages.mxi.steps=3": "no entry of stages 'mxi'. Known: 0, 1, imitate, mix. Did you mean 'mix'?",
    "stages.5.steps=3": "no entry of stages '5'. Known: 0, 1, imitate, mix.",
    "sources.write.rewards.length.weight=2": "entries 0, 2 are all called 'length'; give an index.",
    "sources.write.rewrds.0.weight=2": "no field of sources.write 'rewrds'. Known: .* Did you mean 'rewards'?",
    "sources.chat.rewards.0.weight=2": "no field of sources.chat 'rewards'. Known: .*",
    "sources.wriet.batch_size=2": "no entry of sources 'wriet'. Known: chat, write. Did you mean 'write'?",
    "objectives.o.coef.high=2": "'high' is below 0.5, which has no named parts.",
    "sources.write.data.split=train": "'split' is below 'task:constraints', which has no named parts.",
    "schedules.objectives.p.coef.end=0.2": "no entry of schedules .* Did you mean 'objectives.o.coef'?",
    "stage.mix.steps=2": "no section 'stage'. Known: .* Did you mean 'stages'?",
}

SUITE = """
data: {task: constraints, split: test}
attacks: {noise: {kind: embedding, adversary: {kind: noise, radius: 0.3}}, flip: words}
"""


@pytest.fixture
def read(tmp_path):
    def run(*changes):
        empty = [f"{name}:\n" for name in ("frozen", "args") if any(change.startswith(f"{name}.") for change in changes)]
        (tmp_path / "run.yaml").write_text(RUN + "".join(empty))  # a section without entries is one that an override fills
        return config.read(tmp_path / "run.yaml", changes)

    return run


@pytest.mark.parametrize("change", REACHED)
def test_names_and_indices_reach_any_field_and_nothing_else_changes(read, change):
    *path, value = REACHED[change]
    described, plain = read(change), read()
    node = described
    for name in path:
        node = node[name]
    assert node == value
    for section in plain.keys() - {path[0]}:
        assert described[section] == plain[section]


@pytest.mark.parametrize("change", REFUSED)
def test_a_path_that_leads_nowhere_is_one_sentence_with_the_nearest_name(read, change):
    sentence = REFUSED[change].replace("?", r"\?").replace(".", r"\.").replace(r"\.*", ".*")
    with pytest.raises(ConfigError, match=rf"^override {re.escape(change.partition('=')[0])}: {sentence}$"):
        read(change)


@pytest.mark.parametrize("change", ["a..b=2", "=3", "stages.mix.steps", ".=1", "args.seed={"])
def test_what_is_no_override_is_one_sentence(read, change):
    with pytest.raises(ConfigError, match=rf"^override '{re.escape(change)}'.*: ") as caught:
        read(change)
    assert "\n" not in str(caught.value)


def test_a_new_kind_comes_before_the_options_that_are_meant_for_it(read):
    described = read("adversaries.near.step_size=0.5", "adversaries.near={kind: vat}", "objectives.i.kind=dft", "objectives.i.coef=2")
    assert described["adversaries"]["near"] == {"kind": "vat", "radius": 0.2, "step_size": 0.5}
    assert described["objectives"]["i"] == {"kind": "dft", "source": "chat", "view": "near", "coef": 2}


def test_the_last_of_two_overrides_counts_and_the_file_stays_as_it_is(read):
    assert read("stages.mix.steps=1", "stages.1.steps=2")["stages"][1]["steps"] == 2
    described = read()
    assert overrides.apply(described, ["stages.mix.steps=1"], config.SECTIONS)["stages"][1]["steps"] == 1
    assert described["stages"][1]["steps"] == 5


def test_overrides_of_a_suite_reach_its_attacks(tmp_path):
    (tmp_path / "suite.yaml").write_text(SUITE)
    changes = ["attacks.noise.adversary.radius=0.7", "attacks.flip.max_changed=0.5", "budget.queries=9", "radii=[0.1,0.2]"]
    suite = Suite.load(tmp_path / "suite.yaml", changes)
    assert (suite.attacks["noise"].adversary.radius, suite.attacks["flip"].max_changed) == (0.7, 0.5)
    assert (suite.budget.queries, tuple(suite.radii)) == (9, (0.1, 0.2))
    with pytest.raises(ConfigError, match=r"override atacks\.flip: no field of a suite 'atacks'\. Known: .* Did you mean 'attacks'\?"):
        Suite.load(tmp_path / "suite.yaml", ["atacks.flip=words"])
    with pytest.raises(ConfigError, match=r"no entry of attacks 'nosie'\. .* Did you mean 'noise'\?"):
        Suite.load(tmp_path / "suite.yaml", ["attacks.nosie.adversary.radius=0.7"])


def test_options_of_one_attack():
    fields = overrides.within({"kind": "embedding"}, interfaces.Attack, ["adversary.radius=0.1", "adversary.kind=pgd", "restarts=2"])
    assert fields == {"kind": "embedding", "adversary": {"kind": "pgd", "radius": 0.1}, "restarts": 2}


def test_a_module_beside_the_configuration_is_found(tmp_path):
    (tmp_path / "rewards_beside_a_run.py").write_text("def brevity(completions, **columns):\n    return [0.0 for _ in completions]\n")
    with pytest.raises(ConfigError, match=r"It is looked for .* beside the configuration"):
        imports.function("rewards_beside_a_run.brevity", "rewards", HANDED)
    (tmp_path / "run.yaml").write_text("sources: {}")
    config.read(tmp_path / "run.yaml")
    assert imports.function("rewards_beside_a_run.brevity", "rewards", HANDED)(["a"]) == [0.0]
