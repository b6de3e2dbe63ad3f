"""Logs of a run: log.jsonl, TensorBoard where it is installed, a progress bar in a terminal."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advalign.errors import StorageError
from advalign.functional.escaping import terminal
from advalign.metrics.run_log import complete_lines, step_of_log


class RunLog:
    """One JSON object per step in `log.jsonl`, the same scalars for TensorBoard, and times in `speed.jsonl`.

    Opened at `step`, it drops what an interrupted run had written past it, so a resumed log is the log of one run.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.speed = folder / "log.jsonl", folder / "speed.jsonl"
        self.problem = ""
        """Why lines could not be written."""
        self._waiting: dict[Path, str] = {}
        for path in (self.path, self.speed):
            numbered = enumerate(complete_lines(path), 1)
            lines = [line for number, line in numbered if step_of_log(line, f"{path}, line {number}")["step"] <= step]
            path.write_text("".join(f"{line}\n" for line in lines))
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, numbers: Mapping[str, Any], speed: Mapping[str, float] | None = None) -> None:
        """Appends one step. On a full disk the run goes on, and its lines are written as soon as there is room."""
        if speed is not None:
            self._append(self.speed, json.dumps({"step": step, **speed}) + "\n")
            numbers = {**numbers, **{f"speed/{name}": value for name, value in speed.items()}}
        self._write(step, {k: v for k, v in numbers.items() if not k.startswith("speed/")})
        try:
            for name, value in numbers.items() if self._writer is not None else ():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step)
        except OSError as error:  # of the thread that writes, which has ended
            self._writer = None
            print(f"note: TensorBoard's files cannot be written ({error.strerror}); log.jsonl has the same numbers", file=sys.stderr)

    def _write(self, step: int, numbers: Mapping[str, Any]) -> None:
        clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in numbers.items()}
        self._append(self.path, json.dumps({"step": step, **clean}) + "\n")

    def _append(self, path: Path, text: str) -> None:
        text = self._waiting.pop(path, "") + text
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a") as file:
                file.write(text)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, size)  # half a line would be the beginning of the next one
            if not self.problem:
                print(f"note: {path} cannot be written ({error.strerror}); the run goes on, and its lines wait for room", file=sys.stderr)
            self.problem, self._waiting[path] = error.strerror or type(error).__name__, text

    def close(self) -> None:
        """Writes what TensorBoard holds back. Raises StorageError for lines that still wait."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            print(f"note: TensorBoard's files lack their end ({error.strerror}); log.jsonl has the same numbers", file=sys.stderr)
        for path in list(self._waiting):
            self._append(path, "")
        for path, text in self._waiting.items():
            lines = text.count("\n")
            raise StorageError(f"args.output_dir: {path} lacks its last {lines} lines ({self.problem}); all else of the run is saved.")


class ProgressBar:
    """A progress bar with rewards, accuracies, likelihoods and gains."""

    def __init__(self, total: int, done: int, title: str, enabled: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        bar = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        texts = [TextColumn(field, markup=False) for field in ("{task.description}", "{task.fields[numbers]}")]
        self._progress = Progress(texts[0], *bar, texts[1], console=Console(stderr=True), disable=not enabled)
        self._task = self._progress.add_task(terminal(title), total=total, completed=done, numbers="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def step(self, done: int, title: str, logs: Mapping[str, Any]) -> None:
        """Shows a step."""
        shown = [n for n in logs if n.endswith(("/reward", "/accuracy", "/nll", "/gain"))][:4]
        numbers = "  ".join(f"{name} {logs[name]:.3f}" for name in shown)
        self._progress.update(self._task, completed=done, description=terminal(title), numbers=terminal(numbers))
