"""results.jsonl: one line per attack and example, in a fixed order, appended chunk by chunk; so the file says where to go on.

Wall-clock times, forwards and answers out of the cache would make two runs of one suite differ, so they stand in timings.jsonl, line
by line beside the results.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from advalign.errors import ConfigError
from advalign.types import AttackResult, Example


class ResultLog:
    """The results so far. `chunks`: the (attack, example) names of each chunk of work, in order; a chunk is written whole,
    and one that a kill cut short is dropped and done again."""

    def __init__(self, folder: str | Path | None, mark: str, chunks: Sequence[Sequence[tuple[str, str]]]) -> None:
        self.results: list[AttackResult] = []
        self.num_chunks = 0
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._claim(mark)
            self._resume(chunks)

    def append(self, results: Sequence[AttackResult]) -> None:
        self.results.extend(results)
        if self._folder is None:
            return
        # Times first: a kill between the two leaves a time without a result, never the reverse.
        with (self._folder / "timings.jsonl").open("a", encoding="utf-8") as file:
            lines = [{"attack": r.attack, "example": r.example, "seconds": r.seconds, "spent": dict(r.spent)} for r in results]
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        with (self._folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(_line(r) for r in results))

    def _claim(self, mark: str) -> None:
        assert self._folder is not None
        path = self._folder / "suite.json"
        if path.exists() and json.loads(path.read_text())["fingerprint"] != mark:
            raise ConfigError(f"{self._folder}: holds the results of another suite, model or data; choose another output_dir.")
        path.write_text(json.dumps({"fingerprint": mark}) + "\n")

    def _resume(self, chunks: Sequence[Sequence[tuple[str, str]]]) -> None:
        assert self._folder is not None
        lines = _whole_lines(self._folder / "results.jsonl")
        ends = list(accumulate(len(c) for c in chunks))
        self.num_chunks = sum(end <= len(lines) for end in ends)
        keep = ends[self.num_chunks - 1] if self.num_chunks else 0
        times = _whole_lines(self._folder / "timings.jsonl")
        expected = [name for chunk in chunks for name in chunk][:keep]
        for line, time, who in zip(lines, times, expected, strict=False):
            cost = json.loads(time)
            found = AttackResult(**json.loads(line), seconds=cost["seconds"], spent=cost.get("spent", {}))
            assert (found.attack, found.example) == who
            self.results.append(found)
        for name, kept in (("results", lines), ("timings", times)):
            (self._folder / f"{name}.jsonl").write_text("".join(kept[:keep]), encoding="utf-8")


def fingerprint(suite: Any, network: Any, examples: Sequence[Example]) -> str:
    """What the results depend on: the suite without its data reference and what is measured beside, the examples, every weight."""
    digest = hashlib.sha256(repr(replace(suite, data=None, benign=None, seen=())).encode())
    for e in examples:
        digest.update(repr((e.id, e.prompt, e.pair, e.answer, e.label, e.meta.get("response"))).encode())
    digest.update(network.head.encode())
    digest.update(model_fingerprint(network).encode())
    return digest.hexdigest()


def model_fingerprint(network: Any) -> str:
    """A hash of every weight, and of the words its tokenizer knows."""
    digest = hashlib.sha256(network.head.encode())
    tokenizer = getattr(getattr(network, "encoder", None), "tokenizer", None)
    if tokenizer is not None:
        digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _line(result: AttackResult) -> str:
    values = asdict(result)
    del values["seconds"], values["spent"]
    return json.dumps(values, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[str]:
    """Lines that end; a last one that a kill cut short is not one."""
    if not path.exists():
        return []
    # Not splitlines: texts may hold other separators, which JSON leaves as they are.
    return [line + "\n" for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


__all__ = ["ResultLog", "fingerprint", "model_fingerprint"]
