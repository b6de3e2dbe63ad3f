"""The headline experiment: what counts as solved, where its stages end, how the best sequence is chosen, and the comparison with it."""

import sys
from pathlib import Path

import pytest

from advalign import config
from advalign.evaluation.reports import plots as drawing
from advalign.types import Example

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import smollm_headline_measure as measure  # noqa: E402
import smollm_headline_summary as summing  # noqa: E402
import smollm_peers_dpo as dpo  # noqa: E402
import smollm_peers_gcg as gcg  # noqa: E402
import tables_smollm_headline as tables  # noqa: E402
from prepare_smollm_headline import FORM, asked, has_form, right  # noqa: E402
from smollm_headline import ARMS, CONFIG, cells, stages  # noqa: E402


@pytest.mark.parametrize(
    ("text", "form", "is_right"),
    [
        ("70 - 27 = 43. The answer is 43.", True, True),
        ("70 - 27 = 43. The answer is 34.", True, False),
        ("43", False, True),
        ("70 - 27 = 43.\nThe answer is 43.", False, True),
        ("70 - 27 = 43. The answer is 43. Banana", False, True),
        ("banana", False, False),
    ],
)
def test_form_and_answer_are_two_questions(text, form, is_right):
    assert (has_form(text), right("43", text)) == (form, is_right)


def test_the_worked_response_has_the_form_that_the_reward_of_the_configuration_asks_for():
    row = asked(
        {"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "q"}], "response": "3 * 4 = 12", "answer": "12"}
    )
    assert row["response"] == "3 * 4 = 12. The answer is 12."
    assert has_form(row["response"])
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    (pattern,) = [r["pattern"] for r in config.read(ROOT / CONFIG)["sources"]["problems"]["rewards"] if r["kind"] == "format"]
    assert pattern == FORM.pattern


def test_every_arm_ends_at_the_same_tokens_and_a_sequence_changes_half_way():
    """From 10 to 30 tokens: half of what lies between is at 20."""
    assert [s["tokens"] for s in stages("adv_then_rl", 10, 30)] == [20, 30]
    assert [s["objectives"] for s in stages("adv_then_rl", 10, 30)] == [["robust"], ["policy"]]
    assert stages("start", 10, 30) == []
    for arm in ARMS:
        assert stages(arm, 10, 30)[-1]["tokens"] == 30
    turns = stages("alternating", 10, 30)
    assert [s["objectives"] for s in turns[:3]] == [["robust"], ["policy"], ["robust"]]
    assert {s["steps"] for s in turns} == {1}
    assert len({s["name"] for s in turns}) == len(turns)
    assert set(cells()) == {"base", *(f"{arm}-{seed}" for arm in ("start", *ARMS) for seed in (0, 1))}


def test_an_attack_of_the_text_is_the_same_for_every_model():
    texts = [
        measure.worse(None, "Tom has 3 pens. How many?", None, kind="distractor", example=Example(prompt="q", id="a")) for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert texts[0][0].endswith("How many?")


def run(solved, valid=None, cosine=()):
    """A cell in which every attack leaves the first problem alone."""
    first = [1] + [0] * (len(solved) - 1)
    rows = dict.fromkeys(("right", "form", "solved"), solved) | dict.fromkeys(measure.ATTACKS, first)
    other = rows | {"solved": valid or solved}
    curves = {"curves": {"cosine": list(cosine)}} if cosine else {}
    return {"test": rows, "valid": other, "answer_nll": 1.0, "text_nll": 3.0, **curves}


def test_the_best_sequence_is_chosen_on_validation_and_compared_on_test():
    """On test alternating is best; on validation rl_then_adv is. mixed solves 1 and 1/2 of two problems, rl_then_adv 1 and 0."""
    done = {
        "base": run([0, 0]),
        "mixed-0": run([1, 1], cosine=(0.0, 0.1, 0.3)),
        "mixed-1": run([1, 0], cosine=(0.2, 0.1, 0.5)),
        **{f"alternating-{seed}": run([1, 1], valid=[0, 0]) for seed in (0, 1)},
        **{f"rl_then_adv-{seed}": run([1, 0], valid=[1, 1]) for seed in (0, 1)},
        **{f"adv_then_rl-{seed}": run([0, 0], valid=[1, 0]) for seed in (0, 1)},
    }
    content = summing.summary(done)
    assert content["best_sequence"] == "rl_then_adv"
    gap = content["mixed_minus"]["rl_then_adv"]["solved + robust"]
    assert gap["difference"] == pytest.approx(0.25)  # (0 + 1/2) / 2; robust is the same
    assert content["target"]["reached"] is False  # one problem of two is equal, so the interval begins at 0
    assert content["arms"]["mixed"]["test"]["robust"] == pytest.approx(0.5)
    assert content["arms"]["mixed"]["cosine"]["first third"] == pytest.approx(0.1)
    assert content["arms"]["mixed"]["cosine"]["last third"] == pytest.approx(0.4)
    head = {"summary": content, "missing": ["sft-0"], "cpu_hours": 1.0}
    assert "not reached" in tables.headline(head)
    assert "Not finished: sft-0." in tables.headline(head)
    assert "| mixed in one step | 0.750 | 0.500 | 0.500 | — |" in tables.short(head)
    assert set(tables.curves(head, drawing)) == {"smollm_headline", "smollm_headline_cosine"}


def test_a_file_without_a_summary_has_a_table_too():
    empty = {"summary": None, "missing": ["sft-0"], "cpu_hours": 0.0}
    assert "Not finished: sft-0." in tables.headline(empty)
    assert tables.curves(empty, drawing) == {}
    assert "not measured yet" in tables.peers_dpo(empty)
    assert "not measured yet" in tables.peers_gcg(empty)


def test_the_sides_of_dpo_are_compared_at_every_step_and_times_without_the_first():
    """Losses apart by 0.1 in step 2; medians over both runs of (2, 4, 3, 5) and (20, 40, 30, 50); the first step takes 100."""
    ours = [{"loss": [1.0, 2.0], "margins": [0, 0], "logps": [0, 0], "seconds": [100, *s], "peak_mb": 2.0} for s in ((2, 4), (3, 5))]
    theirs = [{**run, "loss": [1.0, 2.1], "seconds": [100, *(10 * s for s in run["seconds"][1:])], "peak_mb": 3.0} for run in ours]
    result = dpo.compared(ours, theirs)
    assert result["largest_difference"]["loss"] == pytest.approx(0.1)
    assert result["seconds_per_step"] == {"advalign": 3.5, "trl": 35.0, "ratio": 10.0}
    assert result["peak_mb"]["ratio"] == 1.5


def test_searches_are_compared_by_loss_and_by_seconds_of_a_step():
    """65 forwards a step: 130 forwards in 4 s are 2 s a step, in 12 s they are 6."""
    row = {"loss": 1.0, "forwards": 130, "search_seconds": 4.0}
    runs = {"tokens": [row, row], "gcg": [row, row], "nanogcg": [{**row, "loss": 1.5, "search_seconds": 12.0}] * 2}
    searches = gcg.compared(runs)["searches"]
    assert searches["tokens"]["seconds_per_step"] == pytest.approx(2.0)
    assert searches["gcg"]["ratio"] == pytest.approx(3.0)
    assert searches["gcg"]["minus_nanogcg"]["difference"] == pytest.approx(-0.5)


def test_nothing_is_compared_before_the_sequences_are_there():
    assert "target" not in summing.summary({"base": run([0, 0]), "mixed-0": run([1, 1])})
