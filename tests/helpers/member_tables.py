"""The tables of declared members in docs/extending.md, read from the source of `advalign.interfaces` and `advalign.types`.

`python tests/helpers/member_tables.py` writes them into the page, between `<!-- members: Name -->` and `<!-- end -->`."""

import ast
import inspect
import re
from pathlib import Path

from advalign import interfaces, types

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
TABLE = re.compile(r"(<!-- members: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(name):
    """| member | default | meaning | of an interface: fields, class variables, properties and methods, in order; of a container its fields,
    and of `Outputs` their types and shapes."""
    if name == "Outputs":
        lines = ["| output | type, shape | meaning |", "|---|---|---|"]
        rows = [f"| `{member}` | {type_of(types.Outputs, member)} | {meaning} |" for member, _, meaning in members(name)]
        return "\n".join([*lines, *rows]) + "\n"
    if not hasattr(interfaces, name):
        lines = ["| member | meaning |", "|---|---|"]
        return "\n".join([*lines, *(f"| `{member}` | {meaning} |" for member, _, meaning in members(name))]) + "\n"
    lines = ["| member | default | meaning |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{member}` | {default} | {meaning} |" for member, default, meaning in members(name))]) + "\n"


def members(name):
    """(member, default, first paragraph of its documentation) of what a class declares itself, without private names."""
    cls = getattr(interfaces, name, None) or getattr(types, name)
    (node,) = ast.parse(inspect.getsource(cls)).body
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            default = "required" if statement.value is None else f"`{ast.unparse(statement.value)}`"
            yield statement.target.id, default, sentence(after.value.value if isinstance(after, ast.Expr) else "")
        elif (
            isinstance(statement, ast.FunctionDef)
            and hasattr(interfaces, name)
            and (not statement.name.startswith("_") or statement.name == "__call__")
        ):
            yield signature(statement), default_of(statement, inspect.isabstract(cls)), sentence(ast.get_docstring(statement) or "")


def type_of(cls, member):
    """The annotation of a field of optional tensors: `"B T" float`, {site: of it}, or the name of a class."""
    text = re.sub(
        r"(\w+)\[Tensor, ['\"](.*?)['\"]\]", lambda m: f'"{m[2]}" {m[1].lower()}', cls.__annotations__[member].removesuffix(" | None")
    )
    return re.sub(r"Mapping\[str, (.*)\]", r"{site: \1}", text)


def signature(function):
    if any(isinstance(d, ast.Name) and d.id == "property" for d in function.decorator_list):
        return function.name
    names = [a.arg for a in function.args.args if a.arg != "self"]
    names += [f"*{function.args.vararg.arg}"] if function.args.vararg else []
    return f"{function.name}({', '.join(names)})"


def default_of(function, abstract_class):
    if any(isinstance(d, ast.Name) and d.id == "abstractmethod" for d in function.decorator_list):
        return "required"
    last = function.body[-1]
    if isinstance(last, ast.Return):
        return f"`{ast.unparse(last.value)}`" if len(ast.unparse(last.value)) < 20 else "from the fields"
    return "refused" if isinstance(last, ast.Raise) else "" if not abstract_class else "nothing"


def sentence(text):
    return " ".join(text.split("\n\n")[0].split()).replace("|", r"\|")


def filled(text):
    """The page with every table as it is today."""
    return TABLE.sub(lambda m: m[1] + "\n" + table(m[2]) + "\n" + m[4], text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
