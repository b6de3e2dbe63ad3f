"""From the first step of a run to its last, with what is written after each: the log, checkpoints, and the models at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from advalign.training.history import History
from advalign.training.interruption import Interruption
from advalign.training.logs import ProgressBar, RunLog
from advalign.training.metric_names import MetricWatch
from advalign.training.output_folder import OutputFolder

if TYPE_CHECKING:
    from advalign.training.trainer import Trainer


def run(trainer: Trainer, output: OutputFolder | None, progress: bool) -> Sequence[dict[str, Any]]:
    """The remaining steps of a started trainer; returns the log. `output`: None, nothing is written."""
    history = History(output.path if output is not None and trainer.processes.is_main else None)
    log, first = None, trainer.step
    watch = MetricWatch.of(trainer.run_spec, trainer.evaluations, trainer.args)
    bar = ProgressBar(trainer.total_steps, first, "", enabled=progress and trainer.processes.is_main)
    with bar, Interruption(trainer.processes, enabled=output is not None) as interruption:
        if output is not None and not trainer.args.save_steps:
            output.reserve(trainer.learners)
        while not trainer.timeline.finished(trainer.step):
            stage = trainer.stage
            logs = trainer.logged_step(stage)
            watch.observe(logs)
            history.append({"step": trainer.step, **logs})
            if output is not None and trainer.step == first + 1:
                log = _open_log(trainer, output, first)
            if log is not None:
                log.write(trainer.step, logs, trainer.meter.steps[-1])
            bar.step(trainer.step, stage.name, logs)
            for callback in trainer.callbacks:
                callback.on_step(trainer, logs)
            if output is not None:
                _save_if_due(trainer, output, interruption)
        watch.end()
        if output is not None:
            log = _open_log(trainer, output, first) if trainer.step == first else log
            _end(trainer, output, log, interruption)
    return history


def _open_log(trainer: Trainer, output: OutputFolder, step: int) -> RunLog | None:
    """After the first step, so that a run that does not get so far takes nothing of the one that it overwrites."""
    if not output.goes_on:
        output.begin()
    return RunLog(output.path, step) if trainer.processes.is_main else None


def _save_if_due(trainer: Trainer, output: OutputFolder, interruption: Interruption) -> None:
    """A checkpoint after a step, where one is due or the run ends by a signal."""
    ends = interruption.is_due() and not trainer.timeline.finished(trainer.step)
    if ends or (trainer.args.save_steps and trainer.step % trainer.args.save_steps == 0):
        output.release()
        trainer.save_checkpoint(output.path)
    if ends:
        remaining = trainer.total_steps - trainer.step
        raise interruption.end(f"{output.path}/checkpoint-{trainer.step} is complete, continue with --resume ({remaining} steps to go).")


def _end(trainer: Trainer, output: OutputFolder, log: RunLog | None, interruption: Interruption) -> None:
    """Saves the models first: lines of the log that a full disk keeps back are worth less."""
    output.save(trainer.save_pretrained)
    if log is not None:
        log.close()
    if interruption.is_due():
        raise interruption.end(f"the run had ended, and its models are in {output.path}.")
