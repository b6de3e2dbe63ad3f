"""What a configuration names in Python: when it is imported, and which callables it may be."""

import sys
import types

import pytest

from advalign import imports, plugins
from advalign.attacks import FunctionAttack
from advalign.errors import ConfigError, NotImported
from advalign.judges import FunctionJudge
from advalign.models.folders import model_folder
from advalign.rewards import Function

LAB = """
import functools, os, subprocess
from os import system
from subprocess import run

def brevity(completions, **columns):
    return [-float(len(c)) for c in completions]

async def waits(completions):
    return [0.0 for _ in completions]

async def drips(completions):
    yield 0.0

def of_texts(texts):
    return [0.0 for _ in texts]

def by_place(completions, /):
    return [0.0 for _ in completions]

def judge(prompt, response, example):
    return True

async def late_judge(prompt, response, example):
    return True

def attack(target, prompt, rng, hint="", example=None):
    yield prompt

def narrow(target, prompt):
    yield prompt

short = lambda completions: [0.0 for _ in completions]
half = functools.partial(brevity, extra=1)

class Scorer:
    def __call__(self, completions):
        return [0.0 for _ in completions]

scorer = Scorer()
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A module that notes its import in `sys.modules`."""
    (tmp_path / "lab_of_imports.py").write_text(LAB)
    (tmp_path / "lab_that_fails.py").write_text("x = 1 / 0\n")
    (tmp_path / "lab_that_leaves.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "lab_of_tabs.py").write_text("def f(:\n")
    (tmp_path / "lab_that_needs.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "lab_of_imports"
    for name in [name for name in sys.modules if name.startswith("lab_")]:
        del sys.modules[name]


TAKEN = [
    (Function, "brevity", {}),
    (Function, "waits", {}),
    (FunctionJudge, "judge", {}),
    (FunctionAttack, "attack", {}),
    (FunctionAttack, "attack", {"options": {"hint": "x"}}),
]


@pytest.mark.parametrize(("cls", "name", "fields"), TAKEN)
def test_a_plain_function_whose_arguments_fit_is_taken(lab, cls, name, fields):
    assert cls(fn=f"{lab}.{name}", **fields).fn == f"{lab}.{name}"


REFUSED = [
    (Function, "LAB.system", "a built-in function"),
    (Function, "LAB.run", "a function of Python's standard library (subprocess.run)"),
    (Function, "LAB.os", "a module"),
    (Function, "LAB.Scorer", "a class"),
    (Function, "LAB.scorer", "a Scorer"),
    (Function, "LAB.short", "a lambda"),
    (Function, "LAB.half", "a partial"),
    (Function, "LAB.drips", "an async function"),
    (Function, "LAB.of_texts", "a function of (texts)"),
    (Function, "LAB.by_place", "a function of (completions, /)"),
    (Function, "LAB.judge", "a function of (prompt, response, example)"),
    (FunctionJudge, "LAB.brevity", "a function of (completions, **columns); a plain Python function of (prompt, response, example)"),
    (FunctionJudge, "LAB.late_judge", "an async function"),
    (FunctionAttack, "LAB.narrow", "a function of (target, prompt); a plain Python function of (target, prompt, rng)"),
    (FunctionAttack, "LAB.judge", "a function of (prompt, response, example)"),
    (Function, "LAB.brevty", "has no 'brevty'). Did you mean 'brevity'?"),
    (Function, "subprocess.Popen", "is of Python's standard library"),
    (Function, "os.system", "is of Python's standard library"),
    (Function, "builtins.exec", "is of Python's standard library"),
    (FunctionJudge, "shutil.rmtree", "is of Python's standard library"),
    (FunctionAttack, "pickle.loads", "is of Python's standard library"),
    (Function, "LAB..brevity", "a dotted path of names is expected"),
    (Function, ".brevity", "dotted path"),
    (Function, "LAB; import os.system", "a dotted path of names is expected"),
    (Function, "no_such_lab.f", "no module named 'no_such_lab'"),
    (Function, "lab_that_fails.f", "importing 'lab_that_fails' failed with ZeroDivisionError: division by zero."),
    (Function, "lab_that_leaves.f", "importing 'lab_that_leaves' failed with SystemExit: 3."),
    (Function, "lab_of_tabs.f", "importing 'lab_of_tabs' failed with SyntaxError"),
    (Function, "lab_that_needs.f", "failed with ModuleNotFoundError: No module named 'a_module_that_is_not_there'."),
    (FunctionAttack, 3, "neither a function nor a dotted path"),
]


@pytest.mark.parametrize(("cls", "name", "sentence"), REFUSED)
def test_any_other_callable_is_refused_before_anything_is_loaded(lab, cls, name, sentence):
    with pytest.raises(ConfigError) as error:
        cls(fn=name.replace("LAB", lab) if isinstance(name, str) else name)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_options_of_an_attack_are_arguments_of_its_function(lab):
    with pytest.raises(ConfigError, match=r"of \(target, prompt, rng, hnt\) is expected"):
        FunctionAttack(fn=f"{lab}.attack", options={"hnt": "x"})


def test_what_python_hands_over_is_taken_as_it_is():
    class Scores:
        def __call__(self, completions):
            return [0.0 for _ in completions]

    assert callable(Function(fn=Scores()).fn)
    assert FunctionJudge(fn=lambda *given: True).fn is not None


def test_functions_of_an_installed_library_that_fit_are_taken():
    pytest.importorskip("trl")
    assert Function(fn="trl.rewards.think_format_reward").fn == "trl.rewards.think_format_reward"


@pytest.mark.parametrize("kind", ["os.path", "subprocess.Popen", "antigravity.x"])
def test_a_dotted_kind_is_not_of_the_standard_library(kind):
    with pytest.raises(ConfigError, match=rf"^objectives\.a: '{kind}' is of Python's standard library"):
        plugins.resolve("objectives", kind, "objectives.a")
    assert "antigravity" not in sys.modules


def test_a_dotted_kind_whose_all_names_no_class_is_refused(monkeypatch):
    module = types.ModuleType("lab_of_texts.inner")
    module.__all__, module.OUT = ["OUT"], "a text"
    monkeypatch.setitem(sys.modules, "lab_of_texts.inner", module)
    with pytest.raises(ConfigError, match=r"lab_of_texts\.inner names 'OUT' in __all__, which is a str, not a class"):
        plugins.resolve("objectives", "lab_of_texts.inner", "objectives.a")


def test_held_back_nothing_is_imported_and_everything_is_noted(lab):
    with imports.held_back() as names:
        Function(fn=f"{lab}.brevity")
        with pytest.raises(NotImported, match=r"objectives\.a: 'lab_of_imports\.Foo' would be imported"):
            plugins.resolve("objectives", f"{lab}.Foo", "objectives.a")
        assert plugins.resolve("objectives", "dapo").__name__ == "DAPO"
    assert names == [f"{lab}.brevity", f"{lab}.Foo"]
    assert lab not in sys.modules


def test_held_back_the_folder_of_a_configuration_is_no_place_of_modules(tmp_path):
    with imports.held_back():
        imports.search_beside(tmp_path / "run.yaml")
    assert str(tmp_path) not in sys.path


def test_the_folder_of_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    for folder in ("model", "inner/model"):
        (tmp_path / "carrier_of_weights" / folder).mkdir(parents=True)
    for folder in ("", "inner"):
        (tmp_path / "carrier_of_weights" / folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_folder("package:carrier_of_weights/model") == tmp_path / "carrier_of_weights" / "model"
    assert model_folder("package:carrier_of_weights.inner/model") == tmp_path / "carrier_of_weights" / "inner" / "model"
    for name, sentence in (
        ("no_carrier", "is not installed"),
        ("carrier_of_weights.outer", "is not installed"),
        ("../x", "name of a pack"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            model_folder(f"package:{name}/model")
