"""results.jsonl: one line per attack and example, in a fixed order, appended chunk by chunk, so that a killed run can resume.

Wall-clock times, forwards and answers out of the cache differ between two runs of one suite, so they are in timings.jsonl, line by line
beside the results, with a hash of each. A line that is missing is judged again; one that is not as it was written is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from advalign.durable import writing
from advalign.errors import ConfigError
from advalign.evaluation.reports.results_file import mapping, parsed, read_lines
from advalign.functional.escaping import json_line
from advalign.types import AttackResult

PATH = "output_dir"
"""What the folder of results is called in errors."""
JUDGED = ("results.jsonl", "timings.jsonl", "certified.jsonl")
"""What a suite goes on from."""
FILES = ("suite.json", *JUDGED, "summary.json", "report.html", "report.md")
"""What a suite writes."""
AGAIN = "begin again with --fresh (Python: resume=False)"

Key = tuple[str, str]
"""(attack, example)."""


class ResultLog:
    """The results so far, in memory and in a folder. A chunk is written whole; one that a kill cut short is dropped and done again."""

    def __init__(
        self,
        folder: str | Path | None,
        fingerprint: str,
        chunks: Sequence[Sequence[Key]],
        settings: Mapping[str, Any] | None = None,
        *,
        resume: bool = True,
        overwrite: bool = False,
    ) -> None:
        """`fingerprint`: what the results depend on. `chunks`: (attack, example) names of each chunk of work, in order. `settings`: what
        two folders must have in common to be compared (`suite_settings`). Without `resume` the results in the folder are dropped, if they
        are of this suite; with `overwrite` whatever they are of."""
        self.results: list[AttackResult] = []
        self.num_chunks = 0
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            with writing(self._folder, PATH):
                self._folder.mkdir(parents=True, exist_ok=True)
                if not overwrite:
                    check_folder(self._folder, fingerprint)
                for name in FILES if overwrite else () if resume else JUDGED:
                    (self._folder / name).unlink(missing_ok=True)
                _replace(self._folder / "suite.json", json.dumps({"fingerprint": fingerprint, **(settings or {})}) + "\n")
                self._resume(self._folder, chunks)

    def append(self, results: Sequence[AttackResult]) -> None:
        """Adds the results of one chunk."""
        self.results.extend(results)
        if self._folder is None:
            return
        with writing(self._folder, PATH):
            # Times first: a kill between the two leaves a time without a result, never the reverse.
            for name, lines in (("timings", [_time(r) for r in results]), ("results", [_line(r) for r in results])):
                with (self._folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                    file.write("".join(line + "\n" for line in lines))

    def _resume(self, folder: Path, chunks: Sequence[Sequence[Key]]) -> None:
        """Takes over the chunks, from the first on, of which every result is there and as it was written."""
        lines, times = read_lines(folder / "results.jsonl"), read_lines(folder / "timings.jsonl")
        asked = {key for chunk in chunks for key in chunk}
        rows: dict[Key, tuple[str, str, AttackResult]] = {}
        time_of = {(time["attack"], time["example"]): (time, line) for time, line in _times(times, folder / "timings.jsonl")}
        for number, (result, line) in enumerate(zip(parsed(lines, folder / "results.jsonl"), lines, strict=True), 1):
            key = (result.attack, result.example)
            if key not in asked:
                raise ConfigError(
                    f"{folder / 'results.jsonl'}, line {number}: attack '{key[0]}' on example '{key[1]}', which the suite does not ask "
                    f"for; {AGAIN}."
                )
            if key not in time_of:
                continue
            time, time_line = time_of[key]
            if time["result"] != _hash(line):
                raise ConfigError(f"{folder / 'results.jsonl'}, line {number}: changed since it was written; restore it, or {AGAIN}.")
            rows[key] = (line, time_line, replace(result, seconds=time["seconds"], spent=time["spent"]))
        done = []
        for chunk in chunks:
            if not all(key in rows for key in chunk):
                break
            done += [rows[key] for key in chunk]
            self.num_chunks += 1
        self.results = [result for _, _, result in done]
        for name, kept in (("results", [line for line, _, _ in done]), ("timings", [time for _, time, _ in done])):
            path, text = folder / f"{name}.jsonl", "".join(line + "\n" for line in kept)
            if not path.exists() or path.read_bytes() != text.encode():
                _replace(path, text)


def check_folder(folder: Path, fingerprint: str) -> None:
    """Raises ConfigError for a folder that holds results of anything else, or what would be written over."""
    path = folder / "suite.json"
    instead = "choose another output_dir, or clear it with --overwrite (Python: overwrite=True)"
    if not path.exists():
        others = [name for name in FILES if (folder / name).exists()]
        if others:
            raise ConfigError(f"{folder}: holds {', '.join(others)} and no suite.json that says of what; {instead}.")
        return
    try:
        stored = json.loads(path.read_bytes())["fingerprint"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: it is not as a suite writes it; {instead}.") from None
    if stored != fingerprint:
        raise ConfigError(f"{folder}: holds the results of another suite, model or data, or of another version; {instead}.")


def _times(lines: Sequence[str], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(lines, 1):
        time = mapping(line, f"{path}, line {number}")
        if time.keys() != {"attack", "example", "seconds", "spent", "result"}:
            raise ConfigError(f"{path}, line {number}: it is not as it was written; {AGAIN}.")
        yield time, line


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _time(result: AttackResult) -> str:
    time = {"attack": result.attack, "example": result.example, "seconds": result.seconds, "spent": dict(result.spent)}
    return json.dumps(time | {"result": _hash(_line(result))})


def _line(result: AttackResult) -> str:
    values = asdict(result)
    del values["seconds"], values["spent"]
    return json_line(values)


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()[:16]


__all__ = ["FILES", "PATH", "ResultLog", "check_folder"]
