"""Where pretrained helper models of attacks are loaded from."""

from typing import Any

import transformers
from safetensors import SafetensorError

from advalign import imports
from advalign.errors import ConfigError, excerpt


def model_path(reference: str, path: str) -> str:
    """A folder or hub id for `from_pretrained`; `package:module/folder` is the folder of an installed package. `path` names the field in
    an error."""
    if not reference.startswith("package:"):
        return reference
    module, _, folder = reference.removeprefix("package:").partition("/")
    package = imports.package_folder(module, path)
    if package is None:
        raise ConfigError(f"{path}: '{reference}' needs the package '{module}', which is not installed.")
    return str(package / folder)


def load_pretrained(cls: Any, reference: str, path: str) -> tuple[Any, Any]:
    """(tokenizer, model of a class of transformers) of a folder or hub id. Raises ConfigError, its path `path`, where there is none."""
    folder = model_path(reference, path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return tokenizer, cls.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ConfigError(f"{path}: '{reference}' cannot be loaded ({excerpt(error)}); give the folder or hub id of a model.") from error
