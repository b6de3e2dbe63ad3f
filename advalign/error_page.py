"""What the library says when something is wrong: `python -m advalign.error_page > docs/errors.md`.

The classes are read from `errors.py`, the sentences from the source of every module: each call of an error class, with what is filled in
as `<name>`.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from advalign import errors

PACKAGE = Path(__file__).parent
CLASSES = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, errors.AdvalignError)}
ELSEWHERE = frozenset({"WrongType", "ServerError"})
"""Subclasses that a module keeps to itself."""

INTRODUCTION = """# Errors

What can go wrong is one sentence: where (a path of the configuration, a file and its line, an option), what was given, what is allowed,
and the nearest name. This page is generated (`make catalogue`) from the source, so it has them all: search it for a few words of yours.
`<name>` and `…` are what a sentence fills in, `(a | b)` is one of two, and `[a]` is there or not.

On the command line the sentence is printed to the standard error. `--debug` shows the traceback and the errors of other libraries that
led to it. In Python each is an exception below `advalign.errors.AdvalignError`; those that are also a `ValueError` are caught as such.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a gate that failed (`--fail-below`), or a fault of the library or of a plugin, with its place; please report it with `--debug` |
| 2 | a mistake in what was given, a file that cannot be read or written, or memory that runs out |
| 130, 143 | ended by Ctrl-C or SIGTERM; a run says what it saved and how it goes on |
| 141 | the reader of the output left (`advalign list objectives \\| head -1`) |

## Classes"""


@dataclass(frozen=True)
class Subject:
    """Sentences that belong together."""

    title: str
    """Heading."""
    modules: tuple[str, ...]
    """Modules, or folders (with a slash), of the package."""
    advice: str
    """What to do."""


SUBJECTS = (
    Subject(
        "Files of YAML, references and overrides",
        ("text_files", "yaml_files", "interpolation", "overrides"),
        "The sentence names file and line. Open the file there; put texts that hold a colon, `#`, `{` or `@` in quotes. References are "
        "`${path.of.a.value}` and `${oc.env:NAME,default}`.",
    ),
    Subject(
        "Configurations: names, kinds and values",
        tuple("config builder checked ranges names plugins errors adversaries/ advantages/ objectives/ interfaces/ types/".split()),
        "The path leads to the field; [catalogue.md](catalogue.md) has every field of every kind with its meaning and default, and "
        "`advalign list <group>` the kinds.",
    ),
    Subject(
        "What a configuration imports",
        ("imports",),
        "A dotted kind and `fn:` name modules, which run when they are imported ([security.md](security.md)). They are found where "
        "packages are installed and beside the configuration.",
    ),
    Subject(
        "Data", ("data/", "tasks/"), "The sentence names the file and the line or row. [data.md](data.md) says which columns are read."
    ),
    Subject(
        "Models, tokenizers and adapters",
        ("models/",),
        "A model is a folder that transformers or this library saved, whole and in safetensors, a hub id, `package:<module>/<folder>` or "
        "`scratch:<preset>`; [models.md](models.md) has the families and their options, [lora.md](lora.md) adapters.",
    ),
    Subject("Sources of rows", ("sources/",), "What a source draws and with which options: [sources.md](sources.md), [gan.md](gan.md)."),
    Subject("Rewards", ("rewards/",), "A reward scores every completion or abstains (`None`): [rewards.md](rewards.md)."),
    Subject("Rollouts", ("rollout/",), "Sampling in this process or by vLLM: [rollouts.md](rollouts.md)."),
    Subject(
        "Runs: before the first step, and later",
        ("training/", "engine/", "metrics/"),
        "What can be found is found before anything is loaded. A run that stopped later goes on with `--resume` once its cause is gone "
        "([training.md](training.md), [several_processes.md](several_processes.md)).",
    ),
    Subject(
        "Folders of runs and evaluations",
        ("run_folder", "durable", "bounded"),
        "One run or evaluation writes to a folder at a time. Give another folder, wait for the other one, or say what is to happen with "
        "what it holds.",
    ),
    Subject("Attacks and their targets", ("attacks/", "targets/"), "Which attack needs what of a model: [attacks.md](attacks.md)."),
    Subject(
        "Suites, judges, reports and comparisons",
        ("evaluation/", "judges/", "functional/"),
        "A suite is `data` and `attacks`: [evaluation.md](evaluation.md), [judges.md](judges.md), [certified.md](certified.md).",
    ),
    Subject("Servers", ("http_client",), "Is the server there, and does it answer in time? Keys are in no sentence."),
    Subject("The command line", ("cli/",), "`advalign <command> --help` lists the options."),
    Subject("Checks of plugins of your own", ("testing/",), "[extending.md](extending.md) has a file per extension point."),
)


def text() -> str:
    """The whole page."""
    parts = [INTRODUCTION, _classes()]
    sentences = {module: list(dict.fromkeys(_sentences(source))) for module, source in _modules().items()}
    for subject in SUBJECTS:
        modules = [module for module in sentences if belongs(module, subject) and sentences[module]]
        if modules:
            parts += [f"## {subject.title}", subject.advice]
            parts += [f"{_heading(module)}\n\n" + "\n".join(f"* {line}" for line in sentences[module]) for module in modules]
    return "\n\n".join(parts) + "\n"


def belongs(module: str, subject: Subject) -> bool:
    """Whether the sentences of a module are of this subject."""
    return any(module == name or (name.endswith("/") and module.startswith(name)) for name in subject.modules)


def without_subject() -> list[str]:
    """Modules with sentences that no subject has."""
    return [m for m, source in _modules().items() if any(_sentences(source)) and not any(belongs(m, s) for s in SUBJECTS)]


def _modules() -> dict[str, str]:
    """{module as a path without its ending: source}"""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {str(path.relative_to(PACKAGE).with_suffix("")): path.read_text(encoding="utf-8") for path in paths if path != Path(__file__)}


def _classes() -> str:
    rows = ["| class | also a | exit code | meaning |", "|---|---|---|---|"]
    for name, cls in CLASSES.items():
        bases = ", ".join(f"`{base.__name__}`" for base in cls.__bases__ if base is not Exception) or "`Exception`"
        code = "128 + signal" if cls is errors.Interrupted else str(cls.exit_code)
        rows.append(f"| `{name}` | {bases} | {code} | {' '.join((inspect.getdoc(cls) or '').split())} |")
    return "\n".join(rows)


def _heading(module: str) -> str:
    doc = ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))) or ""
    return f"**{module}** · {doc.splitlines()[0] if doc else ''}"


def _sentences(source: str) -> Iterator[str]:
    """Every sentence of a module, in its order."""
    tree = ast.parse(source)
    texts, makers = _assigned(tree), _makers(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)]
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        name = ast.unparse(call.func).rpartition(".")[2]
        argument = makers.get(name, 0) if name in makers or name in CLASSES or name in ELSEWHERE else len(call.args)
        if name == "unknown" and len(call.args) == 4:
            path, what, value, _ = (_template(argument, texts) for argument in call.args)
            line = f"{path}: no {what} '{value}'. Known: …. Did you mean …?"
        elif argument < len(call.args):
            line = _template(call.args[argument], texts)
        else:
            continue
        if len(re.sub(r"<[^>]*>|[^a-z]", "", line)) > 2:  # words of its own
            yield _shown(line)


def _makers(tree: ast.AST) -> dict[str, int]:
    """{function of the module that makes an error of a sentence it is given: the place of that sentence among its arguments}"""
    makers = {}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        names = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call) and ast.unparse(node.func) in CLASSES):
            parts = call.args[0].values if call.args and isinstance(call.args[0], ast.JoinedStr) else call.args[:1]
            inner = [part.value if isinstance(part, ast.FormattedValue) else part for part in parts]
            filled = [part.id for part in inner if isinstance(part, ast.Name)]
            if "sentence" in names and "sentence" in filled:
                makers[function.name] = names.index("sentence")
    return makers


def _assigned(tree: ast.AST) -> dict[str, ast.expr]:
    """{name: the text that is assigned to it}, where only one is in the module."""
    texts: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            texts.setdefault(node.targets[0].id, []).append(node.value)
    return {name: values[0] for name, values in texts.items() if len(values) == 1 and isinstance(values[0], ast.JoinedStr | ast.Constant)}


def _template(node: ast.expr, texts: Mapping[str, ast.expr]) -> str:
    """An expression as text, with `<name>` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part, texts) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _template(node.value, texts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left, texts) + _template(node.right, texts)
    if isinstance(node, ast.Name) and node.id in texts and isinstance(texts[node.id], ast.JoinedStr | ast.Constant):
        return _template(texts[node.id], {name: value for name, value in texts.items() if name != node.id})
    if isinstance(node, ast.IfExp):
        either = [_template(branch, texts) for branch in (node.body, node.orelse)]
        return "…" if "…" in either else " | ".join(either).join("()") if all(either) else f"[{''.join(either)}]"
    if isinstance(node, ast.Name | ast.Attribute):
        return f"<{ast.unparse(node).rpartition('.')[2].lower().replace('_', ' ').strip()}>"
    return "…"


def _shown(sentence: str) -> str:
    """A line of Markdown, as code."""
    line = " ".join(sentence.split())
    fence = "``" if "`" in line else "`"
    return f"{fence}{line}{fence}"


if __name__ == "__main__":
    print(text(), end="")
