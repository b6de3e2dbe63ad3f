"""SIGTERM and Ctrl-C during a run that is saved: the step is finished, a checkpoint is written, and the run says how to go on."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from advalign.engine.process_group import ProcessGroup
from advalign.errors import Interrupted

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

SAME = 1.0
"""Seconds within which a launcher of several processes passes on a Ctrl-C that they have had from the terminal already."""


class Interruption:
    """Takes note of signals while it is entered. A second Ctrl-C ends the run at once: its newest checkpoint is then where to go on."""

    def __init__(self, processes: ProcessGroup, *, enabled: bool) -> None:
        """Without `enabled`, where nothing can be saved, signals do what they did before."""
        self.processes, self.enabled = processes, enabled
        self.signal: int = 0
        """The one that came first; 0: none."""
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if self.enabled and threading.current_thread() is threading.main_thread():
            for number in NAMES:
                if signal.getsignal(number) is not signal.SIG_IGN:  # of a run in the background
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def is_due(self) -> bool:
        """Whether the run ends now, since a process of it has had a signal. All processes must ask."""
        if self.enabled and self.processes.world_size > 1:
            self.signal = next((number for number in self.processes.all_gather(self.signal) if number), 0)
        return bool(self.signal)

    def end(self, sentence: str) -> Interrupted:
        """What ends the run, and says where to go on."""
        return Interrupted(f"stopped by {NAMES[signal.Signals(self.signal)]}: {sentence}", self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        several = self.processes.world_size > 1
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
            if self.processes.is_main:
                again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
                print(f"{NAMES[signal.Signals(number)]}: this step is finished and a checkpoint saved{again}", file=sys.stderr, flush=True)
        elif number == signal.SIGINT and not (several and time.monotonic() - self._since < SAME):
            self.__exit__()
            raise KeyboardInterrupt
