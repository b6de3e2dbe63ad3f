"""results.jsonl: one line per attack and example, in a fixed order, appended chunk by chunk, so that a killed run can resume.

Wall-clock times, forwards and answers out of the cache differ between two runs of one suite, so they are in timings.jsonl, line by line
beside the results.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from advalign.errors import ConfigError
from advalign.functional.escaping import json_line
from advalign.metrics.run_log import complete_lines
from advalign.models import Network
from advalign.targets import BlackBoxModel
from advalign.types import AttackResult, Example

if TYPE_CHECKING:
    from advalign.evaluation.suites.suite import Suite


class ResultLog:
    """The results so far, in memory and in a folder. A chunk is written whole; one that a kill cut short is dropped and done again."""

    def __init__(
        self,
        folder: str | Path | None,
        fingerprint: str,
        chunks: Sequence[Sequence[tuple[str, str]]],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`fingerprint`: what the results depend on. `chunks`: (attack, example) names of each chunk of work, in order. `settings`: what
        two folders must have in common to be compared (`suite_settings`)."""
        self.results: list[AttackResult] = []
        self.num_chunks = 0
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._claim(self._folder, fingerprint, settings or {})
            self._resume(self._folder, chunks)

    def append(self, results: Sequence[AttackResult]) -> None:
        """Adds the results of one chunk."""
        self.results.extend(results)
        if self._folder is None:
            return
        # Times first: a kill between the two leaves a time without a result, never the reverse.
        with (self._folder / "timings.jsonl").open("a", encoding="utf-8") as file:
            lines = [{"attack": r.attack, "example": r.example, "seconds": r.seconds, "spent": dict(r.spent)} for r in results]
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        with (self._folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(_line(r) for r in results))

    def _claim(self, folder: Path, fingerprint: str, settings: Mapping[str, Any]) -> None:
        path = folder / "suite.json"
        if path.exists() and json.loads(path.read_text())["fingerprint"] != fingerprint:
            raise ConfigError(f"{folder}: holds the results of another suite, model or data; choose another output_dir.")
        path.write_text(json.dumps({"fingerprint": fingerprint, **settings}) + "\n")

    def _resume(self, folder: Path, chunks: Sequence[Sequence[tuple[str, str]]]) -> None:
        lines = complete_lines(folder / "results.jsonl")
        ends = list(accumulate(len(c) for c in chunks))
        self.num_chunks = sum(end <= len(lines) for end in ends)
        number = ends[self.num_chunks - 1] if self.num_chunks else 0
        times = complete_lines(folder / "timings.jsonl")
        names = [name for chunk in chunks for name in chunk][:number]
        for line, time, name in zip(lines, times, names, strict=False):
            cost = json.loads(time)
            result = AttackResult.from_json(json.loads(line) | {"seconds": cost["seconds"], "spent": cost.get("spent", {})})
            assert (result.attack, result.example) == name
            self.results.append(result)
        for file, content in (("results", lines), ("timings", times)):
            (folder / f"{file}.jsonl").write_text("".join(line + "\n" for line in content[:number]), encoding="utf-8")


def suite_settings(suite: Suite, examples: Sequence[Example]) -> dict[str, Any]:
    """What the results of two models must have in common to be compared: settings, fields of each attack, and a hash of each example."""
    attacks: dict[str, Any] = dict(suite.attacks)
    fields_of = {name: {f.name: _stable(getattr(attack, f.name)) for f in fields(attack)} for name, attack in attacks.items()}
    settings = {name: _stable(getattr(suite, name)) for name in ("budget", "judge", "sampling", "seed")}
    digests = {e.id: hashlib.sha256(_content(e).encode()).hexdigest()[:16] for e in examples}
    return {"settings": settings, "attacks": fields_of, "examples": digests}


def _stable(value: Any) -> str:
    """The repr, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _content(e: Example) -> str:
    return repr((e.id, e.prompt, e.pair, e.answer, e.label, e.meta.get("response")))


def suite_fingerprint(suite: Suite, model: Network | BlackBoxModel, examples: Sequence[Example]) -> str:
    """A hash of what the results depend on: the suite without its data reference, benign prompts and `seen`; the examples; every weight."""
    digest = hashlib.sha256(repr(replace(suite, data=(), benign=None, seen=())).encode())
    for e in examples:
        digest.update(_content(e).encode())
    digest.update(model.head.encode())
    digest.update(model_fingerprint(model).encode())
    return digest.hexdigest()


def model_fingerprint(model: Network | BlackBoxModel) -> str:
    """A hash of every weight, of the vocabulary of its tokenizer, and of its chat template and the template's arguments."""
    digest = hashlib.sha256(model.head.encode())
    if isinstance(model, Network):
        digest.update(repr(sorted(model.encoder.tokenizer.get_vocab().items())).encode())
        if model.encoder.template is not None:
            digest.update(repr((model.encoder.tokenizer.chat_template, sorted(model.encoder.settings.items()))).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _line(result: AttackResult) -> str:
    values = asdict(result)
    del values["seconds"], values["spent"]
    return json_line(values) + "\n"


__all__ = ["ResultLog", "model_fingerprint", "suite_fingerprint", "suite_settings"]
