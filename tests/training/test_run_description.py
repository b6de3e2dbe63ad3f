"""What of a run is compared when it is resumed: every setting, and the content of the data behind it."""

import json
import re
from dataclasses import fields, replace

import pytest

from advalign import Frozen, Learner, Stage, TrainingArguments
from advalign.advantages.group import Group
from advalign.errors import ConfigError
from advalign.objectives.sft import SFT
from advalign.rewards.function import Function
from advalign.rollout.hf import HF
from advalign.rollout.vllm import VLLM
from advalign.sources.demos import Demos
from advalign.sources.prompts import Prompts
from advalign.training.run_description import ARGUMENTS, check_same, describe
from advalign.training.run_spec import RunSpec

ROWS = [{"prompt": f"{i}", "response": f"{i + 1}"} for i in range(100)]


STAGES = (Stage(steps=2, name="train"),)


def spec(data="task:constraints", stages=STAGES, model="scratch:tiny", **options):
    return RunSpec(
        config={
            "learners": {"policy": Learner(model=model)},
            "sources": {"chat": Demos(data=data, **options)},
            "objectives": {"imitate": SFT(source="chat")},
            "adversaries": {},
        },
        frozen={"mean": Frozen(ema=0.9)},
        schedules={},
        stages=list(stages),
    )


def described(run=None, args=None, rollout=None, evaluations=None):
    return describe(run or spec(), args or TrainingArguments(), rollout=rollout or HF(), evaluations=evaluations or {})


def difference(before, now, tmp_path, **options):
    """The sentence that refuses to go on; empty: it goes on."""
    try:
        check_same(tmp_path / "checkpoint-8", before, now, **options)
    except ConfigError as error:
        return str(error)
    return ""


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_argument_is_compared_or_may_change(tmp_path):
    """A new field of TrainingArguments has to be put on one side."""
    may_change = {
        "max_steps", "output_dir", "overwrite_output_dir", "eval_steps", "save_steps", "save_total_limit", "measure_every", "max_skipped",
        "distributed", "model_card",
    }  # fmt: skip
    assert {*ARGUMENTS} | may_change == {field.name for field in fields(TrainingArguments)}
    other = {"seed": 1, "token_budget": 7, "mixed_precision": "bf16"}
    for name in ARGUMENTS:
        text = difference(described(), described(args=TrainingArguments(**{name: other[name]})), tmp_path)
        assert re.fullmatch(rf"resume: args\.{name} was \S+ when checkpoint-8 was written, and is {other[name]!r} now; [^\n]*\.", text)
    changed = TrainingArguments(
        max_steps=9, output_dir="x", eval_steps=1, save_steps=1, save_total_limit=1, measure_every=1, distributed="ddp"
    )
    assert described() == described(args=changed)


def test_the_content_of_data_is_compared_not_its_name_alone(tmp_path):
    file = tmp_path / "train.jsonl"
    write(file, ROWS)
    before = described(spec(str(file)))
    assert difference(before, described(spec(str(file))), tmp_path) == ""
    write(file, [*ROWS[:50], {"prompt": "50", "response": "52"}, *ROWS[51:]])
    text = difference(before, described(spec(str(file))), tmp_path)
    assert text.startswith("resume: content of sources.chat.data was ")


def test_the_split_that_is_read_is_compared_and_other_files_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", ROWS)
    for data in (
        "${SOME_DATA}/{split}.jsonl",
        {"path": "${SOME_DATA}/{split}.jsonl"},
        {"path": "${SOME_DATA}/{split}.jsonl", "split": "train"},
    ):
        write(tmp_path / "train.jsonl", ROWS)
        before = described(spec(data))
        write(tmp_path / "test.jsonl", ROWS[1:])
        assert difference(before, described(spec(data)), tmp_path) == ""
        write(tmp_path / "train.jsonl", ROWS[1:])
        assert "content of sources.chat.data" in difference(before, described(spec(data)), tmp_path)


def test_rows_in_memory_and_data_sets_are_compared_by_their_rows(tmp_path):
    import datasets

    changed = [*ROWS[:98], {"prompt": "98", "response": "100"}, ROWS[99]]
    for first, same, other in (
        (ROWS, [dict(row) for row in ROWS], changed),
        (datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(changed)),
    ):
        before = described(spec(first))
        assert difference(before, described(spec(same)), tmp_path) == ""
        assert difference(before, described(spec(other)), tmp_path).startswith("resume: sources.chat.data was ")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    before = described(spec(str(tmp_path / "saved")))
    datasets.Dataset.from_list(changed).save_to_disk(tmp_path / "saved")
    assert "content of sources.chat.data" in difference(before, described(spec(str(tmp_path / "saved"))), tmp_path)


def test_a_model_that_scores_is_compared_and_the_base_of_a_learner_is_not(tmp_path):
    """A learner's weights come from the checkpoint; those of a model that a reward or a task names do not."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    before = described(spec(str(model), model=str(model)))
    assert [name for name in before if name.startswith("content of ")] == ["content of sources.chat.data"]
    (model / "weights.safetensors").write_bytes(b"other")
    assert "content of sources.chat.data" in difference(before, described(spec(str(model), model=str(model))), tmp_path)


@pytest.mark.parametrize("adapter", ["lora", "adapter", "folder"])
def test_the_base_of_an_adapter_is_compared(tmp_path, adapter):
    """A checkpoint of LoRA holds no base."""
    (tmp_path / "config.json").write_text("{}")
    if adapter == "folder":
        (tmp_path / "adapter_config.json").write_text("{}")
    run = spec(model=str(tmp_path))
    run.config["learners"]["policy"] = replace(run.config["learners"]["policy"], options={} if adapter == "folder" else {adapter: "x"})
    before = described(run)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert "content of learners.policy.model was " in difference(before, described(run), tmp_path)


def test_long_values_are_shown_where_they_differ(tmp_path):
    before, now = (described(spec(columns={"prompt": f"{'x' * 120}{end}"})) for end in ("a", "b"))
    text = difference(before, now, tmp_path)
    assert re.search(r"sources\.chat\.columns\.prompt was \.\.\.x{20}a' when checkpoint-8 was written, and is \.\.\.x{20}b' now", text)


def test_lengths_of_the_last_stage_may_change_and_nothing_else_of_stages(tmp_path):
    warm, mix = Stage(steps=3, name="warm", objectives=("imitate",)), Stage(steps=5, name="mix")
    before = described(spec(stages=[warm, mix]))
    assert difference(before, described(spec(stages=[warm, replace(mix, steps=50)])), tmp_path) == ""
    assert "stages.0.steps was 3 " in difference(before, described(spec(stages=[replace(warm, steps=4), mix])), tmp_path)
    assert "stages.1 is gone" in difference(before, described(spec(stages=[warm])), tmp_path)
    assert "stages.0.objectives was ('imitate',)" in difference(
        before, described(spec(stages=[replace(warm, objectives=None), mix])), tmp_path
    )
    # A run that branches off after the first stage: what follows may be another.
    for stages in ([warm], [warm, replace(mix, name="control", objectives=("imitate",))], [warm, mix, mix]):
        assert difference(before, described(spec(stages=stages)), tmp_path, stages=1) == ""
    assert "stages.0.name" in difference(before, described(spec(stages=[replace(warm, name="x"), mix])), tmp_path, stages=1)


def test_where_a_server_is_may_change(tmp_path):
    first, second = (VLLM(url=f"http://{host}:8000", folder=f"/{host}") for host in ("a", "b"))
    assert difference(described(rollout=first), described(rollout=second), tmp_path) == ""
    assert "rollout was HF when" in difference(described(), described(rollout=first), tmp_path)


def test_texts_that_look_like_variables_are_no_files(tmp_path):
    described(spec(columns={"prompt": "${NOT_SET_ANYWHERE}", "answer": "\0", "response": "x" * 5000}))


def test_addresses_are_left_out():
    """A resumed run is another process, in which every object is somewhere else."""
    reward = Function(fn=lambda completions: [0.0] * len(completions))
    run = spec()
    run.config["sources"]["write"] = Prompts(data="task:constraints", rewards=[reward], advantage=Group())
    assert described(run)["sources.write.rewards.0.fn"] == "<function test_addresses_are_left_out.<locals>.<lambda>>"
