"""Tables of words in JSON files, plain or .gz."""

import gzip
import json
from pathlib import Path
from typing import Any

from advalign.errors import ConfigError


def existing_file(reference: str, path: str, content: str = "JSON file (plain or .gz)") -> Path:
    """The file behind a reference; `path` names the field in an error."""
    file = Path(reference).expanduser()
    if not file.is_file():
        raise ConfigError(f"{path}: there is no file {file}; a {content} is needed.")
    return file


def read_table(reference: str, path: str) -> dict[str, Any]:
    """The JSON object in a file."""
    file = existing_file(reference, path)
    content = file.read_bytes()
    table = json.loads(gzip.decompress(content) if file.suffix == ".gz" else content)
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {file} holds a JSON {type(table).__name__}; an object word -> words is needed.")
    return table
