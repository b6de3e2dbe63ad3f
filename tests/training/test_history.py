"""The log that `Trainer.train` returns is read from a file: exact, and of no more memory however long the run."""

import errno
import gc
import io
import math
import tracemalloc

import psutil
import pytest
from helpers.runs import DATA, chat, game, imitation, write

from advalign import Evaluation, Frozen, Sampling, TrainingArguments
from advalign.advantages.group import Group
from advalign.interfaces import Callback
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.grpo import GRPO
from advalign.sources.contrast import Contrast
from advalign.sources.replay import Replay
from advalign.training.history import IN_MEMORY, History


@pytest.mark.parametrize("size", [1, 2 * IN_MEMORY])
def test_a_history_is_a_sequence_of_exact_numbers(size, tmp_path):
    entries = [{"step": i + 1, "stage": "é\n", "x": 0.1 * i, "undefined": math.inf if i % 2 else -math.inf} for i in range(5)]
    entries[2]["text"] = "x" * size  # a log that is longer than what is held in memory
    history = History(tmp_path)
    for entry in entries:
        history.append(entry)
    assert list(history) == entries
    assert history == entries
    assert history != entries[:4]
    assert (history[-1], history[1:3], len(history)) == (entries[-1], entries[1:3], 5)
    history.append({"x": math.nan})  # after it was read
    assert math.isnan(history[5]["x"])
    assert list(tmp_path.iterdir()) == []  # its file has no name
    with pytest.raises(IndexError):
        history[6]


@pytest.mark.parametrize("fails", ["file", "move", "write", "cut"])
def test_what_a_full_disk_does_not_take_stays_in_memory(fails, monkeypatch, tmp_path):
    """There is no file; or it takes nothing, the first lines alone, or half of a line."""

    class Full(io.BytesIO):
        room = {"file": 0, "move": 100, "write": IN_MEMORY + 1000, "cut": IN_MEMORY + 1500}[fails]

        def write(self, content):
            part = content[: max(self.room - self.tell(), 0)]
            if len(part) < len(content) and fails != "cut":
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(part)

    def new(**options):
        if fails == "file":
            raise OSError(errno.ENOSPC, "No space left on device")
        return Full()

    monkeypatch.setattr("tempfile.TemporaryFile", new)
    history = History(tmp_path)
    entries = [{"step": i, "text": "x" * (IN_MEMORY if i == 1 else 700)} for i in range(6)]
    for number, entry in enumerate(entries, 1):
        history.append(entry)
        assert list(history) == entries[:number]


class Growth(Callback):
    """Memory that Python objects hold, how many are ours or torch's, and files that are open, at two steps."""

    def __init__(self, first, last):
        self.steps, self.memory, self.objects, self.files = (first, last), [], [], []

    def on_step(self, trainer, logs):
        if trainer.step == 1:
            tracemalloc.start()
        if trainer.step in self.steps:
            gc.collect()
            self.memory.append(tracemalloc.get_traced_memory()[0])
            self.objects.append(sum(str(type(x).__dict__.get("__module__")).startswith(("advalign", "torch")) for x in gc.get_objects()))
            self.files.append(psutil.Process().num_fds())

    def per_step(self):
        """Bytes that a step adds."""
        return (self.memory[1] - self.memory[0]) / (self.steps[1] - self.steps[0])


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.setattr("advalign.training.history.IN_MEMORY", 1)
    yield Growth
    tracemalloc.stop()


def test_what_a_run_says_about_its_steps_is_not_held_in_memory(growth, tmp_path, monkeypatch):
    """200 steps of 80 numbers: as a list they were 8,000 bytes each. The speed of the last steps alone is known."""
    monkeypatch.setattr("advalign.training.throughput.RECENT", 10)

    def training_step(self):
        self.step += 1
        return {f"objective_{i}/metric": math.sin(self.step + i) for i in range(80)}

    trainer = imitation(args=TrainingArguments(max_steps=300, output_dir=str(tmp_path)))
    monkeypatch.setattr(type(trainer), "training_step", training_step)
    watch = growth(100, 300)
    trainer.callbacks.append(watch)
    history = trainer.train(progress=False)
    assert watch.per_step() < 400
    assert watch.files[0] == watch.files[1]
    assert history[199]["objective_3/metric"] == math.sin(203)
    assert len(trainer.meter.steps) == 10
    assert "medians of the last 10 steps" in trainer.meter.summary()


def test_a_game_stays_flat(growth, tmp_path):
    """Sampling, a discriminator with replay, a replayed source, an average, an evaluation and checkpoints."""
    sources = {
        "write": write(batch_size=2, group_size=2, sampling=Sampling(max_new_tokens=2)),
        "again": Replay(source="write", batch_size=1, steps=2, advantage=Group(scale="none")),
        "contrast": Contrast(real="chat", sampled="write", batch_size=2, replay=0.5, replay_steps=2),
        "chat": chat(batch_size=2),
    }
    watch = growth(20, 40)
    game(
        sources=sources,
        objectives={"policy": GRPO(source="write"), "again": GRPO(source="again"), "discriminator": Discriminate(source="contrast")},
        adversaries={},
        frozen={"mean": Frozen(ema=0.9)},
        evaluations={"held": Evaluation(data=DATA, number=1, sampling=Sampling(max_new_tokens=2))},
        callbacks=[watch],
        args=TrainingArguments(max_steps=40, output_dir=str(tmp_path), save_steps=10, eval_steps=10),
    ).train(progress=False)
    assert watch.objects[1] - watch.objects[0] < 40  # two a step would be a leak
    assert watch.files[0] == watch.files[1]
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in sorted(tmp_path.glob("checkpoint-*"))]
    assert len(sizes) == 2
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
