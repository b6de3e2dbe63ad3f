"""The folder of a run: who may write to it, from which checkpoint a run goes on, and what of an earlier run goes when.

run.json                                learners and settings, written first
log.jsonl, speed.jsonl, tensorboard/    logs
checkpoint-<step>/                      whole checkpoints (`checkpoint.py`)
<learner>/                              trained models, written at the end
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from advalign import durable
from advalign.durable import reserve
from advalign.engine.learner import LearnerRuntime
from advalign.engine.process_group import ProcessGroup
from advalign.errors import ConfigError, StorageError
from advalign.models import Network, saving
from advalign.models.adapters import has_adapter
from advalign.models.folders import FACTS, holds_model
from advalign.models.model_card import TrainingFacts
from advalign.run_folder import locked
from advalign.training import checkpoint, run_description
from advalign.training.checkpoint import SETTING

RECORD = "run.json"
LOGS = (RECORD, "log.jsonl", "speed.jsonl", "tensorboard")
"""What a run writes from its first step on."""

RESERVED = f"{durable.PARTIAL}reserved"
"""Space that is kept free for the models at the end; like everything of its name it is removed by the next run."""


class OutputFolder:
    """The folder that `args.output_dir` names. All processes see one folder; the main process locks it, looks and removes."""

    def __init__(self, path: Path, learners: Sequence[str], description: Mapping[str, str], processes: ProcessGroup) -> None:
        """`description`: what a resumed run must share with the one in the folder (`run_description.py`)."""
        self.path, self.learners, self.description, self.processes = path, learners, description, processes
        self._lock = ExitStack()
        self._overwrites = False
        self.goes_on = False
        """Whether the run continues one in this folder, so that nothing of it is removed."""

    def open(self, *, resume: bool | str | os.PathLike[str], overwrite: bool) -> Path | None:
        """Locks the folder until `close`; returns the checkpoint to continue from, which is whole.

        `resume`: from the newest checkpoint, or from this one. Raises ConfigError for a folder that another process writes to, that holds a
        run which is neither resumed nor overwritten, and for a damaged checkpoint. Removes nothing of an earlier run.
        """
        if resume and overwrite:
            raise ConfigError(
                "resume and overwrite were both given: one continues the run in the folder, the other gives it up; leave one out."
            )
        self._overwrites = overwrite
        chosen = self.processes.on_main(lambda: self._open(resume))
        self.goes_on = chosen is not None and self._is_own(Path(chosen))
        return None if chosen is None else Path(chosen)

    def _open(self, resume: bool | str | os.PathLike[str]) -> str | None:
        self._lock.enter_context(locked(self.path, SETTING))
        try:
            durable.recover(self.path)
            for name in self.learners:
                check_replaceable(self.path / name)
            chosen = checkpoint.latest(self.path) if resume is True else Path(resume) if resume else None
            elsewhere = chosen is not None and not self._is_own(chosen)
            if not self._overwrites and (not resume or elsewhere) and (content := self._run()):
                raise ConfigError(
                    f"{SETTING}: {self.path} holds a run ({content[0].name}{', ...' * (len(content) > 1)}); continue it with --resume, "
                    "give it up with --overwrite (args.overwrite_output_dir), or give another folder."
                )
            if chosen is not None:
                checkpoint.check(chosen, self.description)
            elif resume:
                self._check_restart()
        except BaseException:
            self._lock.close()
            raise
        return None if chosen is None else str(chosen)

    def _is_own(self, path: Path) -> bool:
        return path.resolve().parent == self.path.resolve()

    def tidy(self, step: int, limit: int | None) -> None:
        """Once a run goes on here from its checkpoint of a step: removes the older ones that a kill has kept from going."""
        if self.goes_on:
            self.processes.on_main(lambda: checkpoint.remove_older(self.path, step, limit))

    def begin(self) -> None:
        """Before the first file of a run that does not go on in its own folder is written: removes the run that it overwrites."""
        self.processes.on_main(self._begin)

    def _begin(self) -> None:
        with durable.writing(self.path, SETTING):
            for old in self._run():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            record = {"learners": list(self.learners), "settings": dict(self.description)}
            (self.path / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    # ------------------------------------------------------------------------------------------- the end of a run

    def reserve(self, learners: Mapping[str, LearnerRuntime]) -> None:
        """Takes the space that the models will need at the end of a run without checkpoints; raises StorageError where there is none."""
        networks = [runtime.network for runtime in learners.values()]
        self.processes.on_main(lambda: reserve(self.path / RESERVED, sum(map(_exported_bytes, networks)), SETTING))

    def release(self) -> None:
        """Gives the space back."""
        if self.processes.is_main:
            (self.path / RESERVED).unlink(missing_ok=True)

    def save(self, write: Callable[[Path], None]) -> None:
        """`write(folder)` for the models at the end. If the disk is full, they go to another one, and StorageError says where they are."""
        self.release()
        try:
            write(self.path)
        except StorageError as error:
            place = self._save_elsewhere(write) or checkpoint.where_to_continue(self.path)
            raise StorageError(f"{str(error).removesuffix('.')}; {place}.") from error

    def _save_elsewhere(self, write: Callable[[Path], None]) -> str:
        for parent in (tempfile.gettempdir(), os.getcwd(), os.path.expanduser("~")):
            folder = None
            try:
                folder = Path(self.processes.on_main(partial(self._new_folder, parent)))
                write(folder)
            except StorageError:
                if folder is not None and self.processes.is_main:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            return f"the models were saved to {folder} instead, move them from there"
        return ""

    def _new_folder(self, parent: str) -> str:
        with durable.writing(Path(parent), SETTING):
            return tempfile.mkdtemp(prefix=f"advalign-{self.path.name}-", dir=parent)

    def close(self) -> None:
        """Lets another run write to the folder."""
        if self.path.is_dir():
            self.release()
        self._lock.close()

    def _run(self) -> list[Path]:
        """What an earlier run has left."""
        logs = [self.path / name for name in LOGS if (self.path / name).exists()]
        return [*reversed(checkpoint.list_checkpoints(self.path)), *self._models(), *logs]

    def _models(self) -> list[Path]:
        """Learners that an earlier run has trained: those of its record, without one every model that this library wrote."""
        names = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
        if (self.path / RECORD).is_file():
            names = [name for name in names if name in self._record()["learners"]]
        return [self.path / name for name in sorted(names) if (self.path / name / FACTS).is_file()]

    def _record(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # cut short by a full disk
            record = {}
        return {"learners": list(self.learners), "settings": {}} | record

    def _check_restart(self) -> None:
        """A run that ended before its first checkpoint is begun again; what is lost is less than one interval."""
        if models := self._models():
            raise ConfigError(
                f"{SETTING}: {self.path} holds a run that has ended ({models[0].name}) and no checkpoint, so there is nothing to resume "
                "from; give it up with --overwrite (args.overwrite_output_dir), or give another folder."
            )
        if (self.path / RECORD).is_file():
            run_description.check_same(self.path / RECORD, self._record()["settings"], self.description)


def check_replaceable(folder: Path) -> None:
    """A learner's folder takes the place of an earlier model's, and of nothing else."""
    is_model = folder.is_dir() and (holds_model(folder) or (folder / FACTS).is_file() or not any(folder.iterdir()))
    if folder.exists() and not is_model:
        raise ConfigError(
            f"{SETTING}: learner '{folder.name}' is saved in {folder}, which holds something else than a model; give another folder, or "
            "move it."
        )


def _exported_bytes(network: Network) -> int:
    """About what a learner's folder will need: its weights, or its adapter alone, and its tokenizer."""
    weights = [p for p in network.parameters() if p.requires_grad or not has_adapter(network.model)]
    return sum(p.numel() * p.element_size() for p in weights) + 200 * len(network.encoder.tokenizer) + 2**18


def export(network: Network | None, folder: Path, training: TrainingFacts | None = None) -> None:
    """Writes the folder of a learner, whole or not at all, with a model card about its `training`. `network`: on the main process, which
    alone may call."""
    assert network is not None
    check_replaceable(folder)
    checkpoint.check_finite({f"learner.{folder.name}": network}, f"{folder} was not written")
    with durable.replacing(folder, SETTING) as partial_folder:
        saving.save(network, partial_folder, merged=False, place=folder, card=training is not None, training=training)
