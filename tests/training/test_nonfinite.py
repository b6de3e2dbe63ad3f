"""A run in which numbers are not finite: nothing of it reaches weights, checkpoints or what moves by metrics."""

import json
import math
import re

import pytest
import torch
from helpers.runs import game, imitation, policy, same, weights, write

from advalign import Follow, Frozen, TrainingArguments, cli
from advalign.advantages.role_ema import RoleEMA
from advalign.errors import NonFiniteError
from advalign.metrics.run_log import read
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.rewards.length import Length
from advalign.training.schedule import Stage, Timeline

YAML = """
learners:
  policy: {model: "scratch:tiny-gpt2?n_embd=32", tokenizer: {kind: words, data: "task:constraints"}, max_length: 32, learning_rate: 1.0e-3}
sources: {chat: {kind: demos, data: "task:constraints", limit: 12, batch_size: 4}}
objectives: {imitate: {kind: sft, source: chat}}
args: {max_steps: 8, save_steps: 2}
"""


def spoil(monkeypatch, *steps):
    """The losses of these steps (from 1) are nan."""
    number = iter(range(1, 1000))
    real = SFT.losses

    def losses(self, rows, views):
        result = real(self, rows, views)
        if next(number) in steps:
            result.values.data.fill_(math.nan)
        return result

    monkeypatch.setattr(SFT, "losses", losses)


def test_a_run_goes_on_after_an_update_that_was_skipped(monkeypatch, tmp_path):
    spoil(monkeypatch, 2)
    trainer = imitation(args=TrainingArguments(max_steps=4, output_dir=str(tmp_path), save_steps=1))
    trainer.train(progress=False)
    logs = read(tmp_path)
    assert [entry.get("policy/num_nonfinite_updates") for entry in logs] == [None, 1.0, None, None]
    assert [entry.get("imitate/num_nonfinite_losses") for entry in logs] == [None, 1.0, None, None]
    assert [entry["imitate/loss"] is None for entry in logs] == [False, True, False, False]
    reason = r"objectives\.imitate has loss nan \(sources\.chat: row 0 of example 'constraints/.*', row 1 of .*, row 2 of .* and 1 more\)"
    assert re.fullmatch(reason, logs[1]["policy/nonfinite"])
    assert all(torch.isfinite(x).all() for x in weights(trainer.model).values())
    assert trainer.learners["policy"].version == 3


def test_a_run_stops_after_max_skipped_in_a_row_and_keeps_its_checkpoints(monkeypatch, tmp_path):
    spoil(monkeypatch, *range(4, 1000))
    trainer = imitation(args=TrainingArguments(max_steps=50, output_dir=str(tmp_path), save_steps=1, max_skipped=3))
    with pytest.raises(NonFiniteError, match=r"^learners\.policy: 3 updates in a row .* objectives\.imitate has loss nan .* is 3"):
        trainer.train(progress=False)
    newest = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert newest.name == "checkpoint-5"  # steps 4 and 5 were skipped, 6 stopped the run
    monkeypatch.undo()
    resumed = imitation(args=TrainingArguments(max_steps=6, output_dir=str(tmp_path), save_steps=0))
    resumed.train(progress=False, resume=True)
    assert all(torch.isfinite(x).all() for x in weights(resumed.model).values())
    assert resumed.learners["policy"].version == 4  # 1, 2, 3 and 6


def test_the_command_line_ends_with_one_sentence(monkeypatch, tmp_path, capsys):
    spoil(monkeypatch, *range(3, 1000))
    (tmp_path / "run.yaml").write_text(YAML)
    monkeypatch.setattr("sys.argv", ["advalign", "train", str(tmp_path / "run.yaml"), f"args.output_dir={tmp_path / 'out'}"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "learners.policy: 5 updates in a row were skipped" in " ".join(error.split())
    assert "Traceback" not in error
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert not (tmp_path / "out" / "policy").exists()


def test_several_minibatches_and_epochs_are_counted_one_by_one(monkeypatch):
    """Four updates in the step, of which the second has a loss of nan."""
    spoil(monkeypatch, 2)
    trainer = imitation(model=policy(minibatches=2, epochs=2), args=TrainingArguments(max_steps=1))
    logs = trainer.train(progress=False)[0]
    assert logs["policy/num_nonfinite_updates"] == 1.0
    assert trainer.learners["policy"].version == 3


def test_a_metric_that_is_not_finite_moves_nothing():
    timeline = Timeline([Stage(steps=9)], {"adversaries.pgd.radius": Follow(metric="g", target=2.0, start=0.1)})
    timeline.observe(1, {"g": math.nan})
    timeline.observe(2, {"g": math.inf})
    assert timeline.values == {"adversaries.pgd.radius": 0.1}
    assert timeline.means == {}


def test_what_an_advantage_carries_stays_finite(monkeypatch):
    """A baseline that is carried from draw to draw is not moved by a draw whose advantages are nan."""
    real = RoleEMA.__call__

    def spoiled(self, rows, state, all_reduce):
        advantages, returns = real(self, rows, state, all_reduce)
        if spoiled.bad:
            state["role_0"] = math.nan
            advantages = advantages * math.nan
        return advantages, returns

    spoiled.bad = True
    monkeypatch.setattr(RoleEMA, "__call__", spoiled)
    trainer = game(
        objectives={"policy": GRPO(source="write")},
        sources={"write": write(advantage=RoleEMA(), rewards=[Length(max_length=6, buffer=3)])},
        args=TrainingArguments(max_steps=2),
    )
    trainer.start()
    before = weights(trainer.model)
    logs = trainer.training_step()
    assert logs["write/num_nonfinite_rows"] == 12
    assert logs["policy/num_nonfinite_updates"] == 1
    assert same(before, weights(trainer.model))
    assert math.isfinite(trainer.annotator.states["write"]["advantage"]["role_0"])
    spoiled.bad = False
    assert "policy/num_nonfinite_updates" not in trainer.training_step()
    assert not same(before, weights(trainer.model))


def test_an_average_follows_the_last_finite_weights(monkeypatch):
    spoil(monkeypatch, 2)
    trainer = imitation(frozen={"mean": Frozen(ema=0.5)}, args=TrainingArguments(max_steps=3))
    trainer.train(progress=False)
    assert all(p.isfinite().all() for p in trainer.frozen["mean"].parameters())


def test_a_log_with_nan_is_json(monkeypatch, tmp_path):
    spoil(monkeypatch, 1)
    imitation(args=TrainingArguments(max_steps=1, output_dir=str(tmp_path))).train(progress=False)
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert line["imitate/loss"] is None
