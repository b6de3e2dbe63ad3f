"""Where pretrained helper models of attacks are loaded from."""

from advalign import imports
from advalign.errors import ConfigError


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
