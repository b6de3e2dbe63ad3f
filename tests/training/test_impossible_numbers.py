"""Numbers that cannot be meant are refused before anything is loaded, in one sentence, from YAML and from Python."""

import math

import pytest
from helpers.runs import DATA, chat, game, imitation, policy, write

from advalign import Ramp, Sampling, Stage, TrainingArguments, config
from advalign.adversaries.freelb import FreeLB
from advalign.adversaries.pgd import PGD
from advalign.errors import ConfigError
from advalign.objectives.dapo import DAPO
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.rewards.function import Function

NAN, INF = math.nan, math.inf
RUN = {
    "learners": {"policy": {"model": "scratch:tiny", "tokenizer": {"kind": "words", "data": DATA}}},
    "sources": {"chat": {"kind": "demos", "data": DATA}},
    "adversaries": {"pgd": {"kind": "pgd"}},
    "objectives": {"imitate": {"kind": "sft", "source": "chat"}, "robust": {"kind": "sft", "source": "chat", "view": "pgd"}},
    "args": {},
}
IN_YAML = {
    "objectives.imitate.coef": (NAN, r"^objectives\.imitate\.coef: nan given; a finite number"),
    "objectives.robust.coef": (-INF, r"^objectives\.robust\.coef: -inf given; a finite number"),
    "learners.policy.learning_rate": (INF, r"^learners\.policy\.learning_rate: inf given; a finite number of at least 0"),
    "learners.policy.weight_decay": (-0.1, r"^learners\.policy\.weight_decay: -0\.1 given"),
    "learners.policy.warmup_steps": (-1, r"^learners\.policy\.warmup_steps: -1 given; a whole number of at least 0"),
    "learners.policy.max_grad_norm": (NAN, r"max_grad_norm: nan given"),
    "adversaries.pgd.radius": (NAN, r"radius: nan given"),
    "adversaries.pgd.step_size": (INF, r"^adversaries\.pgd.*step_size.*inf"),
    "args.max_steps": (-2, r"args\.max_steps: -2 given; a whole number of at least 0"),
    "args.token_budget": (0, r"args\.token_budget: 0 given; a whole number of at least 1"),
    "args.save_steps": (-1, r"args\.save_steps: -1 given"),
    "args.max_skipped": (0, r"args\.max_skipped: 0 given; a whole number of at least 1"),
}


@pytest.mark.parametrize("path", IN_YAML)
def test_in_yaml(path):
    value, sentence = IN_YAML[path]
    *sections, last = path.split(".")
    described = {s: {k: dict(v) if isinstance(v, dict) else v for k, v in entries.items()} for s, entries in RUN.items()}
    entry = described
    for section in sections:
        entry = entry[section]
    entry[last] = value
    with pytest.raises(ConfigError, match=sentence) as error:
        config.trainer(described)
    assert "\n" not in str(error.value)


IN_PYTHON = {
    "coefficient": (lambda: imitation(objectives={"imitate": SFT(source="chat", coef=NAN)}), r"^objectives\.sft\.coef: nan given"),
    "a field of a field": (
        lambda: game(sources={"write": write(rewards=[Function(fn=len, weight=NAN)])}, objectives={"learn": GRPO(source="write")}),
        r"^rewards\.function\.weight: nan given",
    ),
    "set by a stage": (
        lambda: imitation(stages=[Stage(steps=1, name="s", set={"objectives.imitate.coef": NAN})]),
        r"objectives\.(imitate|sft)\.coef: nan given",
    ),
    "a schedule": (lambda: imitation(schedules={"objectives.imitate.coef": Ramp(end=INF)}), r"^schedules\.end: inf given"),
    "a stage": (lambda: Stage(steps=-1), r"^stages\.steps: -1 given"),
    "rate": (lambda: imitation(model=policy(learning_rate=NAN)), r"^learners\.learning_rate: nan given"),
    "steps": (lambda: imitation(steps=-2), r"^args\.max_steps: -2 given"),
    "greedy rollouts": (
        lambda: game(sources={"write": write(sampling=Sampling(temperature=0.0))}, objectives={"learn": GRPO(source="write")}),
        r"^sources\.write\.sampling\.temperature: 0 given, and greedy responses .* all the same",
    ),
    "temperature": (lambda: Sampling(temperature=-1.0), r"^sampling\.temperature: -1 given"),
    "temperature nan": (lambda: Sampling(temperature=NAN), r"^sampling\.temperature: nan given"),
    "top_p 0": (lambda: Sampling(top_p=0.0), r"^sampling\.top_p: 0 given; a number above 0 and at most 1"),
    "top_p 1.5": (lambda: Sampling(top_p=1.5), r"^sampling\.top_p: 1\.5 given"),
    "no tokens": (lambda: Sampling(max_new_tokens=0), r"^sampling\.max_new_tokens: 0 given; a whole number of at least 1"),
}


@pytest.mark.parametrize("case", IN_PYTHON)
def test_in_python(case):
    make, sentence = IN_PYTHON[case]
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_bounds_may_be_infinite_and_greedy_evaluations_are_fine():
    game(
        sources={"write": write(rewards=[Function(fn=len)]), "chat": chat()},
        objectives={"learn": DAPO(source="write", clip_high=INF), "robust": SFT(source="chat", view="free")},
        adversaries={"free": FreeLB(radius=INF, steps=2), "pgd": PGD()},
    )
    assert Sampling(temperature=0.0).temperature == 0
    assert TrainingArguments(max_steps=0).max_steps == 0
