"""docs/errors.md is the page that the package generates, with every sentence that the source can say."""

import ast
from pathlib import Path

from advalign import error_page, errors

ROOT = Path(error_page.__file__).parents[1]


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == error_page.text(), "run `make catalogue`"


def test_every_module_with_sentences_has_one_subject():
    assert error_page.without_subject() == []
    for module in error_page._modules():
        assert sum(error_page.belongs(module, subject) for subject in error_page.SUBJECTS) <= 1, module


def test_every_class_has_a_row():
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, errors.AdvalignError):
            assert f"| `{name}` | " in error_page.text()


def test_every_class_of_errors_is_known_by_name():
    """A subclass that a module defines for itself is listed, so that its sentences are too."""
    for source in error_page._modules().values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef) and {ast.unparse(base).rpartition(".")[2] for base in node.bases} & error_page.CLASSES.keys():
                assert node.name in error_page.CLASSES or node.name in error_page.ELSEWHERE, node.name


SOURCE = """
LIMIT = 4

def f(path, names):
    text = f"{path}: {names} given twice."
    if names:
        raise ConfigError(text)
    raise unknown(f"{path}.kind", "kind", names.first, names)

class A:
    def error(self, node, sentence):
        return RewardError(f"{self.path}, line {node}: {sentence}.")

    def g(self):
        raise self.error(1, "more than " + f"{LIMIT} {'rows' if self.rows else 'texts'}{' in a' if self.name else ''} {len(self.rows)}")
"""


def test_sentences_are_read_from_the_source():
    assert list(error_page._sentences(SOURCE)) == [
        "`<path>: <names> given twice.`",
        "`<path>.kind: no kind '<first>'. Known: …. Did you mean …?`",
        "`<path>, line <node>: <sentence>.`",
        "`more than 4 (rows | texts)[ in a] …`",
    ]
