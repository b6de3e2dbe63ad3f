"""Mutants of configurations: the same file with a few places changed, as a hand in a hurry would, and worse."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
"""Every configuration and suite of the repository."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, -0.5, 1e300, 10**30, -(10**12), math.nan, math.inf, -math.inf, "", " ", "x", "nan", "true", "0",
        "1e-3", "auto",
    "task:nothing", "scratch:tiny", "../../x", "/abs", "a.b.c", "${oc.env:NOWHERE_SET}", "${args.seed}", "${", "{", "[", "%s", "\x1b[31m",
    "\u202e", "é" * 300,
    "none", "all", "clean", "policy", "reference", [], {}, [None], [[]], [1, "a"], {"a": 1}, {"kind": "pgd"}, {"kind": None}, {"": None},
    {1: 2}, {"kind": "os.system"},
)  # fmt: skip
"""What a value is replaced by."""
NAMES = (
    "kind",
    "coef",
    "view",
    "learner",
    "source",
    "x",
    "",
    "Kind",
    "steps ",
    "a.b",
    "0",
    "None",
    "metric",
    "end",
    "set",
    "data",
    "model",
)
"""What a key is renamed to."""


@dataclass(frozen=True)
class Mutant:
    """A changed configuration."""

    name: str
    """File, seed and what was done, for people."""
    tree: Any
    """The YAML tree."""
    suite: bool
    """Whether it is a suite."""


def is_suite(path: Path) -> bool:
    return path.parent.name == "suites"


def read(path: Path) -> Any:
    """A file as plain mappings, variables unresolved."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def mutants(number: int, seed: int = 0, trees: Sequence[tuple[Path, Any]] | None = None, gentle: bool = False) -> Iterator[Mutant]:
    """`number` mutants of `trees`, by default of every file, in turn; `gentle` ones keep the types of what they change."""
    trees = [(path, read(path)) for path in FILES] if trees is None else trees
    for index in range(number):
        path, tree = trees[index % len(trees)]
        rng = random.Random(f"{seed}/{index}")
        changed, said = copy.deepcopy(tree), []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            changed, what = mutate(changed, rng, gentle)
            said.append(what)
        yield Mutant(f"{path.relative_to(ROOT / 'configs')} #{index}: {'; '.join(said)}", changed, is_suite(path))


def mangled_texts(number: int, seed: int = 0) -> Iterator[Mutant]:
    """`number` configurations whose text was changed: characters and lines left out, doubled, swapped, put in."""
    texts = [(path, path.read_text(encoding="utf-8")) for path in FILES]
    for index in range(number):
        path, content = texts[index % len(texts)]
        rng, said = random.Random(f"text {seed}/{index}"), []
        for _ in range(rng.choice((1, 1, 2, 4))):
            content, what = _mangle_text(content, rng)
            said.append(what)
        yield Mutant(f"{path.relative_to(ROOT / 'configs')} text {index}: {'; '.join(said)}", content, is_suite(path))


def _mangle_text(content: str, rng: random.Random) -> tuple[str, str]:
    lines = content.split("\n")
    row = rng.choice([number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")] or [0])
    line = lines[row]
    place = rng.randrange(len(line) + 1)
    action = rng.choice(
        ("line left out", "line twice", "lines swapped", "indented", "outdented", "tab", "character left out", "character put in")
    )
    if action == "line left out":
        del lines[row]
    elif action == "line twice":
        lines.insert(row, line)
    elif action == "lines swapped":
        other = rng.randrange(len(lines))
        lines[row], lines[other] = lines[other], line
    elif action == "indented":
        lines[row] = f" {line}"
    elif action == "outdented":
        lines[row] = line[1:]
    elif action == "tab":
        lines[row] = line[:place] + "\t" + line[place:]
    elif action == "character left out":
        lines[row] = line[:place] + line[place + 1 :]
    else:
        lines[row] = line[:place] + rng.choice(":{}[]&*!|>'\"%@`,#?-~$\x00\u202e\ud7ffé") + line[place:]
    return "\n".join(lines), f"line {row + 1}: {action}"


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything below the root."""
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def mutate(tree: Any, rng: random.Random, gentle: bool = False) -> tuple[Any, str]:
    """One change; (tree, what was done)."""
    paths = list(places(tree))
    if not paths:
        return rng.choice(VALUES), "another root"
    path = rng.choice(paths)
    if gentle:
        return rng.choice((_nudged, _nudged, _nudged, _nudged, _dropped, _shortened))(tree, path, paths, rng)
    action = rng.choice((*[_replaced] * 6, _dropped, _renamed, _added, _moved, _swapped, _mangled, _mangled, _copied))
    return action(tree, path, paths, rng)


def _shown(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _replaced(tree: Any, path: Any, paths: Any, rng: random.Random) -> tuple[Any, str]:
    value = rng.choice(VALUES)
    at(tree, path[:-1])[path[-1]] = copy.deepcopy(value)
    return tree, f"{_shown(path)} = {value!r}"[:200]


def _dropped(tree: Any, path: Any, paths: Any, rng: random.Random) -> tuple[Any, str]:
    del at(tree, path[:-1])[path[-1]]
    return tree, f"{_shown(path)} dropped"


def _renamed(tree: Any, path: Any, paths: Any, rng: random.Random) -> tuple[Any, str]:
    parent, name = at(tree, path[:-1]), rng.choice(NAMES)
    if isinstance(parent, list):
        return _replaced(tree, path, paths, rng)
    parent[name] = parent.pop(path[-1])
    return tree, f"{_shown(path)} renamed {name!r}"


def _added(tree: Any, path: Any, paths: Any, rng: random.Random) -> tuple[Any, str]:
    node, value, name = at(tree, path), rng.choice(VALUES), rng.choice(NAMES)
    if isinstance(node, dict):
        node[name] = copy.deepcopy(value)
        return tree, f"{_shown(path)}.{name} = {value!r}"[:200]
    if isinstance(node, list):
        node.append(copy.deepcopy(value))
        return tree, f"{_shown(path)} + {value!r}"[:200]
    return _replaced(tree, path, paths, rng)


def _moved(tree: Any, path: Any, paths: Any, rng: random.Random) -> tuple[Any, str]:
    other = rng.choice(paths)
    if other[: len(path)] == path:
        return _dropped(tree, path, paths, rng)
    value, target = at(tree, path), at(tree, other)
    if not isinstance(target, dict):
        return _replaced(tree, path, paths, rng)
    target[path[-1]] = copy.deepcopy(value)
    del at(tree, path[:-1])[path[-1]]
    return tree, f"{_shown(path)} moved below {_shown(other)}"


def _swapped(tree: Any, path: Any, paths: Any, rng: random.Random) -> tuple[Any, str]:
    other = rng.choice([p for p in paths if len(p) == len(path)])
    first, second = copy.deepcopy(at(tree, path)), copy.deepcopy(at(tree, other))
    at(tree, path[:-1])[path[-1]], at(tree, other[:-1])[other[-1]] = second, first
    return tree, f"{_shown(path)} and {_shown(other)} swapped"


def _copied(tree: Any, path: Any, paths: Any, rng: random.Random) -> tuple[Any, str]:
    other = rng.choice(paths)
    at(tree, path[:-1])[path[-1]] = copy.deepcopy(at(tree, other))
    return tree, f"{_shown(path)} = a copy of {_shown(other)}"


def _mangled(tree: Any, path: Any, paths: Any, rng: random.Random) -> tuple[Any, str]:
    value = at(tree, path)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return _replaced(tree, path, paths, rng)
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        value = rng.choice(
            (
                value[:place] + value[place + 1 :],
                value[:place] + rng.choice("x.:/?=&{}[]$ \n") + value[place:],
                value.upper(),
                value + value,
                [value],
            )
        )
    else:
        value = rng.choice((-value, value * 10**9, value / 3, str(value), [value], value + 0.5, 0 * value))
    at(tree, path[:-1])[path[-1]] = value
    return tree, f"{_shown(path)} = {value!r}"[:200]


COUNTS = (0, 1, 2, -1, 3, 7, 64)
NUMBERS = (*COUNTS, 0.0, 0.5, 1.0, 1e-9, 1e-3, 0.999, 2.0, 10.0, 1e4, 1e12)


def _nudged(tree: Any, path: Any, paths: Any, rng: random.Random) -> tuple[Any, str]:
    """Another value of the same type: a number, the other truth value, or a text that stands elsewhere in the file under this key."""
    leaves = [p for p in paths if not isinstance(at(tree, p), dict | list)]
    path = rng.choice(leaves)
    old = at(tree, path)
    if isinstance(old, bool):
        new: Any = not old
    elif isinstance(old, int | float):
        new = rng.choice(COUNTS if isinstance(old, int) else NUMBERS)
    else:
        alike = [at(tree, p) for p in leaves if p[-1] == path[-1] and isinstance(at(tree, p), str)]
        new = rng.choice([*alike, *[str(p[-1]) for p in paths if len(p) == 2]])
    at(tree, path[:-1])[path[-1]] = new
    return tree, f"{_shown(path)} = {new!r}"


def _shortened(tree: Any, path: Any, paths: Any, rng: random.Random) -> tuple[Any, str]:
    lists = [p for p in paths if isinstance(at(tree, p), list) and at(tree, p)]
    if not lists:
        return _nudged(tree, path, paths, rng)
    path = rng.choice(lists)
    entries = at(tree, path)
    rng.shuffle(entries)
    entries.pop()
    return tree, f"{_shown(path)} shuffled and one shorter"


ACTIONS = (_replaced, _dropped, _renamed, _added, _moved, _swapped, _mangled, _copied, _nudged, _shortened)
"""Everything that is done to a tree."""
