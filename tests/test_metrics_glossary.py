"""Every number that is logged has its line in docs/metrics.md, and every line is logged by something."""

import re

import pytest
import yaml
from helpers.glossary import ENTRIES, PAGE, ROOT, SLOTS, unknown
from helpers.objectives import TABLE, build, outputs

from advalign import config, plugins
from advalign.training.metric_names import stage_metrics

# Sources with every option that logs, all kinds of rows, an attacked term and one learner of each head.
RUN = """
learners:
  policy: {model: "scratch:tiny-gpt2?n_embd=32", tokenizer: &words {kind: words, data: "task:constraints"}, max_length: 32, epochs: 2}
  critic: {model: "scratch:tiny-gpt2?n_embd=32", tokenizer: *words, max_length: 32, head: value}
  discriminator: {model: "scratch:encoder-tiny?hidden_size=32", tokenizer: *words, max_length: 32, head: score}
sources:
  write:
    kind: prompts
    data: &task "task:constraints"
    rewards: [exact_answer, {kind: discriminator, learner: discriminator}, {kind: length, max_length: 6, buffer: 2, weight: 0.1}]
    advantage: group
    group_size: &four 4
    batch_size: *four
    sampling: &short {max_new_tokens: 6}
    dynamic: {max_batches: 2}
    kl: {coef: 0.01}
    curriculum: {}
    demonstrations: {number: 1, gate: 0.5}
  play:
    kind: prompts
    data: *task
    rewards: [{kind: discriminator, learner: discriminator}]
    advantage: gae
    group_size: 2
    batch_size: *four
    sampling: *short
  again: {kind: replay, source: write, advantage: group, batch_size: 2, include_current: true}
  best: {kind: rejection, data: *task, rewards: [exact_answer], group_size: 2, batch_size: 2, collect: 2, sampling: *short}
  chat: {kind: demos, data: *task, batch_size: *four, limit: 12}
  taste: {kind: pairs, data: *task, batch_size: 2, limit: 6}
  contrast: {kind: contrast, real: chat, sampled: play, perturb: constraints, batch_size: *four, lengths: 0.9, corrupt: [drop]}
  own: {kind: self_vs_real, real: chat, batch_size: 2, sampling: *short}
adversaries:
  pgd: {kind: pgd, radius: 0.1, steps: 1}
frozen: {reference: {learner: policy}}
objectives:
  rl: {kind: dapo, source: write}
  ppo: {kind: ppo, source: play}
  old: {kind: cispo, source: again}
  near: {kind: kl, source: play, coef: 0.1}
  wide: {kind: entropy, source: play, coef: 0.01}
  clone: {kind: sft, source: best}
  robust: {kind: sft, source: chat, view: pgd}
  prefer: {kind: dpo, source: taste}
  value: {kind: value, source: play}
  discriminator: {kind: discriminate, learner: discriminator, source: contrast}
  spin: {kind: dpo, source: own}
gates: {discriminator: {metric: discriminator/accuracy, above: 0.99}}
evaluations:
  heldout: &held {data: *task, number: 3, samples: 3, sampling: *short, verifier: {kind: discriminator, learner: discriminator}}
  ood: {<<: *held, split: ood}
  judged: &judged {kind: discriminator, data: *task, number: 4, perturb: constraints}
  probed: {<<: *judged, sampler: policy, sampling: *short, probe: {learning_rate: 1.0e-3, steps: 2}}
args: {max_steps: 2, eval_steps: 1, measure_every: 1}
"""


@pytest.fixture(scope="module")
def run():
    """Every name that the run logged, and the names in its configuration."""
    described = yaml.safe_load(RUN)
    trainer = config.trainer(described)
    history = trainer.train(progress=False)
    sections = ("objectives", "sources", "learners", "adversaries", "evaluations")
    return {n for entry in history for n in entry}, {slot: list(described[s]) for slot, s in zip(SLOTS, sections, strict=True)}


def test_every_logged_name_is_in_the_glossary(run):
    logged, names = run
    assert len(logged) > 120
    assert unknown(logged, names) == []


def test_every_logged_name_was_expected_from_the_configuration(run):
    trainer = config.trainer(yaml.safe_load(RUN))
    metrics = stage_metrics(trainer.run_spec, trainer.run_spec.stages[0], trainer.evaluations, trainer.args)
    assert [name for name in run[0] - {"step", "stage"} if not metrics.may_hold(name)] == []


def test_a_name_that_is_not_there_is_found_out(run):
    _, names = run
    wrong = ["rl/clip_frac", "policy/clip_fraction", "write/rewards/exactanswer/mean", "heldout/pass@many", "pgd/loss", "other/reward"]
    assert unknown([*wrong, "rl/clip_fraction", "heldout/pass@16"], names) == sorted(wrong)


@pytest.mark.parametrize("objective", TABLE, ids=str)
def test_every_metric_of_every_objective_is_in_the_glossary_or_on_its_page(objective):
    rows, (views, _) = build(objective), outputs(objective)
    kind = plugins.kind_of(type(objective))
    page = ROOT / "docs" / "algorithms" / f"{kind}.md"
    on_page = set(re.findall(r"^\| `([^`]+)`", page.read_text(encoding="utf-8"), re.MULTILINE)) if page.is_file() else set()
    metrics = [name for name in objective.losses(rows, views).metrics if name not in on_page]
    assert unknown([f"here/{name}" for name in metrics], dict.fromkeys(SLOTS, ()) | {"objective": ["here"]}) == []


def test_every_entry_is_written_somewhere_in_the_package():
    package = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "advalign").rglob("*.py"))
    assert len(ENTRIES) > 80
    for entry in ENTRIES:
        for part in re.sub(r"<[a-z]+>", "/", entry).replace("~", "/").split("/"):
            assert part in package, f"docs/metrics.md: nothing logs '{entry}'"


def test_every_line_has_all_its_cells():
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    heads = [line for line in rows if line.startswith("| name")]
    assert len(heads) == 5
    for line in rows:
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        assert cells in (5, 6), line
