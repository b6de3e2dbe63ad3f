"""Model cards that a run writes: formula, stages, data by name, the last held-out numbers; the same card of a run that was resumed."""

import pytest
from helpers.runs import SHORT, game, policy
from huggingface_hub import ModelCard

from advalign import Evaluation, Stage, Trainer, TrainingArguments, data
from advalign.interfaces import Callback
from advalign.metrics.run_log import read
from advalign.objectives.sft import SFT
from advalign.sources.demos import Demos


def run(folder, steps=4, callbacks=(), **arguments):
    held = Evaluation(data="task:constraints", number=3, sampling=SHORT)
    return Trainer(
        learners={"policy": policy(), "other": policy()},
        sources={"chat": Demos(data="task:constraints", limit=8, batch_size=2)},
        objectives={"imitate": SFT(source="chat"), "imitate_too": SFT(source="chat", learner="other")},
        evaluations={"held": held, "held_other": Evaluation(data=held.data, number=3, sampling=SHORT, learner="other")},
        callbacks=callbacks,
        args=TrainingArguments(output_dir=str(folder), max_steps=steps, **arguments),
    )


def card(folder):
    return ModelCard.load(folder / "README.md")


def test_a_game_says_what_it_was(tmp_path):
    trainer = game(args=TrainingArguments(output_dir=str(tmp_path / "run"), max_steps=1, token_budget=512))
    trainer.train(progress=False)
    policy_card, other = card(tmp_path / "run" / "policy"), card(tmp_path / "run" / "discriminator")
    assert policy_card.data.tags == ["advalign", "grpo", "sft", "adversarial-training"]
    assert other.data.tags == ["advalign", "discriminate"]
    assert policy_card.data.datasets is None  # a task is not a data set
    assert "Data: `task:constraints`." in policy_card.text
    for line in trainer.formula().splitlines():
        assert line in policy_card.text
    assert "* steps of the run: 1" in policy_card.text
    assert "The run measured nothing on held-out data." in policy_card.text
    assert str(tmp_path) not in (tmp_path / "run" / "policy" / "README.md").read_text()


def test_each_learner_has_its_own_numbers(tmp_path):
    run(tmp_path, eval_steps=3).train(progress=False)
    line = next(entry for entry in reversed(list(read(tmp_path))) if "held/nll" in entry)
    text = card(tmp_path / "policy").text
    assert f"## Held-out evaluation, step {line['step']}" in text
    assert f"| held/nll | {line['held/nll']:.4g} |" in text
    assert "held_other/" not in text
    assert f"| held_other/nll | {line['held_other/nll']:.4g} |" in card(tmp_path / "other").text


class Stop(Callback):
    """Ends a run as a kill does."""

    def on_step(self, trainer, logs):
        if trainer.step == 3:
            raise KeyboardInterrupt


def test_a_resumed_run_has_the_same_card(tmp_path):
    arguments = {"eval_steps": 2, "save_steps": 2, "steps": 3}
    run(tmp_path / "whole", **arguments).train(progress=False)
    with pytest.raises(BaseException):  # noqa: B017 -- whatever the loop makes of it
        run(tmp_path / "resumed", callbacks=[Stop()], **arguments).train(progress=False)
    assert not (tmp_path / "resumed" / "policy").exists()
    run(tmp_path / "resumed", **arguments).train(resume=True, progress=False)
    for name in ("policy", "other"):
        assert (tmp_path / "whole" / name / "README.md").read_text() == (tmp_path / "resumed" / name / "README.md").read_text()


def test_a_run_that_has_not_evaluated_since_it_was_resumed_reads_its_log(tmp_path):
    run(tmp_path, steps=2, eval_steps=2, save_steps=2).train(progress=False)
    trainer = run(tmp_path, steps=3, save_steps=1)
    trainer.train(resume=True, progress=False)
    assert trainer.evaluated == (0, {})
    assert "## Held-out evaluation, step 2" in card(tmp_path / "policy").text


def test_stages_and_no_card(tmp_path):
    trainer = run(tmp_path, model_card=False)
    trainer.train(progress=False)
    assert not (tmp_path / "policy" / "README.md").exists()
    stages = [Stage(name="first", steps=1, objectives=("robust",)), Stage(name="second", steps=1)]
    trainer = game(stages=stages, args=TrainingArguments(output_dir=str(tmp_path / "two")))
    trainer.train(progress=False)
    assert "* first: 1 steps at most\n* second: 1 steps at most\n* steps of the run: 2" in card(tmp_path / "two" / "policy").text


def test_a_card_that_a_person_wrote_outlives_the_next_run(tmp_path):
    run(tmp_path, steps=1, save_steps=1).train(progress=False)
    (tmp_path / "policy" / "README.md").write_text("What it is for.")
    run(tmp_path, steps=2, save_steps=1).train(resume=True, progress=False)
    assert (tmp_path / "policy" / "README.md").read_text() == "What it is for."
    assert "* steps of the run: 2" in card(tmp_path / "other").text


@pytest.mark.parametrize(
    ("reference", "names"),
    [
        ("/home/me/data/math/train.jsonl.gz", ("train.jsonl.gz", "train.jsonl.gz")),
        ("${ADVALIGN_DATA}/math/{split}.jsonl", ("train.jsonl", "math/train.jsonl")),
        ("openai/gsm8k", ("openai/gsm8k", "openai/gsm8k")),
        ({"path": "~/x.jsonl", "hub": "openai/gsm8k"}, ("openai/gsm8k", "openai/gsm8k")),
        ({"task": {"kind": "constraints", "words": 6}}, ("task:constraints", "task:constraints")),
        ([{"prompt": "a", "response": "b"}], None),
    ],
    ids=str,
)
def test_names_of_data(reference, names):
    assert data.public_names(reference) == names
