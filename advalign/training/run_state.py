"""What a checkpoint holds of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from advalign.errors import ConfigError
from advalign.training import checkpoint
from advalign.training.annotate import Annotator
from advalign.training.context import RunContext
from advalign.training.frozen_copies import FrozenCopies
from advalign.training.schedule import Timeline


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The parts of a run that change from step to step."""

    description: Mapping[str, str]
    """What a resumed run must share with the one that was interrupted (`run_description.py`)."""
    context: RunContext
    """Learners and sources."""
    copies: FrozenCopies
    """Frozen copies and their versions."""
    timeline: Timeline
    """Stages, gates and numbers that follow metrics."""
    annotator: Annotator
    """What advantages and KL penalties carry from draw to draw."""

    def save(self, folder: Path, step: int, limit: int | None) -> Path:
        """Writes the checkpoint of a step; returns its folder. Of older ones as many stay as `limit` says, with this one."""
        learners, copies = self.context.learners, self.copies.networks
        networks = {f"learner.{n}": r.network for n, r in learners.items()} | {f"frozen.{n}": f for n, f in copies.items()}
        state = {
            "step": step,
            "tokenizers": self._tokenizers(),
            "timeline": self.timeline.state_dict(),
            "learners": {n: checkpoint.without_moments(r.network, r.state_dict()) for n, r in learners.items()},
            "sources": {n: s.state_dict() for n, s in self.context.sources.items()},
            "copies": dict(self.copies.versions),
            "averages": self.copies.averages,
            "annotator": self.annotator.states,
            "random": torch.get_rng_state(),
        }
        optimizers = {f"learner.{n}": r.optimizer for n, r in learners.items()}
        processes = self.context.processes
        number, first = self.timeline.place(step)
        description = {"settings": dict(self.description), "stages": number + (step > first)}
        return checkpoint.save(folder, step, networks, state, description, processes=processes, optimizers=optimizers, limit=limit)

    def load(self, path: Path) -> int:
        """Restores everything from a checkpoint; returns its step."""
        state = checkpoint.read_state(path)
        for name, digest in self._tokenizers().items():
            if state["tokenizers"].get(name) != digest:
                raise ConfigError(
                    f"resume: the tokenizer of learners.{name} is not the one that {path.name} was written with, so its ids mean other "
                    "texts; resume with that one, or give a new args.output_dir."
                )
        self.timeline.load_state_dict(state["timeline"])
        for name, runtime in self.context.learners.items():
            checkpoint.read_network(path, f"learner.{name}", runtime.network)
            runtime.load_state_dict(checkpoint.with_moments(path, f"learner.{name}", runtime.network, state["learners"][name]))
        for name, version in state["copies"].items():
            checkpoint.read_network(path, f"frozen.{name}", self.copies.get(name))
            self.copies.versions[name] = version
        self.copies.averages = state["averages"]
        for name, source in self.context.sources.items():
            source.load_state_dict(state["sources"][name])
        self.annotator.states |= state["annotator"]
        torch.set_rng_state(state["random"])
        return int(state["step"])

    def _tokenizers(self) -> dict[str, str]:
        """{learner: a digest of its vocabulary and its template}"""
        encoders = {name: runtime.network.encoder for name, runtime in self.context.learners.items()}
        texts = {name: repr((sorted(e.tokenizer.get_vocab().items()), e.tokenizer.chat_template)) for name, e in encoders.items()}
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
