"""The six commands as a person types them: what they print, what they leave behind, and one sentence for every mistake."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers import chats
from helpers.victims import sentences

from advalign import load, plugins
from advalign.metrics.run_log import read

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

SMALL = """
learners:
  policy: {model: "scratch:tiny?hidden_size=32", tokenizer: {kind: words, data: "task:constraints"}, max_length: 32, learning_rate: 1.0e-3}
  discriminator:
    {model: "scratch:encoder-tiny?hidden_size=32", head: score, tokenizer: {kind: words, data: "task:constraints"}, max_length: 32}
sources:
  chat:     {kind: demos, data: "task:constraints", limit: 40, batch_size: 16}
  write:    {kind: prompts, data: "task:constraints", batch_size: 16, sampling: {max_new_tokens: 6}, advantage: {kind: group, scale: none},
             rewards: [{kind: discriminator, learner: discriminator}, length]}
  contrast: {kind: contrast, real: chat, sampled: write, perturb: constraints}
adversaries:
  pgd: {kind: pgd, radius: 0.1, steps: 2}
objectives:
  policy: {kind: grpo, source: write}
  robust: {kind: sft, source: chat, view: pgd, coef: 0.5}
  discriminator: {kind: discriminate, source: contrast}
evaluations:
  held: {data: "task:constraints", number: 50, sampling: {max_new_tokens: 6}}
args: {max_steps: 50, eval_steps: 25}
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def done(result):
    code, printed, errors = result
    assert code == 0, errors
    return printed


# ---------------------------------------------------------------------------------------------------- list and show


def test_show_says_what_a_step_costs(advalign, small):
    printed = " ".join(done(advalign("show", small)).split())
    assert "a step of " in printed
    assert "peak memory about" in printed


def test_show_prints_the_formula_of_a_model_that_cannot_be_reached(advalign, small, tmp_path):
    printed = " ".join(done(advalign("show", small, f"learners.discriminator.model={tmp_path}/nothing")).split())
    assert "policy loss = " in printed
    assert "the cost of a step is unknown: model: " in printed


def test_list_without_a_group_prints_the_groups(advalign):
    lines = done(advalign("list")).splitlines()
    assert [line.split()[0] for line in lines] == list(plugins.GROUPS)
    assert all(len(line.split(None, 1)[1]) > 10 for line in lines)


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_list_prints_one_line_per_file(advalign, group):
    lines = done(advalign("list", group)).splitlines()
    assert [line.split()[0] for line in lines] == plugins.kinds(group)
    files = [p.stem for p in (Path(plugins.__file__).parent / group).glob("*.py") if not p.stem.startswith("_")]
    assert sorted(files) == [line.split()[0] for line in lines]
    assert all(len(line.split(None, 1)[1]) > 10 for line in lines)  # and the formula


def test_show_prints_the_sum_the_threat_and_the_forwards_and_loads_nothing(advalign, small, monkeypatch):
    monkeypatch.setattr("advalign.training.build.load", lambda *a, **k: pytest.fail("show loaded a model"))
    printed = done(advalign("show", small, "objectives.robust.coef=0.25", "learners.discriminator.updates=4"))
    assert "policy loss = 1 grpo(write) + 0.25 sft(chat | pgd)" in printed
    assert "pgd  L2 ball per token at embedding, radius 0.1 x mean embedding norm, all tokens, 2 steps, dropout off" in printed
    # One clean forward, two steps and the final one of the attack; apart: 1 for grpo, 2 + 1 for sft | pgd.
    assert "forwards per micro-batch: 1 clean + 2 inner + 1 adversarial      (run separately: 4)" in printed
    assert "discriminator loss = 1 discriminate(contrast)    4 updates per step" in printed
    assert "source write: prompts, batch_size 16, group_size 8" in printed


@pytest.mark.parametrize("config", CONFIGS, ids=[c.stem for c in CONFIGS])
def test_every_configuration_of_the_repository_shows_its_formula(advalign, config):
    code, printed, errors = advalign("show", config)
    if code and "environment variable" in errors:
        pytest.skip(errors.strip())  # its data is named by a variable without a default
    assert code == 0, errors
    assert re.search(r"^\w+ loss = \d", printed, re.MULTILINE)
    assert re.search(r"forwards per micro-batch: \d", printed)


# ------------------------------------------------------------------------------------------------------------ train


def test_train_smoke_runs_small_and_leaves_the_real_folder_alone(advalign, small, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoint-40").mkdir(parents=True)
    (out / "checkpoint-40" / "state.pt").write_bytes(b"hours of work")
    printed = done(advalign("train", small, "--smoke", f"args.output_dir={out}"))
    assert printed.startswith("policy loss = 1 grpo(write) + 0.5 sft(chat | pgd)")
    assert "discriminator/accuracy" in printed
    assert "step 2" in printed
    assert (out / "checkpoint-40" / "state.pt").read_bytes() == b"hours of work"
    assert [entry["step"] for entry in read(tmp_path / "run-smoke")] == [1, 2]
    assert load(str(tmp_path / "run-smoke" / "policy")).head == "policy"
    assert load(str(tmp_path / "run-smoke" / "discriminator")).head == "score"


def test_resume_continues_from_the_newest_checkpoint(advalign, small, tmp_path):
    short = ["sources.write.batch_size=2", "sources.write.group_size=2", "args.eval_steps=0", f"args.output_dir={tmp_path / 'run'}"]
    done(advalign("train", small, *short, "args.save_steps=1", "args.max_steps=2"))
    first = (tmp_path / "run" / "log.jsonl").read_text()
    done(advalign("train", small, "--resume", *short, "args.max_steps=3"))
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert log.startswith(first)
    assert [json.loads(line)["step"] for line in log.splitlines()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["objectives.robsut.coef=0.3"],
            "override objectives.robsut.coef: no entry of objectives 'robsut'. Known: discriminator, policy, ro",
        ),
        (["objective.robust.coef=0.3"], "override objective.robust.coef: no section 'objective'."),
        (["objectives.robust.cof=0.3"], "objectives.robust: no field of SFT 'cof'."),
        (["objectives.robust.coef"], "override 'objectives.robust.coef': write it as path=value"),
        (["objectives.robust.coef=much"], "objectives.robust.coef: 'much' given; a finite number is expected."),
        (["objectives.robust.kind=sftt"], "objectives.robust: no kind of objectives 'sftt'."),
        (["objectives.robust.view=pdg"], "objectives.robust.view: no view (clean, an adversary or a frozen copy) 'pdg'."),
        (["adversaries.pgd.radius=[1,2]"], "adversaries.pgd.radius: [1, 2] given; a finite number of at least 0 is expected."),
        (["args.max_step=3"], "args: no field of TrainingArguments 'max_step'."),
        (["learners.discriminator.head=scor", "args.max_steps=1"], "learners.discriminator.head: no head 'scor'."),
    ],
)
def test_a_wrong_override_is_one_sentence_and_exit_code_two(advalign, small, arguments, sentence):
    code, printed, errors = advalign("train", small, *arguments)
    assert code == 2
    assert errors.startswith(f"ConfigError: {sentence}"), errors
    assert len(errors.splitlines()) == 1
    assert "Traceback" not in errors + printed
    if "Known" in errors:
        assert "Did you mean" in errors


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("objectivs: {}", ".*small.yaml, line 1: no section 'objectivs'. Known: .* Did you mean 'objectives'?"),
        ("objectives: [sft]", "objectives: \\['sft'\\] given; a mapping of names is expected."),
        ("objectives: {a: {source: chat}}", "objectives.a: no 'kind' given; known kinds: .*"),
        ("sources: {a: {kind: demos}}", "sources.a: Demos needs data."),
        ("- sft", ".*small.yaml, line 1: a list given; a configuration is a mapping of learners, sources, .*"),
        ("a: [", ".*small.yaml, line 2, column 1: this is not YAML: a bracket or a quote is not closed."),
        (
            'args: {seed: "${b}"}',
            ".*small.yaml, line 1: args.seed: \\${b}: no entry 'b'. Known: args. An environment variable is \\${oc.env:b}.",
        ),
        ("", ".*small.yaml: the file is empty; a configuration is a mapping of learners, .*"),
        ("args: {}\nobjectives:\n", ".*small.yaml, line 2: the section 'objectives' is empty; give it entries, or leave it out."),
        ("args: {}\nobjectives:\n  a:\n", ".*small.yaml, line 3: objectives.a is empty; give it fields, or leave it out."),
        ("args: {}", "configuration: no section 'sources' is given; a run needs learners, sources and objectives."),
    ],
)
def test_a_wrong_file_is_one_sentence(advalign, small, text, sentence):
    small.write_text(text)
    code, _, errors = advalign("show", small)
    assert code == 2, errors
    assert re.match(f"ConfigError: {sentence}", errors), errors
    assert len(errors.splitlines()) == 1


def test_a_file_that_is_not_there_and_a_group_that_is_not_there(advalign, tmp_path):
    assert advalign("train", tmp_path / "absent.yaml")[::2] == (2, f"ConfigError: {tmp_path / 'absent.yaml'}: no such file.\n")
    code, _, errors = advalign("list", "objective")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "Did you mean 'objectives'?" in errors


# --------------------------------------------------------------------------------------------------- eval and attack


def test_eval_prints_markdown_and_writes_a_report(advalign, victim, tmp_path):
    rows = "".join(json.dumps({"text": e.prompt, "label": e.label, "id": e.id}) + "\n" for e in sentences(20, seed=5))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "suite.yaml").write_text(
        f"data: {{path: {tmp_path / 'rows.jsonl'}}}\nexamples: 6\nradii: [0.01, 3.0]\n"
        "attacks: {pgd: {kind: embedding, restarts: 1, adversary: {kind: pgd, steps: 3}}}\n"
    )
    printed = done(advalign("eval", victim, "--suite", tmp_path / "suite.yaml", "--output", tmp_path / "out"))
    assert "pgd@0.01" in printed
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(results) == 2 * 6
    # A radius of three mean embedding norms breaks what a hundredth of one does not.
    broken = {name: sum(r["status"] == "succeeded" for r in results if r["attack"] == name) for name in ("pgd@0.01", "pgd@3")}
    assert broken == {"pgd@0.01": 0, "pgd@3": 6}
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_eval_and_attack_take_a_run_and_one_of_its_learners(advalign, victim):
    text = "the movie was superb and fine"
    options = ["--label", "1", "restarts=1", "adversary.kind=pgd", "adversary.radius=3.0", "adversary.steps=3"]
    printed = done(advalign("attack", victim.parent, text, *options, "--learner", "sentiment"))
    assert "| embedding | 1.000 | 0 |" in printed  # clean accuracy, accuracy under attack
    assert "* embedding: the movie was superb and fine (1 → 0)" in printed
    code, _, errors = advalign("attack", victim.parent, text, "--learner", "sentimet")
    assert code == 2
    assert errors.endswith("no learner 'sentimet'. Known: sentiment. Did you mean 'sentiment'?\n")


def test_attack_takes_a_system_message(advalign, tmp_path):
    network = chats.policy()
    network.model.save_pretrained(tmp_path)
    network.encoder.tokenizer.save_pretrained(tmp_path)
    options = ("--kind", "function", "fn=helpers.chats.shout", "--target", "red", "--device", "cpu")
    printed = done(advalign("attack", tmp_path, "say a color", *options, "--system", "be polite"))
    assert "| function | 1.000" in printed
    assert chats.HEARD == [["system", "user"]]


def test_attack_takes_the_name_of_a_class(advalign, victim, tmp_path):
    from advalign.models import load

    network = load(str(victim))
    network.name_classes(["negative", "positive"])
    network.save_pretrained(tmp_path / "named")
    options = ["restarts=1", "adversary.kind=pgd", "adversary.radius=3.0", "adversary.steps=3"]
    printed = done(advalign("attack", tmp_path / "named", "the movie was superb and fine", "--label", "Positive", *options))
    assert "(positive → negative)" in printed
    printed = done(advalign("attack", tmp_path / "named", "the movie was superb and fine", "--label", "1", *options))
    assert "(positive → negative)" in printed


def test_eval_takes_columns_and_classes_by_their_names(advalign, victim, tmp_path):
    from advalign.models import load

    network = load(str(victim))
    network.name_classes(["negative", "positive"])
    network.save_pretrained(tmp_path / "named")
    rows = [f"{e.prompt},{('negative', 'positive')[e.label]}\n" for e in sentences(6, seed=5)]
    (tmp_path / "reviews.csv").write_text("review,sentiment\n" + "".join(rows))
    (tmp_path / "suite.yaml").write_text("data: nowhere.jsonl\nexamples: 2\nattacks: {w: {kind: words, style: deepwordbug}}\n")
    options = ["--suite", tmp_path / "suite.yaml", "--data", tmp_path / "reviews.csv"]
    columns = ["--column", "prompt=review", "--column", "label=sentiment"]
    printed = done(advalign("eval", tmp_path / "named", *options, *columns))
    assert "| negative | 3 | 1.000 |" in printed
    assert "clean" in done(advalign("compare", tmp_path / "named", tmp_path / "named", *options, *columns))
    for given, sentence in (
        ([], "row 2 has no column 'label' with its label, only review, sentiment; name it with columns"),
        (["--column", "label"], "--column: 'label' given; write it as field=column, for example label=sentiment."),
        (["--column", "label=stars", "--column", "prompt=review"], "row 2 has no column 'stars'"),
    ):
        code, _, errors = advalign("eval", tmp_path / "named", *options, *given)
        assert (code, sentence in errors) == (2, True), errors


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "attack: no --label was given, and the model is a classifier; give the right class"),
        (["--label", "joy"], "has the label 'joy', and the model's classes are called LABEL_0, LABEL_1"),
        (["--label", "2"], "has label 2, and the model knows 2 classes, 0 to 1"),
        (["--kind", "embeding"], "no kind of attacks 'embeding'"),
        (["--label", "1", "restart=2"], "attack: no field of Embedding 'restart'"),
        (["--label", "1", "restarts=many"], "attack.restarts: 'many' given; a whole number of at least 1 is expected."),
        (["--label", "1", "restarts"], "'restarts': write it as path=value."),
        (["--label", "1", "--device", "nowhere"], "--device: 'nowhere' cannot be used here ("),
    ],
)
def test_a_wrong_attack_is_one_sentence(advalign, victim, options, sentence):
    code, _, errors = advalign("attack", victim, "the movie was superb", *options)
    assert code == 2
    assert sentence in errors
    assert len(errors.splitlines()) == 1


# ----------------------------------------------------------------------------------------------- from the outside

OUTSIDE = '''
"""Label smoothing of demonstrations, from somebody else's laboratory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import weights
from advalign.interfaces import Objective
from advalign.types import DemoRows, Losses, Outputs, Rows, Weights

__all__ = ["Scaled"]


@dataclass(frozen=True, kw_only=True)
class Scaled(Objective):
    """-factor log p(y_t | y_<t)."""

    factor: float = 1.0

    row_types: ClassVar[tuple[type[Rows], ...]] = (DemoRows,)

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"logprobs"})}

    def weights(self, rows: DemoRows) -> Weights:
        return weights.token(rows.tokens.target)

    def losses(self, rows: DemoRows, views: Mapping[str, Outputs]) -> Losses:
        logprobs = views[self.view].logprobs
        return Losses(-self.factor * logprobs, {"nll": (-logprobs.detach(), rows.tokens.target.double())})
'''


def test_an_objective_from_outside_the_package_by_a_dotted_kind(advalign, tmp_path, monkeypatch):
    lab = tmp_path / "lab_of_test_cli"
    lab.mkdir()
    (lab / "__init__.py").write_text("")
    (lab / "scaled.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.yaml").write_text(f"""
learners: {{policy: {{model: "scratch:tiny?hidden_size=32", tokenizer: {{kind: words, data: "task:constraints"}}, max_length: 32}}}}
sources: {{chat: {{kind: demos, data: "task:constraints", limit: 8, batch_size: 4}}}}
adversaries: {{pgd: {{kind: pgd, steps: 1}}}}
objectives:
  plain: {{kind: sft, source: chat}}
  mine: {{kind: lab_of_test_cli.scaled, source: chat, factor: 3.0, coef: 0.5}}
  attacked: {{kind: lab_of_test_cli.scaled.Scaled, source: chat, view: pgd}}
args: {{max_steps: 1, output_dir: {tmp_path / "out"}}}
""")
    printed = done(advalign("train", tmp_path / "mine.yaml"))
    assert "0.5 lab_of_test_cli.scaled.Scaled(chat) + 1 lab_of_test_cli.scaled.Scaled(chat | pgd)" in printed
    entry = read(tmp_path / "out")[0]
    assert entry["mine/loss"] == pytest.approx(3 * entry["plain/loss"], rel=1e-6)
    assert entry["attacked/loss"] > entry["plain/loss"]
    assert torch.isfinite(torch.tensor(entry["attacked/nll"]))
