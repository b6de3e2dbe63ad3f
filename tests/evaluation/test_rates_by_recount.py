"""Random rows of results: every rate, count and interval of a suite, counted again by a slow loop over results.jsonl."""

import json
import math
import random
from types import SimpleNamespace

import pytest

from advalign.evaluation.suites import rates
from advalign.evaluation.suites.checker import Judgement
from advalign.evaluation.suites.harness import Arm
from advalign.evaluation.suites.result import SuiteResult
from advalign.functional.escaping import json_line
from advalign.functional.intervals import wilson
from advalign.types import STATUSES, AttackResult

RIGHT = ("failed", "over_budget")
WRONG = ("succeeded", "skipped")
OPEN = ("undetermined", "not_tried", "timed_out", "error")


def random_result(seed):
    """What a suite may leave: any status that fits the clean answer, rows that are missing, several attempts, several arms."""
    rng = random.Random(seed)
    arms = [Arm(name=f"a{k}", attack=f"a{k}", draws=rng.random() < 0.3) for k in range(rng.randint(1, 4))]
    before, results = {}, []
    for i in range(rng.randint(1, 12)):
        kind = rng.choice("rrrrwu")
        before[str(i)] = Judgement(correct=kind != "w", undetermined=kind == "u", shown="x", metrics={})
        for arm in arms:
            if rng.random() < 0.08:
                continue
            statuses = {"r": [s for s in STATUSES if s != "skipped"], "w": ["skipped", "error", "not_tried"], "u": ["undetermined"]}[kind]
            status = rng.choice([*statuses, *(["failed"] * 3 if kind == "r" else [])])
            attempts = rng.choice([1, 1, 3])
            broken = rng.randint(1, attempts) if status == "succeeded" else 0
            row = {"queries": rng.choice([0, 1, 7, 30]), "seconds": rng.random(), "distance": rng.random()}
            results.append(
                AttackResult(example=str(i), attack=arm.name, status=status, attempts=attempts, broken=broken, note=status, **row)
            )
    prompts = dict.fromkeys(before, "a prompt")
    clean = {"accuracy": 0.5}
    return SuiteResult(
        head="policy", arms=arms, clean=clean, num_clean=len(before), failures=(), before=before, prompts=prompts, results=results
    )


def recount(lines, before, arms):
    """{arm: numbers} and the worst case, by loops over examples."""
    statuses = {}
    for line in lines:
        row = json.loads(line)
        statuses[row["attack"], row["example"]] = row["status"]
    attacks = {}
    for arm in arms:
        seen = [statuses.get((arm, name), "missing") for name in before]
        judged = [s for s in seen if s in RIGHT + WRONG]
        robust, tried = sum(s in RIGHT for s in judged), sum(s in (*RIGHT, "succeeded") for s in judged)
        attacks[arm] = SimpleNamespace(seen=seen, judged=len(judged), robust=robust, broken=seen.count("succeeded"), tried=tried)
    robust = known = 0
    for name, judgement in before.items():
        seen = [statuses.get((arm, name), "missing") for arm in arms]
        wrong = "succeeded" in seen or not (judgement.correct or judgement.undetermined)
        right = not wrong and not judgement.undetermined and all(s in RIGHT for s in seen)
        robust, known = robust + right, known + (right or wrong)
    return attacks, robust, known


def fraction(part, whole):
    return part / whole if whole else math.nan


@pytest.mark.parametrize("seed", range(25))
def test_every_number_is_that_of_a_slow_recount(seed, tmp_path):
    result = random_result(seed)
    if seed < 3:  # the plots of a report take most of the time
        result.save(tmp_path)
        written = json.loads((tmp_path / "summary.json").read_text())
    else:
        written = json.loads(json_line(result.summary()))
    number = lambda value: math.nan if value is None else value  # noqa: E731
    lines = [json.dumps({"attack": r.attack, "example": r.example, "status": r.status}) for r in result.results]
    attacks, robust, known = recount(lines, result.before, [arm.name for arm in result.arms])
    asked = len(result.before)
    for arm in result.arms:
        row, slow = written["attacks"][arm.name], attacks[arm.name]
        assert (row["num_asked"], row["num_judged"], row["missing"]) == (asked, slow.judged, slow.seen.count("missing"))
        counts = {status: row[status.replace("_", " ")] for status in STATUSES}
        assert counts == {status: slow.seen.count(status) for status in STATUSES}
        assert sum(counts.values()) + row["missing"] == row["num_asked"]
        assert sum(counts[s] for s in OPEN) + row["num_judged"] == row["num_asked"] - row["missing"]
        assert number(row["accuracy under attack"]) == pytest.approx(fraction(slow.robust, slow.judged), nan_ok=True)
        assert row["accuracy over asked"] == pytest.approx(slow.robust / asked)
        assert number(row["attack success"]) == pytest.approx(fraction(slow.broken, slow.tried), nan_ok=True)
        assert (row["low"], row["high"]) == pytest.approx(wilson(slow.robust, slow.judged))
    worst = written["worst_case"]
    assert (worst["num_asked"], worst["num_judged"]) == (asked, known)
    assert number(worst["accuracy"]) == pytest.approx(fraction(robust, known), nan_ok=True)
    assert worst["accuracy over asked"] == pytest.approx(robust / asked)
    assert (worst["low"], worst["high"]) == pytest.approx(wilson(robust, known))


@pytest.mark.parametrize("seed", range(25))
def test_rates_are_rates_and_worse_with_every_attack(seed):
    result = random_result(seed)
    rows = [result.row(arm) for arm in result.arms]
    worst = result.worst_case()
    for row in (*rows, worst):
        values = [
            row[name] for name in ("accuracy under attack", "accuracy", "accuracy over asked", "attack success", "clean") if name in row
        ]
        assert all(math.isnan(value) or 0 <= value <= 1 for value in values)
        assert 0 <= row["low"] <= row["high"] <= 1
        rate = row.get("accuracy under attack", row.get("accuracy"))
        assert math.isnan(rate) or row["low"] - 1e-12 <= rate <= row["high"] + 1e-12
        assert math.isnan(rate) or row["accuracy over asked"] <= rate + 1e-12
    assert worst["accuracy over asked"] <= min(row["accuracy over asked"] for row in rows) + 1e-12
    names = [arm.name for arm in result.arms]
    for number in range(1, len(names)):
        fewer = rates.worst_case(result.before, result.results, set(names[:number]))
        assert worst["accuracy over asked"] <= fewer["accuracy over asked"]
    curves = result.budget_curves()
    assert all(0 <= y <= 1 and later <= y for _, ys in curves.values() for y, later in zip(ys, [*ys[1:], 0.0], strict=True))


@pytest.mark.parametrize("seed", range(25))
def test_a_gate_opens_only_where_everything_was_shown(seed):
    """It opens at a bound if and only if the recounted rate reaches it, some example is established, and no row is open for an attack's
    sake, missing, or over the budget throughout."""
    result = random_result(seed)
    lines = [json.dumps({"attack": r.attack, "example": r.example, "status": r.status}) for r in result.results]
    attacks, robust, known = recount(lines, result.before, [arm.name for arm in result.arms])
    shown = known > 0 and not all(json.loads(line)["status"] in OPEN for line in lines)
    for slow in attacks.values():
        attacked = [s for s in slow.seen if s not in ("skipped", "missing")]
        shown &= not any(s in ("error", "not_tried", "timed_out", "missing") for s in slow.seen)
        shown &= not (attacked and all(s == "over_budget" for s in attacked))
    for below in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert (result.fails(below) == []) == (shown and robust / len(result.before) >= below)


def test_some_random_results_pass_and_most_do_not():
    """Else the test above would hold for a gate that is never open."""
    opened = [seed for seed in range(40) if not random_result(seed).fails(0.0)]
    assert 1 <= len(opened) <= 35
