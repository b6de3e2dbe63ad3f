"""The interfaces declare what the library reads: nothing of ours is looked up by name, every member is documented, every plugin derives."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from advalign import builder, plugins

PACKAGE = Path(plugins.__file__).parent
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
INTERFACES = {file: source for file, source in SOURCES.items() if file.startswith("interfaces/")}

# Files that look up attributes of objects of other libraries: (whose objects, the names, `*` for names held by a variable).
FOREIGN = {
    "adversaries/_word_reader.py": ("a tokenizer of transformers", "added_tokens_decoder chat_template"),
    "attacks/_textattack_replacements.py": ("a transformation of TextAttack", "transformations _lm_tokenizer"),
    "attacks/_words_models.py": ("a masked language model of transformers", "*"),
    "cli/failures.py": ("errors of click, which typer carries or imports", "__name__"),
    "models/architecture.py": ("modules, configurations and tokenizers of transformers and peft", "*"),
    "bounded.py": ("the standard library, which has no timers or copies of a process on some systems", "setitimer fork"),
    "plugins.py": ("a module from outside the package", "__all__ *"),
    "rewards/function.py": ("a callable from outside the package", "__qualname__"),
    "rollout/_vllm_local.py": ("a model of vLLM", "lm_head cpu_linear"),
    "targets/black_box.py": ("a callable from outside the package", "__module__ __qualname__"),
    "targets/prefix.py": ("a layer of a cache of transformers", "keys"),
    "targets/target.py": ("a model of transformers", "get_output_embeddings"),
    "training/distributed.py": ("a plugin of accelerate", "pin_memory"),
    "training/sharded_checkpoint.py": ("an optimizer wrapped by accelerate", "optimizer"),
    "yaml_files.py": ("PyYAML, which may be built without libyaml", "CSafeLoader"),
}

# Members of interfaces that may be anything.
ANYTHING = {
    "Callback.trainer": "the trainer stands in a higher layer",
    "SamplingRequest.data": "a reference to examples in any form that `advalign.data` reads",
}


def lookups(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, name, text) of every attribute looked up by name, and of every class recognised by its name; `*`: a variable name."""
    for node in ast.walk(ast.parse(source)):
        called = (node.func.id, len(node.args)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        if called in (("hasattr", 2), ("getattr", 3)):
            name = node.args[1]
            yield node.lineno, str(name.value) if isinstance(name, ast.Constant) else "*", ast.unparse(node)
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        if isinstance(node, ast.Attribute) and node.attr in ("startswith", "endswith", "lower"):
            sides = [node.value]
        if any(is_class_name(side) for side in sides):
            yield node.lineno, "__name__", ast.unparse(node)


def is_class_name(node: ast.expr) -> bool:
    """`x.__class__.__name__` or `type(x).__name__`."""
    if not (isinstance(node, ast.Attribute) and node.attr in ("__name__", "__qualname__")):
        return False
    owner = node.value
    return (isinstance(owner, ast.Attribute) and owner.attr == "__class__") or (
        isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "type"
    )


@pytest.mark.parametrize("file", SOURCES)
def test_nothing_of_ours_is_looked_up_by_name(file: str) -> None:
    names = FOREIGN.get(file, ("", ""))[1].split()
    assert [f"{file}:{line}  {text}" for line, name, text in lookups(SOURCES[file]) if "*" not in names and name not in names] == []


def test_every_exception_is_still_needed() -> None:
    used = {file: {name for _, name, _ in lookups(SOURCES.get(file, ""))} for file in FOREIGN}
    assert {file: names for file, (_, names) in FOREIGN.items() if not used[file] or set(names.split()) - {"*"} - used[file]} == {}


@pytest.mark.parametrize(
    "source",
    [
        'getattr(x, "steps", 0)',
        "getattr(x, name, None)",
        'hasattr(x, "steps")',
        'x.__class__.__name__ == "PGD"',
        'type(x).__name__ in ("PGD", "VAT")',
        'type(x).__name__.startswith("PG")',
    ],
)
def test_negative_control(source: str) -> None:
    assert len(list(lookups(source))) == 1


def test_positive_control() -> None:
    assert list(lookups('getattr(x, "steps"); f"{type(x).__name__} given"; __name__ == "__main__"; isinstance(x, int)')) == []


# ----------------------------------------------------------------------------------------------------- the interfaces


def members(cls: ast.ClassDef) -> Iterator[tuple[str, list[tuple[str, ast.expr]], str | None]]:
    """(name, [(what, annotation)], docstring line) of every public field and method that a class declares."""
    for node, after in zip(cls.body, [*cls.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            doc = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            yield ast.unparse(node.target), [(ast.unparse(node.target), node.annotation)], doc
        if isinstance(node, ast.FunctionDef) and (node.name == "__call__" or not node.name.startswith("_")):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            annotations = [(a.arg, a.annotation) for a in arguments if a.annotation is not None]
            result = [("the result", node.returns)] if node.returns is not None else []
            yield node.name, [*annotations, *result], ast.get_docstring(node)


DECLARED = [
    (f"{node.name}.{name}", annotations, doc)
    for source in INTERFACES.values()
    for node in ast.parse(source).body
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    for name, annotations, doc in members(node)
]


def test_every_public_member_of_an_interface_is_documented() -> None:
    assert len(DECLARED) > 100
    assert [name for name, _, doc in DECLARED if not doc] == []


def test_no_member_of_an_interface_is_of_any_type() -> None:
    bare = {
        f"{name}: {what}"
        for name, annotations, _ in DECLARED
        for what, annotation in annotations
        if ast.unparse(annotation) == "Any" and not {name, f"{name.partition('.')[0]}.{what}"} & set(ANYTHING)
    }
    assert bare == set()


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_every_built_in_plugin_derives_from_the_interface_of_its_group(group: str) -> None:
    (interface,) = [interface for interface, name in builder.GROUP_OF.items() if name == group]
    assert [cls for cls in plugins.all(group) if not issubclass(cls, interface)] == []
    assert [cls for cls in plugins.all(group) if cls.__abstractmethods__] == []
