"""What a command loads before it answers: `--help` and `list` need no tensors, and no command line loads an optional package."""

import subprocess
import sys
from pathlib import Path

import pytest

from advalign import plugins

ROOT = Path(plugins.__file__).parents[1]
HEAVY = ("torch", "transformers", "accelerate", "datasets", "scipy", "matplotlib", "peft", "sklearn", "pandas", "textattack", "nltk")

# Runs the command line, then says on the last line which of the heavy packages it has loaded.
COMMAND = """
import atexit, sys
atexit.register(lambda: print("loaded:", *sorted(set({heavy!r}) & set(sys.modules))))
sys.argv = ["advalign", *{arguments!r}]
from advalign.cli import main
main()
"""


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_is_imported_without_tensors():
    code = f"import sys, advalign.cli\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    assert python(code).strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--help"], "Run a configuration."),
        (["list"], "objectives"),
        (["list", "objectives"], "dapo"),
        (["list", "attacks"], "textattack"),
        (["show", "--help"], "Loads no weights."),
        (["train", "--help"], "--smoke"),
        (["eval", "--help"], "--suite"),
    ],
    ids=" ".join,
)
def test_help_and_list_answer_without_importing_torch(arguments, says):
    printed = python(COMMAND.format(heavy=HEAVY, arguments=arguments))
    assert says in printed
    assert printed.splitlines()[-1].split() == ["loaded:"]


def test_a_configuration_is_read_without_peft_and_textattack():
    code = "import sys, advalign.config\nprint(sorted({'peft', 'textattack', 'vllm', 'matplotlib', 'trl'} & set(sys.modules)))"
    assert python(code).strip() == "[]"


def test_one_plugin_by_name_imports_no_other():
    code = (
        "import sys\nfrom advalign.objectives import SFT\n"
        "print([m for m in sys.modules if m.startswith('advalign.objectives.') and not m.rsplit('.', 1)[1].startswith('_')])"
    )
    assert python(code).strip() == "['advalign.objectives.sft']"
