"""What results depend on, as text and as a hash: settings, the content of data and files, the model and how it is read, this version.

Nothing that changes by chance is in it: the order of keys, addresses in memory, paths of data and output, times, processes, caches. A
field declares `Annotated[..., NEUTRAL]` where no judgement depends on it, and `Annotated[str, CONTENT]` where it is the path of what is
read, `Annotated[..., CODE]` where it names a function; every other field counts.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from advalign.models import Network
from advalign.targets import BlackBoxModel
from advalign.types import CODE, CONTENT, NEUTRAL, Example

if TYPE_CHECKING:
    from advalign.evaluation.suites.suite import Suite

VERSION = 2
"""Raised when an unchanged suite judges otherwise, or lines of results.jsonl change their shape, within one version of the package."""
CHANCE = {"transformers_version", "dtype", "torch_dtype", "architectures"}
"""Entries of a model's configuration that say how it was saved; its precision is that of its weights."""
DEPTH = 12
"""Beyond which the parts of an object that is none of ours are not described."""


def described(value: Any, depth: int = 0) -> str:
    """A value as text that is equal for equal values, whatever the process, the order of keys, and integers written as floats."""
    if value is None or isinstance(value, bool | str | bytes):
        return repr(value)
    if isinstance(value, int | float):
        return repr(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)
    if isinstance(value, Tensor):
        return f"tensor({list(value.shape)}, {value.dtype}, {_tensor_hash(value)})"
    if isinstance(value, type):
        return _code(value)
    if is_dataclass(value):
        return f"{_class(type(value))}({', '.join(f'{name}={text}' for name, text in described_fields(value, depth).items())})"
    if isinstance(value, Mapping):
        parts = sorted(f"{described(key, depth + 1)}: {described(entry, depth + 1)}" for key, entry in value.items())
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, Set):
        return f"{{{', '.join(sorted(described(entry, depth + 1) for entry in value))}}}"
    if isinstance(value, Sequence):
        return f"[{', '.join(described(entry, depth + 1) for entry in value)}]"
    return _object(value, depth)


def described_fields(value: Any, depth: int = 0) -> dict[str, str]:
    """{field: its text} of a dataclass, by name, without those that are neutral."""
    cls: Any = type(value)
    texts = {}
    for field in sorted(fields(value), key=lambda field: field.name):
        marks = marks_of(cls).get(field.name, ())
        if NEUTRAL not in marks:
            entry = getattr(value, field.name)
            if CODE in marks:
                entry = _referenced(entry)
            texts[field.name] = _content(entry) if CONTENT in marks else described(entry, depth + 1)
    return texts


@functools.cache
def marks_of(cls: Any) -> dict[str, tuple[Any, ...]]:
    """{field: what its annotation is marked with} of a dataclass."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:
        if "<locals>" not in cls.__qualname__:
            raise
        return {}  # a class inside a function, whose annotations may be names that only it knows: all its fields count
    return {name: tuple(_marks(hint)) for name, hint in hints.items()}


def suite_fingerprint(suite: Suite, model: Network | BlackBoxModel, examples: Sequence[Example], benign: Sequence[Example] = ()) -> str:
    """A hash of everything that the results depend on; `benign`: the examples of `suite.benign`."""
    parts = [_version(), str(VERSION), described(suite), model.head, model_fingerprint(model)]
    parts += [example_fingerprint(e) for e in (*examples, *benign)]
    return _hash("\0".join(parts))


def suite_settings(suite: Suite, examples: Sequence[Example]) -> dict[str, Any]:
    """What the results of two models must have in common to be compared: settings, fields of each attack, and a hash of each example."""
    settings = {name: described(getattr(suite, name)) for name in ("budget", "judge", "sampling", "seed", "attacked_turn")}
    attacks = {name: {"kind": _class(type(attack)), **described_fields(attack)} for name, attack in suite.attacks.items()}
    return {"settings": settings, "attacks": attacks, "examples": {e.id: example_fingerprint(e)[:16] for e in examples}}


def example_fingerprint(example: Example) -> str:
    """A hash of an example: its texts, label, answer, further columns and verifier."""
    return _hash(described(example))


def model_fingerprint(model: Network | BlackBoxModel) -> str:
    """A hash of every weight, of the configuration, and of how text becomes tokens, rows and answers."""
    digest = hashlib.sha256(model.head.encode())
    if isinstance(model, Network):
        digest.update(_hash(described(_reading(model))).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_tensor_hash(tensor).encode())
    return digest.hexdigest()


def _version() -> str:
    try:
        return metadata.version("advalign")
    except metadata.PackageNotFoundError:
        return ""


def _reading(network: Network) -> dict[str, Any]:
    """What decides, beside weights, what a network answers to a text."""
    encoder = network.encoder
    return {
        "vocabulary": encoder.tokenizer.get_vocab(),
        "template": None if encoder.template is None else encoder.tokenizer.chat_template,
        "settings": encoder.settings,
        "length": encoder.max_length,
        "stop": network.stop_ids if network.head == "policy" else (),
        "pooling": network.pooling,
        "config": _kept(network.model.config.to_dict()),
    }


def _kept(config: Mapping[Any, Any]) -> dict[Any, Any]:
    """A model's configuration without what says where it is from and how it was saved."""
    entries = {name: value for name, value in config.items() if not str(name).startswith("_") and name not in CHANCE}
    return {name: _kept(value) if isinstance(value, Mapping) else value for name, value in entries.items()}


def _marks(hint: Any) -> list[Any]:
    """What an annotation, or one of its alternatives, is marked with."""
    parts = [part for part in typing.get_args(hint) if not isinstance(part, list)]
    if typing.get_origin(hint) is Annotated:
        return parts[1:] + _marks(parts[0])
    return [mark for part in parts for mark in _marks(part)]


def _referenced(value: Any) -> Any:
    """The function behind a dotted path, whose module the plugin has imported; anything else as it is."""
    if not isinstance(value, str):
        return value
    module, _, name = value.rpartition(".")
    return vars(sys.modules[module]).get(name, value) if module in sys.modules else value


def _content(reference: Any) -> str:
    """The hash of a file, or of the files of a folder; what is neither, such as a hub id, stands for itself."""
    if isinstance(reference, Mapping) and isinstance(reference.get("path"), str):
        return described({**reference, "path": _content(reference["path"])})
    if not isinstance(reference, str):
        return described(reference)
    path = Path(reference).expanduser()
    if path.is_file():
        return f"file {_file_hash(path)}"
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return f"folder {_hash(repr([(file.relative_to(path).as_posix(), _file_hash(file)) for file in files]))}"
    return repr(reference)


def _object(value: Any, depth: int) -> str:
    """A function, a module or any other object: its code and what it holds."""
    if isinstance(value, nn.Module):
        return f"{_class(type(value))}({', '.join(f'{name}: {_tensor_hash(x)}' for name, x in value.state_dict().items())})"
    if isinstance(value, functools.partial):
        return f"partial({', '.join(described(part, depth + 1) for part in (value.func, value.args, value.keywords))})"
    if inspect.ismethod(value):
        return f"{described(value.__self__, depth + 1)}.{value.__name__}"
    if inspect.isfunction(value):
        held = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        parts = [held, value.__defaults__, value.__kwdefaults__] if depth < DEPTH else []
        return f"{_code(value)}({', '.join(described(part, depth + 1) for part in parts)})"
    try:
        parts = vars(value) if depth < DEPTH else {}
    except TypeError:  # it holds nothing of its own, or hides it
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return f"{_class(type(value))}({described(parts, depth + 1)})"


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 -- reading an empty cell is how one learns that it is empty
    except ValueError:
        return False
    return True


def _class(cls: type) -> str:
    """The name of a class; of one from outside the package, its code as well."""
    return cls.__qualname__ if cls.__module__.partition(".")[0] == "advalign" else _code(cls)


@functools.cache
def _code(value: type | Callable[..., Any]) -> str:
    """The name of a class or a function, and a hash of its source, where that is at hand."""
    name = f"{value.__module__}.{value.__qualname__}"
    try:
        return f"{name}#{_hash(inspect.getsource(value))[:16]}"
    except (OSError, TypeError):
        return name


@functools.lru_cache(maxsize=64)
def _hash_of_file(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_hash(path: Path) -> str:
    state = path.stat()
    return _hash_of_file(str(path), state.st_size, state.st_mtime_ns)


def _tensor_hash(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(f"{list(tensor.shape)} {tensor.dtype} ".encode() + data.tobytes()).hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


__all__ = [
    "described",
    "described_fields",
    "example_fingerprint",
    "marks_of",
    "model_fingerprint",
    "suite_fingerprint",
    "suite_settings",
]
