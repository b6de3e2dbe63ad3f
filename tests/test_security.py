"""docs/security.md as tests: nothing that is read runs, but what a configuration names."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.victims import classifier

from advalign import data, load, plugins
from advalign.errors import ConfigError
from advalign.models import folders
from advalign.training import checkpoint
from advalign.types import Conversation, Message

PACKAGE = Path(plugins.__file__).parent
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}

FORBIDDEN_MODULES = frozenset("pickle cPickle _pickle marshal shelve dill joblib cloudpickle runpy code".split())
FORBIDDEN_CALLS = frozenset(
    "eval exec compile input __import__ os.system os.popen yaml.load yaml.load_all yaml.unsafe_load yaml.full_load yaml.unsafe_load_all "
    "pickle.load pickle.loads torch.hub.load pandas.read_pickle tempfile.mktemp".split()
)
# Files that import by a name they were given: the registry, lazy packages of our own, an optional package, and the door.
IMPORTERS = frozenset(
    "__init__.py evaluation/__init__.py targets/__init__.py imports.py plugins.py attacks/_textattack_import.py "
    "attacks/_textattack_patches.py".split()
)
LOADERS = ("from_pretrained", "from_config", "load_dataset", "load_dataset_builder", "LLM")
CONFIGURATIONS_AND_TOKENIZERS = ("AutoConfig", "AutoTokenizer", "AutoProcessor")


def problems(file: str, source: str) -> list[str]:
    """What a module does that docs/security.md says nothing does."""
    tree = ast.parse(source)
    imported = [
        (node.lineno, name.partition(".")[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    ]
    found = [f"{file}:{line} imports {name}" for line, name in imported if name in FORBIDDEN_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [f"{file}:{node.lineno} {sentence}" for sentence in call_problems(file, node)]
    return found


def call_problems(file: str, call: ast.Call) -> list[str]:
    called = ast.unparse(call.func)
    name = called.rpartition(".")[2]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    own = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("cls", "WordConstraints")
    sentences = []
    if called in FORBIDDEN_CALLS:
        sentences.append(f"calls {called}")
    if name == "import_module" and file not in IMPORTERS:
        sentences.append("imports by name")
    if called == "torch.load" and given.get("weights_only") != "True":
        sentences.append("unpickles")
    if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
        sentences.append("allows pickle or a shell")
    if name in LOADERS and not own:
        if given.get("trust_remote_code") != "False":
            sentences.append("may ask for the code of a model or data set")
        model = name == "from_pretrained" and not any(kind in called for kind in CONFIGURATIONS_AND_TOKENIZERS)
        if model and given.get("use_safetensors") != "True":
            sentences.append("may unpickle weights")
    if "trust_remote_code" in given and given["trust_remote_code"] != "False":
        sentences.append("runs the code of a model or data set")
    return sentences


@pytest.mark.parametrize("file", SOURCES)
def test_no_module_evaluates_unpickles_or_runs_what_it_reads(file):
    assert problems(file, SOURCES[file]) == []


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("eval(text)", "calls eval"),
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("yaml.load(text, yaml.Loader)", "calls yaml.load"),
        ("torch.load(path)", "unpickles"),
        ("torch.load(path, weights_only=False)", "unpickles"),
        ("np.load(path, allow_pickle=True)", "allows pickle"),
        ("subprocess.run(command, shell=True)", "a shell"),
        ("AutoConfig.from_pretrained(name)", "may ask"),
        ("AutoModel.from_pretrained(name, trust_remote_code=False)", "may unpickle"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True, use_safetensors=True)", "runs the code"),
        ("datasets.load_dataset(name)", "may ask"),
        ("importlib.import_module(name)", "imports by name"),
        ("answer = input('run it?')", "calls input"),
    ],
)
def test_negative_control(source, sentence):
    assert any(sentence in problem for problem in problems("models/load.py", source))


def test_positive_control():
    source = "torch.load(p, weights_only=True)\nAutoModel.from_pretrained(n, trust_remote_code=False, use_safetensors=True)\nre.compile(x)"
    assert problems("models/load.py", source) == []


# ----------------------------------------------------------------------------------------------------------- models


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.fixture
def nobody_answers(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("somebody was asked"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "model"
    classifier(steps=0).save_pretrained(folder)
    return folder


@pytest.fixture
def model(plain, tmp_path):
    return Path(shutil.copytree(plain, tmp_path / "model"))


CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nPath('PLACE/ran').touch()\nclass Mine: ...\n"


def with_code(folder, place, file, **fields):
    """A file of a model that names a class in a file of its own; importing that file leaves a trace."""
    (folder / "mine.py").write_text(CODE.replace("PLACE", str(place)))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))


def test_the_code_of_a_model_does_not_run_and_nobody_is_asked(model, tmp_path, nobody_answers):
    names = {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}
    with_code(model, tmp_path, "config.json", model_type="of_this_test", auto_map=names)
    with pytest.raises(ConfigError, match="brings code of its own, which is never run; give a model whose") as e:
        load(str(model))
    assert "\n" not in str(e.value)
    assert not (tmp_path / "ran").exists()


def test_the_code_of_a_tokenizer_does_not_run(model, tmp_path, nobody_answers):
    """tokenizer.json says all, so transformers' own class reads it."""
    with_code(model, tmp_path, "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]})
    assert load(str(model)).encoder.tokenizer is not None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "model.pt"])
def test_weights_that_are_a_pickle_are_refused(model, tmp_path, name):
    (model / "model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "ran")}, model / name)
    with pytest.raises(ConfigError, match=rf"its weights in {re.escape(name)} alone, a pickle, which is not read") as error:
        load(str(model))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


CHAT = Conversation((Message("user", "hello"),))


def test_a_template_of_a_chat_cannot_reach_python():
    """It is rendered in a sandbox, by transformers."""
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ConfigError, match="template") as error:
        load("scratch:tiny", tokenizer={"kind": "words"}, texts=["a b"], options={"chat_template": template}).encoder.prompts([CHAT])
    assert "\n" not in str(error.value)


def test_a_package_that_carries_a_model_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "carrier_of_a_test" / "model").mkdir(parents=True)
    (tmp_path / "carrier_of_a_test" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert folders.model_folder("package:carrier_of_a_test/model") == tmp_path / "carrier_of_a_test" / "model"


def test_data_of_the_hub_runs_no_script(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(CODE.replace("PLACE", str(tmp_path)))
    with pytest.raises(ConfigError):
        data.rows({"path": str(tmp_path / "set")}, split="train")
    assert not (tmp_path / "ran").exists()


def test_state_of_a_checkpoint_is_read_without_unpickling(tmp_path):
    """`torch.save` writes a pickle; it is read by torch's reader of tensors, numbers and texts, which makes no other object."""
    torch.save({"bomb": Bomb(tmp_path / "ran")}, tmp_path / "state.pt")
    with pytest.raises(ConfigError, match=r"resume: .*state\.pt is not tensors, numbers and texts alone \(UnpicklingError: ") as error:
        checkpoint.read_state(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_every_test_that_the_page_names_exists():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 15
    for path, test in named:
        assert f"def {test}(" in (root / path).read_text(encoding="utf-8"), f"{path}::{test}"
    assert "docs/security.md" in (root / "README.md").read_text(encoding="utf-8")
