"""A stage that ends by the tokens which the run has sampled and trained on."""

import json

import pytest
from helpers.runs import imitation

from advalign import Stage, TrainingArguments
from advalign.training.schedule import Timeline


def test_stages_end_at_their_tokens_and_those_that_come_too_late_have_no_step():
    """10 tokens a step: `a` ends after step 3 (30 >= 25), `b` would end at 30 and has no step, `c` ends after step 5, `d` by its steps."""
    timeline = Timeline([Stage(steps=9, tokens=25), Stage(steps=9, tokens=30), Stage(steps=9, tokens=41), Stage(steps=2)])
    numbers = []
    for step in range(7):
        assert not timeline.finished(step)
        numbers.append(timeline.place(step)[0])
        timeline.observe(step + 1, {}, 10.0)
    assert numbers == [0, 0, 0, 2, 2, 3, 3]
    assert timeline.finished(7)


def test_a_stage_whose_steps_end_first_ends_there():
    timeline = Timeline([Stage(steps=2, tokens=100), Stage(steps=1)])
    for step in range(3):
        timeline.observe(step + 1, {}, 10.0)
    assert [timeline.place(step)[0] for step in range(3)] == [0, 0, 1]


def test_a_resumed_timeline_counts_on():
    stages = [Stage(steps=9, tokens=25), Stage(steps=1)]
    timeline = Timeline(stages)
    timeline.observe(1, {}, 10.0)
    resumed = Timeline(stages)
    resumed.load_state_dict(timeline.state_dict())
    for step in (2, 3):
        resumed.observe(step, {}, 10.0)
    assert resumed.place(3) == (1, 3)


def test_a_run_counts_what_its_own_log_of_speed_counts(tmp_path):
    """Two alternating stages under one budget: the run ends with the first step that reaches it."""
    rows = [Stage(name=f"{name}-{i}", steps=1, tokens=200) for i in range(40) for name in ("a", "b")]
    trainer = imitation(stages=rows, args=TrainingArguments(output_dir=str(tmp_path / "run")))
    history = trainer.train(progress=False)
    speed = [json.loads(line) for line in (tmp_path / "run" / "speed.jsonl").read_text().splitlines()]
    counts = [line["sampled_tokens"] + line["trained_tokens"] for line in speed]
    assert len(history) == len(counts) > 2
    assert sum(counts[:-1]) < 200 <= sum(counts)
    assert [row["stage"] for row in history[:3]] == ["a-0", "b-0", "a-1"]
    assert sum(counts) == pytest.approx(trainer.timeline.tokens)
