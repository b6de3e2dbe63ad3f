"""Two models under the same attacks on the same examples: paired differences, with intervals and tests for paired data."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from advalign.checked import arguments, check
from advalign.errors import ConfigError
from advalign.evaluation.reports.report import Report
from advalign.evaluation.reports.results_file import mapping, parsed, read_lines
from advalign.functional.intervals import mcnemar, paired_bootstrap
from advalign.text_files import read_text
from advalign.types import STATUSES, AttackResult

NOTE = (
    "Accuracy on the n examples that could be judged for both; left out: those of either that could not. Difference: second minus first, "
    "its interval from resampling examples in pairs; p: McNemar's exact test that both err equally often. "
    "Tests are not corrected for their number: decide by the worst case."
)
RIGHT = {name: status.right for name, status in STATUSES.items() if status.right is not None}
SETTINGS = {
    "settings": Mapping[str, Any],
    "attacks": Mapping[str, Mapping[str, Any]],
    "examples": Mapping[str, str],
    "results": Sequence[str],
}
"""{name in suite.json: what it is}."""
BROKEN = {status for status, right in RIGHT.items() if not right}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Paired differences between two models."""

    names: tuple[str, str]
    """What the two are called."""
    rows: Sequence[Mapping[str, Any]]
    """One per attack, and one each for clean answers and the worst case."""

    def report(self) -> Report:
        """The comparison as a page."""
        first, second = self.names
        report = Report(f"{second} against {first}", "the same attacks on the same examples")
        report.table([_line(row, self.names) for row in self.rows], note=NOTE)
        bars = [{"label": r["under"], "value": r["difference"], "low": r["low"], "high": r["high"]} for r in self.rows]
        title = f"How much more often {second} is right"
        return report.bars(bars, title=title, x_label="difference in accuracy", note="Paired bootstrap over examples, 95 %.")

    def markdown(self) -> str:
        return self.report().markdown()

    def row(self, under: str) -> Mapping[str, Any]:
        """The row of an attack, of `clean` or of `worst case`."""
        return next(r for r in self.rows if r["under"] == under)


@arguments("compare: ")
def results(first: Sequence[AttackResult], second: Sequence[AttackResult], names: tuple[str, str] = ("first", "second")) -> Comparison:
    """Compare the results of two runs of one suite."""
    a, b = _table(first), _table(second)
    shared = [name for name in a if name in b]
    if not shared:
        raise ConfigError(
            f"compare: no attack in common; {names[0]} has {', '.join(a) or 'none'}, {names[1]} has {', '.join(b) or 'none'}."
        )
    asked = len({r.example for r in (*first, *second)})
    common = {r.example for r in first} & {r.example for r in second}
    if len(common) < min(2, asked):
        raise ConfigError(f"compare: {len(common)} of {asked} examples in common; run the same suite on the same data for both.")
    pairs = [("clean", _clean(first), _clean(second)), *((n, a[n], b[n]) for n in shared)]
    pairs.append(("worst case", _worst(first, shared), _worst(second, shared)))
    return Comparison(names=names, rows=[_row(name, left, right, asked) for name, left, right in pairs])


@arguments("compare: ")
def folders(first: str | Path, second: str | Path) -> Comparison:
    """Compare two folders that `advalign eval --output` wrote."""
    names = (Path(first).name, Path(second).name)
    if names[0] == names[1]:
        names = (str(first), str(second))
    attack_results = _read(first), _read(second)
    _check_settings(_settings(first), _settings(second), names)
    return results(*attack_results, names)


def _settings(folder: str | Path) -> dict[str, Any]:
    """What `suites.log.suite_settings` wrote down; empty if it did not."""
    path = Path(folder) / "suite.json"
    settings = mapping(read_text(path), str(path)) if path.is_file() else {}
    if settings.keys() & SETTINGS.keys():
        for name, annotation in SETTINGS.items():
            check(annotation, settings.get(name), f"{path}: {name}")
    return settings


def _check_settings(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Raises ConfigError for what differs: settings of the suites, fields of attacks, or examples of the same id."""
    if "settings" not in first or "settings" not in second:
        return
    pairs = [(name, value, second["settings"].get(name)) for name, value in first["settings"].items()]
    for attack in first["attacks"].keys() & second["attacks"].keys():
        theirs = second["attacks"][attack]
        pairs += [(f"attacks.{attack}.{name}", value, theirs.get(name)) for name, value in first["attacks"][attack].items()]
    for name, ours, other in sorted(pairs, key=lambda pair: pair[0]):
        if ours != other:
            raise ConfigError(f"compare: suite.{name} is {ours} for {names[0]} and {other} for {names[1]}; run the same suite on both.")
    shared = first["examples"].keys() & second["examples"].keys()
    changed = sorted(name for name in shared if first["examples"][name] != second["examples"][name])
    if changed:
        raise ConfigError(
            f"compare: {len(changed)} of {len(shared)} examples differ between {names[0]} and {names[1]} though their ids are the same "
            f"(first: '{changed[0]}'); run the same data on both."
        )


def _read(folder: str | Path) -> list[AttackResult]:
    path = Path(folder) / "results.jsonl"
    if not path.is_file():
        raise ConfigError(
            f"compare: {folder} holds no results.jsonl; give a folder that advalign eval --output wrote, or --suite for models."
        )
    attack_results = parsed(read_lines(path), path)
    settings = _settings(folder)
    if "results" in settings:
        asked = {(attack, example) for attack in settings["results"] for example in settings["examples"]}
        number = len(asked & {(r.attack, r.example) for r in attack_results})
        if number < len(asked):
            raise ConfigError(f"compare: {folder} holds {number} of {len(asked)} results; run its evaluation again.")
    elif path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        raise ConfigError(f"compare: the last line of {path} is cut off; run its evaluation again.")
    return attack_results


def _table(attack_results: Sequence[AttackResult]) -> dict[str, dict[str, bool]]:
    """{attack: {example: right under attack}}, without undetermined results and errors."""
    table: dict[str, dict[str, bool]] = {}
    for r in attack_results:
        row = table.setdefault(r.attack, {})
        if r.status in RIGHT:
            row[r.example] = RIGHT[r.status]
    return table


def _clean(attack_results: Sequence[AttackResult]) -> dict[str, bool]:
    return {r.example: r.status != "skipped" for r in attack_results if r.status in RIGHT}


def _worst(attack_results: Sequence[AttackResult], attacks: Collection[str]) -> dict[str, bool]:
    """Right, and broken by none of `attacks`, as a suite counts its worst case (`rates.worst_case`).

    Known of an example that was wrong before or that an attack broke, and of one on which every attack was judged.
    """
    statuses: dict[str, dict[str, str]] = {}
    for r in attack_results:
        if r.attack in attacks:
            statuses.setdefault(r.example, {})[r.attack] = r.status
    broken = {name for name, seen in statuses.items() if BROKEN & set(seen.values())}
    whole = {name for name, seen in statuses.items() if len(seen) == len(attacks) and RIGHT.keys() >= set(seen.values())}
    return {name: name not in broken for name in statuses if name in broken | whole}


def _row(under: str, a: Mapping[str, bool], b: Mapping[str, bool], asked: int) -> dict[str, Any]:
    shared = [name for name in a if name in b]
    row: dict[str, Any] = {"under": under, "n": len(shared), "left out": asked - len(shared)}
    if not shared:
        return row | dict.fromkeys(("first", "second", "difference", "low", "high", "p"), math.nan)
    first, second = (torch.tensor([side[name] for name in shared]) for side in (a, b))
    difference, low, high = paired_bootstrap(second.double(), first.double())
    row |= {"first": first.double().mean().item(), "second": second.double().mean().item()}
    row |= {"difference": difference, "low": low, "high": high, "p": mcnemar(first, second)}
    return row | {"only first": int((first & ~second).sum()), "only second": int((second & ~first).sum())}


def _line(row: Mapping[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    line = {"under": row["under"], names[0]: row["first"], names[1]: row["second"], "difference": row["difference"]}
    line |= {"95 % interval": f"{row['low']:+.3f}\u00a0–\u00a0{row['high']:+.3f}"} | {name: row[name] for name in ("p", "n", "left out")}
    return line | {f"only {name}": row.get(f"only {side}", 0) for name, side in zip(names, ("first", "second"), strict=True)}


__all__ = ["Comparison", "folders", "results"]
