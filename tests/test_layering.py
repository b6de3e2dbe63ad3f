"""The architecture as a test: who may import whom. The layers are those of docs/architecture.md."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from advalign import plugins

PACKAGE = Path(plugins.__file__).parent

LAYERS = {
    **dict.fromkeys(
        ("functional", "types", "errors", "ranges", "quick", "checked", "names", "run_folder", "durable", "http_client", "bounded"), 0
    ),
    **dict.fromkeys(
        ("imports", "interfaces", "plugins", "builder", "overrides", "text_files", "yaml_files", "interpolation", "models", "data"), 1
    ),
    **dict.fromkeys(plugins.GROUPS, 2),
    **dict.fromkeys(("engine", "targets", "metrics"), 3),
    **dict.fromkeys(("training", "evaluation"), 4),
    **dict.fromkeys(("cli", "config", "catalogue", "error_page", "testing", "", "__main__"), 5),
}

APART = {("training", "evaluation"), ("evaluation", "training")}  # of one layer, and yet neither may import the other

# Heavy or optional packages, and the only modules (`*`: files that begin so) that may import them.
OPTIONAL = {
    "textattack": ("attacks.textattack", "attacks._textattack_*"),
    "vllm": ("rollout.vllm", "rollout._vllm_*"),
    "peft": ("models.adapters", "models._adapters_*"),
    "gguf": ("models.gguf_files",),
    "math_verify": ("rewards._symbolic",),
    "langdetect": ("functional.languages",),
    "nltk": ("metrics.diversity", "attacks._textattack_*"),
}


@dataclass(frozen=True)
class Import:
    """One import statement's target, `late` if it stands inside a function."""

    target: str
    late: bool = False

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]

    @property
    def inside(self) -> str:
        """The target below the package; the package itself is ''."""
        return self.target.removeprefix("advalign").removeprefix(".")


def modules() -> dict[str, str]:
    """{dotted name below the package: source}; the package itself is ''."""
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def imports(name: str, source: str, known: set[str]) -> Iterator[Import]:
    """Every import of a module, relative ones resolved. What is imported for type checkers alone loads nothing and does not count."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    typing_only = {id(node) for block in ast.walk(tree) if is_type_checking(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) not in typing_only:
            for target in targets(node, name, known):
                yield Import(target, id(node) in late)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def targets(node: ast.AST, name: str, known: set[str]) -> list[str]:
    """Absolute dotted names that a node imports: `import`, `from`, and `import_module` of a text."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = ["advalign", *([p for p in name.split(".") if p] if f"{name}." in known else name.split(".")[:-1])]
            base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
        return [f"{base}.{a.name}" if f"{base}.{a.name}".removeprefix("advalign.") in known else base for a in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and isinstance(node.args[0], ast.Constant):
        return [str(node.args[0].value)]
    return []


MODULES = modules()
# A package is marked by a trailing dot, so that relative imports know a folder from a file.
KNOWN = set(MODULES) | {f"{name}." for name in MODULES if (PACKAGE / name.replace(".", "/") / "__init__.py").exists()}


def may_import(name: str, package: str) -> bool:
    return any(name == owner or (owner.endswith("*") and name.startswith(owner[:-1])) for owner in OPTIONAL[package])


# Private files that import an optional package at their top: they may, as long as nobody imports them at the top.
LATE = {
    name
    for name, source in MODULES.items()
    if name.rpartition(".")[2].startswith("_") and any(i.top in OPTIONAL and not i.late for i in imports(name, source, KNOWN))
}


def violations(name: str, source: str, known: set[str]) -> list[str]:
    """Every sentence that can be held against one module."""
    package, _, file = name.partition(".")
    wrong = []
    for found in imports(name, source, known):
        if found.top in OPTIONAL and not may_import(name, found.top):
            wrong.append(f"{name} imports {found.target}, which only {OPTIONAL[found.top][0]} may")
        elif not found.late and name not in LATE and (found.inside in LATE or found.top in OPTIONAL):
            wrong.append(f"{name} imports {found.target} at module level")
        if found.top != "advalign":
            continue
        other, _, other_file = found.inside.partition(".")
        if other not in LAYERS:
            wrong.append(f"{name} imports {found.target}, which has no layer")
        elif LAYERS[other] > LAYERS[package]:
            wrong.append(f"{name} (layer {LAYERS[package]}) imports {found.target} (layer {LAYERS[other]})")
        elif (package, other) in APART:
            wrong.append(f"{name} imports {found.target}, and {package} and {other} are apart")
        elif package in plugins.GROUPS and file and other in plugins.GROUPS and not (other == package and other_file.startswith("_")):
            wrong.append(f"plugin {name} imports {found.target}")
    return wrong


def cycles(graph: Mapping[str, set[str]]) -> list[str]:
    """One cycle of every group of nodes that reach each other, as "a -> b -> a"."""
    reached = {start: reachable(start, graph) for start in graph}
    groups = {frozenset({n for n in reached[start] if start in reached[n]}) for start in graph if start in reached[start]}
    return sorted(" -> ".join(way(group, graph)) for group in groups)


def reachable(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += graph.get(node, ())
    return seen


def way(group: frozenset[str], graph: Mapping[str, set[str]]) -> list[str]:
    """A shortest way from the first node of a group back to it."""
    start = min(group)
    ways = [[start]]
    while True:
        ways = [[*path, node] for path in ways for node in sorted(graph[path[-1]]) if node in group]
        for path in ways:
            if path[-1] == start:
                return path


def files() -> dict[str, set[str]]:
    """{module: modules it imports, inside functions too}."""
    return {n: {i.inside for i in imports(n, s, KNOWN) if i.top == "advalign" and i.inside in MODULES} for n, s in MODULES.items()}


def folders(graph: Mapping[str, set[str]], depth: int) -> dict[str, set[str]]:
    """The same between folders, named by at most `depth` parts; a file of the package's root is its own."""

    def folder(name: str) -> str:
        parts = name.split(".")
        inside = parts if f"{name}." in KNOWN or len(parts) == 1 else parts[:-1]
        return ".".join(inside[:depth])

    edges: dict[str, set[str]] = {folder(name): set() for name in graph}
    for name, others in graph.items():
        edges[folder(name)] |= {folder(other) for other in others} - {folder(name)}
    return edges


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_nothing_above_its_layer(name: str) -> None:
    assert name.partition(".")[0] in LAYERS, f"{name} has no layer"
    assert violations(name, MODULES[name], KNOWN) == []


def test_no_files_import_each_other() -> None:
    assert cycles(files()) == []


@pytest.mark.parametrize("depth", [1, 2])
def test_no_packages_import_each_other(depth: int) -> None:
    assert cycles(folders(files(), depth)) == []


BAD = {
    "layer 0 imports layer 3": ("functional.policy", "from advalign.engine import plan", "layer 0"),
    "inside a function": ("models.load", "def f():\n    import advalign.training.trainer", "layer 1"),
    "by name": ("models.load", "import importlib\nimportlib.import_module('advalign.training.trainer')", "layer 1"),
    "through the package root": ("engine.micro", "from advalign import Trainer", "layer 5"),
    "relative": ("functional.policy", "from ..training import trainer", "layer 4"),
    "training from evaluation": ("training.trainer", "def f():\n    from advalign.evaluation import Suite", "are apart"),
    "sideways in a group": ("objectives.dapo", "from advalign.objectives.grpo import GRPO", "plugin objectives.dapo"),
    "sideways, relative": ("objectives.dapo", "from .grpo import GRPO", "plugin objectives.dapo"),
    "sideways across groups": ("attacks.embedding", "from advalign.adversaries.pgd import PGD", "plugin attacks.embedding"),
    "another group's helper": ("sources.demos", "from advalign.attacks._help import f", "plugin sources.demos"),
    "optional, elsewhere": ("engine.micro", "def f():\n    from peft import LoraConfig", "only models.adapters"),
    "optional, at top": ("attacks.textattack", "import textattack.attack_recipes", "at module level"),
    "no layer": ("engine.micro", "import advalign.utils", "no layer"),
}


@pytest.mark.parametrize(("name", "source", "says"), BAD.values(), ids=BAD)
def test_negative_control(name: str, source: str, says: str) -> None:
    sentences = violations(name, source, KNOWN)
    assert len(sentences) == 1
    assert says in sentences[0]


def test_a_helper_that_needs_an_optional_package_is_imported_inside_functions() -> None:
    assert LATE
    for helper in LATE:
        package, _, file = helper.partition(".")
        plugin = f"{package}.{next(kind for kind in plugins.kinds(package))}"
        assert violations(plugin, f"from advalign.{package} import {file}", KNOWN) == [
            f"{plugin} imports advalign.{helper} at module level"
        ]
        assert violations(plugin, f"def f():\n    from advalign.{package} import {file}", KNOWN) == []


GOOD = {
    "downward": ("objectives.dapo", "from advalign.functional import policy\nfrom advalign.types import Weights"),
    "own helper": ("attacks.textattack", "from advalign.attacks import _textattack_import"),
    "optional at home, inside": ("attacks.textattack", "def f():\n    import textattack"),
    "a submodule, not the root": ("training.trainer", "from advalign import plugins"),
    "for type checkers": (
        "interfaces.callback",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from advalign.training import Trainer",
    ),
}


@pytest.mark.parametrize(("name", "source"), GOOD.values(), ids=GOOD)
def test_positive_control(name: str, source: str) -> None:
    assert violations(name, source, KNOWN | {"attacks._textattack_import"}) == []


def test_cycles_are_found_and_a_diamond_is_none() -> None:
    assert cycles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"d"}}) == ["a -> b -> c -> a", "d -> d"]
    assert folders({"engine.a": {"models.b"}, "models.c": {"engine.a"}, "models.b": set(), "errors": set()}, 1) == {
        "engine": {"models"},
        "models": {"engine"},
        "errors": set(),
    }


def test_importing_everything_costs_no_optional_package() -> None:
    code = (
        "import sys, advalign\nfrom advalign import plugins\n"
        "for group in plugins.GROUPS: plugins.all(group)\n"
        "print(sorted({'textattack', 'flair', 'nltk', 'vllm', 'peft', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
