"""Word problems on SmolLM2: noise that keeps the answer, the split, the summary and the configurations; no model."""

import gzip
import json
import random
import re
import sys
from pathlib import Path

import pytest

from advalign import config, data
from advalign.rewards.exact_answer import grade

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import common  # noqa: E402
import prepare_smollm_rl as preparing  # noqa: E402
import smollm_rl_arms  # noqa: E402
import smollm_rl_summary as summary  # noqa: E402
import smollm_trl_grpo  # noqa: E402
import tables_smollm_rl  # noqa: E402
from smollm_rl_noise import DISTRACTORS, FAMILIES, KINDS, noisy, spelled, typos, words  # noqa: E402

QUESTION = "Joan found 70 seashells. She gave Sam 27 of them, worth $3.50. How many seashells does she have?"


def test_noise_by_hand():
    assert [spelled(n) for n in (0, 13, 20, 70, 99)] == ["zero", "thirteen", "twenty", "seventy", "ninety-nine"]
    assert words("27 boxes of 300 at 3.5 and 12, then 5.", random.Random(0)) == "twenty-seven boxes of 300 at 3.5 and twelve, then five."
    assert noisy(QUESTION, "upper", "a") == QUESTION.upper()
    assert noisy(QUESTION, "lines", "a").splitlines()[1] == "- She gave Sam 27 of them, worth $3.50."


def test_typos_change_four_words_and_no_number():
    changed = typos(QUESTION, random.Random(3))
    pairs = list(zip(QUESTION.split(), changed.split(), strict=True))
    assert sum(a != b for a, b in pairs) == 4
    assert re.findall(r"[0-9.]+[0-9]", changed) == ["70", "27", "3.50"]


def test_a_distractor_stands_before_the_question_and_training_has_others():
    test, train = (noisy(QUESTION, "distractor", "a", split) for split in ("test", "train"))
    assert test.startswith("Joan found 70 seashells. She gave Sam 27 of them, worth $3.50. ")
    assert test.endswith(" How many seashells does she have?")
    assert test != train
    assert not set(DISTRACTORS["test"]) & set(DISTRACTORS["train"])


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_a_function_of_kind_and_problem(kind):
    assert noisy(QUESTION, kind, "mawps-7") == noisy(QUESTION, kind, "mawps-7")


@pytest.fixture
def folder(tmp_path):
    """A data folder as $ADVALIGN_DATA has it: 60 problems of MAWPS; of ASDiv one of them again, one of its own, one of another type."""
    for name in ("math_mawps", "math_asdiv", "math_gsm8k"):
        (tmp_path / name).mkdir()
    colours, nouns = "red blue old new big tiny".split(), "cup pen hat box key map toy bag can pot".split()
    things = [a + b for a in colours for b in nouns]
    questions = [f"Ann has {40 + i} {x}s . She loses {2 + i} . How many {x}s are left ?" for i, x in enumerate(things)]
    rows = [{"question": question, "answer": 38.0} for question in questions]
    for name in ("singleop", "addsub"):
        (tmp_path / "math_mawps" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    own = {"question": "Tom cut 30 roses and gave away 12. How many roses has he?", "answer": "18", "solution_type": "Subtraction"}
    same = {"question": "Ann has 40 redcups. She loses 2. How many redcups are left?", "answer": "38", "solution_type": "Subtraction"}
    (tmp_path / "math_asdiv" / "all.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (same, own, own | {"solution_type": "GCD"})))
    easy = {"question": "Ann buys 3 pens for 7 dollars each. What does she pay?", "answer": "3*7=<<3*7=21>>21 #### 21", "final": "21"}
    with gzip.open(tmp_path / "math_gsm8k" / "train.jsonl.gz", "wt") as file:
        file.write(json.dumps(easy) + "\n" + json.dumps(easy | {"answer": "<<1>><<2>><<3>>"}) + "\n")
    return tmp_path


def test_files_hold_each_problem_once_and_its_noise(folder, tmp_path):
    output = tmp_path / "out"
    counts = preparing.prepare(folder, output)
    assert sum(counts[name] for name in preparing.SHARES) == 60  # both files of MAWPS hold the same problems
    assert counts["noisy"] == 2 * counts["train"]
    assert (counts["asdiv"], counts["gsm8k"]) == (1, 1)  # one equals a problem of MAWPS, one has another type; one has three calculations
    ids = {name: {json.loads(line)["id"] for line in (output / f"{name}.jsonl").read_text().splitlines()} for name in preparing.SHARES}
    assert sum(map(len, ids.values())) == len(set().union(*ids.values())) == 60
    for kind in (kind for kinds in FAMILIES.values() for kind in kinds):
        clean, noised = (list(data.examples(str(output / f"{name}.jsonl"))) for name in ("test", f"test_{kind}"))
        assert [e.id for e in clean] == [e.id for e in noised]
        assert all(a.prompt != b.prompt and a.answer == b.answer for a, b in zip(clean, noised, strict=True))
    assert all(grade(e, e.reference, tolerance=1e-6) == 1 for e in data.examples(str(output / "warm.jsonl")))


def outcome(arm, seed, test, noise, valid, valid_noise):
    """A cell with two problems; every kind of noise has the same outcomes."""
    kinds = [kind for family in FAMILIES.values() for kind in family]
    right = {"test": test, "valid": valid, "asdiv": test, "gsm8k": test}
    right |= {f"test_{kind}": noise for kind in kinds} | {f"valid_{kind}": valid_noise for kind in kinds}
    return {
        "arm": arm,
        "seed": seed,
        "right": right,
        "solved_of_8": [8, 0],
        "entropy": 1.0,
        "text_nll": [0.0],
        "training_seconds": 1.0,
        "tokens": {},
    }


def test_the_choice_reads_validation_alone_and_the_targets_test():
    cells = {
        "start": outcome("start", 0, [0, 0], [0, 0], [0, 0], [0, 0]),
        "grpo": outcome("grpo", 0, [1, 1], [0, 0], [1, 1], [0, 0]),
        "pgd": outcome("grpo_pgd", 0, [1, 1], [1, 0], [1, 0], [1, 0]),
        "consistency": outcome("grpo_consistency", 0, [1, 1], [1, 1], [1, 0], [0, 0]),
    }
    result = summary.summarise(cells)
    assert result["chosen"] == {"best": "grpo", "robust": "grpo_pgd"}  # the other one is better on test
    assert result["targets"]["gain"]["difference"] == 1.0
    assert (result["targets"]["robust"]["loss"], result["targets"]["robust"]["loss_grpo"]) == (0.5, 1.0)
    assert result["targets"]["robust"]["reached"]
    assert result["arms"]["grpo"]["noise"]["mean"] == 0.0
    assert "targets" not in summary.summarise({name: cells[name] for name in ("grpo", "pgd")})


def test_tables_show_every_arm_and_what_was_reached(tmp_path):
    cells = {f"{arm}-0": outcome(arm, 0, [1, 0], [1, 0], [1, 0], [1, 0]) for arm in tables_smollm_rl.NAMES}
    cells["start-0"] = outcome("start", 0, [0, 0], [0, 0], [0, 0], [0, 0])
    del cells["base-0"]["training_seconds"], cells["base-0"]["tokens"]
    head = {"command": "make it", "cpu_hours": 1.0, "missing": ["sft-1"], "versions": {"trl": "1.16.0"}}
    path = common.save(tmp_path / "results.json", head | {"cells": cells, "summary": summary.summarise(cells)})
    results = json.loads(path.read_text())
    table, short = tables_smollm_rl.smollm_rl(results), tables_smollm_rl.short(results)
    for name in tables_smollm_rl.NAMES.values():
        assert name in table
        assert f"| {name} | 0." in short
    assert "cells still missing: sft-1" in table
    assert "`grpo` minus `start` +0.500 [+0.000, +1.000], asked for +0.100: reached." in table


def run_of(side, rewards, test, seconds):
    numbers = {
        "rewards": rewards,
        "lengths": [10.0] * len(rewards),
        "cpu_seconds_per_draw": [seconds] * len(rewards),
        "peak_mb": 100.0,
        "answers": 64,
    }
    return {"what": "grpo", "side": side, "seed": 0, "right": {"test": test, "valid": test}} | numbers


def test_ours_beside_trl_is_paired_over_problems(tmp_path):
    runs = [run_of("advalign", [0.0, 0.1, 0.2, 0.5], [1, 1, 0], 2.0), run_of("trl", [0.0, 0.1, 0.2, 0.25], [1, 0, 0], 5.0)]
    both = smollm_trl_grpo.summarise(runs)
    assert both["ours_minus_trl"]["test"]["difference"] == pytest.approx(1 / 3)
    assert both["ours_minus_trl"]["last_quarter"]["difference"] == 0.25
    assert both["time_ratio"] == 2.5
    assert both["trl"]["sampled_tokens"]["mean"] == 64 * 40
    head = {"command": "make it", "missing": [], "versions": {"trl": "1.16.0"}}
    path = common.save(tmp_path / "results.json", head | {"summary": {"grpo": both}})
    assert "TRL takes 2.50 times as long per draw." in tables_smollm_rl.smollm_trl(json.loads(path.read_text()))
    assert "ours_minus_trl" not in smollm_trl_grpo.summarise(runs[:1])


def test_a_curve_goes_on_where_a_kill_ended_it(tmp_path):
    lines = [
        {"step": 1, "seconds": 2.0},
        {"step": 2, "seconds": 9.0},
        {"step": 2, "seconds": 3.0},
        {"step": 3, "seconds": 4.0, "reward": 0.5},
    ]
    path = tmp_path / "curve.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = smollm_rl_arms.Curve(path).rows()
    assert [(row["step"], row["cpu_seconds"]) for row in rows] == [(1, 2.0), (2, 5.0), (3, 9.0)]
    assert rows[-1]["reward"] == 0.5


def test_pass_at_k_by_hand():
    # c = 2 of 8: 1 - C(6, 4) / C(8, 4) = 1 - 15/70; c = 0 and c = 8 are 0 and 1
    assert summary.pass_at([2], 4) == pytest.approx(55 / 70)
    assert summary.pass_at([0, 8], 1) == 0.5


@pytest.mark.parametrize("name", ["grpo", "robust_grpo", "rollout_consistency"])
def test_configurations_build_and_state_their_sums(name, monkeypatch):
    header = (ROOT / f"configs/smollm2/{name}.yaml").read_text().split("learners:")[0]
    trainer = config.trainer(config.read(ROOT / f"configs/smollm2/{name}.yaml"))
    stages = dict(re.findall(r"^#   (warm|policy) +(policy loss = .*)$", header, re.MULTILINE))
    assert list(stages) == ["warm", "policy"]
    for line in stages.values():
        assert line in trainer.formula()
