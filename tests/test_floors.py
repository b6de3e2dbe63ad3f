"""The architecture as a test: who may import whom. Floors are those of docs/architecture.md."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from advalign import plugins

PACKAGE = Path(plugins.__file__).parent

FLOORS = {
    **dict.fromkeys(("functional", "types", "errors"), 0),
    **dict.fromkeys(("protocols", "plugins", "models", "data"), 1),
    **dict.fromkeys(plugins.GROUPS, 2),
    "engine": 3,
    **dict.fromkeys(("training", "evaluation"), 4),
    **dict.fromkeys(("cli", "config", "", "__main__"), 5),
}

# Heavy or optional, and where alone they may be imported (a private helper belongs to its plugin).
OPTIONAL = {
    "textattack": ("attacks.textattack", "attacks._textattack_support", "attacks._textattack_seams", "attacks._textattack_stand_ins"),
    "vllm": ("rollout.vllm", "rollout._vllm_local", "rollout._vllm_logits"),
    "peft": ("models.adapters",),
    "math_verify": ("rewards._symbolic",),
    "nltk": ("evaluation.diversity", "attacks._textattack_support", "attacks._textattack_seams"),
}

# Helpers that may import their optional package at module level, because nobody imports them at module level.
LATE = {"attacks._textattack_seams", "attacks._textattack_stand_ins", "rollout._vllm_logits"}


def modules() -> dict[str, str]:
    """{dotted name below the package: source}; the package itself is ''."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(name: str, source: str, known: set[str]) -> Iterator[tuple[str, bool]]:
    """(absolute dotted target, whether at module level) of every import in `source`, relative ones resolved."""
    tree = ast.parse(source)
    inner = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["advalign", *([p for p in name.split(".") if p] if f"{name}." in known else name.split(".")[:-1])]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            targets = [f"{base}.{a.name}" if f"{base}.{a.name}".removeprefix("advalign.") in known else base for a in node.names]
        else:
            continue
        for target in targets:
            yield target, id(node) not in inner


def violations(name: str, source: str, known: set[str]) -> list[str]:
    """Every sentence that can be held against one module."""
    room, _, file = name.partition(".")
    wrong = []
    for target, at_top in imports(name, source, known):
        top = target.partition(".")[0]
        if top in OPTIONAL and name not in OPTIONAL[top]:
            wrong.append(f"{name} imports {target}, which only {OPTIONAL[top][0]} may")
        elif at_top and name not in LATE and (target.removeprefix("advalign.") in LATE or top in OPTIONAL):
            wrong.append(f"{name} imports {target} at module level")
        if top != "advalign":
            continue
        inside = target.removeprefix("advalign").removeprefix(".")
        other, _, other_file = inside.partition(".")
        if other not in FLOORS:
            wrong.append(f"{name} imports {target}, which has no floor")
        elif FLOORS[other] > FLOORS[room]:
            wrong.append(f"{name} (floor {FLOORS[room]}) imports {target} (floor {FLOORS[other]})")
        elif room in plugins.GROUPS and file and other in plugins.GROUPS and not (other == room and other_file.startswith("_")):
            wrong.append(f"plugin {name} imports {target}")
    return wrong


MODULES = modules()
# A package is marked by a trailing dot, so that relative imports know a folder from a file.
KNOWN = set(MODULES) | {f"{name}." for name in MODULES if (PACKAGE / name.replace(".", "/") / "__init__.py").exists()}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_only_what_stands_below(name: str) -> None:
    assert name.partition(".")[0] in FLOORS, f"{name} stands on no floor"
    assert violations(name, MODULES[name], KNOWN) == []


BAD = {
    "floor 0 imports floor 3": ("functional.policy", "from advalign.engine import plan", "floor 0"),
    "inside a function": ("models.load", "def f():\n    import advalign.training.trainer", "floor 1"),
    "through the package root": ("engine.micro", "from advalign import Trainer", "floor 5"),
    "relative": ("functional.policy", "from ..training import trainer", "floor 4"),
    "sideways in a room": ("objectives.dapo", "from advalign.objectives.grpo import GRPO", "plugin objectives.dapo"),
    "sideways, relative": ("objectives.dapo", "from .grpo import GRPO", "plugin objectives.dapo"),
    "sideways across rooms": ("attacks.embedding", "from advalign.adversaries.pgd import PGD", "plugin attacks.embedding"),
    "another room's helper": ("sources.demos", "from advalign.attacks._help import f", "plugin sources.demos"),
    "optional, elsewhere": ("engine.micro", "def f():\n    from peft import LoraConfig", "only models.adapters"),
    "optional, at top": ("attacks.textattack", "import textattack.attack_recipes", "at module level"),
    "optional through its helper, at top": ("attacks.textattack", "from advalign.attacks import _textattack_seams", "at module level"),
    "no floor": ("engine.micro", "import advalign.utils", "no floor"),
}


@pytest.mark.parametrize(("name", "source", "says"), BAD.values(), ids=BAD)
def test_negative_control(name: str, source: str, says: str) -> None:
    found = violations(name, source, KNOWN)
    assert len(found) == 1
    assert says in found[0]


GOOD = {
    "downward": ("objectives.dapo", "from advalign.functional import policy\nfrom advalign.types import Weights"),
    "own helper": ("attacks.textattack", "from advalign.attacks import _textattack_support"),
    "optional at home, inside": ("attacks.textattack", "def f():\n    import textattack"),
    "a submodule, not the root": ("training.trainer", "from advalign import plugins"),
}


@pytest.mark.parametrize(("name", "source"), GOOD.values(), ids=GOOD)
def test_positive_control(name: str, source: str) -> None:
    assert violations(name, source, KNOWN | {"attacks._textattack_support"}) == []


def test_importing_everything_costs_no_optional_package() -> None:
    code = (
        "import sys, advalign\nfrom advalign import plugins\n"
        "for room in plugins.GROUPS: plugins.all(room)\n"
        "print(sorted({'textattack', 'flair', 'nltk', 'vllm', 'peft', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
