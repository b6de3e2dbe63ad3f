"""`show` and `list` import nothing that a configuration names; a run refuses what it may not call before anything is loaded."""

import pytest

from advalign import config, plugins
from advalign.errors import ConfigError

RUN = """
learners: {policy: {model: "scratch:tiny?hidden_size=32", tokenizer: {kind: words, data: "task:constraints"}, max_length: 32}}
sources:
  chat: {kind: demos, data: "task:constraints", limit: 8, batch_size: 2}
  write: {kind: prompts, data: "task:constraints", batch_size: 2, group_size: 2, advantage: group, rewards: [{kind: function, fn: FN}]}
objectives:
  clone: {kind: sft, source: chat}
  learn: {kind: OBJECTIVE, source: write}
"""


@pytest.fixture
def run(tmp_path):
    """`run(objective, fn)` -> a configuration beside a module that says when it was imported."""
    (tmp_path / "lab_of_security.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "def nothing(completions, **columns):\n    return [0.0 for _ in completions]\n"
    )

    def write(objective="grpo", fn="lab_of_security.nothing"):
        path = tmp_path / "run.yaml"
        path.write_text(RUN.replace("OBJECTIVE", objective).replace("FN", fn))
        return path

    return write


def done(result):
    code, printed, errors = result
    assert code == 0, errors
    return printed


@pytest.mark.parametrize("objective", ["grpo", "lab_of_security.Missing"])
def test_show_imports_nothing_of_a_configuration(advalign, run, tmp_path, objective):
    """It shows what it can, also of a run whose objective it may not look at, and says what it left out."""
    printed = done(advalign("show", run(objective)))
    assert not (tmp_path / "ran").exists()
    shown = "policy loss = 1 sft(chat) + 1 grpo(write)" if objective == "grpo" else "objectives.clone: sft, source chat\n"
    assert shown in printed
    last = printed.splitlines()[-1]
    assert last.startswith("not imported: ")
    assert "lab_of_security.nothing" in last
    assert "--allow-imports" in last
    if objective != "grpo":
        assert f"objectives.learn: {objective}, source write (not imported)" in printed
        assert objective in last


def test_show_imports_with_allow_imports(advalign, run, tmp_path):
    printed = done(advalign("show", run(), "--allow-imports"))
    assert (tmp_path / "ran").exists()
    assert "not imported" not in printed
    code, _, errors = advalign("show", run("lab_of_security.Missing"), "--allow-imports")
    assert (code, "cannot import 'lab_of_security.Missing'" in errors) == (2, True)


def test_what_show_cannot_import_hides_no_mistake_elsewhere(advalign, run):
    path = run("lab_of_security.Missing")
    code, _, errors = advalign("show", path, "sources.chat.batch_size=many")
    assert (code, "sources.chat.batch_size" in errors) == (2, True)


def test_list_reads_no_configuration_and_imports_no_plugin(advalign, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    for group in plugins.GROUPS:
        done(advalign("list", group))


def test_a_run_refuses_what_is_no_reward_before_anything_is_loaded(run, monkeypatch):
    """Columns of the data named `args` and `shell` would have started a process (`fn: subprocess.Popen`)."""
    monkeypatch.setattr("advalign.training.build.load", lambda *a, **k: pytest.fail("a model was loaded"))
    for fn in ("subprocess.Popen", "os.system", "builtins.exec", "lab_of_security.Path"):
        with pytest.raises(ConfigError, match=r"sources\.write\.rewards\.0: rewards\.function\.fn: "):
            config.trainer(config.read(run(fn=fn)))
