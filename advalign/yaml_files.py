"""The one door for YAML: a file, or the value of an override, as plain mappings, lists, texts, numbers, booleans and null.

Bounded in bytes, depth and entries (aliases count as what they stand for). Keys are texts and are given once; no tag makes an object;
dates stay texts. Every mistake is one sentence with the file and the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from advalign.errors import ConfigError, excerpt, unknown
from advalign.text_files import read_text

MAX_DEPTH = 64
MAX_ENTRIES = 200_000
NAME_LENGTH = 60  # characters of a key or value that a sentence shows

Keys = tuple[str | int, ...]
PREFIX = "tag:yaml.org,2002:"
MERGE = f"{PREFIX}merge"
SCALARS = frozenset(f"{PREFIX}{name}" for name in ("str", "int", "float", "bool", "null"))
UNCLOSED = ("expected ',' or ']'", "expected ',' or '}'", "expected node content", "expected the node content", "end of stream")
# YAML 1.1 takes 1e-3 for a text; like OmegaConf, this takes it for a number.
FLOAT = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*[eE][-+]?[0-9]+
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the one written in C where PyYAML has it
    """The safe loader, whose numbers include 1e-3 and whose dates are texts."""


_Loader.add_implicit_resolver(f"{PREFIX}float", FLOAT, list("-+0123456789."))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(PREFIX) not in ("timestamp", "value")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class Document:
    """A YAML file that was read."""

    path: str
    """The file, as it was named."""
    values: dict[str, Any]
    """Its mapping; references `${...}` are still as they are written."""
    lines: Mapping[Keys, int] = field(default_factory=dict, repr=False)
    """{path of an entry: the line it begins in, from 1}"""

    def where(self, *keys: str | int) -> str:
        """The file and the line of an entry, or of the nearest one above it: `small.yaml, line 3`."""
        line = next((self.lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self.lines), 0)
        return f"{self.path}, line {line}" if line else self.path

    def check_names(self, label: str, known: Iterable[str]) -> None:
        """Raises ConfigError for a name at the top that is not known."""
        names = list(known)
        for name in self.values:
            if name not in names:
                raise unknown(self.where(name), label, name, names)


def read(path: str | Path, what: str) -> Document:
    """The document of a file. `what` says in a sentence what its mapping should be: `a suite has data and attacks`."""
    if not isinstance(path, str | Path):
        raise ConfigError(f"a file: {excerpt(repr(path))} given; a path is expected, since {what}.")
    text = read_text(Path(path))
    root = _compose(text, str(path))
    if root is None:
        raise ConfigError(f"{path}: the file is empty; {what}.")
    reader = _Reader(str(path))
    reader.measure(root)
    values = reader.value(root, ())
    if not isinstance(values, dict):
        raise ConfigError(f"{path}, line {_line(root)}: {_kind(values)} given; {what}.")
    return Document(str(path), values, reader.lines)


def parse_value(text: str, path: str) -> Any:
    """The value of an override `path=text`, read like a value of a file; no text is null."""
    root = _compose(text, path)
    if root is None:
        return None
    reader = _Reader(path)
    reader.measure(root)
    return reader.value(root, ())


def _compose(text: str, path: str) -> yaml.Node | None:
    """The syntax tree of one document; None: it holds nothing."""
    control = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if control is not None:
        line, code = text.count("\n", 0, control.start()) + 1, ord(control[0])
        raise ConfigError(f"{path}, line {line}: the control character U+{code:04X}; write it as an escape in double quotes.")
    try:
        _check_events(text, path)
        return yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{place}: this is not YAML: {_problem(error, text)}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: this is not YAML: {' '.join(str(error).split()).rstrip('.')}.") from error


def _check_events(text: str, path: str) -> None:
    """Raises ConfigError for nesting that is too deep and for a second document, before a tree is built."""
    depth = documents = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ConfigError(f"{path}, line {_line(event)}: a second document begins (---); a file holds one.")
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(f"{path}, line {_line(event)}: nested more than {MAX_DEPTH} deep.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Reader:
    """From the syntax tree of a document to its values."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: dict[Keys, int] = {}
        self.loader = _Loader("")  # its constructors of scalars
        self.measured: dict[int, tuple[int, int]] = {}  # {id of a node: entries and depth}

    def measure(self, node: yaml.Node) -> tuple[int, int]:
        """(entries, depth) of what a node stands for; an alias counts as its anchor. Raises ConfigError for more than there may be."""
        if id(node) in self.measured:
            entries, depth = self.measured[id(node)]
            if not entries:
                raise self.error(node, "this holds itself, by an alias (*name)")
            return entries, depth
        self.measured[id(node)] = 0, 0  # until its parts are measured
        entries, depth = 1, 1
        for part in _parts(node):
            more, below = self.measure(part)
            entries, depth = entries + more, max(depth, below + 1)
        if entries > MAX_ENTRIES:
            raise self.error(node, f"more than {MAX_ENTRIES:,} entries, counting what aliases (*name) stand for")
        if depth > MAX_DEPTH:
            raise self.error(node, f"nested more than {MAX_DEPTH} deep")
        self.measured[id(node)] = entries, depth
        return entries, depth

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        self.lines.setdefault(keys, _line(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag != PREFIX + ("map" if isinstance(node, yaml.MappingNode) else "seq"):
            raise self._tag_error(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        return [self.value(entry, (*keys, i)) for i, entry in enumerate(node.value)]

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag not in SCALARS:
            raise self._tag_error(node)
        try:
            return self.loader.construct_object(node)
        except (ValueError, KeyError, yaml.YAMLError) as error:
            kind = node.tag.removeprefix(PREFIX)
            raise self.error(node, f"'{_short(node.value)}' cannot be read as {kind}; put a text in quotes") from error

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        """The entries; those of a merge (<<: *base) come first and give way to the mapping's own."""
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        first: dict[str, int] = {}
        for name_node, entry in node.value:
            name = "<<" if name_node.tag == MERGE else self._key(name_node)
            if name in first:
                place = f" of {_dotted(keys)}" if keys else ""
                raise self.error(name_node, f"the key '{_short(name)}'{place} is given twice, first in line {first[name]}; keep one")
            first[name] = _line(name_node)
            if name_node.tag == MERGE:
                merged = self._merged(entry, keys)
            else:
                self.lines[(*keys, name)] = _line(name_node)
                own[name] = self.value(entry, (*keys, name))
        return merged | own

    def _merged(self, node: yaml.Node, keys: Keys) -> dict[str, Any]:
        """What `<<` adds: a mapping, or several, of which the first counts."""
        parts = [self.value(part, keys) for part in (node.value if isinstance(node, yaml.SequenceNode) else [node])]
        if not all(isinstance(part, dict) for part in parts):
            raise self.error(node, "<< merges mappings (<<: *name), and this is none")
        return {name: value for part in reversed(parts) for name, value in part.items()}

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, "a list or a mapping is given as a key; keys are texts")
        value = self._scalar(node)
        if not isinstance(value, str):
            written = f"'{_short(node.value)}'" if node.value else "before the colon"
            quoted = f'; for the text, write "{_short(node.value)}"' if node.value else ""
            raise self.error(node, f"the key {written} is {_kind(value)} in YAML, and keys are texts{quoted}")
        return value

    def _tag_error(self, node: yaml.Node) -> ConfigError:
        tag = node.tag.replace(PREFIX, "!!")
        return self.error(node, f"the tag {_short(tag)} makes an object, and a file holds plain values; leave it out")

    def error(self, node: yaml.Node, sentence: str) -> ConfigError:
        return ConfigError(f"{self.path}, line {_line(node)}: {sentence}.")


def _problem(error: yaml.MarkedYAMLError, text: str) -> str:
    """PyYAML's sentence in other words where it helps."""
    problem, mark = str(error.problem or error.context or "").rstrip("."), error.problem_mark
    rows = text.splitlines()
    row = rows[mark.line] if mark is not None and mark.line < len(rows) else ""
    rest = row[mark.column :] if mark is not None else ""
    if rest.startswith("\t"):
        return "a tab indents this line; use spaces"
    if "cannot start any token" in problem:
        return f"a value cannot begin with {rest[:1]}; put it in quotes"
    if "mapping values are not allowed" in problem:
        return "a colon within a value, or a line that is indented too far; put a text with a colon in quotes"
    if "undefined alias" in problem:
        alias = re.match(r"\*[^\s,\]}]*", rest)
        return f"no anchor (&name) for the alias {alias[0] if alias else '*'} before it"
    if problem.endswith("node content") and rest:
        return f"a value is missing before {rest[:1]}"
    if problem.endswith(UNCLOSED):
        opened = error.context_mark
        begin = f" that begins in line {opened.line + 1}" if opened is not None and mark is not None and opened.line < mark.line else ""
        hint = '; put a reference within brackets in quotes ("${...}")' if "${" in row else ""
        return f"a bracket or a quote{begin} is not closed{hint}"
    context = f" {error.context}" if error.context else ""
    return f"{problem}{context}"


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _line(marked: Any) -> int:
    return int(marked.start_mark.line) + 1


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: str(value).lower(), type(None): "null"}
    return names.get(type(value), "a number")


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys)) or "the file"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 1]}…"
